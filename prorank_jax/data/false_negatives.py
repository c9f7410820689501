"""Negatives that a teacher takes for relevant, left out.

The first stage ranks relevant documents high that nobody judged. A row with a teacher's scores beside its documents
shows which: the negatives that it scores as it scores a positive.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prorank_jax.data.jsonl import Row, read_rows, write_rows
from prorank_jax.data.mine import Choice, check_margin
from prorank_jax.data.rows import one_for_each
from prorank_jax.errors import InputError


@dataclass(frozen=True)
class Doubt:
    """Which teacher's scores make a negative look relevant; at least one of the two is given.

    Raises:
      InputError: neither is given, or one is not finite.
    """

    max_score: float | None = None
    """The highest teacher's score of a negative."""
    teacher_margin: float | None = None
    """By how much a negative's score must be below that of the lowest positive of its row."""

    def __post_init__(self) -> None:
        if self.max_score is None and self.teacher_margin is None:
            raise InputError("--scores: nothing says which negatives to drop; give --max-score or --teacher-margin")
        if self.max_score is not None and not math.isfinite(self.max_score):
            raise InputError(f"--max-score={self.max_score}: is not a finite number; write a score of the teacher")
        check_margin("--teacher-margin", self.teacher_margin)

    def highest(self, pos_scores: Sequence[float]) -> float:
        """The score above which a negative is dropped."""
        limits = [math.inf if self.max_score is None else self.max_score]
        if self.teacher_margin is not None:
            limits.append(min(pos_scores, default=math.inf) - self.teacher_margin)
        return min(limits)


class Sure(NamedTuple):
    """What a teacher's scores left of a file."""

    queries: int
    rows: int
    negatives_before: int
    negatives: int

    def __str__(self) -> str:
        return (
            f"{self.queries} queries: {self.rows} rows, {self.negatives} of {self.negatives_before} negatives; "
            f"skipped {self.queries - self.rows} without a negative"
        )


def drop_false_negatives(source: str | Path, out: Path, doubt: Doubt, choice: Choice) -> Sure:
    """Writes the rows of a file with `pos_scores` and `neg_scores` again, without the negatives in doubt.

    Raises:
      InputError: a row has no teacher's scores, or no row is left; nothing is written then.
    """
    queries = rows = before = after = 0
    with write_rows(out) as write:
        for place, row in read_rows(source):
            kept = without_doubt(row, place, queries, doubt, choice)
            queries += 1
            before += len(row["neg"])
            if kept is not None:
                rows += 1
                after += len(kept["neg"])
                write(kept)
        sure = Sure(queries, rows, before, after)
        if not rows:
            raise InputError(f"{source}: {sure}; raise --max-score or lower --teacher-margin")
    return sure


def without_doubt(row: Row, place: str, number: int, doubt: Doubt, choice: Choice) -> Row | None:
    """Row `number` of a file without its negatives in doubt; None where it has no other.

    Of the rest, those that `choice` says are kept, with what stands beside them: `neg_scores`, `neg_ids`.

    Raises:
      InputError: the row has no teacher's scores, or its ids are not one for each document.
    """
    for name in ("pos_scores", "neg_scores"):
        if row.get(name) is None:
            raise InputError(f"{place}: has no {name}; write a teacher's scores beside it with prorank data score")
    for part in ("pos", "neg"):
        if row.get(f"{part}_ids") is not None:
            row = row | {f"{part}_ids": one_for_each(place, f"{part}_ids", row[f"{part}_ids"], part, len(row[part]))}
    row = _at(row, "pos", range(len(row["pos"]))[: choice.positives])
    highest = doubt.highest(row["pos_scores"])
    sure = [position for position, score in enumerate(row["neg_scores"]) if score <= highest]
    kept = [sure[position] for position in choice.of_negatives(len(sure), number)]
    return _at(row, "neg", kept) if kept else None


def _at(row: Row, documents: str, positions: Iterable[int]) -> Row:
    """The row with some of its `pos` or `neg`, and of the lists that stand beside them."""
    positions = list(positions)
    beside = [name for name in (documents, f"{documents}_scores", f"{documents}_ids") if row.get(name) is not None]
    return row | {name: [row[name][position] for position in positions] for name in beside}
