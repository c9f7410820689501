"""Hard negatives of a collection.

A row holds a query, its positives, and negatives from a window of first-stage ranks. No positive is a negative,
nor is a copy of a positive's text, nor the query's own document. The terms, `relative_margin` and the others, are those
of sentence-transformers' `mine_hard_negatives`; margins are to the lowest positive of the row, as there.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import copies
from prorank_jax.data.jsonl import Row, write_rows
from prorank_jax.errors import InputError
from prorank_jax.seeds import sequence

DEPTH = 100
SAMPLES = ("top", "random")
_RANKS = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True)
class Choice:
    """How many documents a row keeps, of those that may be taken.

    Raises:
      InputError: `sample` is not known.
    """

    negatives: int = 7
    """Per query at most."""
    positives: int | None = None
    """Per query at most: the highest judged, of those the first ranked. All where None."""
    sample: str = "top"
    """`top`: the first ranked of the negatives; `random`: any of them, in the order of their ranks."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sample not in SAMPLES:
            raise InputError(f"--sample={self.sample!r}: not known; use {' or '.join(SAMPLES)}")

    def of_negatives(self, count: int, row: int) -> list[int]:
        """Positions of the negatives that a row keeps, rising, of `count` that may be taken."""
        if self.sample == "top" or count <= self.negatives:
            return list(range(min(count, self.negatives)))
        drawn = np.random.default_rng(sequence(self.seed, "mine/negatives", row)).choice(
            count, self.negatives, replace=False
        )
        return sorted(int(position) for position in drawn)


@dataclass(frozen=True)
class Window:
    """Which candidates of the first stage may be negatives.

    Raises:
      InputError: no rank is in the window, or a margin is negative or not finite.
    """

    ranks: tuple[int, int] = (1, DEPTH)
    """First and last rank in the first stage's list, from 1, both included."""
    relative_margin: float | None = None
    """Share of the positive's first-stage score by which a negative's must be lower."""
    absolute_margin: float | None = None
    """The same in the first stage's own unit."""
    relevant_from: int = 1
    """The lowest judgement that makes a positive."""

    def __post_init__(self) -> None:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise InputError(f"--ranks={first}:{last}: holds no rank; write the first and the last, such as 1:100")
        check_margin("--relative-margin", self.relative_margin)
        check_margin("--absolute-margin", self.absolute_margin)


class Mined(NamedTuple):
    """Rows, and what became of the queries without one."""

    rows: list[Row]
    queries: int
    without_positive: int
    without_negative: int

    def __str__(self) -> str:
        negatives = sum(len(row["neg"]) for row in self.rows)
        return (
            f"{self.queries} queries: {len(self.rows)} rows, {negatives} negatives; "
            f"skipped {self.without_positive} without a positive, {self.without_negative} without a negative"
        )


def parse_ranks(text: str) -> tuple[int, int]:
    """`"10:50"` -> `(10, 50)`.

    Raises:
      InputError: the text is not of that form.
    """
    matched = _RANKS.fullmatch(text)
    if matched is None:
        raise InputError(f"--ranks={text!r}: is not FIRST:LAST; write two ranks, such as 10:50")
    return int(matched[1]), int(matched[2])


def depth_of(ranks: tuple[int, int] | None, depth: int | None) -> int:
    """Candidates per query that a window asks for.

    Raises:
      InputError: the window ends below a depth that was asked for.
    """
    last = DEPTH if ranks is None else ranks[1]
    if ranks is not None and depth is not None and last > depth:
        raise InputError(f"--ranks={ranks[0]}:{last}: ends below --depth {depth}; use --depth {last} or more")
    return max(last, DEPTH) if depth is None else depth


def check_margin(option: str, margin: float | None) -> None:
    """Raises InputError where a margin is negative or not finite."""
    if margin is not None and not 0 <= margin < math.inf:
        raise InputError(f"{option}={margin}: is negative or not finite; write 0 or more")


def mine(collection: Collection, run: Mapping[str, list[tuple[str, float]]], window: Window, choice: Choice) -> Mined:
    """One row per query that has a positive and a negative, in the collection's order.

    A row is `{"query_id", "query", "pos", "neg", "pos_ids", "neg_ids"}`: positives by falling judgement, then by rank;
    negatives by rank. A positive that the first stage did not find has no part in a margin; where it found none of
    the row's, nothing is known to be below a margin and the row has no negative.

    Raises:
      InputError: no query has both a positive and a negative.
    """
    positives_of = {
        query_id: _positives(query_id, judgements, collection, run.get(query_id, []), window.relevant_from)
        for query_id, judgements in collection.qrels.items()
    }
    known_of = {
        query_id: [name for name in (*positives, query_id) if name in collection.documents]
        for query_id, positives in positives_of.items()
        if positives
    }
    of_text = copies(collection.documents, {name: None for known in known_of.values() for name in known})
    rows, without_positive, without_negative = [], 0, 0
    for number, (query_id, positives) in enumerate(positives_of.items()):
        ranking = run.get(query_id, [])
        if not positives:
            without_positive += 1
            continue
        apart = {copy for name in known_of[query_id] for copy in of_text[name]}
        pos_ids = _distinct(positives, collection)[: choice.positives]
        found = dict(ranking)
        highest = _highest([found[name] for name in pos_ids if name in found], window)
        first, last = window.ranks
        low = [name for name, score in ranking[first - 1 : last] if score <= highest]
        allowed = _distinct([name for name in low if name not in apart], collection)
        neg_ids = [allowed[position] for position in choice.of_negatives(len(allowed), number)]
        if not neg_ids:
            without_negative += 1
            continue
        rows.append(
            {
                "query_id": query_id,
                "query": collection.queries[query_id],
                "pos": [collection.documents[name] for name in pos_ids],
                "neg": [collection.documents[name] for name in neg_ids],
                "pos_ids": pos_ids,
                "neg_ids": neg_ids,
            }
        )
    mined = Mined(rows, len(collection.qrels), without_positive, without_negative)
    if not rows:
        raise InputError(
            f"{collection.name}/{collection.split}: {mined}; lower --relevant-from, widen --ranks or lower the margin"
        )
    return mined


def write_mined(mined: Mined, out: Path) -> None:
    """Writes the rows of `mine` to a `.jsonl` or `.jsonl.gz` file."""
    with write_rows(out) as write:
        for row in mined.rows:
            write(row)


def _positives(
    query_id: str, judgements: dict[str, int], collection: Collection, ranking: list[tuple[str, float]], lowest: int
) -> list[str]:
    """By falling judgement, then by first-stage rank; those that were not found come last, as they were judged."""
    ranks = {name: rank for rank, (name, _) in enumerate(ranking)}
    names = [
        name
        for name, judgement in judgements.items()
        if judgement >= lowest and collection.documents.get(name) and name != query_id
    ]
    return sorted(names, key=lambda name: (-judgements[name], ranks.get(name, len(ranks))))


def _distinct(names: list[str], collection: Collection) -> list[str]:
    """The first of the documents of each text; a document without text is left out."""
    texts = {name: collection.documents[name] for name in names}
    first = {texts[name]: name for name in reversed(names)}
    return [name for name in names if texts[name] and first[texts[name]] == name]


def _highest(positive_scores: list[float], window: Window) -> float:
    """The highest first-stage score that the margins leave to a negative."""
    if window.relative_margin is None and window.absolute_margin is None:
        return math.inf
    if not positive_scores:
        return -math.inf
    lowest = min(positive_scores)
    # Not `lowest * (1 - margin)`, which is above a positive's score where scores are negative.
    relative = lowest - abs(lowest) * (window.relative_margin or 0.0)
    return min(relative, lowest - (window.absolute_margin or 0.0))
