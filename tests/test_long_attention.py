"""The kernel for many keys equals plain attention, and is taken where it can run and pays."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _small_decoder import random_params, small_config
from meshes import mesh_of
from reference_scores import relevance_scores

from prorank_jax.config import MeshConfig
from prorank_jax.data.layout import GroupPrompts, Part
from prorank_jax.model.attention import Causal, attend, causal, causal_mask, dense
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.long_attention import LONG, attend_long, kernel_for, suits
from prorank_jax.planning.chips import open_topology
from prorank_jax.runtime.mesh import make_mesh
from prorank_jax.scoring.scores import last_hidden

interpreted = partial(attend_long, interpret=True)


def heads(seed, B, S, count, H, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, S, count, H)), dtype)


CASES = {
    # Tokens of the row, keys before it, query and key heads, head size, cap.
    "whole blocks": (256, 0, 4, 2, 64, None),
    "no multiple of a block": (200, 0, 4, 1, 32, None),
    "behind a prefix": (150, 70, 2, 2, 128, None),
    "more than one block": (600, 0, 2, 1, 16, None),
    "capped": (130, 30, 4, 2, 16, 5.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_plain_attention(case):
    L, P, N, K, H, cap = case
    lengths = jnp.array([L, 1, L // 2])
    before = jnp.arange(P)[None] < jnp.array([[P], [P // 3], [0]])
    mask = causal(lengths, L, before if P else None)
    query = heads(0, 3, L, N, H)
    keys, values = (tuple(heads(i, 3, S, K, H) for i, S in ((i, P), (i + 5, L)) if S) for i in (1, 2))
    # What becomes of padded places is nobody's business.
    real = (jnp.arange(L)[None] < lengths[:, None])[:, :, None, None]
    weights = jnp.where(real, heads(9, 3, L, N, H), 0.0)

    def value(attention, query, keys, values):
        out = attention(query, keys, values, mask, H**-0.5, cap)
        return (out * weights).sum(), out

    gradient = partial(jax.value_and_grad, argnums=(1, 2, 3), has_aux=True)
    (_, plain), expected = jax.jit(gradient(value), static_argnums=0)(attend, query, keys, values)
    (_, ours), got = jax.jit(gradient(value), static_argnums=0)(interpreted, query, keys, values)
    np.testing.assert_allclose(jnp.where(real, ours, 0.0), jnp.where(real, plain, 0.0), atol=1e-5)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((ours, got)))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_bfloat16_is_as_exact_as_plain_attention():
    query, key, value = heads(0, 1, 256, 4, 64), heads(1, 1, 256, 2, 64), heads(2, 1, 256, 2, 64)
    mask = causal(jnp.array([256]), 256)
    exact = attend(query, [key], [value], mask, 0.125)
    small = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    ours = interpreted(small[0], [small[1]], [small[2]], mask, 0.125)
    plain = attend(small[0], [small[1]], [small[2]], mask, 0.125)
    assert ours.dtype == jnp.bfloat16
    error, usual = (float(jnp.abs(x.astype(jnp.float32) - exact).max()) for x in (ours, plain))
    assert error < 1.5 * usual + 0.01


@pytest.fixture
def with_kernel(monkeypatch):
    """The decoder takes the kernel for 128 keys already, and interprets it."""
    taken = []

    def long(*arguments):
        taken.append(arguments[0].shape)
        return interpreted(*arguments)

    monkeypatch.setattr("prorank_jax.model.long_attention.attend_long", long)
    monkeypatch.setattr("prorank_jax.model.long_attention.LONG", 128)
    return taken


def test_a_decoder_scores_alike_with_either(with_kernel):
    config = small_config(50, tied=True)
    plain, kernel = Decoder(config), Decoder(config, kernel="splash")
    params = random_params(plain, 0, 0.2)
    rng = np.random.default_rng(0)
    tokens, lengths = jnp.asarray(rng.integers(0, 50, (3, 140)), jnp.int32), jnp.array([140, 90, 1])
    expected = relevance_scores(plain, params, tokens, lengths, (1, 2))
    assert with_kernel == []
    got = relevance_scores(kernel, params, tokens, lengths, (1, 2))
    assert set(with_kernel) == {(3, 140, 4, 4)}
    np.testing.assert_allclose(got, expected, atol=1e-5)

    # Two queries with two documents each, behind a prefix that these share.
    part = Part(jnp.asarray(rng.integers(0, 50, (4, 130)), jnp.int32), jnp.array([130, 7, 60, 128]), jnp.arange(4))
    prompts = GroupPrompts(jnp.asarray(rng.integers(0, 50, (2, 20)), jnp.int32), jnp.array([20, 5]), (part,))

    def total(decoder, params):
        return (last_hidden(decoder, params, prompts) ** 2).sum()

    want, gradient = jax.value_and_grad(total, argnums=1)(plain, params)
    have, ours = jax.value_and_grad(total, argnums=1)(kernel, params)
    assert float(have) == pytest.approx(float(want), rel=1e-5)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_causal_mask_by_hand():
    mask = Causal(jnp.array([[True, False, True, True]]))
    assert dense(mask, 2).astype(int).tolist() == [[[1, 0, 1, 0], [1, 0, 1, 1]]]
    np.testing.assert_array_equal(dense(causal(jnp.array([2]), 3), 3), causal_mask(jnp.array([2]), 3))
    behind = causal(jnp.array([1]), 2, jnp.array([[True, False]]))
    assert behind.valid_BxS.astype(int).tolist() == [[1, 0, 1, 0]]


def test_the_kernel_is_for_many_keys_and_for_tpus():
    valid = jnp.ones((1, LONG), bool)
    assert suits("splash", Causal(valid), LONG)
    assert suits("splash", Causal(valid), 128)
    assert not suits("splash", Causal(valid[:, 1:]), 128)
    # A step of decoding has few queries, and its mask is not causal.
    assert not suits("splash", Causal(valid), 24)
    assert not suits("splash", jnp.ones((1, LONG, LONG), bool), LONG)
    assert not suits("plain", Causal(valid), LONG)
    assert kernel_for(mesh_of(1, 1)) == "plain"
    devices = open_topology("v5e:2x2").devices
    assert kernel_for(make_mesh(MeshConfig(), devices)) == "splash"


def temporary_bytes(kernel, length):
    """Of the gradient of a small decoder with heads of Qwen2.5's size, on one chip."""

    chip = make_mesh(MeshConfig(), open_topology("v5e:2x2").devices[:1])
    shape: dict[str, Any] = {"width": 128, "mlp_width": 256, "heads": 4, "kv_heads": 2, "head_size": 64}
    config = dataclasses.replace(small_config(64, tied=True), **shape)
    decoder = Decoder(config, jnp.dtype("bfloat16"), "full", kernel)
    home = jax.sharding.NamedSharding(chip, jax.sharding.PartitionSpec())
    params, tokens, lengths = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home),
        (
            jax.eval_shape(decoder.init, jax.random.key(0)),
            jax.ShapeDtypeStruct((1, length), jnp.int32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        ),
    )

    def loss(params, tokens, lengths):
        return relevance_scores(decoder, params, tokens, lengths, (1, 2)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, tokens, lengths).compile()
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes, compiled.as_text()


def test_on_a_tpu_memory_grows_with_the_length():
    (short, _), (long, text) = temporary_bytes("splash", 2048), temporary_bytes("splash", 8192)
    assert "tpu_custom_call" in text
    # Four times the tokens: sixteen times as much it would be with all products in memory.
    assert long < 5 * short
    plain, text = temporary_bytes("plain", 8192)
    assert "tpu_custom_call" not in text
    assert plain > 10 * long
