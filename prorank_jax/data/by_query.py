"""Pointwise rows in the order of their queries, whatever their order in the files.

    q1 a, q2 b, q1 c, q3 d  ->  q1 a, q1 c, q2 b, q3 d

Queries come in the order of their first rows, the rows of a query as they were. Rows wait on disk: memory holds two
numbers for each of them.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from prorank_jax.data.files import Row

_FIRST_CHECK = 1024


class ScatteredQuery(Exception):
    """A query has rows after those of another."""


def query_of(row: Row) -> tuple[str, str]:
    """The query and the instruction that a row belongs to; whitespace around them makes no other query."""
    return row.query.strip(), (row.instruction or "").strip()


def consecutive(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows.

    Raises:
      ScatteredQuery: soon after a query has come back, or at the end.
    """
    hashes, check_at, last = array("Q"), _FIRST_CHECK, None
    for row in rows:
        if row.pointwise and ((found := _hash(row)) != last):
            hashes.append(found)
            last = found
            if len(hashes) == check_at:
                _check(hashes)
                check_at *= 2
        yield row
    _check(hashes)


def in_order(rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """The rows in the order of their queries; `folder` is an empty one that they wait in, unpacked."""
    hashes, starts = array("Q"), array("Q")
    with (folder / "rows.jsonl").open("w+b") as file:
        for row in rows:
            hashes.append(_hash(row))
            starts.append(file.tell())
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
        for position in _order(np.frombuffer(hashes, np.uint64)):
            file.seek(starts[position])
            query, documents, labels, scores, *rest = json.loads(file.readline())
            yield Row(query, tuple(documents), tuple(labels), None if scores is None else tuple(scores), *rest)


def _order(hashes: np.ndarray) -> Iterator[int]:
    """Positions by the first position of their hash, then by position: `[7, 5, 7, 5]` -> `0, 2, 1, 3`."""
    by_hash = np.argsort(hashes, kind="stable")
    ordered = hashes[by_hash]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    del ordered
    ends = np.append(starts[1:], len(hashes))
    for query in np.argsort(by_hash[starts]):
        yield from by_hash[starts[query] : ends[query]].tolist()


def _hash(row: Row) -> int:
    # Of ten million queries, two share 64 bits with a chance of 3 in a million; their groups would then be cut.
    return int.from_bytes(blake2b(json.dumps(query_of(row)).encode(), digest_size=8).digest(), "little")


def _check(hashes: array) -> None:
    if len(np.unique(np.frombuffer(hashes, np.uint64))) < len(hashes):
        raise ScatteredQuery
