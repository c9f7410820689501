"""Prompts computed once: what both stages and the reranker start from."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from prorank_jax.model.attention import causal
from prorank_jax.model.decoder import Block, Decoder, KeyValues, Params


class Prefix(NamedTuple):
    """Right-padded prompts as a network sees them.

    Attributes:
      cache: keys and values, each [layers, P, L, K, H].
      last_PxD: the hidden state after each prompt's last token.
      valid_PxL: bool, False on padding.
      lengths_P: int32, tokens of each prompt.
    """

    cache: KeyValues
    last_PxD: Array
    valid_PxL: Array
    lengths_P: Array


def prefill(
    decoder: Decoder,
    params: Params,
    tokens_PxL: Array,
    lengths_P: Array,
    shared: int = 0,
    widths: tuple[int, ...] = (),
) -> Prefix:
    """Computes right-padded prompts once.

    Args:
      shared: tokens at the start that all prompts have in common, computed for one of them. Each prompt has more.
      widths: of equal parts of the prompts, which are in the order of their lengths, longest first: after the shared
        tokens, none has more than its part is wide. Default: one part, as wide as the array.
    """
    P, L = tokens_PxL.shape
    widths = tuple(min(width, L - shared) for width in widths) or (L - shared,)
    size = P // len(widths)
    blocks = []
    if shared:
        blocks.append(Block(tokens_PxL[:1, :shared], jnp.arange(shared)[None], causal(jnp.array([shared]), shared)))
    for number, width in enumerate(widths):
        rows = slice(number * size, (number + 1) * size)
        positions_BxW = jnp.broadcast_to(shared + jnp.arange(width), (size, width))
        rests_B, before_BxP = lengths_P[rows] - shared, jnp.ones((size, shared), bool) if shared else None
        behind_B = jnp.zeros(size, jnp.int32) if shared else None
        mask = causal(rests_B, width, before_BxP)
        blocks.append(Block(tokens_PxL[rows, shared : shared + width], positions_BxW, mask, behind_B))
    hidden, caches = decoder.forward_blocks(params, blocks)
    last_PxD = jnp.concatenate(
        [
            jnp.take_along_axis(hidden_BxWxD, lengths_B[:, None, None] - shared - 1, axis=1)[:, 0]
            for hidden_BxWxD, lengths_B in zip(hidden[-len(widths) :], lengths_P.reshape(-1, size), strict=True)
        ]
    )
    longest = shared + widths[0]
    cache = _joined(caches[0] if shared else None, caches[-len(widths) :], longest)
    return Prefix(cache, last_PxD, jnp.arange(longest)[None] < lengths_P[:, None], lengths_P)


def _joined(shared: KeyValues | None, parts: tuple[KeyValues, ...], longest: int) -> KeyValues:
    """Rows of several widths as rows of one, after what they share."""

    def join(shared: Array | None, parts: tuple[Array, ...], rows: int) -> Array:
        """`rows` is the axis of the rows; the next one is that of tokens."""
        whole = []
        for part in parts:
            if shared is not None:
                shape = (*shared.shape[:rows], part.shape[rows], *shared.shape[rows + 1 :])
                part = jnp.concatenate([jnp.broadcast_to(shared, shape), part], axis=rows + 1)
            missing = longest - part.shape[rows + 1]
            whole.append(jnp.pad(part, [(0, missing * (axis == rows + 1)) for axis in range(part.ndim)]))
        return whole[0] if len(whole) == 1 else jnp.concatenate(whole, axis=rows)

    keys, values, positions = zip(*parts, strict=True)
    start = shared or (None, None, None)
    return KeyValues(join(start[0], keys, 1), join(start[1], values, 1), join(start[2], positions, 0))
