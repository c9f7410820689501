"""Endless streams of examples, each element a pure function of the seed and of its position, and batches made ahead.

An epoch of a source is a random order of its groups: each is drawn from once before any is drawn from again. Sources
are interleaved by their weights, to a hundredth of the smallest. Orders and interleaving are grain's, computed for any
position without a table of them, so that memory does not grow with the number of groups.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import grain
import numpy as np

from prorank_jax.data.examples import Example, Group, Source
from prorank_jax.errors import InputError
from prorank_jax.seeds import sequence

T = TypeVar("T")

TRIES = 1000
"""Groups that are looked through for a document of a kind that a group lacks."""


def groups(sources: Sequence[Source], weights: Sequence[float], seed: int, size: int) -> "grain.MapDataset[Group]":
    """The endless stream of groups of at most `size` documents."""

    def draw(source: Source, index: int, rng: np.random.Generator) -> Group:
        return source.draw(index, rng, size)

    return _mixed(sources, weights, partial(sequence, seed, "data/groups"), draw)


@dataclass(frozen=True)
class Pairs:
    """The label-balanced endless stream of examples: row 2g is a relevant document, row 2g+1 an irrelevant one of the
    same query, or of another where that has none or pairs are not to be matched."""

    both: "grain.MapDataset[tuple[Example, Example]]"
    matched: bool = True

    def __getitem__(self, row: int) -> Example:
        return self.both[self._position(row)][row % 2]

    def rows(self, rows: Sequence[int]) -> list[Example]:
        """These rows, each group read once."""
        both = {position: self.both[position] for position in dict.fromkeys(map(self._position, rows))}
        return [both[self._position(row)][row % 2] for row in rows]

    def _position(self, row: int) -> int:
        return row // 2 + (row % 2 if not self.matched else 0)


def pairs(sources: Sequence[Source], weights: Sequence[float], seed: int, *, matched: bool = True) -> Pairs:
    """The stream of pairs.

    Args:
      matched: whether the two rows of a pair are of one query.

    Raises:
      InputError: here or when a row is asked for: no group in many has a document of the kind that is missing.
    """
    return Pairs(_mixed(sources, weights, partial(sequence, seed, "data/pairs"), _pair), matched)


def batches(make: Callable[[int], T], start: int, stop: int, workers: int) -> Generator[T, None, None]:
    """Yields `make(step)` for each step from `start` up to `stop`, made ahead by threads.

    What is yielded does not depend on the number of workers, and an exception of `make` comes where its batch would.
    """
    if start >= stop:
        return
    steps = grain.MapDataset.range(start, stop).map(make)
    made = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)))
    try:
        yield from made
    finally:
        made.close()


def _mixed(
    sources: Sequence[Source],
    weights: Sequence[float],
    seeds: Callable[[int], np.random.SeedSequence],
    draw: Callable[[Source, int, np.random.Generator], T],
) -> "grain.MapDataset[T]":
    parts = []
    for number, source in enumerate(sources):
        order, drawn = (int(state) for state in seeds(number).generate_state(2))
        positions = grain.MapDataset.range(len(source)).shuffle(seed=order).repeat()
        parts.append(positions.random_map(partial(draw, source), seed=drawn))
        # What cannot be drawn from is refused before any work; grain also asks for a first use by one thread alone.
        parts[-1][0]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _pair(source: Source, index: int, rng: np.random.Generator) -> tuple[Example, Example]:
    relevant, irrelevant = source.pair(index, rng)
    for _ in range(TRIES):
        if relevant is not None and irrelevant is not None:
            return relevant, irrelevant
        others = source.pair(int(rng.integers(len(source))), rng)
        relevant, irrelevant = relevant or others[0], irrelevant or others[1]
    kind = "relevant" if relevant is None else "irrelevant"
    raise InputError(
        f"{source.name}: no {kind} document in {TRIES} groups drawn at random; the warmup needs both kinds, "
        "so add some or leave the warmup out"
    )
