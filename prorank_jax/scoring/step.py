"""The step of score learning: groups of documents -> scores -> a ranking loss -> new parameters.

The score of a pair is the difference of the two answer logits. No layer is added: what is trained is what was
warmed up.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from prorank_jax.config import ScoreConfig
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import network
from prorank_jax.runtime.training import Metrics, TrainState, make_gradient_step
from prorank_jax.scoring.batches import GroupBatch
from prorank_jax.scoring.losses import combine
from prorank_jax.scoring.scores import answer_log_probs, answer_margin, last_hidden

AnswerIds = tuple[int, int]
"""Token ids of the answers "not relevant" and "relevant"."""
Step = Callable[[TrainState, Params | None, GroupBatch[Array]], tuple[TrainState, Metrics]]


def make_loss(
    decoder: Decoder, answer_ids: AnswerIds, config: ScoreConfig
) -> Callable[[Params, Params | None, GroupBatch[Array]], tuple[Array, Metrics]]:
    """The loss `(params, anchor, batch)` of a batch of groups, and what to report of it.

    `anchor` is the model that the stage began with, read only where it has a weight. `top1_accuracy`: how often the
    highest score is at a document of the group's highest label. `margin`: mean score of the documents with a label
    above 0, less that of the others. `kl`: to the anchor.
    """
    ranking_loss = combine({str(name): weight for name, weight in config.loss.items()}, config.temperature)

    def loss(params: Params, anchor: Params | None, batch: GroupBatch[Array]) -> tuple[Array, Metrics]:
        last_QxCxD = last_hidden(decoder, params, batch.prompts)
        scores = answer_margin(decoder, params, last_QxCxD, answer_ids)
        labels, mask = batch.labels_QxC, batch.mask_QxC
        value = ranking_loss(scores, labels, mask)
        metrics = {"loss": value, **_rates(scores, labels, mask)}
        if config.anchor and anchor is not None:
            kl = _divergence(decoder, answer_ids, params, anchor, batch, last_QxCxD)
            value = value + config.anchor * kl
            metrics |= {"loss": value, "kl": kl}
        return value, metrics

    return loss


def _rates(scores: Array, labels: Array, mask: Array) -> Metrics:
    best = jnp.take_along_axis(labels, jnp.where(mask, scores, -jnp.inf).argmax(axis=1)[:, None], axis=1)[:, 0]
    positive, negative = mask & (labels > 0), mask & (labels <= 0)
    return {
        "top1_accuracy": (best == jnp.where(mask, labels, -jnp.inf).max(axis=1)).mean(dtype=jnp.float32),
        "margin": _masked_mean(scores, positive) - _masked_mean(scores, negative),
    }


def _divergence(
    decoder: Decoder, answer_ids: AnswerIds, params: Params, anchor: Params, batch: GroupBatch[Array], last_QxCxD: Array
) -> Array:
    """KL(policy || anchor) at the answer, over both answers and the rest of the vocabulary.

    It is a mean over queries of the mean over their documents, as the losses are.
    """
    logp = answer_log_probs(decoder, params, last_QxCxD, answer_ids)
    anchored = last_hidden(decoder, anchor, batch.prompts)
    reference = jax.lax.stop_gradient(answer_log_probs(decoder, anchor, anchored, answer_ids))
    kl_QxC = (jnp.exp(logp) * (logp - reference)).sum(axis=-1)
    return jax.vmap(_masked_mean)(kl_QxC, batch.mask_QxC).mean()


def _masked_mean(value: Array, mask: Array) -> Array:
    return jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def make_step(
    decoder: Decoder, answer_ids: AnswerIds, config: ScoreConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Step:
    """The compiled step `(state, base, batch) -> (state, metrics)`; the buffers of the state are used again.

    `base` is what the stage began with; it is read with adapters or an anchor only.
    """
    group_loss = make_loss(decoder, answer_ids, config)

    def loss(learnt: Params, base: Params | None, batch: GroupBatch[Array]) -> tuple[Array, Metrics]:
        return group_loss(network(config.lora, base, learnt), base, batch)

    return make_gradient_step(loss, optimizer, mesh, config.accumulation)
