"""Ranking losses, each a pure function `(scores, labels, mask) -> scalar`.

Scores and labels are float32 [Q, C], C candidates a query; the mask is False where a group has no document, and what
lies there has no say. A label is a judgement (0, 1, 2, ...) or what a teacher says in its place. A loss is a mean over
queries, so that it does not depend on how queries share devices, of a mean over the documents or pairs of each; a
query without any that the loss could learn from counts as 0. All but `lambda_loss` at tied scores are blind to the
order in which a group lists its documents.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

Loss = Callable[[Array, Array, Array], Array]


def bce(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Binary cross-entropy of sigmoid(score) to the label (arXiv 1901.04085, eq. 1).

    A label from 0 to 1 is the probability to learn; any grade above 1 is as relevant as 1.
    """
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    return _mean(jax.nn.softplus(scores) - jnp.clip(labels, 0.0, 1.0) * scores, mask_QxC)


def mse(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Squared distance of the score to the label, a judgement or a teacher's score (arXiv 2010.02666)."""
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    return _mean(jnp.square(scores - labels), mask_QxC)


def margin_mse(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Squared distance of score margins to label margins (arXiv 2010.02666), positives against the others.

    The paper's pairs are a positive and a negative. Here the documents of the group's highest label are the positives
    and all below them the negatives, which needs no threshold and so takes judgements and any teacher's scores:
    labels `[[3, 1, 3, 0]]` make the pairs (0, 1), (0, 3), (2, 1) and (2, 3). With one positive the result is that of
    sentence-transformers' MarginMSELoss on the row `(query, positive, negatives...)`; with several, the mean of their
    rows. The mean over all pairs would be neither, and mostly about negatives among themselves.
    """
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    best = labels == jnp.where(mask_QxC, labels, -jnp.inf).max(axis=-1, keepdims=True)
    pairs_QxCxC = _preferred(labels, mask_QxC) & best[:, :, None]
    return _mean(jnp.square(_margins(scores) - _margins(labels)), pairs_QxCxC)


def ranknet(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Logistic loss of the score margin, over pairs of unequal labels (Burges et al. 2005).

    `doi.org/10.1145/1102351.1102363`; sentence-transformers' RankNetLoss is this over ln 2, its mean one over all pairs
    of a batch.
    """
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    return _mean(jax.nn.softplus(-_margins(scores)), _preferred(labels, mask_QxC))


def listwise_softmax(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array, *, temperature: float = 1.0) -> Array:
    """Cross-entropy of softmax(scores / temperature) to the labels, 0 or more, as shares of their sum.

    ListNet's top one (Cao et al. 2007, `doi.org/10.1145/1273496.1273513`), but for the shares: with one positive this
    is the contrastive loss (arXiv 1807.03748, eq. 4), where ListNet's softmax of the labels would give some of its
    share to every negative. A group without a positive counts as 0.
    """
    scores, gains = _shown(scores_QxC, labels_QxC, mask_QxC)
    lowest = jnp.finfo(scores.dtype).min
    log_probs = jax.nn.log_softmax(jnp.where(mask_QxC, scores / temperature, lowest), axis=-1)
    total = gains.sum(axis=-1, keepdims=True)
    shares = gains / jnp.where(total > 0.0, total, 1.0)
    return -jnp.where(mask_QxC, shares * log_probs, 0.0).sum(axis=-1).mean()


def list_mle(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Negative log-likelihood of the order by label under Plackett-Luce (Xia et al. 2008).

    Mean over documents i with any below them of `-log(exp(s_i) / (exp(s_i) + sum of exp(s_j) over y_j < y_i))`, the
    probability that i is picked before all of those; `doi.org/10.1145/1390156.1390306` takes the sum over documents.

    Labels do not order tied documents, so ties do not meet: labels `[[2, 1, 1, 0]]` set 0 against 1, 2 and 3, and 1
    and 2 each against 3. Without ties the sum is the likelihood itself; with them it is a composite one, of events
    that Plackett-Luce gives these very probabilities. A denominator that ties share (Breslow's), or any order
    among them (sentence-transformers' ListMLELoss), would mostly teach how the many documents of label 0 compare.
    """
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    below_QxCxC = _preferred(labels, mask_QxC)
    itself_CxC = jnp.eye(scores.shape[-1], dtype=bool)
    loss_QxC = jax.nn.logsumexp(-_margins(scores), axis=-1, where=below_QxCxC | itself_CxC[None])
    return _mean(loss_QxC, below_QxCxC.any(axis=-1))


def lambda_loss(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """NDCG-Loss2++ (Wang et al. 2018): RankNet, each pair by what it weighs in nDCG at the current ranks.

    With gains `G = (2^y - 1) / maxDCG`, discounts `D(rank) = log2(1 + rank)` and mu = 10, the mean over pairs of
    unequal labels (0 or more) of

        |G_i - G_j| (mu |1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1)| + |1/D(r_i) - 1/D(r_j)|) log2(1 + exp(s_j - s_i))

    `doi.org/10.1145/3269206.3271784` sums over the pairs; this is sentence-transformers' LambdaLoss of one query, whose
    mean over a batch counts pairs, not queries. Tied scores rank by their place in the group. No gradient flows through
    ranks.
    """
    scores, labels = _shown(scores_QxC, labels_QxC, mask_QxC)
    pairs_QxCxC = _preferred(labels, mask_QxC)

    # 2^y - 1, over 2^(highest y), which no label overflows; expm1, which keeps the digits of labels near 0.
    highest = labels.max(axis=-1, keepdims=True)
    gains = -jnp.exp2(labels - highest) * jnp.expm1(-math.log(2.0) * labels)
    ideal = jnp.sort(gains, axis=-1, descending=True)
    places_C = jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    max_dcg = (ideal * _inverse_discount(places_C)[None]).sum(axis=-1, keepdims=True)
    gains = gains / jnp.where(max_dcg > 0.0, max_dcg, 1.0)

    first = jnp.argsort(jnp.where(mask_QxC, -scores, jnp.inf), axis=-1, stable=True)
    ranks = 1.0 + jnp.argsort(first, axis=-1).astype(scores.dtype)
    # Only a document and itself are 0 ranks apart, and they are no pair.
    apart_QxCxC = jnp.maximum(jnp.abs(_margins(ranks)), 1.0)
    gap_QxCxC = jnp.abs(_inverse_discount(apart_QxCxC) - _inverse_discount(apart_QxCxC + 1.0))
    swap_QxCxC = jnp.abs(_margins(_inverse_discount(ranks)))
    weights_QxCxC = jnp.abs(_margins(gains)) * (10.0 * gap_QxCxC + swap_QxCxC)
    return _mean(weights_QxCxC * jax.nn.softplus(-_margins(scores)) / math.log(2.0), pairs_QxCxC)


def combine(weights: Mapping[str, float], temperature: float) -> Loss:
    """The weighted sum of several losses as one; the temperature is that of `listwise_softmax`."""
    options = {"listwise_softmax": {"temperature": temperature}}
    parts = [(weight, functools.partial(LOSSES[name], **options.get(name, {}))) for name, weight in weights.items()]

    def weighted_sum(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
        values = [weight * part(scores_QxC, labels_QxC, mask_QxC) for weight, part in parts]
        return functools.reduce(jnp.add, values)

    return weighted_sum


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "mse": mse,
    "margin_mse": margin_mse,
    "ranknet": ranknet,
    "listwise_softmax": listwise_softmax,
    "list_mle": list_mle,
    "lambda_loss": lambda_loss,
}


def _shown(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> tuple[Array, Array]:
    """Scores and labels with 0 where the mask hides them: no infinity can come from there, in values or gradients."""
    return jnp.where(mask_QxC, scores_QxC, 0.0), jnp.where(mask_QxC, labels_QxC, 0.0)


def _margins(value_QxC: Array) -> Array:
    """Value of i less value of j: `[[5, 3]]` -> `[[[0, 2], [-2, 0]]]`."""
    return value_QxC[:, :, None] - value_QxC[:, None, :]


def _preferred(labels_QxC: Array, mask_QxC: Array) -> Array:
    """Whether i has a higher label than j, both shown: `[[1, 0]]` -> `[[[False, True], [False, False]]]`."""
    return (labels_QxC[:, :, None] > labels_QxC[:, None, :]) & mask_QxC[:, :, None] & mask_QxC[:, None, :]


def _inverse_discount(rank: Array) -> Array:
    return 1.0 / jnp.log2(1.0 + rank)


def _mean(value: Array, counted: Array) -> Array:
    """Mean over queries of the mean over what counts in each; nothing that counts is 0."""
    axes = tuple(range(1, value.ndim))
    total_Q = jnp.where(counted, value, 0.0).sum(axis=axes)
    return (total_Q / jnp.maximum(counted.sum(axis=axes, dtype=value.dtype), 1.0)).mean()
