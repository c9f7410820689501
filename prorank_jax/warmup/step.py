"""One GRPO step, from a batch of prompts to new parameters, as one compiled program.

Each prompt is computed once, and G completions are drawn from it. Rewards and group advantages follow on the device.
The same prompt computation carries the gradient of the completions' log-probabilities: with the rollout's own
parameters the ratio of new to old probability is 1, its gradient is not. Further iterations on the same rollouts
compute the prompts anew, with the parameters that have changed, and keep the old log-probabilities.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.config import GrpoConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import network
from prorank_jax.model.prefix import prefill
from prorank_jax.runtime.mesh import ROWS, keep_place, mean_gradient, mean_over_devices, on_devices, specs
from prorank_jax.runtime.training import Metrics, TrainState, descend
from prorank_jax.seeds import key
from prorank_jax.warmup.grpo import (
    Mean,
    centred_advantages,
    clip_fractions,
    clipped_objective,
    k3_divergence,
    mean_over_budget,
    mean_over_completions,
    mean_over_tokens,
    standardised_advantages,
)
from prorank_jax.warmup.rewards import AnswerTokens, format_reward, load_rewards, relevance_reward
from prorank_jax.warmup.rollout import Rollout, completion_log_probs, sample

ADVANTAGES = {"group_std": standardised_advantages, "group_mean": centred_advantages}
AVERAGES = {"grpo": mean_over_completions, "dr_grpo": mean_over_budget, "dapo": mean_over_tokens}

Means = dict[str, Mean]


class Experience(NamedTuple):
    """Prompts, their completions, and what these are worth. Every row of every array belongs to one prompt.

    Attributes:
      mask_PxGxT: 1 on the tokens to learn from.
      rewards: [P, G] of each reward, without its weight.
      reference_log_prob_PxGxT: None where `beta` is 0.
    """

    batch: PairBatch[Array]
    rollout: Rollout
    mask_PxGxT: Array
    rewards: dict[str, Array]
    advantage_PxG: Array
    old_log_prob_PxGxT: Array
    reference_log_prob_PxGxT: Array | None


class Completions(NamedTuple):
    """What there is to show of a step: completions and the rewards of each, by name [P, G]."""

    rollout: Rollout
    rewards: dict[str, Array]


Step = Callable[[TrainState, Params | None, PairBatch[Array], Array], tuple[TrainState, Metrics, Completions | None]]
"""`(state, base, batch, number) -> (state, metrics, completions)`; the buffers of the state are used again."""


class Losses(NamedTuple):
    """The two losses of a step: `fresh` draws the rollouts it learns from, `replay` learns from them once more.

    Both give the total of a `Mean` (its weight is `means["loss"].weight`), so that parts of a batch add up:

        fresh(learnt, base, batch, keys_P) -> total, (means, experience)
        replay(learnt, base, experience) -> total, means
    """

    fresh: Callable[[Params, Params | None, PairBatch[Array], Array], tuple[Array, tuple[Means, Experience]]]
    replay: Callable[[Params, Params | None, Experience], tuple[Array, Means]]


def make_losses(decoder: Decoder, answers: AnswerTokens, config: GrpoConfig) -> Losses:
    """The losses of a configuration. `base` is read only with adapters, or where `beta` is not 0."""
    rewards = load_rewards(config.rewards, config.group_size, config.max_new_tokens)
    advantages, average = ADVANTAGES[config.advantage], AVERAGES[config.loss_average]

    def judge(rollout: Rollout, labels_P: Array) -> tuple[dict[str, Array], Array, Means]:
        """The rewards, the advantages, and the means that tell how the rollouts were."""
        arguments = rollout.tokens_PxGxT, rollout.lengths_PxG, labels_P, answers
        values = {reward.name: reward.function(*arguments).astype(jnp.float32) for reward in rewards}
        reward_PxG = sum(
            (reward.weight * values[reward.name] for reward in rewards), jnp.zeros(rollout.ended_PxG.shape)
        )
        deviation_P = reward_PxG.std(axis=1, ddof=1)
        means = {
            "reward": reward_PxG,
            "reward_std": deviation_P,
            "frac_reward_zero_std": deviation_P < 1e-6,
            **{f"rewards/{name}/mean": value for name, value in values.items()},
            "accuracy": relevance_reward(*arguments),
            "format_rate": format_reward(*arguments),
            "completions/mean_length": rollout.lengths_PxG,
            "completions/clipped_ratio": ~rollout.ended_PxG,
        }
        return values, advantages(reward_PxG), {name: _mean(value) for name, value in means.items()}

    def objective(log_prob_PxGxT: Array, entropy_PxGxT: Array, experience: Experience) -> tuple[Array, Means]:
        ratio = log_prob_PxGxT, experience.old_log_prob_PxGxT, experience.advantage_PxG
        mask, clip = experience.mask_PxGxT, (config.clip_low, config.clip_high)
        loss_PxGxT = -clipped_objective(*ratio, *clip)
        low, high = clip_fractions(*ratio, *clip)
        means = {
            "entropy": mean_over_tokens(entropy_PxGxT, mask),
            "clip_ratio/low_mean": mean_over_tokens(low, mask),
            "clip_ratio/high_mean": mean_over_tokens(high, mask),
        }
        if experience.reference_log_prob_PxGxT is not None:
            divergence_PxGxT = k3_divergence(log_prob_PxGxT, experience.reference_log_prob_PxGxT)
            loss_PxGxT += config.beta * divergence_PxGxT
            means["kl"] = mean_over_tokens(divergence_PxGxT, mask)
        means["loss"] = average(loss_PxGxT, mask)
        return means["loss"].total, means

    def log_probs(params: Params, batch: PairBatch[Array], tokens_PxGxT: Array) -> tuple[Array, Array]:
        params = decoder.with_whole_tables(params)
        prefix = prefill(decoder, params, batch.tokens_PxL, batch.lengths_P)
        return completion_log_probs(decoder, params, prefix, tokens_PxGxT, config.temperature)

    def fresh(
        learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
    ) -> tuple[Array, tuple[Means, Experience]]:
        policy = decoder.with_whole_tables(network(config.lora, base, learnt))
        prefix = prefill(decoder, policy, batch.tokens_PxL, batch.lengths_P)
        rollout = sample(
            decoder,
            *lax.stop_gradient((policy, prefix)),
            keys_P,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            end_id=answers.end,
        )
        log_prob, entropy = completion_log_probs(decoder, policy, prefix, rollout.tokens_PxGxT, config.temperature)
        reference = None
        if config.beta:
            assert base is not None
            reference = lax.stop_gradient(log_probs(base, batch, rollout.tokens_PxGxT)[0])
        values, advantage, judged = judge(rollout, batch.labels_P)
        learnt_from = rollout.ended_PxG[:, :, None] | (not config.mask_truncated)
        mask = jnp.where(learnt_from, rollout.mask_PxGxT, 0.0)
        experience = Experience(batch, rollout, mask, values, advantage, lax.stop_gradient(log_prob), reference)
        total, means = objective(log_prob, entropy, experience)
        return total, (means | judged, experience)

    def replay(learnt: Params, base: Params | None, experience: Experience) -> tuple[Array, Means]:
        policy = network(config.lora, base, learnt)
        return objective(*log_probs(policy, experience.batch, experience.rollout.tokens_PxGxT), experience)

    return Losses(fresh, replay)


def make_step(
    decoder: Decoder,
    answers: AnswerTokens,
    config: GrpoConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> Step:
    """The compiled step.

    Its `number` seeds the rollouts, prompt by prompt: the update depends neither on how many devices share the batch
    nor on how many parts it is computed in. Metrics are those of the rollouts, and means over the iterations.
    """
    fresh, replay = (jax.grad(loss, has_aux=True) for loss in make_losses(decoder, answers, config))

    def update(state: TrainState, gradient: Params, means: Means) -> tuple[TrainState, Metrics]:
        weight = jnp.maximum(means["loss"].weight, 1e-9)
        state, norm = descend(optimizer, state, jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient))
        return keep_place(mesh, state), {name: mean.value for name, mean in means.items()} | {"grad_norm": norm}

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, base: Params | None, batch: PairBatch[Array], number: Array
    ) -> tuple[TrainState, Metrics, Completions | None]:
        places, base_places = specs(mesh, state.params), specs(mesh, base)

        def over_devices(gradient: Params, means: Means) -> tuple[Params, Means]:
            return mean_gradient(mesh, gradient, places), mean_over_devices(means)

        def first(
            learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
        ) -> tuple[Params, Means, Experience]:
            def part(rows: tuple[PairBatch[Array], Array]) -> tuple[tuple[Params, Means], Experience]:
                gradient, (means, experience) = fresh(learnt, base, *rows)
                return (gradient, means), experience

            (gradient, means), experience = _in_parts(part, (batch, keys_P), config.accumulation)
            return *over_devices(gradient, means), experience

        def again(learnt: Params, base: Params | None, experience: Experience) -> tuple[Params, Means]:
            def part(rows: Experience) -> tuple[tuple[Params, Means], None]:
                return replay(learnt, base, rows), None

            (gradient, means), _ = _in_parts(part, experience, config.accumulation)
            return over_devices(gradient, means)

        keys_P = jax.random.split(jax.random.fold_in(key(seed, "warmup/rollouts"), number), len(batch.labels_P))
        mapped = on_devices(mesh, first, (places, base_places, ROWS, ROWS), (places, P(), ROWS))
        gradient, means, experience = mapped(state.params, base, batch, keys_P)
        state, metrics = update(state, gradient, means)
        if config.iterations > 1:
            mapped = on_devices(mesh, again, (places, base_places, ROWS), (places, P()))
            state, later = lax.scan(
                lambda state, _: update(state, *mapped(state.params, base, experience)),
                state,
                length=config.iterations - 1,
            )
            metrics |= {name: (metrics[name] + later[name].sum()) / config.iterations for name in later}
        return state, metrics, Completions(experience.rollout, experience.rewards)

    return step


def _mean(value: Array) -> Mean:
    return Mean(value.sum(dtype=jnp.float32), jnp.asarray(float(value.size)))


def _in_parts(function: Callable[[Any], tuple[Any, Any]], rows: Any, parts: int) -> tuple[Any, Any]:
    """Sums the first result of `function` over equal parts of the rows, and joins the rows of its second."""
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), rows)
    summed, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], split))

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        value, kept = function(part)
        return jax.tree.map(jnp.add, total, value), kept

    total, kept = lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), summed), split)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
