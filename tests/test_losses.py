"""Ranking losses and their gradients against sentence-transformers and against the definitions, one query at a time."""

import math
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses as theirs

from prorank_jax import config
from prorank_jax.scoring.losses import (
    LOSSES,
    bce,
    combine,
    list_mle,
    listwise_softmax,
    margin_mse,
    mse,
    ranknet,
)

pytestmark = pytest.mark.usefixtures("fast_compilation")

STEPS = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}

Row = tuple[list[float], list[float]]

# Scores and labels of each group.
UNTIED: list[Row] = [
    ([0.4, -1.2, 2.5, 0.1, -0.7], [0.0, 3.0, 1.0, 2.0, 4.0]),
    ([1.5, -0.5], [0.25, 0.75]),
    ([-0.3, 0.9, 0.2, 1.1], [0.6, 0.1, 0.05, 2.0]),
]
TIED: list[Row] = [
    ([1.5, -0.5, 1.5, 4.0, -0.5], [2.0, 0.0, 1.0, 0.0, 2.0]),
    ([0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 1.0]),
    ([1.0, -2.0, 0.5], [1.0, 1.0, 0.0]),
    ([0.3, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]),
    ([2.0, -1.0, 2.0], [1.0, 1.0, 1.0]),
    ([2.0], [1.0]),
    ([-1.5], [0.0]),
    ([], []),
]


def padded(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and mask of width 7: groups end before that, and the longer ones have a hole at place 1 too."""
    shape = (len(rows), 7)
    scores, labels, mask = np.full(shape, 7.0), np.full(shape, 9.0), np.zeros(shape, bool)
    for q, row in enumerate(rows):
        size = len(row[0])
        places = np.delete(np.arange(size + 1), 1) if size > 1 else np.arange(size)
        scores[q, places], labels[q, places], mask[q, places] = *row, True
    return scores, labels, mask


def arrays(rows: list[Row]) -> tuple[jax.Array, jax.Array, jax.Array]:
    scores, labels, mask = padded(rows)
    return jnp.asarray(scores, jnp.float32), jnp.asarray(labels, jnp.float32), jnp.asarray(mask)


def mean_over_queries(
    group_loss: Callable[..., torch.Tensor], rows: list[Row], dtype: torch.dtype
) -> tuple[float, np.ndarray]:
    """The mean of a loss of single groups, an empty one being 0, and its gradient in the padded scores."""
    scores_QxC, labels_QxC, mask_QxC = padded(rows)
    scores = torch.tensor(scores_QxC, dtype=dtype, requires_grad=True)
    labels = torch.tensor(labels_QxC, dtype=dtype)
    values = [group_loss(scores[q, m], labels[q, m]) for q, m in enumerate(torch.tensor(mask_QxC)) if m.any()]
    mean = torch.stack(values).sum() / len(rows)
    return mean.item(), torch.autograd.grad(mean, scores)[0].numpy()


# -- The losses of sentence-transformers, one query at a time ---------------------------------------------------------


class Given(CrossEncoder):
    """A cross-encoder whose score of (query, "3") is the fourth of the scores it was given."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.given = scores

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return {"place": torch.tensor([int(document) for _, document in inputs])}

    def forward(self, input: Any, **kwargs: Any) -> dict[str, Any]:
        return {"scores": self.given[input["place"]]}


def pointwise(kind: Any, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    documents = [str(place) for place in range(len(scores))]
    return kind(Given(scores))([["q"] * len(scores), documents], labels)


def listwise(loss: Any, labels: torch.Tensor) -> torch.Tensor:
    return loss([["q"], [[str(place) for place in range(len(labels))]]], [labels])


def their_margin_mse(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of the rows (query, positive, negatives...), one for each document of the highest label."""
    positives = (labels == labels.max()).nonzero()[:, 0].tolist()
    negatives = (labels < labels.max()).nonzero()[:, 0].tolist()
    if not negatives:
        return 0.0 * scores.sum()
    columns = [["q"] * len(positives), [str(place) for place in positives]]
    columns += [[str(place)] * len(positives) for place in negatives]
    wanted = torch.stack([labels[[place, *negatives]] for place in positives])
    return theirs.MarginMSELoss(Given(scores))(columns, wanted)


def their_list_net(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """They take the softmax of their labels for the shares, which of logarithms is what we do."""
    if not labels.sum():
        return 0.0 * scores.sum()
    return listwise(theirs.ListNetLoss(Given(scores)), labels.log())


def their_list_mle(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """They sum over the documents; all but the last have some below them."""
    value = listwise(theirs.ListMLELoss(Given(scores), respect_input_order=False), labels)
    return value / (len(scores) - 1)


THEIRS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": lambda scores, labels: pointwise(theirs.BinaryCrossEntropyLoss, scores, labels.clip(0.0, 1.0)),
    "mse": lambda scores, labels: pointwise(theirs.MSELoss, scores, labels),
    "margin_mse": their_margin_mse,
    "ranknet": lambda scores, labels: listwise(theirs.RankNetLoss(Given(scores), reduction_log="natural"), labels),
    "listwise_softmax": their_list_net,
    "list_mle": their_list_mle,
    "lambda_loss": lambda scores, labels: listwise(theirs.LambdaLoss(Given(scores)), labels),
}
# In theirs, torch.sort orders ties as it happens to.
ONLY_UNTIED = ("list_mle", "lambda_loss")


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_sentence_transformers(name):
    rows = UNTIED if name in ONLY_UNTIED else UNTIED + TIED
    want, wanted_gradient = mean_over_queries(THEIRS[name], rows, torch.float32)
    value, gradient = STEPS[name](*arrays(rows))
    assert value == pytest.approx(want, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(gradient[~padded(rows)[2]], 0.0)
    assert value.dtype == gradient.dtype == jnp.float32


# -- The definitions, term by term, in float64 ------------------------------------------------------------------------


def mean(terms: list[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    return torch.stack(terms).mean() if terms else 0.0 * scores.sum()


def ordered_pairs(labels: torch.Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i, j in permutations(range(len(labels)), 2) if labels[i] > labels[j]]


def defined_bce(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    p = [min(float(label), 1.0) for label in y]
    log, log_not = s.sigmoid().log(), (1 - s.sigmoid()).log()
    return mean([-(p[i] * log[i] + (1 - p[i]) * log_not[i]) for i in range(len(s))], s)


def defined_margin_mse(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return mean([(s[i] - s[j] - y[i] + y[j]) ** 2 for i, j in ordered_pairs(y) if y[i] == y.max()], s)


def defined_listwise_softmax(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    share = y / y.sum() if y.sum() else y
    return -(share * (s.exp() / s.exp().sum()).log()).sum()


def defined_list_mle(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log P(i is picked before all documents with a lower label), P summed over all orders of the whole group."""
    orders = []
    for order in permutations(range(len(s))):
        weights = s[list(order)].exp()
        picks = [weights[n] / weights[n:].sum() for n in range(len(order))]
        orders.append((order, torch.stack(picks).prod()))
    terms = []
    for i in range(len(s)):
        lower = [j for j in range(len(s)) if y[j] < y[i]]
        if lower:
            before = [p for order, p in orders if all(order.index(i) < order.index(j) for j in lower)]
            terms.append(-torch.stack(before).sum().log())
    return mean(terms, s)


def defined_lambda_loss(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def discount(rank: int) -> float:
        return math.log2(1 + rank)

    order = sorted(range(len(s)), key=lambda i: (-s[i].item(), i))
    rank = {i: place for place, i in enumerate(order, start=1)}
    gain = [2.0 ** float(label) - 1 for label in y]
    ideal = sum(g / discount(place) for place, g in enumerate(sorted(gain, reverse=True), start=1))
    terms = []
    for i, j in ordered_pairs(y):
        apart = abs(rank[i] - rank[j])
        weight = 10 * abs(1 / discount(apart) - 1 / discount(apart + 1))
        weight += abs(1 / discount(rank[i]) - 1 / discount(rank[j]))
        terms.append(-(s[i] - s[j]).sigmoid().log2() * weight * abs(gain[i] - gain[j]) / ideal)
    return mean(terms, s)


DEFINED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": defined_bce,
    "mse": lambda s, y: mean([(s[i] - y[i]) ** 2 for i in range(len(s))], s),
    "margin_mse": defined_margin_mse,
    "ranknet": lambda s, y: mean([(1 + (s[j] - s[i]).exp()).log() for i, j in ordered_pairs(y)], s),
    "listwise_softmax": defined_listwise_softmax,
    "list_mle": defined_list_mle,
    "lambda_loss": defined_lambda_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_definition_to_1e_6_in_float32_and_closer_in_float64(name):
    rows = UNTIED + TIED
    want, wanted_gradient = mean_over_queries(DEFINED[name], rows, torch.float64)
    value, gradient = STEPS[name](*arrays(rows))
    assert value == pytest.approx(want, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-6)
    with jax.enable_x64(True):
        value, gradient = STEPS[name](*padded(rows))
        assert value.dtype == jnp.float64
        assert value == pytest.approx(want, rel=1e-12)
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-12)


def test_the_losses_are_those_that_a_configuration_names():
    assert set(LOSSES) == set(DEFINED) == set(THEIRS) == set(get_args(config.Loss))


@pytest.mark.parametrize("name", LOSSES)
def test_one_document_teaches_the_pointwise_losses_alone(name):
    rows: list[Row] = [([2.0], [1.0]), ([0.5], [0.0])]
    value, gradient = STEPS[name](*arrays(rows))
    if name in config.POINTWISE:
        assert value > 0.0 and (gradient[:, 0] != 0.0).all()
    else:
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_only_losses_of_gains_tell_labels_below_0_from_those_they_are_above(name):
    scores, labels, mask = arrays([([0.5, -1.0, 0.25], [2.0, 1.0, 0.0])])
    # A teacher's logits: the same margins, lower. For `mse` the scores go along.
    shift = scores - 3.0 if name == "mse" else scores
    (lower, _), (value, _) = STEPS[name](shift, labels - 3.0, mask), STEPS[name](scores, labels, mask)
    assert (lower == pytest.approx(float(value), rel=1e-6)) == (name not in config.GAINS)


# -- What holds of every loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_mask_hides_has_no_say(name):
    scores, labels, mask = arrays(UNTIED + TIED)
    value, gradient = STEPS[name](scores, labels, mask)
    for junk in (1e30, -1e30, float("nan"), float("inf")):
        hidden_value, hidden_gradient = STEPS[name](jnp.where(mask, scores, junk), jnp.where(mask, labels, junk), mask)
        assert hidden_value == value
        np.testing.assert_array_equal(hidden_gradient, gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_group_counts_as_zero_and_gives_no_nan(name):
    rows: list[Row] = [([1.0, 2.0], [1.0, 0.0]), ([], [])]
    value, gradient = STEPS[name](*arrays(rows))
    # Half of the first group's loss alone: a group that is left out would leave the mean to the other.
    assert value == pytest.approx(float(STEPS[name](*arrays(rows[:1]))[0]) / 2)
    np.testing.assert_array_equal(gradient[1], 0.0)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_all_equal_order_nothing(name, label):
    value, gradient = STEPS[name](*arrays([([0.3, -1.0, 2.0], [label] * 3)]))
    # `listwise_softmax` learns that three positives are equal; `list_mle` would, did ties share a denominator.
    if name in config.POINTWISE or (name, label) == ("listwise_softmax", 1.0):
        assert value > 0.0
    else:
        assert value == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_queries_in_two_halves_have_the_mean_of_their_losses(name):
    rows = UNTIED + TIED[:1]
    halves = [float(STEPS[name](*arrays(half))[0]) for half in (rows[:2], rows[2:])]
    # Over pairs or documents instead of queries, the half with the longer groups would weigh more.
    assert STEPS[name](*arrays(rows))[0] == pytest.approx(sum(halves) / 2, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_documents_has_no_say(name):
    # Ties of labels, and for `lambda_loss` none of scores.
    rows: list[Row] = [([1.5, -0.5, 0.5, 4.0, -1.0], [2.0, 0.0, 1.0, 0.0, 2.0]), ([0.3, 1.0, 0.0, 2.0], [0.0, 1.0] * 2)]
    scores, labels, mask = arrays(rows if name == "lambda_loss" else UNTIED + TIED)
    value, gradient = STEPS[name](scores, labels, mask)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(scores.shape[1])
        moved_value, moved_gradient = STEPS[name](scores[:, order], labels[:, order], mask[:, order])
        assert moved_value == pytest.approx(float(value), rel=1e-6)
        np.testing.assert_allclose(moved_gradient, gradient[:, order], rtol=0, atol=1e-6)


def test_tied_scores_rank_by_their_place_in_lambda_loss():
    first, last = (arrays([([0.0, 0.0, 0.0], labels)]) for labels in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    # All margins are 0, so that log2(1 + exp(0)) = 1 leaves the mean of the weights of two pairs. Gain 1, and
    # 1/D(1..3) = 1, 0.630930, 0.5. Ranks 1 against 2 and 3: (10 * 0.369070 + 0.369070 + 10 * 0.130930 + 0.5) / 2.
    assert STEPS["lambda_loss"](*first)[0] == pytest.approx(2.934535, rel=1e-6)
    # Ranks 3 against 1 and 2: the swap of 2 and 3 is 0.130930. Ties in the reverse order would exchange the two values.
    assert STEPS["lambda_loss"](*last)[0] == pytest.approx(2.815465, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_far_apart_overflow_nothing(name):
    far: list[Row] = [
        ([1e4, -1e4], [0.0, 1.0]),
        ([1e4, -1e4, 1e4, 0.0], [2.0, 0.0, 0.0, 1.0]),
        ([1e4, 1e4, -1e4], [1.0, 1.0, 1.0]),
        ([-1e4, -1e4, 1e4], [0.0, 0.0, 0.0]),
        ([1e4], [1.0]),
    ]
    value, gradient = STEPS[name](*arrays(far + UNTIED + TIED[:3]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # The naive -log(sigmoid(-1e4)), -log(sigmoid(-2e4)) and -log(softmax) are infinite. The one pair of `lambda_loss`
    # weighs 11 * (1 - 1 / log2(3)) = 4.059773, and its logarithm is of base 2.
    squares = {"mse": (1e4**2 + 10001.0**2) / 2, "margin_mse": 20001.0**2}
    want = {"bce": 1e4, "lambda_loss": 2e4 * 4.059773 / 0.693147} | squares
    assert STEPS[name](*arrays(far[:1]))[0] == pytest.approx(want.get(name, 2e4), rel=1e-6)


def test_labels_of_any_size_overflow_no_gain():
    # 2^200 is above float32. Among such labels only the highest one's gain is left: that of a lone positive.
    scores, labels, mask = arrays([([0.5, 1.0, -1.0], [200.0, 100.0, 0.0])])
    value, gradient = STEPS["lambda_loss"](scores, labels, mask)
    alone, _ = STEPS["lambda_loss"](*arrays([([0.5, 1.0, -1.0], [1.0, 0.0, 0.0])]))
    # Its two pairs, and beside them one that weighs nothing.
    assert value == pytest.approx(float(alone) * 2 / 3, rel=1e-6)
    assert np.isfinite(gradient).all()


def test_values_by_hand():
    scores, mask = jnp.array([[2.0, 0.0], [0.0, 7.0]]), jnp.array([[True, True], [True, False]])
    # Every query counts the same: (1 + 9) / 2 of the means 1 and 9. Over the three documents it would be 11 / 3.
    assert mse(scores, jnp.array([[1.0, 1.0], [3.0, 0.0]]), mask) == pytest.approx(5.0)
    # -ln sigmoid(2) = 0.126928, -ln(1 - sigmoid(0)) = -ln sigmoid(0) = 0.693147. Grade 2 is as relevant as 1: taken
    # as a number it would give -1.873072 for the first.
    want = ((0.126928 + 0.693147) / 2 + 0.693147) / 2
    assert bce(scores, jnp.array([[2.0, 0.0], [1.0, 0.0]]), mask) == pytest.approx(want, rel=1e-5)
    # A probability stays itself: -0.25 ln sigmoid(2) - 0.75 ln sigmoid(-2). As a positive it would be 0.126928.
    want = (0.25 * 0.126928 + 0.75 * 2.126928 + 0.693147) / 2
    assert bce(scores[:1], jnp.array([[0.25, 0.0]]), mask[:1]) == pytest.approx(want, rel=1e-5)
    # Below 0 is not relevant, no more: ln(1 + e^2). As a number it would add 3 * 2.
    assert bce(scores[:1], jnp.array([[-3.0, 0.0]]), mask[:1]) == pytest.approx((2.126928 + 0.693147) / 2, rel=1e-5)
    # softmax(2, 0) = (0.880797, 0.119203); labels (2, 1) share 2/3 and 1/3: 2/3 * 0.126928 + 1/3 * 2.126928.
    # A softmax of the labels instead would share 0.731059 and 0.268941. A group of one is certain: 0.
    want = (0.793595 + 0.0) / 2
    assert listwise_softmax(scores, jnp.array([[2.0, 1.0], [1.0, 0.0]]), mask) == pytest.approx(want, rel=1e-5)


def test_pairs_by_hand():
    scores, labels, mask = arrays([([2.0, 0.0, 1.0, 0.0], [3.0, 1.0, 3.0, 0.0])])
    # Margins 2, 2, 1, 1 of the two positives to documents 1 and 3, wanted 2, 3, 2, 3. The pair (1, 3) of negatives
    # would make it 7 / 5.
    assert margin_mse(scores, labels, mask) == pytest.approx((0.0 + 1.0 + 1.0 + 4.0) / 4)
    # ln(1 + e^-margin) of margins 2, 2, 1, 1, and 0 of the pair (1, 3); in base 2 it would be 0.498...
    assert ranknet(scores, labels, mask) == pytest.approx((2 * 0.126928 + 2 * 0.313262 + 0.693147) / 5, rel=1e-5)
    # Documents 0 and 2 against 1 and 3: ln(1 + 2 e^-2), ln(1 + 2 e^-1); document 1 against 3: ln 2.
    # In a denominator with its tie, document 2 would add e to it: ln(1 + e + 2 e^-1).
    assert list_mle(scores, labels, mask) == pytest.approx((0.239545 + 0.551445 + 0.693147) / 3, rel=1e-5)


def test_temperature_divides_the_scores():
    scores, labels, mask = arrays(UNTIED + TIED)
    for temperature in (0.05, 4.0):
        want = listwise_softmax(scores / temperature, labels, mask)
        assert listwise_softmax(scores, labels, mask, temperature=temperature) == pytest.approx(float(want), rel=1e-6)
    # One positive at 1 against one at 0: ln(1 + e^(-1/2)); not multiplied by the temperature or its square.
    assert listwise_softmax(*arrays([([1.0, 0.0], [1.0, 0.0])]), temperature=2.0) == pytest.approx(0.474077, rel=1e-6)


@pytest.mark.parametrize(
    "weights", [{"bce": 1.0}, {"listwise_softmax": 0.5, "mse": 2.0}, {name: 0.1 + len(name) for name in LOSSES}]
)
def test_a_combination_is_the_weighted_sum_with_the_temperature_in_one_part(weights: Mapping[str, float]):
    batch = arrays(UNTIED + TIED)
    value, gradient = jax.jit(jax.value_and_grad(combine(weights, temperature=0.5)))(*batch)
    parts = {name: STEPS[name](*batch) for name in weights}
    if "listwise_softmax" in weights:
        # The gradient in the scores is that in the divided scores, over the temperature.
        part, part_gradient = STEPS["listwise_softmax"](batch[0] / 0.5, *batch[1:])
        parts["listwise_softmax"] = part, part_gradient / 0.5
    want = sum(weights[name] * float(part) for name, (part, _) in parts.items())
    wanted_gradient = sum(weights[name] * np.asarray(part) for name, (_, part) in parts.items())
    assert value == pytest.approx(want, rel=1e-6)
    assert value.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-6)
