"""How a step of the warmup reads its prompts, so that little of it is padding: the longest first, in parts of their own
widths, and what all of them begin with (the task) once.

The rows that are computed together, those of a part of a device's batch, are a unit. A few layouts are chosen for a
whole run; a batch takes the first that has room for all of its units.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prorank_jax.data.layout import Layout, choose_layouts, common, fits, split
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import Prefix, prefill

Rows = TypeVar("Rows")


def read(decoder: Decoder, params: Params, batch: PairBatch[Array], layout: Layout | None) -> Prefix:
    """The prompts, computed as the layout says; None: all as long as the longest could be.

    A layout of several parts asks for rows in the order that `longest_first` gives them.
    """
    shared, widths = layout or (0, ())
    return prefill(decoder, params, batch.tokens_PxL, batch.lengths_P, shared, widths)


def longest_first(rows: Rows, lengths_P: Array, layout: Layout | None) -> Rows:
    """Arrays [P, ...] in the order that the layout asks for."""
    if layout is None or len(layout.widths) == 1:
        return rows
    order_P = jnp.argsort(-lengths_P)
    ordered: Rows = jax.tree.map(lambda leaf: leaf[order_P], rows)
    return ordered


def layouts_for(sample: Sequence[PairBatch[np.ndarray]], units: int) -> tuple[Layout, ...]:
    """The layouts of a run, by batches such as will come, each of so many units."""
    rows, longest = sample[0].tokens_PxL.shape
    of_units = [[unit] for batch in sample for unit in split(_ids(batch), units)]
    # No longer than what all share: it is computed for one prompt of a unit.
    shared = min(common(unit) for (unit,) in of_units)
    return choose_layouts(of_units, rows // units, longest, prefixes={0, shared})


def first_with_room(batch: PairBatch[np.ndarray], units: int, layouts: Sequence[Layout]) -> int:
    """Which of the layouts is the first that has room for the units of a batch; the last one has room for any."""
    of_units = split(_ids(batch), units)
    shared = min(map(common, of_units))
    for level, layout in enumerate(layouts[:-1]):
        if layout.prefix <= shared and all(fits([unit], len(unit), layout) for unit in of_units):
            return level
    return len(layouts) - 1


def _ids(batch: PairBatch[np.ndarray]) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(batch.tokens_PxL, batch.lengths_P, strict=True)]
