"""The decoder: a published reference run, decoding from a cache, and compilation that does not grow with depth."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import random_params, small_config

from prorank_jax.model.attention import Rope, causal_mask
from prorank_jax.model.decoder import Decoder, DecoderConfig, KeyValues
from prorank_jax.model.hf import load_pretrained

PLAIN = small_config(97, tied=True)
GEMMA = replace(
    PLAIN,
    layers=4,
    kv_heads=1,
    head_size=6,
    rope=Rope(1e6),
    query_scale=0.4,
    tied=False,
    qkv_bias=False,
    qk_norm=True,
    centred_norms=True,
    post_norms=True,
    activation="gelu_tanh",
    embedding_scale=4.0,
    attention_cap=50.0,
    logit_cap=30.0,
    sliding=(True, True, False, True),
    window=4,
)


def test_stories260k_reproduces_its_reference_run(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    reference = json.loads((folder / "reference.json").read_text())
    ids = jnp.asarray([reference["ids"]], jnp.int32)
    length = ids.shape[1]
    pretrained = load_pretrained(folder)
    decoder = Decoder(pretrained.config)
    mask = causal_mask(jnp.array([length]), length)
    hidden, _ = decoder.forward(pretrained.params, ids, jnp.arange(length)[None], mask)
    logits = decoder.unembed(pretrained.params, hidden)[0]
    log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    nll = -log_probs[np.arange(length - 1), np.asarray(ids)[0, 1:]].mean()
    assert abs(nll - 0.413031) < 1e-5
    assert np.abs(np.asarray(logits[-1]) - reference["last_logits"]).max() < 1e-4


@pytest.mark.parametrize("config", [PLAIN, GEMMA], ids=["plain", "sliding windows"])
def test_prefill_and_cached_decoding_of_several_tokens_equal_the_full_forward(config: DecoderConfig) -> None:
    """Right-padded prompts of 9 and 6 tokens, then 2 and 3 tokens more, in segments that hold padding in between."""
    decoder = Decoder(config)
    params = random_params(decoder, seed=0, spread=0.5)
    if config.centred_norms:
        params = jax.tree_util.tree_map_with_path(lambda path, x: x - 1.0 if path[-1].key == "scale" else x, params)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 97, length + 5) for length in (9, 6)]
    full = []
    for ids in rows:
        tokens, L = jnp.asarray(ids[None]), len(ids)
        hidden, _ = decoder.forward(params, tokens, jnp.arange(L)[None], causal_mask(jnp.array([L]), L))
        full.append(np.asarray(decoder.unembed(params, hidden))[0])

    lengths = jnp.array([9, 6])
    prompt = jnp.asarray(np.stack([rows[0][:9], np.pad(rows[1][:6], (0, 3))]))
    hidden, prefix = decoder.forward(params, prompt, jnp.tile(jnp.arange(9), (2, 1)), causal_mask(lengths, 9))
    logits = np.asarray(decoder.unembed(params, hidden))
    np.testing.assert_allclose(logits[0], full[0][:9], atol=1e-4)
    np.testing.assert_allclose(logits[1, :6], full[1][:6], atol=1e-4)

    segments: tuple[KeyValues, ...] = (prefix,)
    seen = np.arange(9)[None] < np.asarray(lengths)[:, None]
    for start, count in ((0, 2), (2, 3)):
        tokens = jnp.asarray(np.stack([rows[row][n + start : n + start + count] for row, n in ((0, 9), (1, 6))]))
        positions = lengths[:, None] + jnp.arange(start, start + count)[None]
        causal = np.broadcast_to(np.tril(np.ones((count, count), bool)), (2, count, count))
        earlier = np.broadcast_to(seen[:, None], (2, count, seen.shape[1]))
        mask = jnp.asarray(np.concatenate([earlier, causal], axis=2))
        hidden, own = decoder.forward(params, tokens, positions, mask, segments)
        logits = np.asarray(decoder.unembed(params, hidden))
        for row, n in ((0, 9), (1, 6)):
            np.testing.assert_allclose(logits[row], full[row][n + start : n + start + count], atol=1e-4)
        segments = (*segments, own)
        seen = np.concatenate([seen, np.ones((2, count), bool)], axis=1)


def test_the_compiled_program_does_not_grow_with_depth() -> None:
    """One layer is compiled, whatever the depth; `benchmarks/compile_time.py` measures the time."""

    def instructions(layers: int) -> int:
        sliding = tuple(layer % 2 == 0 for layer in range(layers))
        decoder = Decoder(replace(GEMMA, layers=layers, sliding=sliding))
        params = jax.eval_shape(decoder.init, jax.random.key(0))
        tokens, mask = jnp.zeros((2, 32), jnp.int32), jnp.ones((2, 32, 32), bool)
        program = jax.jit(decoder.forward).lower(params, tokens, tokens, mask).compile().as_text()
        assert program is not None
        return len(program.splitlines())

    assert instructions(24) < 1.05 * instructions(4)
