"""Stage one, prompt warmup: the GRPO step and its loop.

A step takes P prompts with their right answers. Each prompt is computed once; G completions are sampled from
it; rewards and group advantages follow on the device; the same prompt computation then carries the gradient of
the completions' log-probabilities. All of it, with the optimizer's update, is one compiled program.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.config import RunConfig, WarmupConfig
from prorank_jax.data.examples import Pairs
from prorank_jax.data.loader import PairBatch, pair_batch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import prefill
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.mesh import abstract, keep_place, mean_over_replicas, shardings, split_rows
from prorank_jax.runtime.metrics import MetricsWriter
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.warmup.grpo import (
    centred_advantages,
    clip_fractions,
    clipped_objective,
    k3_divergence,
    mean_over_completions,
    standardised_advantages,
)
from prorank_jax.warmup.rewards import REWARDS, read_answers
from prorank_jax.warmup.rollout import completion_log_probs, sample

ADVANTAGES = {"group_std": standardised_advantages, "group_mean": centred_advantages}
HEADLINE = ("reward", "format_rate", "accuracy", "kl")


class WarmupState(NamedTuple):
    params: Params
    optimizer: optax.OptState


Metrics = dict[str, Array]
Step = Callable[[WarmupState, Params | None, PairBatch[Array], Array], tuple[WarmupState, Metrics]]


def make_loss(
    decoder: Decoder, prompt: Prompt, config: WarmupConfig
) -> Callable[[Params, Params | None, PairBatch[Array], Array], tuple[Array, Metrics]]:
    """The GRPO loss `(params, reference, batch, keys_P) -> (loss, metrics)`; rollouts are drawn inside it.

    With one update per rollout the policy that samples is the policy that learns: the ratio of the two is 1, its
    gradient is not, and one prefill serves both. The reference is read only where `beta` is not 0.
    """

    def loss(params: Params, reference: Params | None, batch: PairBatch[Array], keys_P: Array) -> tuple[Array, Metrics]:
        prefix = prefill(decoder, params, batch.tokens_PxL, batch.lengths_P)
        rollout = sample(
            decoder,
            *lax.stop_gradient((params, prefix)),
            keys_P,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            end_id=prompt.end_id,
        )
        mask = rollout.mask_PxGxT

        answers_PxG = read_answers(rollout.tokens_PxGxT, prompt.answer_ids, prompt.end_id)
        rewards = {name: reward(answers_PxG, batch.labels_P) for name, reward in REWARDS.items()}
        reward_PxG = sum(
            (weight * rewards[name] for name, weight in config.rewards.items()), jnp.zeros_like(rewards["format"])
        )
        advantage_PxG = ADVANTAGES[config.advantage](reward_PxG)

        log_probs, entropies = completion_log_probs(decoder, params, prefix, rollout.tokens_PxGxT, config.temperature)
        old = lax.stop_gradient(log_probs)
        token_loss = -clipped_objective(log_probs, old, advantage_PxG, config.clip_low, config.clip_high)
        low, high = clip_fractions(log_probs, old, advantage_PxG, config.clip_low, config.clip_high)
        deviation_P = reward_PxG.std(axis=1, ddof=1)
        metrics = {
            "reward": reward_PxG.mean(),
            "reward_std": deviation_P.mean(),
            "frac_reward_zero_std": (deviation_P < 1e-6).mean(dtype=jnp.float32),
            **{f"rewards/{name}/mean": value.mean() for name, value in rewards.items()},
            "accuracy": rewards["relevance"].mean(),
            "format_rate": rewards["format"].mean(),
            "entropy": (entropies * mask).sum() / mask.sum(),
            "clip_ratio/low_mean": (low * mask).sum() / mask.sum(),
            "clip_ratio/high_mean": (high * mask).sum() / mask.sum(),
            "completions/mean_length": mask.sum(axis=2).mean(),
        }
        if reference is not None:
            reference_prefix = prefill(decoder, reference, batch.tokens_PxL, batch.lengths_P)
            reference_log_probs, _ = completion_log_probs(
                decoder, reference, reference_prefix, rollout.tokens_PxGxT, config.temperature
            )
            divergence = k3_divergence(log_probs, lax.stop_gradient(reference_log_probs))
            token_loss += config.beta * divergence
            metrics["kl"] = (divergence * mask).sum() / mask.sum()
        value = mean_over_completions(token_loss, mask)
        return value, metrics | {"loss": value}

    return loss


def make_step(
    decoder: Decoder,
    prompt: Prompt,
    config: WarmupConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> Step:
    """The compiled step `(state, reference, batch, number) -> (state, metrics)`; the state's buffers are reused.

    `number` seeds the rollouts, prompt by prompt: the update does not depend on how many devices share the batch.
    Metrics of tokens (entropy, kl, clip ratios) are means over the devices' means, as TRL's are.
    """
    loss = make_loss(decoder, prompt, config)

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=(P(), P()),
        axis_names={"data"},
        check_vma=False,
    )
    def replica_step(
        state: WarmupState, reference: Params | None, batch: PairBatch[Array], keys_P: Array
    ) -> tuple[WarmupState, Metrics]:
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, reference, batch, keys_P)
        gradient, metrics = mean_over_replicas(mesh, (gradient, metrics))
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        return WarmupState(optax.apply_updates(state.params, updates), optimizer_state), metrics

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: WarmupState, reference: Params | None, batch: PairBatch[Array], number: Array
    ) -> tuple[WarmupState, Metrics]:
        keys_P = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(batch.labels_P))
        state, metrics = replica_step(state, reference, batch, keys_P)
        return keep_place(mesh, state), metrics

    return step


def train_warmup(
    run: RunConfig, decoder: Decoder, params: Params, prompt: Prompt, pairs: Pairs, mesh: Mesh, folder: Path
) -> Params:
    """Trains `params` through the stage and returns the result; goes on from the newest checkpoint in `folder`."""
    config = run.warmup
    assert config is not None
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)

    def init(params: Params) -> WarmupState:
        return WarmupState(params, optimizer.init(params))

    layout = abstract(mesh, jax.eval_shape(init, params))
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, layout)
        if done == config.steps:
            return state.params
    else:
        state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout))(params)
    reference = jax.device_put(params, shardings(mesh, params)) if config.beta else None
    step = make_step(decoder, prompt, config, optimizer, mesh, run.seed)

    with MetricsWriter(folder, "warmup", config.steps, done, HEADLINE) as writer:
        tokens, since = 0, time.monotonic()
        for number in range(done, config.steps):
            batch = pair_batch(pairs, prompt, config.prompts_per_step, run.seed, number)
            state, metrics = step(state, reference, split_rows(mesh, batch), jnp.asarray(number))
            tokens += int(batch.lengths_P.sum())
            if (number + 1) % config.log_every == 0 or number + 1 == config.steps:
                jax.block_until_ready(metrics)
                writer.write(number + 1, metrics | {"tokens_per_second": tokens / (time.monotonic() - since)})
                tokens, since = 0, time.monotonic()
            if (number + 1) % config.checkpoint_every == 0 or number + 1 == config.steps:
                checkpoints.save(number + 1, state)
    return state.params
