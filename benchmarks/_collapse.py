"""A toy on which GRPO collapses to one answer, as it does on pretrained models.

A prompt's third token indicates the label, and is wrong in 35 of 100 cases: it is learnt slowly, and which answer is
likelier drifts fast. A policy that knows the token is right in 65 of 100 cases, one that always answers the same in 50.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _small_decoder import random_params, small_config
from jax.sharding import AxisType, Mesh

from prorank_jax.config import ExpectedConfig, GrpoConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.runtime.training import TrainState
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.step import Step, make_step

ZERO, ONE, END, WORD, RELEVANT, IRRELEVANT = range(6)
DECODER = Decoder(small_config(6, tied=False))
PROMPTS, STEPS, LAST = 16, 120, 20
SPREAD = 0.1
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))

Method = GrpoConfig | ExpectedConfig


def grpo(**fields: object) -> GrpoConfig:
    """Sixteen prompts, groups of eight, an answer and the end of the turn."""
    shape = {"steps": 1, "prompts_per_step": PROMPTS, "group_size": 8, "max_new_tokens": 2}
    return GrpoConfig.model_validate(shape | fields)


def expected(**fields: object) -> ExpectedConfig:
    """The limit of the same."""
    plain = {"method": "expected", "steps": 1, "prompts_per_step": PROMPTS, "entropy": 0.0, "advantage": "group_std"}
    return ExpectedConfig.model_validate(plain | fields)


def batch_of(rng: np.random.Generator, prompts: int = PROMPTS) -> PairBatch[jax.Array]:
    labels = np.tile([1, 0], prompts // 2).astype(np.int32)
    indicated = np.where(rng.random(prompts) < 0.35, 1 - labels, labels)
    tokens = np.full((prompts, 5), WORD, np.int32)
    tokens[:, 2] = np.where(indicated, RELEVANT, IRRELEVANT)
    return PairBatch(*map(jnp.asarray, (tokens, np.full(prompts, 5, np.int32), labels)))


def step_of(config: Method) -> Step:
    """The compiled step of a configuration, made once."""
    return _step_of(type(config), config.model_dump_json())


@cache
def _step_of(kind: type[Method], fields: str) -> Step:
    devices = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    config = kind.model_validate_json(fields)
    return make_step(DECODER, AnswerTokens(ZERO, ONE, END), config, OPTIMIZER, mesh, seed=0)


def trained(config: Method, seed: int) -> dict[str, float]:
    """Means of the metrics of the last 20 of 120 steps."""
    rng, params = np.random.default_rng(seed), random_params(DECODER, seed, SPREAD)
    base = jax.tree.map(jnp.copy, params) if config.beta else None
    state, rows = TrainState(params, OPTIMIZER.init(params)), []
    prompts = PROMPTS * (config.oversampling if isinstance(config, GrpoConfig) else 1)
    for number in range(STEPS):
        state, metrics, _ = step_of(config)(state, base, batch_of(rng, prompts), jnp.asarray(number))
        rows.append(metrics)
    return {name: float(np.mean([row[name] for row in jax.device_get(rows[-LAST:])])) for name in rows[0]}
