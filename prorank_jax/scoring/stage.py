"""Stage two, score learning: the loop over batches of groups, from a model that answers to one that ranks.

With held-out queries the model is measured while it learns: the stage ends early where it no longer gets better,
and its result is the best model it came by.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import grain
from jax.sharding import Mesh

from prorank_jax.config import RunConfig, ScoreConfig
from prorank_jax.data.examples import Group
from prorank_jax.data.layout import choose_layouts, first_fit, split
from prorank_jax.data.stream import batches
from prorank_jax.evaluation.development import METRIC, Development
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import init_learnt, merged
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.divergence import Divergence
from prorank_jax.runtime.mesh import abstract, check_rows, largest, own_rows, split_rows
from prorank_jax.runtime.metrics import FILE_NAME, MetricsWriter, read_metrics
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.runtime.room import Room
from prorank_jax.runtime.training import TrainState, Watch, ended, open_state
from prorank_jax.scoring.batches import EncodedGroups, encode_groups, group_batch
from prorank_jax.scoring.step import make_step
from prorank_jax.seeds import key
from prorank_jax.storage import Place

_SAMPLE = 16
"""Steps whose prompts the layouts of the batches are chosen by."""

HEADLINE = ("loss", "top1_accuracy", "margin", METRIC)


class Scored(NamedTuple):
    """What the stage gives: parameters, and the step that they are of.

    `development` is nDCG@10 of the held-out queries by row: "first stage", "before", "after"; empty without any.
    """

    params: Params
    step: int
    development: dict[str, float]


def check_score(config: ScoreConfig, mesh: Mesh) -> None:
    """Refuses what could not be trained, before any work is done.

    Raises:
      InputError: a batch that does not divide over devices and parts.
    """
    check_rows(mesh, "score.queries_per_step", config.queries_per_step, config.accumulation)


def train_score(
    run: RunConfig,
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    groups: "grain.MapDataset[Group]",
    development: Development | None,
    mesh: Mesh,
    folder: Place,
    preemption: Preemption,
) -> Scored:
    """Trains `params` through the stage and returns the result; goes on from the newest checkpoint in `folder`.

    The arrays of `params` are used up, unless the stage itself reads them to its end.

    Args:
      groups: the endless stream of groups (`data.stream.groups`), of which step `n` takes the `n`-th
        `score.queries_per_step`.
      development: held-out queries, where `score.dev` names some.

    Raises:
      InputError: a metric is not finite; the run stops at that step, behind its last checkpoint.
      Preempted: the run was asked to end, and did so behind a checkpoint.
    """
    config = run.score
    assert config is not None
    optimizer = make_optimizer(config.optimizer, config.steps)
    room = Room(preemption)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, room)
    learnt = init_learnt(config.lora, decoder.config, params, key(run.seed, "score/adapters"))
    base = params if config.reads_base else None
    state, done = open_state(checkpoints, optimizer, mesh, learnt, keep=config.reads_base)
    step = make_step(decoder, prompt.answer_ids, config, optimizer, mesh)
    own = own_rows(mesh, config.queries_per_step)
    documents, longest = config.documents_per_query, prompt.max_length
    units = mesh.size * config.accumulation
    own_units = units * len(own) // config.queries_per_step

    def make(number: int) -> EncodedGroups:
        return _encoded(groups, prompt, number, config.queries_per_step, own)

    def measure(learnt: Params) -> float:
        assert development is not None
        return development.measure(merged(config.lora, params, learnt))

    def result(state: TrainState) -> Scored:
        best = checkpoints.best()
        if development is None or best is None:
            return Scored(merged(config.lora, params, state.params), config.steps, {})
        if best != checkpoints.latest():
            state = TrainState(checkpoints.restore_params(best, abstract(mesh, learnt)), ())
        before, after = read_metrics(folder / FILE_NAME)[0][METRIC], checkpoints.measure(best)
        rows = {"first stage": development.first_stage(), "before": float(before), "after": float(after or 0.0)}
        return Scored(merged(config.lora, params, state.params), best, rows)

    if ended(config, done, checkpoints):
        return result(state)
    sample = [_encoded(groups, prompt, number, config.queries_per_step) for number in range(1, _SAMPLE + 1)]
    layouts = choose_layouts([unit for drawn in sample for unit in split(drawn.prompts, units)], documents, longest)
    watch = Watch("score", checkpoints)
    # All steps of a run are one count, so that what was asked for in one stage is heard in the next.
    earlier = run.warmup.steps if run.warmup else 0
    with MetricsWriter(folder, "score", config.steps, done, HEADLINE, room) as writer, preemption.training():
        if development is not None and done == 0:
            writer.write(0, {METRIC: measure(state.params)})
        divergence = Divergence("score", writer.kept, growth=config.max_loss_growth)
        tokens, since = 0, time.monotonic()
        for number, drawn in enumerate(batches(make, done + 1, config.steps + 1, run.data.workers), done + 1):
            layout = layouts[largest(first_fit(drawn.prompts, documents, layouts, own_units))]
            batch = group_batch(drawn, documents, layout, own_units, prompt.pad_id)
            state, metrics = step(state, base, split_rows(mesh, batch))
            watch.add(number, metrics)
            tokens += drawn.tokens * config.queries_per_step // len(own)
            last = number == config.steps
            measured = config.dev is not None and (last or number % config.dev.every == 0)
            if last or measured or number % config.log_every == 0:
                numbers = watch.catch_up()
                rate = {"tokens_per_second": tokens / (time.monotonic() - since)}
                found = {METRIC: measure(state.params)} if measured else {}
                writer.write(number, numbers | found | rate)
                divergence.add(number, numbers)
                tokens, since = 0, time.monotonic()
            ends = preemption.reached(earlier + number)
            if ends or last or measured or number % config.checkpoint_every == 0:
                watch.catch_up()
                writer.publish()
                checkpoints.save(number, state, found[METRIC] if measured else None)
            if ends:
                preemption.end("score", number)
            if measured and ended(config, number, checkpoints):
                break
    return result(state)


def _encoded(
    groups: "grain.MapDataset[Group]", prompt: Prompt, number: int, queries: int, rows: Sequence[int] | None = None
) -> EncodedGroups:
    """The groups of a step, or those of its rows that are asked for."""
    first = (number - 1) * queries
    return encode_groups([groups[first + row] for row in rows or range(queries)], prompt)
