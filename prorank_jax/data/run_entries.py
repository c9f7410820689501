"""An entry of a run file: a document of a query, and the checks of its values that all formats share."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from prorank_jax.data.lines import shown
from prorank_jax.errors import InputError

TREC = "write `query Q0 document rank score tag`, or convert it by ranx (`Run.from_df(...).save(...)`)"
_LARGEST = float(np.finfo(np.float32).max)
# ASCII only: `int` and `float` alone would also take "1_000" and digits of other scripts.
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Entry(NamedTuple):
    """A document of a query."""

    place: str
    """For messages."""
    query_id: str
    document_id: str
    rank: int
    """As it is written; 0 where the format has none."""
    score: float
    """Finite, and within 32-bit floats; minus the rank where the format has none."""


def entry(place: str, query_id: object, document_id: object, score: float | None, rank: object = None) -> Entry:
    """An entry of values as a file has them. Without a score, the rank decides.

    Raises:
      InputError: an id is neither a string nor a whole number, or the rank is not whole.
    """
    query_id, document_id = identifier(place, query_id), identifier(place, document_id)
    ranked = 0 if rank is None else whole(place, rank)
    return Entry(place, query_id, document_id, ranked, float(-ranked) if score is None else score)


def identifier(place: str, value: object) -> str:
    """An id; one that is a whole number, as rank_llm and pandas write it, in its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{place}: id {shown(value)} is not a string; write it as one")
    return value


def number(place: str, value: object) -> float:
    """A score of JSON or Parquet; InputError where it is no number, or not finite within 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: score {shown(value)} is not a number; write one")
    return _finite(place, value, value)


def parsed(place: str, text: str) -> float:
    """A score of a text file; InputError as of `number`."""
    return _finite(place, float(text) if _NUMBER.fullmatch(text) else math.nan, text)


def _finite(place: str, score: float, written: object) -> float:
    if not abs(score) <= _LARGEST:
        raise InputError(f"{place}: score {shown(written)} is not a finite number; write one within 32-bit floats")
    return float(score)


def whole(place: str, value: object) -> int:
    """A rank, also as 1.0."""
    found = None if isinstance(value, bool) else _WHOLE.fullmatch(str(value))
    if not found:
        raise InputError(f"{place}: rank {shown(value)} is not an integer; write 1, 2, 3, ...")
    return int(found[1])


def is_whole(text: str) -> bool:
    """Whether text is a whole number without a point."""
    return text.lstrip("+-").isdecimal()


def of_different_ranks(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same; for formats whose ranks are all that there is.

    Raises:
      InputError: a query has a rank twice, as in a file of judgements.
    """
    seen: dict[str, set[int]] = {}
    for one in entries:
        ranks = seen.setdefault(one.query_id, set())
        if one.rank in ranks:
            raise InputError(
                f"{one.place}: rank {one.rank} stands twice for query {shown(one.query_id)}; number its documents, or "
                "give a file with scores"
            )
        ranks.add(one.rank)
        yield one
