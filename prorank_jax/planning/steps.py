"""The steps of a configuration as a compiler takes them: functions with the shapes and places of their arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from prorank_jax.config import GrpoConfig, RunConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, DecoderConfig
from prorank_jax.model.long_attention import kernel_for
from prorank_jax.model.lora import init_learnt
from prorank_jax.planning import flops
from prorank_jax.reranker import TOKENS_PER_BATCH
from prorank_jax.runtime.mesh import ROWS, abstract, check_rows
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.training import state_layout
from prorank_jax.scoring.batches import GroupBatch
from prorank_jax.scoring.layout import GroupPrompts, Part
from prorank_jax.scoring.scores import make_scorer
from prorank_jax.scoring.step import make_step as make_score_step
from prorank_jax.warmup import supervised
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.step import make_step as make_grpo_step

# Which tokens the answers are changes no shape.
_ANSWERS = AnswerTokens(0, 1, 2)


class Job(NamedTuple):
    """A step: what it is called, the jitted function, its arguments by what they are, and its model FLOPs."""

    name: str
    function: Any
    arguments: dict[str, Any]
    flops: float


def jobs(config: RunConfig, model: DecoderConfig, mesh: Mesh) -> list[Job]:
    """The steps of the stages that a configuration names, and reranking with prompts of full length.

    Raises:
      InputError: a batch that does not divide over the devices.
    """
    decoder = Decoder(model, jnp.dtype(config.model.dtype), config.model.remat, kernel_for(mesh))
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    made = []
    if config.warmup is not None:
        made.append(_warmup(config, decoder, params, mesh))
    if config.score is not None:
        made.append(_score(config, decoder, params, mesh))
    return [*made, _rerank(config, decoder, params, mesh)]


def _warmup(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    stage, length, model = config.warmup, config.prompt.max_length, decoder.config
    assert stage is not None
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    rows = _rows(mesh, stage.prompts_per_step)
    batch = PairBatch(rows(length), rows(), rows())
    base = None
    if isinstance(stage, GrpoConfig):
        check_rows(mesh, "warmup.prompts_per_step", stage.prompts_per_step, stage.accumulation)
        step = make_grpo_step(decoder, _ANSWERS, stage, optimizer, mesh, config.seed)
        needed = flops.grpo(model, stage, length)
        base = abstract(mesh, params) if stage.lora or stage.beta else None
    else:
        check_rows(mesh, "warmup.prompts_per_step", stage.prompts_per_step)
        step = supervised.make_step(decoder, _ANSWERS, stage, optimizer, mesh)
        needed = flops.supervised(model, stage, length)
        base = abstract(mesh, params) if stage.lora else None
    learnt = jax.eval_shape(lambda params: init_learnt(stage.lora, model, params, jax.random.key(0)), params)
    state = state_layout(optimizer, mesh, learnt)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return Job("warmup", step, {"state": state, "base": base, "batch": batch, "number": number}, needed)


def _score(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    """With the widest layout: of the layouts of a run, the one that must fit."""
    stage, length, model = config.score, config.prompt.max_length, decoder.config
    assert stage is not None
    check_rows(mesh, "score.queries_per_step", stage.queries_per_step, stage.accumulation)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    step = make_score_step(decoder, _ANSWERS[:2], stage, optimizer, mesh)
    Q, C = stage.queries_per_step, stage.documents_per_query
    queries, documents = _rows(mesh, Q), _rows(mesh, Q * C)
    prompts = GroupPrompts(queries(0), queries(), (Part(documents(length), documents(), documents()),))
    batch = GroupBatch(prompts, queries(C, dtype="float32"), queries(C, dtype="bool"))
    learnt = jax.eval_shape(lambda params: init_learnt(stage.lora, model, params, jax.random.key(0)), params)
    state = state_layout(optimizer, mesh, learnt)
    base = abstract(mesh, params) if stage.lora or stage.anchor else None
    return Job("score", step, {"state": state, "base": base, "batch": batch}, flops.score(model, stage, length))


def _rerank(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    length = config.prompt.max_length
    count = max(TOKENS_PER_BATCH // length, 1) * mesh.size
    rows = _rows(mesh, count)
    scorer = make_scorer(decoder, _ANSWERS[:2], mesh)
    arguments = {"params": abstract(mesh, params), "tokens": rows(length), "lengths": rows()}
    return Job("rerank", scorer, arguments, flops.forward(decoder.config, count * length, length / 2))


def _rows(mesh: Mesh, count: int) -> Callable[..., jax.ShapeDtypeStruct]:
    """Makes arrays of so many rows, split over all devices."""
    place = NamedSharding(mesh, ROWS)

    def made(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), np.dtype(dtype), sharding=place)

    return made


def bytes_on_a_chip(tree: Any) -> int:
    """Of arrays that are described, without what a layout adds."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total
