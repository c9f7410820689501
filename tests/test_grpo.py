"""The mathematics of GRPO against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prorank_jax.warmup.grpo import (
    Mean,
    centred_advantages,
    clip_fractions,
    clipped_objective,
    entropy,
    k3_divergence,
    mean_over_budget,
    mean_over_completions,
    mean_over_tokens,
    standardised_advantages,
)

# Ratios of new to old probability 0.5, 0.7, 1, 1.25, 1.5; clipped to 1 - 0.2 and 1 + 0.3.
RATIOS = [0.5, 0.7, 1.0, 1.25, 1.5]
LOW, HIGH = 0.2, 0.3


def log_probs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """New and old log-probabilities [1, 2, 5] with RATIOS, and advantages 2 and -2 [1, 2]."""
    old = jnp.broadcast_to(jnp.array([-1.0, -0.5, -3.0, -2.0, -0.25]), (1, 2, 5))
    return old + jnp.log(jnp.array(RATIOS))[None, None], old, jnp.array([[2.0, -2.0]])


def test_centred_advantages_are_the_reward_less_its_groups_mean():
    reward = jnp.array([[1.0, 0.0, 0.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    # Over the whole batch the mean is 2.875, not 0.75 and 5.
    np.testing.assert_allclose(
        centred_advantages(reward), [[0.25, -0.75, -0.75, 1.25], [0.0, 0.0, 0.0, 0.0]], rtol=1e-6
    )


def test_standardised_advantages_divide_by_the_sample_deviation():
    advantage = standardised_advantages(jnp.array([[2.0, 0.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]))
    # Squared distances sum to 4; over G - 1 = 3 the deviation is 1.154701. Over G = 4 it would be 1, the result 0.9999.
    np.testing.assert_allclose(advantage[0], np.array([1.0, -1.0, -1.0, 1.0]) / 1.154801, rtol=1e-6)
    # All answers alike: nothing to learn, and no division by zero.
    np.testing.assert_array_equal(advantage[1], np.zeros(4))


def test_the_deviation_is_offset_outside_the_root():
    # Deviation of (0.001, 0) is 0.000707107: 0.0005 / 0.000807107. Inside the root the offset would give 0.04988.
    np.testing.assert_allclose(standardised_advantages(jnp.array([[0.001, 0.0]])), [[0.619497, -0.619497]], rtol=1e-4)


def test_the_objective_clips_low_and_high_ratios_apart():
    objective = clipped_objective(*log_probs(), LOW, HIGH)
    want = [
        # A gain is capped above at 1.3; below nothing is clipped, else the first would be 1.6.
        [1.0, 1.4, 2.0, 2.5, 2.6],
        # A loss is floored below at 0.8; above nothing is clipped, else the last would be -2.6.
        [-1.6, -1.6, -2.0, -2.5, -3.0],
    ]
    np.testing.assert_allclose(objective[0], want, rtol=1e-5)


def test_the_objectives_gradient_vanishes_only_where_the_clip_binds():
    new, old, advantage = log_probs()
    gradient = jax.grad(lambda new: clipped_objective(new, old, advantage, LOW, HIGH).sum())(new)
    # d(r A) / d log p = r A; at ratio 1 that is A, the policy gradient. Halved ties of min and clip would give A / 2.
    np.testing.assert_allclose(gradient[0], [[1.0, 1.4, 2.0, 2.5, 0.0], [0.0, 0.0, -2.0, -2.5, -3.0]], rtol=1e-5)


def test_clip_fractions_count_what_the_clip_stops():
    low, high = clip_fractions(*log_probs(), LOW, HIGH)
    np.testing.assert_array_equal(low[0], [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(high[0], [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])


def test_k3_is_the_low_variance_estimate_of_the_divergence():
    log_prob = jnp.log(jnp.array([[[0.5, 0.5, 0.2]]]))
    reference = jnp.log(jnp.array([[[0.25, 0.5, 0.4]]]))
    # ref/p - ln(ref/p) - 1: 0.5 + 0.693147 - 1 and 2 - 0.693147 - 1.
    # The other way round (p/ref) the first would be 0.306853; log p - log ref alone is 0.693147 and -0.693147.
    np.testing.assert_allclose(k3_divergence(log_prob, reference), [[[0.193147, 0.0, 0.306853]]], atol=1e-6)


def test_k3s_expectation_under_the_policy_is_the_divergence():
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    k3 = k3_divergence(jnp.log(policy.astype(np.float32)), jnp.log(reference.astype(np.float32)))
    assert (policy * k3).sum() == pytest.approx((policy * np.log(policy / reference)).sum(), rel=1e-5)


# Two prompts with two completions each, of 1, 2, 3 and 1 tokens; what is masked is 9.
VALUE = jnp.array([[[2.0, 9.0, 9.0], [4.0, 6.0, 9.0]], [[1.0, 2.0, 6.0], [7.0, 9.0, 9.0]]])
MASK = jnp.array([[[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]])


@pytest.mark.parametrize(
    ("average", "total", "weight"),
    [
        # Means of the completions 2, 5, 3 and 7: 17 / 4 = 4.25.
        (mean_over_completions, 17.0, 4.0),
        # Seven kept tokens: 28 / 7 = 4.
        (mean_over_tokens, 28.0, 7.0),
        # Room for twelve: 28 / 12, a third less than the mean over tokens.
        (mean_over_budget, 28.0, 12.0),
    ],
)
def test_the_three_averages(average, total, weight):
    mean = average(VALUE, MASK)
    assert (float(mean.total), float(mean.weight)) == (total, weight)
    assert mean.value == pytest.approx(total / weight)


@pytest.mark.parametrize(
    ("average", "value"), [(mean_over_completions, 10 / 4), (mean_over_tokens, 21 / 6), (mean_over_budget, 21 / 12)]
)
def test_a_completion_without_a_token_counts_nothing_and_divides_nothing_by_zero(average, value):
    # The last completion, whose one token is 7, is masked; among completions it still counts as one.
    assert average(VALUE, MASK.at[1, 1].set(0.0)).value == pytest.approx(value)
    assert average(VALUE, jnp.zeros_like(MASK)).value == 0.0


def test_means_of_parts_add_up_to_that_of_the_whole():
    # One completion of the first prompt alone, then the other three: 2 / 1 and 26 / 6, whose mean would be 3.17.
    rows = VALUE.reshape(1, 4, 3), MASK.reshape(1, 4, 3)
    parts = [mean_over_tokens(*(row[:, part] for row in rows)) for part in (slice(0, 1), slice(1, 4))]
    joined = Mean(*(sum(numbers) for numbers in zip(*parts, strict=True)))
    assert joined.value == pytest.approx(28 / 7)


def test_entropy_is_in_nats_over_the_last_axis():
    logits = jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]])) + 3.0
    # ln 4, and 1.75 bits = 1.75 ln 2.
    np.testing.assert_allclose(entropy(logits), [1.386294, 1.213008], rtol=1e-6)
    # Certainty: 0, not nan.
    np.testing.assert_allclose(entropy(jnp.array([200.0, 0.0])), 0.0)
