"""The steps of a configuration as a compiler takes them: functions with the shapes and places of their arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from prorank_jax.config import GrpoConfig, RunConfig, StageConfig, SupervisedConfig
from prorank_jax.data.layout import GroupPrompts, Part
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, DecoderConfig, KeyValues
from prorank_jax.model.long_attention import kernel_for
from prorank_jax.model.lora import init_learnt
from prorank_jax.planning import flops
from prorank_jax.runtime.mesh import ROWS, abstract
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.training import state_layout
from prorank_jax.scoring.batches import GroupBatch
from prorank_jax.scoring.shared import BEHIND_ROWS, make_scorer, most_tokens
from prorank_jax.scoring.stage import check_score
from prorank_jax.scoring.step import make_step as make_score_step
from prorank_jax.warmup import supervised
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.stage import check_warmup
from prorank_jax.warmup.step import make_step as make_policy_step

# Which tokens the answers are changes no shape.
_ANSWERS = AnswerTokens(0, 1, 2)


class Job(NamedTuple):
    """A step: what it is called, the jitted function, its arguments by what they are, and its model FLOPs."""

    name: str
    function: Any
    arguments: dict[str, Any]
    flops: float


def jobs(config: RunConfig, model: DecoderConfig, mesh: Mesh) -> list[Job]:
    """The steps of the stages that a configuration names, and reranking; raises as `make_job`."""
    stages = {"warmup": config.warmup, "score": config.score, "rerank": config.prompt}
    return [make_job(config, model, mesh, stage) for stage, section in stages.items() if section is not None]


def make_job(config: RunConfig, model: DecoderConfig, mesh: Mesh, stage: str) -> Job:
    """The step of one of them: `warmup`, `score`, or `rerank` with prompts of full length.

    Raises:
      InputError: what training would refuse, such as a batch that does not divide over the devices.
    """
    decoder = Decoder(model, jnp.dtype(config.model.dtype), config.model.remat, kernel_for(mesh))
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    made = {"warmup": _warmup, "score": _score, "rerank": _rerank}[stage]
    return made(config, decoder, params, mesh)


def _warmup(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    stage, length, model = config.warmup, config.prompt.max_length, decoder.config
    assert stage is not None
    check_warmup(stage, length, model.max_positions, mesh)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    rows = _rows(mesh, stage.prompts_per_step * (stage.oversampling if isinstance(stage, GrpoConfig) else 1))
    batch = PairBatch(rows(length), rows(), rows())
    if isinstance(stage, SupervisedConfig):
        step = supervised.make_step(decoder, _ANSWERS, stage, optimizer, mesh)
    else:
        step = make_policy_step(decoder, _ANSWERS, stage, optimizer, mesh, config.seed)
    needed = flops.warmup(model, stage, length)
    arguments = _learning(stage, optimizer, model, params, mesh)
    return Job("warmup", step, arguments | {"batch": batch, "number": jax.ShapeDtypeStruct((), jnp.int32)}, needed)


def _score(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    """With the widest layout: of the layouts of a run, the one that must fit."""
    stage, length, model = config.score, config.prompt.max_length, decoder.config
    assert stage is not None
    check_score(stage, mesh)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    step = make_score_step(decoder, _ANSWERS[:2], stage, optimizer, mesh)
    Q, C = stage.queries_per_step, stage.documents_per_query
    queries, documents = _rows(mesh, Q), _rows(mesh, Q * C)
    prompts = GroupPrompts(queries(0), queries(), (Part(documents(length), documents(), documents()),))
    batch = GroupBatch(prompts, queries(C, dtype="float32"), queries(C, dtype="bool"))
    arguments = _learning(stage, optimizer, model, params, mesh) | {"batch": batch}
    return Job("score", step, arguments, flops.score(model, stage, length))


def _rerank(config: RunConfig, decoder: Decoder, params: Any, mesh: Mesh) -> Job:
    """A batch of documents that go on from one query, which is a quarter of each prompt."""
    c, prefix = decoder.config, config.prompt.max_length // 4
    rest = config.prompt.max_length - prefix
    count = max(most_tokens(mesh) // rest, 1) * mesh.size
    rows = _rows(mesh, count)
    of_prefix: Any = jax.ShapeDtypeStruct(
        (c.layers, count, prefix, c.kv_heads, c.head_size), decoder.dtype, sharding=NamedSharding(mesh, BEHIND_ROWS)
    )
    positions: Any = rows(prefix)
    arguments = {
        "params": abstract(mesh, params),
        "before": KeyValues(of_prefix, of_prefix, positions),
        "starts": rows(),
        "tokens": rows(rest),
        "lengths": rows(),
    }
    scorer = make_scorer(decoder, _ANSWERS[:2], mesh).score
    return Job("rerank", scorer, arguments, flops.forward(c, count * rest, prefix + rest / 2))


def _learning(
    stage: StageConfig, optimizer: optax.GradientTransformation, model: DecoderConfig, params: Any, mesh: Mesh
) -> dict[str, Any]:
    """The training state, and the base where the stage reads it."""
    learnt = jax.eval_shape(lambda params: init_learnt(stage.lora, model, params, jax.random.key(0)), params)
    base = abstract(mesh, params) if stage.reads_base else None
    return {"state": state_layout(optimizer, mesh, learnt), "base": base}


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
