"""The mathematics of Group Relative Policy Optimization (arXiv 2402.03300), as pure functions of arrays.

Shapes as in `model/decoder.py`: P prompts, G samples per prompt, T completion tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def centred_advantages(reward_PxG: Array) -> Array:
    """Reward minus the group's mean (Dr. GRPO, arXiv 2503.20783): `[[1, 0]]` -> `[[0.5, -0.5]]`."""
    return reward_PxG - reward_PxG.mean(axis=1, keepdims=True)


def standardised_advantages(reward_PxG: Array) -> Array:
    """Centred reward over the group's standard deviation + 1e-4 (arXiv 2402.03300, eq. 3).

    The deviation divides by G - 1, as TRL's does: `[[1, 0]]` -> `[[0.707, -0.707]]`, not `[[1, -1]]`.
    """
    deviation = reward_PxG.std(axis=1, keepdims=True, ddof=1)
    return centred_advantages(reward_PxG) / (deviation + 1e-4)


def clipped_objective(
    log_prob_PxGxT: Array, old_log_prob_PxGxT: Array, advantage_PxG: Array, clip_low: float, clip_high: float
) -> Array:
    """`min(r A, clip(r, 1 - low, 1 + high) A)` per token, r the ratio of new to old probability (arXiv 1707.06347)."""
    ratio = jnp.exp(log_prob_PxGxT - old_log_prob_PxGxT)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    advantage = advantage_PxG[:, :, None]
    return jnp.minimum(ratio * advantage, clipped * advantage)


def k3_divergence(log_prob_PxGxT: Array, reference_PxGxT: Array) -> Array:
    """Unbiased, non-negative estimate of KL(policy || reference) per token (Schulman's k3; arXiv 2402.03300, eq. 4)."""
    difference = reference_PxGxT - log_prob_PxGxT
    return jnp.exp(difference) - difference - 1.0


class Mean(NamedTuple):
    """A mean in two parts, each of which adds up over the parts of a batch and over replicas."""

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        """Total over weight; 0 where nothing has a weight."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)


def mean_over_completions(value_PxGxT: Array, mask_PxGxT: Array) -> Mean:
    """Mean over the tokens of each completion, then over completions: each counts the same (arXiv 2402.03300, eq. 3).

    `[[[2, 9], [4, 6]]]` with mask `[[[1, 0], [1, 1]]]` is (2 + 5) / 2 = 3.5. A completion without a token counts 0.
    """
    per_completion = (value_PxGxT * mask_PxGxT).sum(axis=-1) / jnp.maximum(mask_PxGxT.sum(axis=-1), 1.0)
    return Mean(per_completion.sum(), jnp.asarray(float(per_completion.size)))


def mean_over_tokens(value_PxGxT: Array, mask_PxGxT: Array) -> Mean:
    """Mean over all tokens of the batch: each token counts the same (DAPO, arXiv 2503.14476, eq. 12).

    `[[[2, 9], [4, 6]]]` with mask `[[[1, 0], [1, 1]]]` is (2 + 4 + 6) / 3 = 4.
    """
    return Mean((value_PxGxT * mask_PxGxT).sum(), mask_PxGxT.sum())


def mean_over_budget(value_PxGxT: Array, mask_PxGxT: Array) -> Mean:
    """Sum over tokens, over the most tokens there could be: no length is favoured (Dr. GRPO, arXiv 2503.20783).

    `[[[2, 9], [4, 6]]]` with mask `[[[1, 0], [1, 1]]]` is (2 + 4 + 6) / 4 = 3.
    """
    return Mean((value_PxGxT * mask_PxGxT).sum(), jnp.asarray(float(mask_PxGxT.size)))


def clip_fractions(
    log_prob_PxGxT: Array, old_log_prob_PxGxT: Array, advantage_PxG: Array, clip_low: float, clip_high: float
) -> tuple[Array, Array]:
    """Per token, whether the lower and the upper clip is what stops the gradient; float32 0 or 1."""
    ratio = jnp.exp(log_prob_PxGxT - old_log_prob_PxGxT)
    advantage = advantage_PxG[:, :, None]
    low = (ratio < 1.0 - clip_low) & (advantage < 0)
    high = (ratio > 1.0 + clip_high) & (advantage > 0)
    return low.astype(jnp.float32), high.astype(jnp.float32)


def entropy(logits: Array) -> Array:
    """Entropy in nats of the distribution over the last axis: [..., V] -> [...]."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -(jnp.exp(log_probs) * log_probs).sum(axis=-1)


def choice_entropy(log_prob_Px2: Array) -> Array:
    """Entropy in nats of the choice between two answers, given that it is one of them: [P, 2] -> [P], at most log 2."""
    return entropy(log_prob_Px2)


def balanced(log_prob_Px2: Array) -> Array:
    """Log-probabilities of two answers, each that of their mean: `log([[.6, .2]])` -> `log([[.4, .4]])`."""
    mean = jnp.logaddexp(log_prob_Px2[:, :1], log_prob_Px2[:, 1:]) - jnp.log(2.0)
    return jnp.broadcast_to(mean, log_prob_Px2.shape)
