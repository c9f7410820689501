"""Attention as pure functions of arrays: rotary positions, masks, grouped heads over segments of keys.

Keys and values come as segments (an earlier prefix, a decoding buffer, the tokens at hand) which are
attended to as if they stood in one row. They are never joined in memory: a prefix that a whole group
of completions shares is read where it lies.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def rotary_angles(positions_BxL: Array, head_size: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine, each float32 [B, L, H/2], of rotary position embedding (arXiv 2104.09864)."""
    frequency = 1.0 / theta ** (jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle = positions_BxL.astype(jnp.float32)[:, :, None] * frequency[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxLxNxH: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates pairs (i, i + H/2), the half-split order of Hugging Face checkpoints."""
    cos, sin = (angle[:, :, None, :] for angle in angles)
    left, right = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BxLxNxH.dtype)


def attend(query_BxLxNxH: Array, keys: Sequence[Array], values: Sequence[Array], mask_BxLxS: Array) -> Array:
    """Scaled dot-product attention with grouped heads, softmax in float32.

    Args:
      query_BxLxNxH: N query heads; each group of N/K of them shares one key-value head.
      keys, values: segments [B, S_i, K, H].
      mask_BxLxS: bool; True where a query may look. S is the sum of all S_i, in order.

    Returns:
      [B, L, N, H] in the dtype of the values.
    """
    B, L, N, H = query_BxLxNxH.shape
    K = keys[0].shape[2]
    query = (query_BxLxNxH * H**-0.5).reshape(B, L, K, N // K, H)
    logits = jnp.concatenate(
        [jnp.einsum("blkgh,bskh->bkgls", query, key, preferred_element_type=jnp.float32) for key in keys], axis=-1
    )
    logits = jnp.where(mask_BxLxS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(values[0].dtype)
    out, start = jnp.zeros_like(query), 0
    for value in values:
        stop = start + value.shape[1]
        out += jnp.einsum("bkgls,bskh->blkgh", weights[..., start:stop], value)
        start = stop
    return out.reshape(B, L, N, H)


def causal_mask(lengths_B: Array, length: int) -> Array:
    """Mask [B, L, L] of right-padded rows: a token sees itself and what comes before it.

    `causal_mask([2], 3)` is `[[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]`: the third token is padding, which sees
    the row's tokens (its result is never used) and is seen by none.
    """
    index = jnp.arange(length)
    causal = index[None, :] <= index[:, None]
    return causal[None] & (index[None, None, :] < lengths_B[:, None, None])
