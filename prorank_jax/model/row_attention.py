"""Attention for CPUs: one row after the other, block by block of its queries.

What a block of queries makes stays in the processor's cache, and of the keys only those up to its own end are seen. A
row is computed as if it were alone, in whatever batch it lies.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from prorank_jax.model.attention import Causal, Mask, attend

BLOCK = 128
"""Queries of a block: 64 to 128 are fastest, and fewer blocks compile faster."""


def attend_by_rows(
    query_BxLxNxH: Array,
    keys: Sequence[Array],
    values: Sequence[Array],
    mask: Mask,
    scale: float,
    cap: float | None = None,
) -> Array:
    """`attention.attend`, for a mask that lets no token see what follows it in its row; the last segment of keys is the
    row's own."""
    L = query_BxLxNxH.shape[1]

    def of_row(row: Any) -> Array:
        query, keys, values, mask = row
        *key_before, key = (segment[None] for segment in keys)
        *value_before, value = (segment[None] for segment in values)
        mixed = []
        for start in range(0, L, BLOCK):
            stop = min(start + BLOCK, L)
            mixed.append(
                attend(
                    query[None, start:stop],
                    [*key_before, key[:, :stop]],
                    [*value_before, value[:, :stop]],
                    _seen(mask, start, stop, L),
                    scale,
                    cap,
                )[0]
            )
        return jnp.concatenate(mixed)

    return each_row(of_row, (query_BxLxNxH, tuple(keys), tuple(values), mask))


def each_row(function: Callable[[Any], Array], rows: Any) -> Array:
    """`lax.map`, in which a row gets the same bits among any others.

    Of one row alone the compiler makes no loop, and adds up in another order.
    """
    if jax.tree.leaves(rows)[0].shape[0] > 1:
        return lax.map(function, rows)
    return lax.map(function, jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rows))[:1]


def _seen(mask: Any, start: int, stop: int, length: int) -> Mask:
    """What the queries `start` to `stop` of one row see of the keys before `stop`."""
    if isinstance(mask, Causal):
        keys = mask.valid_BxS.shape[0]
        return Causal(mask.valid_BxS[None, : keys - length + stop])
    return mask[None, start:stop, : mask.shape[1] - length + stop]
