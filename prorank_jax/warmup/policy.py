"""The loss of a GRPO step: rollouts of a batch of prompts, what they are worth, and what is learnt from them.

Each prompt is computed once, and G completions are drawn from it. Rewards and group advantages follow on the device.
The same prompt computation carries the gradient of the completions' log-probabilities: with the rollout's own
parameters the ratio of new to old probability is 1, its gradient is not. Further iterations on the same rollouts
compute the prompts anew, with the parameters that have changed, and keep the old log-probabilities.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from prorank_jax.config import GrpoConfig
from prorank_jax.data.layout import Layout
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import network
from prorank_jax.model.prefix import Prefix
from prorank_jax.warmup.grpo import (
    Mean,
    balanced,
    centred_advantages,
    choice_entropy,
    clip_fractions,
    clipped_objective,
    k3_divergence,
    mean_over_budget,
    mean_over_completions,
    mean_over_tokens,
    standardised_advantages,
)
from prorank_jax.warmup.reading import read
from prorank_jax.warmup.rewards import AnswerTokens, Reward, format_reward, load_rewards, relevance_reward
from prorank_jax.warmup.rollout import Rollout, completion_log_probs, sample

ADVANTAGES = {
    "group_std": standardised_advantages,
    "group_mean": centred_advantages,
    # Those of the batch replace them where all of it is known.
    "batch_std": centred_advantages,
    "batch_mean": centred_advantages,
}
AVERAGES = {"grpo": mean_over_completions, "dr_grpo": mean_over_budget, "dapo": mean_over_tokens}

Means = dict[str, Mean]


class Experience(NamedTuple):
    """Prompts, their completions, and what these are worth. Every row of every array belongs to one prompt.

    Attributes:
      mask_PxGxT: 1 on the tokens to learn from.
      rewards: [P, G] of each reward, without its weight.
      reward_PxG: their weighted sum.
      reference_log_prob_PxGxT: None where `beta` is 0.
    """

    batch: PairBatch[Array]
    rollout: Rollout
    mask_PxGxT: Array
    rewards: dict[str, Array]
    reward_PxG: Array
    advantage_PxG: Array
    old_log_prob_PxGxT: Array
    reference_log_prob_PxGxT: Array | None


class Losses(NamedTuple):
    """The two losses of a step: `fresh` draws the rollouts it learns from, `replay` learns from them once more.

    Both give the total of a `Mean` (its weight is `means["loss"].weight`), so that parts of a batch add up:

        fresh(learnt, base, batch, keys_P) -> total, (means, experience)
        replay(learnt, base, experience) -> total, means
    """

    fresh: Callable[[Params, Params | None, PairBatch[Array], Array], tuple[Array, tuple[Means, Experience]]]
    replay: Callable[[Params, Params | None, Experience], tuple[Array, Means]]


def make_losses(decoder: Decoder, answers: AnswerTokens, config: GrpoConfig, layout: Layout | None = None) -> Losses:
    """The losses of a configuration. `base` is read only with adapters, or where `beta` is not 0."""
    rewards = load_rewards(config.rewards, config.group_size, config.max_new_tokens)
    advantages, average = ADVANTAGES[config.advantage], AVERAGES[config.loss_average]

    def judge(rollout: Rollout, labels_P: Array) -> tuple[dict[str, Array], Array, Means]:
        """The rewards, their sum, and the means that tell how the rollouts were."""
        arguments = rollout.tokens_PxGxT, rollout.lengths_PxG, labels_P, answers
        values, reward_PxG = rewarded(rewards, rollout, labels_P, answers)
        deviation_P = reward_PxG.std(axis=1, ddof=1)
        in_format = format_reward(*arguments)
        says_relevant = jnp.where(rollout.tokens_PxGxT[:, :, 0] == answers.positive, in_format, 0.0)
        means = {
            "reward": reward_PxG,
            "reward_std": deviation_P,
            "frac_reward_zero_std": deviation_P < 1e-6,
            **{f"rewards/{name}/mean": value for name, value in values.items()},
            "accuracy": relevance_reward(*arguments),
            "format_rate": in_format,
            "completions/mean_length": rollout.lengths_PxG,
            "completions/clipped_ratio": ~rollout.ended_PxG,
        }
        share = Mean(says_relevant.sum(), in_format.sum())
        return values, reward_PxG, {name: mean_of(value) for name, value in means.items()} | {"positive_rate": share}

    def answers_at(params: Params, prefix: Prefix) -> Array:
        """Log-probability of both answers behind each prompt: [P, 2]."""
        logits_PxV = decoder.unembed(params, prefix.last_PxD) / config.temperature
        return jax.nn.log_softmax(logits_PxV)[:, jnp.array(answers[:2])]

    def objective(
        log_prob_PxGxT: Array, entropy_PxGxT: Array, answer_Px2: Array | None, experience: Experience
    ) -> tuple[Array, Means]:
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
        if answer_Px2 is not None:
            means["choice_entropy"] = choice = mean_of(choice_entropy(answer_Px2))
            # A mean over prompts beside one over whatever the loss averages over.
            bonus = config.entropy * choice.value * means["loss"].weight
            means["loss"] = means["loss"]._replace(total=means["loss"].total - bonus)
        return means["loss"].total, means

    def log_probs(
        params: Params, batch: PairBatch[Array], tokens_PxGxT: Array, choice: bool
    ) -> tuple[Array, Array, Array | None]:
        """Log-probability and entropy at each token; where asked for, the answers' behind the prompts."""
        params = decoder.with_whole_tables(params)
        prefix = read(decoder, params, batch, layout)
        found = completion_log_probs(decoder, params, prefix, tokens_PxGxT, config.temperature)
        return *found, answers_at(params, prefix) if choice else None

    def fresh(
        learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
    ) -> tuple[Array, tuple[Means, Experience]]:
        policy = decoder.with_whole_tables(network(config.lora, base, learnt))
        prefix = read(decoder, policy, batch, layout)
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
            reference, _, choice = lax.stop_gradient(log_probs(base, batch, rollout.tokens_PxGxT, config.balanced))
            if choice is not None:
                first = rollout.tokens_PxGxT[:, :, 0]
                answered = (first == answers.negative) | (first == answers.positive)
                same = balanced(choice)[:, :1]
                reference = reference.at[:, :, 0].set(jnp.where(answered, same, reference[:, :, 0]))
        values, reward, judged = judge(rollout, batch.labels_P)
        learnt_from = rollout.ended_PxG[:, :, None] | (not config.mask_truncated)
        mask = jnp.where(learnt_from, rollout.mask_PxGxT, 0.0)
        experience = Experience(
            batch, rollout, mask, values, reward, advantages(reward), lax.stop_gradient(log_prob), reference
        )
        answer = answers_at(policy, prefix) if config.entropy else None
        total, means = objective(log_prob, entropy, answer, experience)
        return total, (means | judged, experience)

    def replay(learnt: Params, base: Params | None, experience: Experience) -> tuple[Array, Means]:
        policy = network(config.lora, base, learnt)
        tokens = experience.rollout.tokens_PxGxT
        return objective(*log_probs(policy, experience.batch, tokens, config.entropy > 0), experience)

    return Losses(fresh, replay)


def rewarded(
    rewards: tuple[Reward, ...], rollout: Rollout, labels_P: Array, answers: AnswerTokens
) -> tuple[dict[str, Array], Array]:
    """What each reward gives the completions, and the weighted sum: [P, G]."""
    arguments = rollout.tokens_PxGxT, rollout.lengths_PxG, labels_P, answers
    values = {reward.name: reward.function(*arguments).astype(jnp.float32) for reward in rewards}
    nothing = jnp.zeros(rollout.ended_PxG.shape)
    return values, sum((reward.weight * values[reward.name] for reward in rewards), nothing)


def mean_of(value: Array) -> Mean:
    """The mean of all values."""
    return Mean(value.sum(dtype=jnp.float32), jnp.asarray(float(value.size)))
