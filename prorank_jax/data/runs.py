"""Runs: the candidates of each query, best first. The order of the list *is* the ranking.

A document whose id is the query's own (ArguAna, Quora) is never a candidate.

Tools that read a TREC file sort it by score, each with its own order of ties, and trec_eval keeps scores in 32 bits.
Written scores are therefore strictly decreasing as 32-bit floats.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prorank_jax.atomic import write_atomically
from prorank_jax.data.beir import Collection
from prorank_jax.data.lines import shown
from prorank_jax.data.run_files import entries
from prorank_jax.errors import InputError

Run = dict[str, list[tuple[str, float]]]


def read_run(path: str | Path, depth: int | None = None, collection: Collection | None = None) -> Run:
    """Reads a run from a file of any format that `run_files.py` knows.

    Candidates are sorted by score, ties by rank where the format has one, and then by their order in the file. Where a
    format has ranks and no scores, as MS MARCO's, the score is minus the rank.

    Args:
      depth: candidates kept per query; all where None.
      collection: where given, entries of other queries and splits are left out, and documents are checked.

    Raises:
      InputError: the file is missing, empty or malformed (with its line), a document stands twice for
        a query, a score is not finite, or the collection lacks a document.
    """
    path = Path(path)
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    empty = True
    for place, query_id, document_id, rank, score in entries(path, None if collection is None else collection.split):
        empty = False
        if collection is not None:
            if query_id not in collection.queries:
                continue
            if document_id not in collection.documents:
                raise InputError(
                    f"{place}: document {shown(document_id)} is not in {collection.name}; use a run of this collection"
                )
        of_query = rows.setdefault(query_id, {})
        if document_id in of_query:
            raise InputError(
                f"{place}: document {shown(document_id)} stands twice for query {shown(query_id)}; keep one of them"
            )
        of_query[document_id] = (-score, rank)
    if empty:
        raise InputError(f"{path}: is empty; give a run in which a query has a document")
    run: Run = {}
    for query_id, of_query in rows.items():
        order = sorted(of_query, key=of_query.__getitem__)
        run[query_id] = [(name, -of_query[name][0]) for name in order if name != query_id][:depth]
    return run


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Writes the lines of `trec_lines` atomically.

    Raises:
      OSError: it cannot be written; nothing of it is left.
    """
    write_atomically(path, "".join(f"{line}\n" for line in trec_lines(run, tag)))


def trec_lines(run: Run, tag: str) -> list[str]:
    """The lines of a TREC run, with the scores of `strictly_decreasing`; `tag` is one word."""
    return [
        f"{query_id} Q0 {document_id} {rank} {np.float32(score)} {tag}"
        for query_id, ranking in strictly_decreasing(run).items()
        for rank, (document_id, score) in enumerate(ranking, start=1)
    ]


def strictly_decreasing(run: Mapping[str, Sequence[tuple[str, float]]]) -> Run:
    """The same order with 32-bit scores, each lowered by as little as keeps it below the one before.

    `[("a", 2.0), ("b", 2.0), ("c", 1.0)]` becomes `[("a", 2.0), ("b", 1.9999999), ("c", 1.0)]`.
    """
    separated: Run = {}
    for query_id, ranking in run.items():
        below = np.float32(np.inf)
        separated[query_id] = []
        for document_id, score in ranking:
            below = min(np.float32(score), np.nextafter(below, np.float32(-np.inf)))
            separated[query_id].append((document_id, float(below)))
    return separated
