"""The decoder: a published reference run, decoding from a cache, and compilation that does not grow with depth."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _small_decoder import random_params, small_config

from prorank_jax.model.attention import Rope, causal_mask
from prorank_jax.model.decoder import Block, Decoder, DecoderConfig, KeyValues, Params
from prorank_jax.model.hf import load_pretrained

pytestmark = pytest.mark.usefixtures("fast_compilation")

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


def decoder_of(config: DecoderConfig) -> tuple[Decoder, Params]:
    """A decoder with parameters whose norms scale by around 1."""
    decoder = Decoder(config)
    params = random_params(decoder, seed=0, spread=0.5)
    if config.centred_norms:
        params = jax.tree_util.tree_map_with_path(lambda path, x: x - 1.0 if path[-1].key == "scale" else x, params)
    return decoder, params


def whole(decoder: Decoder, params: Params, ids: np.ndarray) -> np.ndarray:
    """Logits of one sequence, all of it at once."""
    L = len(ids)
    mask = causal_mask(jnp.array([L]), L)
    hidden, _ = decoder.forward(params, jnp.asarray(ids[None]), jnp.arange(L)[None], mask)
    return np.asarray(decoder.unembed(params, hidden))[0]


@pytest.mark.parametrize("config", [PLAIN, GEMMA], ids=["plain", "sliding windows"])
def test_prefill_and_cached_decoding_of_several_tokens_equal_the_full_forward(config: DecoderConfig) -> None:
    """Right-padded prompts of 9 and 6 tokens, then 2 and 3 tokens more, in segments that hold padding in between."""
    decoder, params = decoder_of(config)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 97, length + 5) for length in (9, 6)]
    full = [whole(decoder, params, ids) for ids in rows]

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


@pytest.mark.parametrize("config", [PLAIN, GEMMA], ids=["plain", "sliding windows"])
def test_blocks_that_go_on_from_rows_of_the_first_equal_the_full_forward(config: DecoderConfig) -> None:
    """Prefixes of 6 and 4 tokens, right-padded; three rests of 7, 5 and 3 tokens behind them in two blocks."""
    decoder, params = decoder_of(config)
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(0, 97, length) for length in (6, 4)]
    rests = [(1, rng.integers(0, 97, 7)), (0, rng.integers(0, 97, 5)), (1, rng.integers(0, 97, 3))]
    lengths = jnp.array([6, 4])
    tokens = jnp.asarray(np.stack([prefixes[0], np.pad(prefixes[1], (0, 2))]))
    blocks = [Block(tokens, jnp.tile(jnp.arange(6), (2, 1)), causal_mask(lengths, 6))]
    for rows, width in (((0, 1), 7), ((2,), 4)):
        behind = jnp.array([rests[row][0] for row in rows])
        own = jnp.array([len(rests[row][1]) for row in rows])
        seen = jnp.broadcast_to((jnp.arange(6)[None] < lengths[behind][:, None])[:, None], (len(rows), width, 6))
        blocks.append(
            Block(
                jnp.asarray(np.stack([np.pad(rests[row][1], (0, width - len(rests[row][1]))) for row in rows])),
                lengths[behind][:, None] + jnp.arange(width)[None],
                jnp.concatenate([seen, causal_mask(own, width)], axis=2),
                behind,
            )
        )
    hidden, _ = decoder.forward_blocks(params, blocks)
    logits = [np.asarray(decoder.unembed(params, of_block)) for of_block in hidden]
    assert [of_block.shape for of_block in logits] == [(2, 6, 97), (2, 7, 97), (1, 4, 97)]
    for row, (behind_row, ids) in enumerate(rests):
        full = whole(decoder, params, np.concatenate([prefixes[behind_row], ids]))
        start = len(prefixes[behind_row])
        np.testing.assert_allclose(logits[0][behind_row, :start], full[:start], atol=1e-4)
        of_row = logits[1][row] if row < 2 else logits[2][0]
        np.testing.assert_allclose(of_row[: len(ids)], full[start:], atol=1e-4)


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
