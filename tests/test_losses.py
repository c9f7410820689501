"""Ranking losses and their gradients against the same formulas written in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prorank_jax.scoring.losses import LOSSES, bce, listwise_softmax, mse

# Four queries: graded labels with tied scores; a group of one document; no positive; two holes in the mask.
SCORES = np.array([[1.5, -0.5, 1.5, 4.0], [2.0, 9.0, -9.0, 0.0], [0.3, -1.0, 0.0, 2.0], [-3.0, 50.0, 1.0, -50.0]])
LABELS = np.array([[2.0, 0.0, 1.0, 0.0], [1.0, 7.0, 7.0, 7.0], [0.0, 0.0, 0.0, 0.0], [1.0, 5.0, 1.0, 5.0]])
MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]], bool)


def torch_group(name: str, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of the documents of one query, without any padding."""
    if name == "bce":
        return F.binary_cross_entropy_with_logits(scores, (labels > 0).double())
    if name == "mse":
        return F.mse_loss(scores, labels)
    if labels.sum() == 0:
        return (scores * 0.0).sum()
    return F.cross_entropy(scores[None], (labels / labels.sum())[None])


def torch_loss(name: str, scores: torch.Tensor) -> torch.Tensor:
    rows = [torch_group(name, scores[q, MASK[q]], torch.from_numpy(LABELS[q, MASK[q]])) for q in range(len(scores))]
    return torch.stack(rows).mean()


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_torch_with_masks_ties_and_groups_of_one(name):
    scores = torch.tensor(SCORES, requires_grad=True)
    want = torch_loss(name, scores)
    (gradient,) = torch.autograd.grad(want, scores)
    value, ours = jax.value_and_grad(LOSSES[name])(
        jnp.asarray(SCORES, jnp.float32), jnp.asarray(LABELS, jnp.float32), jnp.asarray(MASK)
    )
    assert value == pytest.approx(want.item(), rel=1e-5)
    np.testing.assert_allclose(ours, gradient.numpy(), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours)[~MASK], 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_mask_hides_has_no_say(name):
    hidden = jnp.asarray(np.where(MASK, 0.0, 1e30), jnp.float32)
    values = [
        LOSSES[name](
            jnp.asarray(SCORES, jnp.float32) + noise, jnp.asarray(LABELS, jnp.float32) + noise, jnp.asarray(MASK)
        )
        for noise in (jnp.zeros_like(hidden), hidden)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_group_counts_as_zero_and_gives_no_nan(name):
    scores, labels = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
    mask = jnp.array([[True, True], [False, False]])
    value, gradient = jax.value_and_grad(LOSSES[name])(scores, labels, mask)
    # Half of the first group's loss alone: a group that is left out would leave the mean to the other.
    assert value == pytest.approx(float(LOSSES[name](scores[:1], labels[:1], mask[:1])) / 2)
    np.testing.assert_array_equal(gradient[1], [0.0, 0.0])
    assert np.isfinite(gradient).all()


def test_values_by_hand():
    scores, mask = jnp.array([[2.0, 0.0], [0.0, 7.0]]), jnp.array([[True, True], [True, False]])
    # Every query counts the same: (1 + 9) / 2 of the means 1 and 9. Over the three documents it would be 11 / 3.
    assert mse(scores, jnp.array([[1.0, 1.0], [3.0, 0.0]]), mask) == pytest.approx(5.0)
    # -ln sigmoid(2) = 0.126928, -ln(1 - sigmoid(0)) = -ln sigmoid(0) = 0.693147. Grade 2 is as relevant as 1: taken
    # as a number it would give -1.873072 for the first.
    want = ((0.126928 + 0.693147) / 2 + 0.693147) / 2
    assert bce(scores, jnp.array([[2.0, 0.0], [1.0, 0.0]]), mask) == pytest.approx(want, rel=1e-5)
    # softmax(2, 0) = (0.880797, 0.119203); labels (2, 1) share 2/3 and 1/3: 2/3 * 0.126928 + 1/3 * 2.126928.
    # A softmax of the labels instead would share 0.731059 and 0.268941. A group of one is certain: 0.
    want = (0.793595 + 0.0) / 2
    assert listwise_softmax(scores, jnp.array([[2.0, 1.0], [1.0, 0.0]]), mask) == pytest.approx(want, rel=1e-5)


def test_scores_far_apart_overflow_nothing():
    scores, labels = jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]])
    mask = jnp.ones((1, 2), bool)
    # The naive -log(sigmoid(-1e4)) and -log(softmax) are infinite.
    assert bce(scores, labels, mask) == pytest.approx(1e4)
    assert listwise_softmax(scores, labels, mask) == pytest.approx(2e4)
