"""The limit of GRPO for ever larger groups, computed exactly: a prompt has two right-formed answers, and all else.

With `p_a` the probability of answer a and of the end of the turn behind it, the outcomes of a prompt are the two
answers, which have rewards, and the rest, which has none. Mean and deviation of the reward are sums over the three, and
so is the gradient, `sum_o A_o grad p_o`: nothing is drawn, so there is no noise, and no group without spread. It is
what GRPO's gradient of whole completions (`loss_average: dr_grpo`, up to a factor) has as its mean.
"""

import jax.numpy as jnp
from jax import Array, lax

from prorank_jax.config import ExpectedConfig
from prorank_jax.data.layout import Layout
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import network
from prorank_jax.warmup.grpo import Mean, balanced, choice_entropy
from prorank_jax.warmup.policy import Experience, Losses, Means, mean_of, rewarded
from prorank_jax.warmup.rewards import AnswerTokens, load_rewards
from prorank_jax.warmup.rollout import Rollout, answer_log_probs

_LEAST = 1e-6
"""Probability of the rest below which it is rounding."""
_LOWEST = -80.0
"""Log-probability below which float32 has none."""


def outcomes(log_prob_Px2: Array) -> Array:
    """Probability of either answer and of the rest: [P, 2] -> [P, 3]."""
    answers_Px2 = jnp.exp(jnp.maximum(log_prob_Px2, _LOWEST))
    return jnp.concatenate([answers_Px2, jnp.maximum(1.0 - answers_Px2.sum(axis=1, keepdims=True), _LEAST)], axis=1)


def expected_advantages(probability_Px3: Array, reward_Px2: Array, *, divided: bool) -> tuple[Array, Array, Array]:
    """Advantage of each outcome [P, 3], and mean and standard deviation of the reward [P].

    Probabilities `[[.5, .25, .25]]` and rewards `[[2, 1]]` (the rest has 0) have the mean 1.25 and the advantages
    `[[.75, -.25, -1.25]]`, which are divided by the deviation + 1e-4 where that is asked for.
    """
    reward_Px3 = jnp.pad(reward_Px2, ((0, 0), (0, 1)))
    mean_P = (probability_Px3 * reward_Px3).sum(axis=1)
    centred_Px3 = reward_Px3 - mean_P[:, None]
    deviation_P = jnp.sqrt((probability_Px3 * centred_Px3**2).sum(axis=1))
    return centred_Px3 / (deviation_P[:, None] + 1e-4) if divided else centred_Px3, mean_P, deviation_P


def make_losses(
    decoder: Decoder, answers: AnswerTokens, config: ExpectedConfig, layout: Layout | None = None
) -> Losses:
    """The losses, with the arguments of GRPO's; the keys are not used.

    An experience holds the two answers as a group of completions, advantages [P, 3] of the outcomes, and
    log-probabilities [P, 2] of whole answers.
    """
    rewards = load_rewards(config.rewards, 2, 2)
    each_2x2 = jnp.array([[answers.negative, answers.end], [answers.positive, answers.end]], jnp.int32)

    def objective(log_prob_Px2: Array, experience: Experience) -> tuple[Array, Means]:
        now_Px3, before_Px3 = outcomes(log_prob_Px2), outcomes(experience.old_log_prob_PxGxT)
        advantage_Px3 = experience.advantage_PxG
        # The ratio of new to old probability, clipped, times the old one; which has no division by what may be small.
        low_Px3, high_Px3 = (1.0 - config.clip_low) * before_Px3, (1.0 + config.clip_high) * before_Px3
        clipped_Px3 = jnp.clip(now_Px3, low_Px3, high_Px3)
        gain_P = jnp.minimum(now_Px3 * advantage_Px3, clipped_Px3 * advantage_Px3).sum(axis=1)
        loss_P = -gain_P
        choice_P = choice_entropy(log_prob_Px2)
        means = {
            "entropy": mean_of(-(now_Px3 * jnp.log(now_Px3)).sum(axis=1)),
            "choice_entropy": mean_of(choice_P),
            "clip_ratio/low_mean": mean_of(((now_Px3 < low_Px3) & (advantage_Px3 < 0)).astype(jnp.float32)),
            "clip_ratio/high_mean": mean_of(((now_Px3 > high_Px3) & (advantage_Px3 > 0)).astype(jnp.float32)),
        }
        if (reference := experience.reference_log_prob_PxGxT) is not None:
            divergence_P = (now_Px3 * (jnp.log(now_Px3) - jnp.log(outcomes(reference)))).sum(axis=1)
            loss_P += config.beta * divergence_P
            means["kl"] = mean_of(divergence_P)
        means["loss"] = mean_of(loss_P - config.entropy * choice_P)
        return means["loss"].total, means

    def fresh(
        learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
    ) -> tuple[Array, tuple[Means, Experience]]:
        log_prob_Px2 = answer_log_probs(decoder, network(config.lora, base, learnt), answers, batch, layout)
        P = len(batch.labels_P)
        rollout = Rollout(jnp.broadcast_to(each_2x2, (P, 2, 2)), jnp.full((P, 2), 2, jnp.int32), jnp.ones((P, 2), bool))
        values, reward_Px2 = rewarded(rewards, rollout, batch.labels_P, answers)
        old_Px2 = lax.stop_gradient(log_prob_Px2)
        probability_Px3 = outcomes(old_Px2)
        divided = config.advantage == "group_std"
        advantage_Px3, reward_P, deviation_P = expected_advantages(probability_Px3, reward_Px2, divided=divided)
        reference = None
        if config.beta:
            assert base is not None
            reference = lax.stop_gradient(answer_log_probs(decoder, base, answers, batch, layout))
            reference = balanced(reference) if config.balanced else reference
        experience = Experience(
            batch, rollout, rollout.mask_PxGxT, values, reward_Px2, advantage_Px3, old_Px2, reference
        )
        answered_Px2 = probability_Px3[:, :2]
        right_P = jnp.take_along_axis(answered_Px2, batch.labels_P[:, None], axis=1)
        judged = {
            "reward": mean_of(reward_P),
            "reward_std": mean_of(deviation_P),
            "frac_reward_zero_std": mean_of(deviation_P < 1e-6),
            **{f"rewards/{name}/mean": mean_of((answered_Px2 * value).sum(axis=1)) for name, value in values.items()},
            "accuracy": mean_of(right_P),
            "format_rate": mean_of(answered_Px2.sum(axis=1)),
            "positive_rate": Mean(answered_Px2[:, 1].sum(), answered_Px2.sum()),
        }
        total, means = objective(log_prob_Px2, experience)
        return total, (means | judged, experience)

    def replay(learnt: Params, base: Params | None, experience: Experience) -> tuple[Array, Means]:
        policy = network(config.lora, base, learnt)
        return objective(answer_log_probs(decoder, policy, answers, experience.batch, layout), experience)

    return Losses(fresh, replay)
