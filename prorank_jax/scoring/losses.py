"""Ranking losses, each a pure function `(scores, labels, mask) -> scalar`.

Scores and labels are float32 [Q, C], C candidates a query; the mask is False where a group has no document. A loss is a
mean over queries of a mean over their documents, so that it does not depend on how queries share devices.
"""

import jax
import jax.numpy as jnp
from jax import Array


def bce(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Binary cross-entropy of sigmoid(score); any grade above 0 is relevant."""
    target = (labels_QxC > 0).astype(jnp.float32)
    return _mean(jax.nn.softplus(scores_QxC) - target * scores_QxC, mask_QxC)


def mse(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Squared distance of the score to the label, a judgement or a teacher's score."""
    return _mean(jnp.square(scores_QxC - labels_QxC), mask_QxC)


def listwise_softmax(scores_QxC: Array, labels_QxC: Array, mask_QxC: Array) -> Array:
    """Cross-entropy of softmax(scores) to the labels as shares of their sum (ListNet's top one, Cao et al. 2007).

    With one positive this is the contrastive loss. A group without a positive counts as 0.
    """
    lowest = jnp.finfo(jnp.float32).min
    log_probs = jax.nn.log_softmax(jnp.where(mask_QxC, scores_QxC, lowest), axis=-1)
    gain = jnp.where(mask_QxC, labels_QxC, 0.0)
    share = gain / jnp.maximum(gain.sum(axis=-1, keepdims=True), 1e-9)
    return -jnp.where(mask_QxC, share * log_probs, 0.0).sum(axis=-1).mean()


def _mean(value_QxC: Array, mask_QxC: Array) -> Array:
    kept = jnp.where(mask_QxC, value_QxC, 0.0)
    return (kept.sum(axis=-1) / jnp.maximum(mask_QxC.sum(axis=-1, dtype=jnp.float32), 1.0)).mean()


LOSSES = {"bce": bce, "mse": mse, "listwise_softmax": listwise_softmax}
