"""Stage two, score learning: the ranking step and its loop.

A step takes Q queries with C candidate documents each, scores every pair by the difference of the two answer
logits, and follows the gradient of a ranking loss. No layer is added: what is trained is what was warmed up.
"""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from prorank_jax.config import RunConfig, ScoreConfig
from prorank_jax.data.examples import Groups
from prorank_jax.data.loader import GroupBatch, group_batch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import init_learnt, merged, network
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.mesh import split_rows
from prorank_jax.runtime.metrics import MetricsWriter
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.training import Metrics, TrainState, Watch, make_gradient_step, open_state
from prorank_jax.scoring.losses import LOSSES
from prorank_jax.scoring.scores import relevance_scores

HEADLINE = ("loss", "top1_accuracy", "margin")


Step = Callable[[TrainState, Params | None, GroupBatch[Array]], tuple[TrainState, Metrics]]


def make_loss(
    decoder: Decoder, prompt: Prompt, config: ScoreConfig
) -> Callable[[Params, GroupBatch[Array]], tuple[Array, Metrics]]:
    """The loss of a batch of groups, and what to report of it.

    `top1_accuracy`: how often the highest score is at a document of the group's highest label. `margin`: mean score of
    the documents with a label above 0, less that of the others.
    """

    def loss(params: Params, batch: GroupBatch[Array]) -> tuple[Array, Metrics]:
        Q, C, L = batch.tokens_QxNxL.shape
        scores = relevance_scores(
            decoder, params, batch.tokens_QxNxL.reshape(Q * C, L), batch.lengths_QxN.reshape(Q * C), prompt.answer_ids
        ).reshape(Q, C)
        labels, mask = batch.labels_QxN, batch.mask_QxN
        value = LOSSES[config.loss](scores, labels, mask)
        best = jnp.take_along_axis(labels, jnp.where(mask, scores, -jnp.inf).argmax(axis=1)[:, None], axis=1)[:, 0]
        positive, negative = mask & (labels > 0), mask & (labels <= 0)
        margin = _masked_mean(scores, positive) - _masked_mean(scores, negative)
        top1 = (best == jnp.where(mask, labels, -jnp.inf).max(axis=1)).mean(dtype=jnp.float32)
        return value, {"loss": value, "top1_accuracy": top1, "margin": margin}

    return loss


def _masked_mean(value: Array, mask: Array) -> Array:
    return jnp.where(mask, value, 0.0).sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def make_step(
    decoder: Decoder, prompt: Prompt, config: ScoreConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Step:
    """The compiled step `(state, base, batch) -> (state, metrics)`; the buffers of the state are used again.

    `base` is read only with adapters.
    """
    group_loss = make_loss(decoder, prompt, config)

    def loss(learnt: Params, base: Params | None, batch: GroupBatch[Array]) -> tuple[Array, Metrics]:
        return group_loss(network(config.lora, base, learnt), batch)

    return make_gradient_step(loss, optimizer, mesh)


def train_score(
    run: RunConfig, decoder: Decoder, params: Params, prompt: Prompt, groups: Groups, mesh: Mesh, folder: Path
) -> Params:
    """Trains `params` through the stage and returns the result; goes on from the newest checkpoint in `folder`.

    Raises:
      InputError: a metric is not finite; the run stops at that step, behind its last checkpoint.
    """
    config = run.score
    assert config is not None
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
    learnt = init_learnt(config.lora, decoder.config, params, jax.random.key(run.seed))
    state, done = open_state(checkpoints, optimizer, mesh, learnt)
    if done == config.steps:
        return merged(config.lora, params, state.params)
    step = make_step(decoder, prompt, config, optimizer, mesh)
    base = params if config.lora else None

    watch = Watch("score", checkpoints)
    with MetricsWriter(folder, "score", config.steps, done, HEADLINE) as writer:
        tokens, since = 0, time.monotonic()
        for number in range(done + 1, config.steps + 1):
            batch = group_batch(
                groups, prompt, config.queries_per_step, config.documents_per_query, run.seed, number - 1
            )
            state, metrics = step(state, base, split_rows(mesh, batch))
            watch.add(number, metrics)
            tokens += int(batch.lengths_QxN.sum())
            if number % config.log_every == 0 or number == config.steps:
                watch.catch_up()
                writer.write(number, metrics | {"tokens_per_second": tokens / (time.monotonic() - since)})
                tokens, since = 0, time.monotonic()
            if number % config.checkpoint_every == 0 or number == config.steps:
                watch.catch_up()
                checkpoints.save(number, state)
    return merged(config.lora, params, state.params)
