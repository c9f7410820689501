"""A run file as a table of candidates: 24 bytes an entry while it is read, and no list of them all."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.candidate_table import NONE, empty_table, table_dtype
from prorank_jax.data.documents import positions_of
from prorank_jax.data.lines import shown
from prorank_jax.data.run_entries import Entry
from prorank_jax.data.run_files import entries
from prorank_jax.data.runs import read_run
from prorank_jax.errors import InputError
from prorank_jax.progress import noted

_AT_A_TIME = 1 << 16
"""Entries that are Python objects at a time."""


def run_candidates(path: Path, depth: int, collection: Collection) -> np.ndarray:
    """The candidates that `runs.read_run` gives for a file that can be read twice, of all queries of the collection.

    Scores are 32-bit floats where that is what all of them are.

    Raises:
      InputError: as `read_run`.
    """
    names = list(collection.queries)
    rows, positions, scores, ranks = _columns(path, collection)
    by_document = np.lexsort((positions, rows))
    same_row = rows[by_document][1:] == rows[by_document][:-1]
    if not len(rows) or (same_row & (np.diff(positions[by_document]) == 0)).any():
        read_run(path, depth, collection)  # refuses it, by its line
    del by_document, same_row
    order = np.lexsort((ranks, -scores, rows))
    order = order[positions[order] != positions_of(collection.documents, names)[rows[order]]]
    rows, positions, scores = rows[order], positions[order], scores[order]
    counts = np.bincount(rows, minlength=len(names))
    ranks = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    kept = ranks < depth
    single = (scores.astype(np.float32) == scores).all()
    dtype = table_dtype(max(min(depth, int(counts.max(initial=0))), 1), np.float32 if single else np.float64)
    table = empty_table(len(names), dtype)
    table["positions"][rows[kept], ranks[kept]] = positions[kept]
    table["scores"][rows[kept], ranks[kept]] = scores[kept]
    return table


def _columns(path: Path, collection: Collection) -> list[np.ndarray]:
    """Of the entries of the collection's queries: row of the query, position of the document, score, and rank."""
    row_of = {query_id: row for row, query_id in enumerate(collection.queries)}
    columns: list[list[np.ndarray]] = [[np.zeros(0, kind)] for kind in (np.int32, np.int32, np.float64, np.int64)]
    every = noted(entries(path, collection.split), str(path), "entries read")
    for some in _some(entry for entry in every if entry.query_id in row_of):
        positions = positions_of(collection.documents, (entry.document_id for entry in some))
        if NONE in positions:
            place, _, document_id, *_ = some[positions.tolist().index(NONE)]
            raise InputError(
                f"{place}: document {shown(document_id)} is not in {collection.name}; use a run of this collection"
            )
        columns[0].append(np.array([row_of[entry.query_id] for entry in some], np.int32))
        columns[1].append(positions)
        columns[2].append(np.array([entry.score for entry in some]))
        columns[3].append(np.array([entry.rank for entry in some]))
    return [np.concatenate(parts) for parts in columns]


def _some(found: Iterator[Entry]) -> Iterator[list[Entry]]:
    while some := list(islice(found, _AT_A_TIME)):
        yield some
