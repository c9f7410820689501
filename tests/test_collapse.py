"""A toy on which GRPO collapses to one answer, as on pretrained models, and what each remedy does there.

A prompt's third token tells the label, wrongly in 35 of 100 cases: it is learnt slowly, and which answer is likelier
drifts fast. Nothing pulls it back once all completions of a prompt agree.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import mesh_of
from small_decoder import random_params, small_config

from prorank_jax.config import ExpectedConfig, GrpoConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.runtime.training import TrainState
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.step import Step, make_step

pytestmark = pytest.mark.usefixtures("fast_compilation")

ZERO, ONE, END, WORD, RELEVANT, IRRELEVANT = range(6)
DECODER = Decoder(small_config(6, tied=False))
PROMPTS, STEPS, LAST = 16, 120, 20
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
GRPO: dict[str, Any] = {"steps": 1, "prompts_per_step": PROMPTS, "group_size": 8, "max_new_tokens": 2}
EXPECTED: dict[str, Any] = {"method": "expected", "steps": 1, "prompts_per_step": PROMPTS}


def batch_of(rng: np.random.Generator, prompts: int = PROMPTS) -> PairBatch[jax.Array]:
    labels = np.tile([1, 0], prompts // 2).astype(np.int32)
    told = np.where(rng.random(prompts) < 0.35, 1 - labels, labels)
    tokens = np.full((prompts, 5), WORD, np.int32)
    tokens[:, 2] = np.where(told, RELEVANT, IRRELEVANT)
    return PairBatch(*map(jnp.asarray, (tokens, np.full(prompts, 5, np.int32), labels)))


def step_of(config: GrpoConfig | ExpectedConfig) -> Step:
    return _step_of(type(config), config.model_dump_json())


@cache
def _step_of(kind: type[GrpoConfig] | type[ExpectedConfig], fields: str) -> Step:
    config = kind.model_validate_json(fields)
    return make_step(DECODER, AnswerTokens(ZERO, ONE, END), config, OPTIMIZER, mesh_of(1, 1), seed=0)


def trained(config: GrpoConfig | ExpectedConfig, seed: int) -> dict[str, float]:
    """Means of the last steps' metrics."""
    rng, params = np.random.default_rng(seed), random_params(DECODER, seed, 0.1)
    base = jax.tree.map(jnp.copy, params) if config.beta else None
    state, rows = TrainState(params, OPTIMIZER.init(params)), []
    for number in range(STEPS):
        state, metrics, _ = step_of(config)(state, base, batch_of(rng), jnp.asarray(number))
        rows.append(metrics)
    return {name: float(np.mean([row[name] for row in jax.device_get(rows[-LAST:])])) for name in rows[0]}


@pytest.mark.parametrize("seed", [0, 1])
def test_grpo_collapses(seed: int) -> None:
    row = trained(GrpoConfig(**GRPO), seed)
    assert row["format_rate"] > 0.97
    assert not 0.03 < row["positive_rate"] < 0.97
    assert row["frac_reward_zero_std"] > 0.9
    assert row["accuracy"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "config",
    [
        GrpoConfig(**GRPO, entropy=0.1),
        GrpoConfig(**GRPO, beta=0.1, balanced=True),
        ExpectedConfig(**EXPECTED),
        ExpectedConfig(**EXPECTED, entropy=0.1, iterations=2),
    ],
    ids=["entropy", "balanced reference", "expected", "expected, entropy"],
)
def test_what_holds_it(config: GrpoConfig | ExpectedConfig, seed: int) -> None:
    row = trained(config, seed)
    assert row["format_rate"] > 0.85
    assert 0.3 < row["positive_rate"] < 0.7
    # The best there is has .65; a reference that is held to learns it more slowly.
    assert row["accuracy"] > 0.52


def settled(probability: float) -> Any:
    """Parameters that answer ONE with about this probability and else ZERO, nearly whatever the prompt."""
    params = random_params(DECODER, 0, 0.1)
    # The first coordinate says whether an answer was given, and outweighs the others.
    params["embedding"] = params["embedding"].at[:, 0].set(jnp.array([-9.0, -9.0, 9.0, 9.0, 9.0, 9.0]))
    odds, size = np.log(probability / (1 - probability)), np.sqrt(DECODER.config.width)
    table = jnp.zeros(6).at[jnp.array([ZERO, ONE, END])].set(jnp.array([20.0, 20.0 + odds, -20.0]) / size)
    params["unembedding"] = params["unembedding"].at[:, 0].set(table)
    return params


def first_step(config: GrpoConfig, probability: float, prompts: int = PROMPTS) -> tuple[dict[str, float], Any]:
    params = settled(probability)
    state = TrainState(params, OPTIMIZER.init(params))
    _, metrics, completions = step_of(config)(state, None, batch_of(np.random.default_rng(0), prompts), jnp.asarray(0))
    assert completions is not None
    return {name: float(value) for name, value in metrics.items()}, completions


def test_a_baseline_of_the_batch_learns_from_groups_that_agree() -> None:
    alone, _ = first_step(GrpoConfig(**GRPO), 0.9999)
    assert alone["positive_rate"] == 1.0 and alone["frac_reward_zero_std"] == 1.0
    assert alone["grad_norm"] == 0.0
    for advantage in ("batch_mean", "batch_std"):
        row, _ = first_step(GrpoConfig(**GRPO, advantage=advantage), 0.9999)
        assert row["frac_reward_zero_std"] == 1.0 and row["grad_norm"] > 1e-9


def test_oversampling_learns_from_the_groups_that_differ() -> None:
    plain, completions = first_step(GrpoConfig(**GRPO), 0.98)
    assert plain["frac_reward_zero_std"] > 0.6
    row, chosen = first_step(GrpoConfig(**GRPO, oversampling=4), 0.98, 4 * PROMPTS)
    assert row["frac_reward_zero_std"] == pytest.approx(plain["frac_reward_zero_std"], abs=0.25)

    def differing(shown: Any) -> int:
        return int((np.asarray(shown.rewards["relevance"]).std(axis=1) > 0).sum())

    assert chosen.rollout.tokens_PxGxT.shape == completions.rollout.tokens_PxGxT.shape
    of_all = round((1 - row["frac_reward_zero_std"]) * 4 * PROMPTS)
    assert differing(chosen) == min(of_all, PROMPTS) > differing(completions)
