"""Stage one, prompt warmup: the loop over batches of prompts, from the base model to one that answers them.

The step is GRPO's or that of its limit (`step.py`), or supervised (`supervised.py`).
"""

import time
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prorank_jax.config import ExpectedConfig, GrpoConfig, PolicyConfig, RunConfig, SupervisedConfig
from prorank_jax.data.layout import Layout, widest
from prorank_jax.data.loader import PairBatch, pair_batch
from prorank_jax.data.stream import Pairs, batches
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import init_learnt, merged
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.divergence import Divergence
from prorank_jax.runtime.mesh import abstract, check_rows, largest, own_rows, split_rows
from prorank_jax.runtime.metrics import MetricsWriter
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.runtime.room import Room
from prorank_jax.runtime.training import TrainState, Watch, ended, open_state
from prorank_jax.seeds import key
from prorank_jax.storage import Place
from prorank_jax.warmup import supervised
from prorank_jax.warmup.development import BEST_BY, WarmupDevelopment, has_collapsed
from prorank_jax.warmup.progress import REMEDY, FlatReward, completion_rows, describe
from prorank_jax.warmup.reading import first_with_room, layouts_for
from prorank_jax.warmup.rewards import AnswerTokens, load_rewards
from prorank_jax.warmup.step import Step, chooses_prompts, make_step

HEADLINE = ("reward", "format_rate", "accuracy", "kl", BEST_BY)
COMPLETIONS = "completions.jsonl"
_SAMPLE = 16
"""Steps whose prompts the layouts of the batches are chosen by."""
_COLLAPSED = -1.0
"""The measure of a checkpoint that is not a result, and after which the stage does not continue."""


class WarmedUp(NamedTuple):
    """What the stage gives: parameters, and the step that they are of."""

    params: Params
    step: int


def check_warmup(config: PolicyConfig | SupervisedConfig, longest: int, positions: int, mesh: Mesh) -> None:
    """Refuses what could not be trained, before any work is done.

    Args:
      longest: tokens of a prompt at most.
      positions: of the model.

    Raises:
      InputError: a batch that does not divide over devices and parts, prompts whose completions the model has no
        positions for, a reward that is not to be had.
    """
    rows = config.prompts_per_step
    check_rows(mesh, "warmup.prompts_per_step", rows, config.accumulation if isinstance(config, PolicyConfig) else 1)
    if isinstance(config, ExpectedConfig):
        load_rewards(config.rewards, 2, 2)
    if isinstance(config, GrpoConfig):
        load_rewards(config.rewards, config.group_size, config.max_new_tokens)
        new = config.max_new_tokens
        if longest > positions - new:
            raise InputError(
                f"config: prompt.max_length={longest}: the model has {positions} positions, of which "
                f"warmup.max_new_tokens takes {new}; use at most {positions - new}"
            )


def train_warmup(
    run: RunConfig,
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    pairs: Pairs,
    mesh: Mesh,
    folder: Place,
    preemption: Preemption,
    development: WarmupDevelopment | None = None,
) -> WarmedUp:
    """Trains `params` through the stage and returns the result; goes on from the newest checkpoint in `folder`.

    The arrays of `params` are used up, unless the stage itself reads them to its end.

    Args:
      development: held-out queries, where `warmup.dev` names some; a model that has settled on one answer there ends
        the stage.

    Raises:
      InputError: a metric is not finite; the run stops at that step, behind its last checkpoint.
      Preempted: the run was asked to end, and did so behind a checkpoint.
    """
    config = run.warmup
    assert config is not None
    grpo = config if isinstance(config, GrpoConfig) else None
    updates = config.iterations if isinstance(config, PolicyConfig) else 1
    optimizer = make_optimizer(config.optimizer, config.steps * updates)
    room = Room(preemption)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, room)
    learnt = init_learnt(config.lora, decoder.config, params, key(run.seed, "warmup/adapters"))
    base = params if config.reads_base else None
    state, done = open_state(checkpoints, optimizer, mesh, learnt, keep=config.reads_base)

    def measure(learnt: Params) -> dict[str, float]:
        assert development is not None
        return development.measure(decoder, merged(config.lora, params, learnt), prompt, mesh)

    def result(state: TrainState) -> WarmedUp:
        step = checkpoints.best() if config.dev else None
        if step is not None and step != checkpoints.latest():
            state = TrainState(checkpoints.restore_params(step, abstract(mesh, learnt)), ())
        return WarmedUp(merged(config.lora, params, state.params), step or config.steps)

    if done and (ended(config, done, checkpoints) or checkpoints.measure(done) == _COLLAPSED):
        return result(state)
    answers = AnswerTokens(*prompt.answer_ids, prompt.end_id)
    weights = {name.rpartition(":")[2]: weight for name, weight in grpo.rewards.items()} if grpo else {}

    size = config.prompts_per_step * (grpo.oversampling if grpo else 1)
    own = own_rows(mesh, size)

    def make(number: int) -> PairBatch[np.ndarray]:
        first = (number - 1) * size
        return pair_batch(pairs, prompt, [first + row for row in own])

    units = mesh.size * (config.accumulation if isinstance(config, PolicyConfig) else 1)
    layouts: tuple[Layout, ...] = (widest(prompt.max_length),)
    if not (isinstance(config, PolicyConfig) and chooses_prompts(config)):
        sample = (pair_batch(pairs, prompt, range(number * size, (number + 1) * size)) for number in range(_SAMPLE))
        layouts = layouts_for(list(sample), units)

    @cache
    def step_of(layout: Layout) -> Step:
        if isinstance(config, PolicyConfig):
            return make_step(decoder, answers, config, optimizer, mesh, run.seed, layout)
        return supervised.make_step(decoder, answers, config, optimizer, mesh, layout)

    watch, flat = Watch("warmup", checkpoints), FlatReward()
    with (
        MetricsWriter(folder, "warmup", config.steps, done, HEADLINE, room) as writer,
        writer.rows(COMPLETIONS) as shown,
        preemption.training(),
    ):
        if isinstance(config, PolicyConfig):
            divergence = Divergence("warmup", writer.kept, kl=config.max_kl)
        else:
            divergence = Divergence("warmup", writer.kept, growth=config.max_loss_growth)
        if development is not None and done == 0:
            writer.write(0, measure(state.params))
        tokens, since = 0, time.monotonic()
        made = batches(make, done + 1, config.steps + 1, run.data.workers)
        for number, batch in enumerate(made, done + 1):
            layout = layouts[largest(first_with_room(batch, units * len(own) // size, layouts))]
            step, rows = step_of(layout), split_rows(mesh, batch)
            state, metrics, completions = step(state, base, rows, jnp.asarray(number - 1))
            watch.add(number, metrics)
            tokens += int(batch.lengths_P.sum()) * size // len(batch.lengths_P)
            if grpo and completions and grpo.show_completions_every and number % grpo.show_completions_every == 0:
                watch.catch_up()
                for row in completion_rows(number, prompt, completions, weights):
                    writer.note(f"  {describe(row)}")
                    shown.write(row)
            last = number == config.steps
            measured = config.dev is not None and (last or number % config.dev.every == 0)
            found: dict[str, float] = {}
            if last or measured or number % config.log_every == 0:
                numbers = watch.catch_up()
                rate = {"tokens_per_second": tokens / (time.monotonic() - since)}
                found = measure(state.params) if measured else {}
                writer.write(number, numbers | found | rate)
                divergence.add(number, numbers)
                if grpo and (explanation := flat.add(numbers)):
                    writer.note(f"warmup {number}: {explanation}")
                tokens, since = 0, time.monotonic()
            ends, collapsed = preemption.reached(number), measured and has_collapsed(found)
            if ends or last or measured or number % config.checkpoint_every == 0:
                watch.catch_up()
                writer.publish()
                best = _COLLAPSED if collapsed else found.get(BEST_BY)
                checkpoints.save(number, state, best)
            if ends:
                preemption.end("warmup", number)
            if collapsed:
                share = found["dev/positive_rate"]
                writer.note(
                    f"warmup {number}: the model has settled on one answer ({max(share, 1 - share):.1%} of the "
                    f"held-out prompts get it, half are of either kind), and learns nothing more; the stage ends with "
                    f"step {checkpoints.best()}; {REMEDY}"
                )
            if collapsed or (measured and ended(config, number, checkpoints)):
                break
    return result(state)
