"""Prompts read in parts of several widths, what they begin with once: the same states, losses and updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _small_decoder import random_params, small_config
from meshes import close, mesh_of

from prorank_jax.config import ExpectedConfig, GrpoConfig, SupervisedConfig
from prorank_jax.data.layout import Layout, widest
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.prefix import prefill
from prorank_jax.runtime.mesh import shardings, split_rows
from prorank_jax.runtime.training import TrainState
from prorank_jax.warmup import supervised
from prorank_jax.warmup.reading import first_with_room, layouts_for
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.step import make_step

pytestmark = pytest.mark.usefixtures("fast_compilation")

VOCABULARY, P, LONGEST, SHARED = 61, 8, 24, 5
ANSWERS = AnswerTokens(1, 2, 3)
LAYOUT = Layout(4, (16, 12))
"""Narrower than the prompts could be, and with a shorter start than they share."""


def batch_of(lengths: list[int], seed: int = 0) -> PairBatch[np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, VOCABULARY, (len(lengths), LONGEST)).astype(np.int32)
    tokens[:, :SHARED] = range(4, 4 + SHARED)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    labels = np.tile([1, 0], len(lengths) // 2).astype(np.int32)
    return PairBatch(tokens, np.array(lengths, np.int32), labels)


LENGTHS = [16, 9, 20, 12, 7, 14, 18, 6]


@pytest.mark.parametrize("model", [small_config(VOCABULARY, tied=True)])
@pytest.mark.parametrize("shared", [0, 1, 5])
@pytest.mark.parametrize("widths", [(), (20,), (20, 12), (20, 16, 12, 7)])
def test_prompts_in_parts_are_the_prompts(model: Any, shared: int, widths: tuple[int, ...]) -> None:
    decoder = Decoder(model)
    params = random_params(decoder, 0, 0.2)
    batch = batch_of(sorted(LENGTHS, reverse=True))
    tokens, lengths = jnp.asarray(batch.tokens_PxL), jnp.asarray(batch.lengths_P)
    whole = prefill(decoder, params, tokens, lengths)
    parts = prefill(decoder, params, tokens, lengths, shared, widths)
    np.testing.assert_allclose(parts.last_PxD, whole.last_PxD, atol=1e-5)
    assert parts.valid_PxL.sum() == sum(LENGTHS)
    valid, kept = np.asarray(parts.valid_PxL), parts.valid_PxL.shape[1]
    for ours, theirs in ((parts.cache.keys, whole.cache.keys), (parts.cache.values, whole.cache.values)):
        np.testing.assert_allclose(np.asarray(ours)[:, valid], np.asarray(theirs)[:, :, :kept][:, valid], atol=1e-5)
    positions = np.asarray(parts.cache.positions_BxL)[valid]
    np.testing.assert_array_equal(positions, np.asarray(whole.cache.positions_BxL)[:, :kept][valid])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "stage",
    [
        GrpoConfig(steps=9, prompts_per_step=P, group_size=4, max_new_tokens=3, beta=0.1, iterations=2, entropy=0.1),
        ExpectedConfig(method="expected", steps=9, prompts_per_step=P, beta=0.1, iterations=2),
        SupervisedConfig(method="supervised", steps=9, prompts_per_step=P),
    ],
    ids=lambda stage: stage.method,
)
@pytest.mark.parametrize("devices", [1, 2])
def test_an_update_is_the_same_in_any_layout(stage: Any, parts: int, devices: int) -> None:
    if isinstance(stage, SupervisedConfig):
        parts = 1
    else:
        stage = stage.model_copy(update={"accumulation": parts})
    mesh = mesh_of(devices, 1)
    decoder, optimizer = Decoder(small_config(VOCABULARY, tied=True)), optax.sgd(0.5)
    rows = split_rows(mesh, batch_of(LENGTHS))

    def update(layout: Layout | None) -> tuple[Any, dict[str, Any]]:
        def init(params: Any) -> TrainState:
            return TrainState(params, optimizer.init(params))

        base = random_params(decoder, 0, 0.3)
        state = jax.jit(init, out_shardings=shardings(mesh, jax.eval_shape(init, base)))(base)
        if isinstance(stage, SupervisedConfig):
            step = supervised.make_step(decoder, ANSWERS, stage, optimizer, mesh, layout)
        else:
            step = make_step(decoder, ANSWERS, stage, optimizer, mesh, 0, layout)
        base = jax.device_put(random_params(decoder, 0, 0.3), shardings(mesh, base))
        state, metrics, _ = step(state, base, rows, jnp.asarray(0))
        return state.params, metrics

    plain, plain_metrics = update(None)
    laid_out, metrics = update(LAYOUT)
    close(laid_out, plain)
    assert metrics.keys() == plain_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, plain_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_batch_takes_the_first_layout_that_has_room_for_all_of_its_units() -> None:
    layouts = (Layout(4, (12, 8)), Layout(4, (16, 12)), widest(LONGEST))
    assert first_with_room(batch_of([16, 12, 9, 8]), 1, layouts) == 0
    assert first_with_room(batch_of([16, 13, 9, 8]), 1, layouts) == 0
    assert first_with_room(batch_of([17, 13, 9, 8]), 1, layouts) == 1
    # Of each of two units, one row has to fit the narrow part.
    assert first_with_room(batch_of([16, 13, 9, 8]), 2, layouts) == 1
    assert first_with_room(batch_of([24, 13, 9, 8]), 1, layouts) == 2
    other = batch_of([16, 12, 9, 8])
    other.tokens_PxL[0, 2] = 60
    assert first_with_room(other, 1, layouts) == 2


def test_layouts_are_tighter_than_the_longest_prompt_and_share_what_all_begin_with() -> None:
    rng = np.random.default_rng(0)
    sample = [batch_of(rng.integers(6, 15, P).tolist(), seed) for seed in range(6)]
    layouts = layouts_for(sample, 2)
    assert layouts[-1] == widest(LONGEST)
    assert layouts[0].prefix == SHARED
    assert layouts[0].tokens(1, P // 2) <= P // 2 * LONGEST / 2
    assert first_with_room(sample[0], 2, layouts) < len(layouts) - 1
    assert all(first_with_room(batch, 2, layouts) < len(layouts) for batch in sample)
