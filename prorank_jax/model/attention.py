"""Attention as pure functions of arrays: rotary positions, masks, grouped heads over segments of keys.

Keys and values come as segments (an earlier prefix, a decoding buffer, the tokens at hand) which are
attended to as if they stood in one row. They are never joined in memory: a prefix that a whole group
of completions shares is read where it lies.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from prorank_jax.model.precision import precision_of


class Causal(NamedTuple):
    """A mask that takes no room of L x S: the tokens of a row see those before them, and all that lies before the row.

    Attributes:
      valid_BxS: bool, False on padding. The last L of the S keys are the row's own tokens.
    """

    valid_BxS: Array


Mask = Array | Causal
"""Bool [B, L, S], True where a query may look, or what says so in less room."""


class Rope(NamedTuple):
    """Rotary position embedding (arXiv 2104.09864): its base, and how long contexts are scaled."""

    theta: float = 10_000.0
    factor: float = 1.0
    """Divides the frequencies: all of them (linear scaling, arXiv 2306.15595), or as `llama3` says."""
    llama3: tuple[float, float, float] | None = None
    """Llama 3.1's `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`."""


def rotary_frequencies(rope: Rope, head_size: int) -> Array:
    """Radians per position, float32 [H/2], of each pair of coordinates.

    Llama 3.1 leaves wavelengths under `original / high` as they are, divides the frequencies of those over
    `original / low` by `factor`, and goes linearly from one to the other between (arXiv 2407.21783, section 3.4.2).
    """
    frequency = 1.0 / rope.theta ** (jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if rope.llama3 is None:
        return frequency / rope.factor
    low, high, original = rope.llama3
    turns = original * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1 - kept) / rope.factor)


def rotary_angles(positions_BxL: Array, head_size: int, rope: Rope) -> tuple[Array, Array]:
    """Cosine and sine of each position's angles, each float32 [B, L, H/2]."""
    angle = positions_BxL.astype(jnp.float32)[:, :, None] * rotary_frequencies(rope, head_size)[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxNxH: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates pairs (i, i + H/2), the half-split order of Hugging Face checkpoints."""
    cos, sin = (angle[:, :, None, :] for angle in angles)
    left, right = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BxLxNxH.dtype)


def attend(
    query_BxLxNxH: Array,
    keys: Sequence[Array],
    values: Sequence[Array],
    mask: Mask,
    scale: float,
    cap: float | None = None,
) -> Array:
    """Scaled dot-product attention with grouped heads, softmax in float32.

    It makes all N x L x S products at once; `long_attention.py` does not.

    Args:
      query_BxLxNxH: N query heads; each group of N/K of them shares one key-value head.
      keys, values: segments [B, S_i, K, H].
      mask: where a query may look. S is the sum of all S_i, in order.
      scale: what the dot products are multiplied by, usually H**-0.5.
      cap: bounds the scaled products to (-cap, cap) (see `soft_cap`).

    Returns:
      [B, L, N, H] in the dtype of the values.
    """
    B, L, N, H = query_BxLxNxH.shape
    K = keys[0].shape[2]

    # A row is one key-value head of one sequence, its queries below one another: products of two matrices, which a
    # CPU differentiates faster than those of four axes.
    def to_rows(heads_BxSxNxH: Array) -> Array:
        S = heads_BxSxNxH.shape[1]
        split = heads_BxSxNxH.reshape(B, S, K, -1, H)
        return split.transpose(0, 2, 3, 1, 4).reshape(B * K, -1, H)

    query_RxQxH = to_rows(query_BxLxNxH * scale)
    dtype = query_RxQxH.dtype
    product = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)
    logits = jnp.concatenate(
        [product("rqh,rsh->rqs", query_RxQxH, to_rows(key)) for key in keys],
        axis=-1,
    ).reshape(B, N, L, -1)
    logits = jnp.where(dense(mask, L)[:, None], soft_cap(logits, cap), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(values[0].dtype).reshape(B * K, -1, logits.shape[-1])
    out, start = jnp.zeros(query_RxQxH.shape, jnp.float32), 0
    for value in values:
        stop = start + value.shape[1]
        out += product("rqs,rsh->rqh", weights[..., start:stop], to_rows(value))
        start = stop
    return out.astype(dtype).reshape(B, N, L, H).transpose(0, 2, 1, 3)


def soft_cap(logits: Array, cap: float | None) -> Array:
    """`cap * tanh(logits / cap)` (Gemma 2, arXiv 2408.00118); None leaves the logits as they are."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def within_window(positions_BxL: Array, key_positions_BxS: Array, window: int) -> Array:
    """Mask [B, L, S] of a sliding window: a token sees itself and the `window - 1` positions before it.

    Positions 0 to 3, window 2: `[[[1, ?, ?, ?], [1, 1, ?, ?], [0, 1, 1, ?], [0, 0, 1, 1]]]`; what is marked `?`
    lies ahead, and is the causal mask's to hide.
    """
    return positions_BxL[:, :, None] - key_positions_BxS[:, None, :] < window


def causal(lengths_B: Array, length: int, before_BxP: Array | None = None) -> Causal:
    """The mask of right-padded rows of `length` tokens, behind keys of which they see those marked in `before_BxP`."""
    own = jnp.arange(length)[None] < lengths_B[:, None]
    return Causal(own if before_BxP is None else jnp.concatenate([before_BxP, own], axis=1))


def dense(mask: Mask, length: int) -> Array:
    """The mask as bool [B, L, S].

    For two tokens behind the keys `[1, 0]`, all valid: `dense(Causal([[1, 0, 1, 1]]), 2)` is
    `[[[1, 0, 1, 0], [1, 0, 1, 1]]]`.
    """
    if not isinstance(mask, Causal):
        return mask
    keys = mask.valid_BxS.shape[1]
    ahead = jnp.arange(keys)[None] - (keys - length) > jnp.arange(length)[:, None]
    return mask.valid_BxS[:, None] & ~ahead[None]


def causal_mask(lengths_B: Array, length: int) -> Array:
    """Mask [B, L, L] of right-padded rows: a token sees itself and what comes before it.

    `causal_mask([2], 3)` is `[[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]`: the third token is padding, which sees
    the row's tokens (its result is never used) and is seen by none.
    """
    return dense(causal(lengths_B, length), length)
