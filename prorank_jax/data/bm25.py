"""BM25 retrieval: the best documents of each query, exactly, with equal scores in corpus order.

bm25s scores in one of two ways, which sum the same 32-bit numbers in the same order. NumPy begins at once. Compiled
code is several times quicker, and takes seconds to compile: it pays where there is much to score.

The compiled code keeps the best so many documents of a query, and of those that equal the last it keeps any. So it is
asked for more than are wanted, and where that does not settle the tie, the query is scored again by NumPy.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prorank_jax.ahead import cpus
from prorank_jax.data.beir import Collection
from prorank_jax.data.bm25_index import ANSERINI, BM25, Index, open_index
from prorank_jax.data.candidate_table import Candidates, empty_table, table_dtype
from prorank_jax.data.documents import positions_of
from prorank_jax.data.runs import Run
from prorank_jax.progress import progress

COMPILE_FROM = 500_000_000
"""Queries times documents above which compiling takes less time than it saves."""

QUERIES_OF_A_TABLE = 2048
"""Retrieved at a time: 1.6 MB of candidates at a depth of 100, and some ten seconds over a million documents."""

_SLICE = 16
"""Queries that a thread takes at a time."""

_MORE = 32
"""Documents that the compiled code keeps beyond those wanted, or a quarter of these."""

Best = tuple[np.ndarray, np.ndarray]
"""Positions of documents, best first, and their scores: int64 and float32 [at most so many as were wanted]."""

_NOTHING: Best = (np.zeros(0, np.int64), np.zeros(0, np.float32))


def bm25_run(collection: Collection, depth: int, settings: BM25 = ANSERINI, *, show_progress: bool = False) -> Run:
    """The best `depth` documents of each query; English stop words and stemmer.

    Only documents that share a word with the query are candidates: a document of score 0 is no match.
    Ties are in corpus order. A document with the id of the query is left out.

    Raises:
      InputError: as `open_index`.
    """
    tables = bm25_tables(collection, depth, settings, show_progress=show_progress)
    return dict(Candidates(collection, np.concatenate(list(tables)), depth))


def bm25_tables(
    collection: Collection, depth: int, settings: BM25 = ANSERINI, skip: int = 0, *, show_progress: bool = False
) -> Iterator[np.ndarray]:
    """The same as tables of some thousand queries each, in the order of the collection, after the first `skip`.

    Raises:
      InputError: as `open_index`.
    """
    index = open_index(collection.documents, settings, collection.name, show_progress=show_progress)
    names = list(collection.queries)
    compiled = (len(names) - skip) * index.documents > COMPILE_FROM
    dtype = table_dtype(min(depth, index.documents))
    with progress("retrieving", len(names), show_progress, done=skip) as advance:
        for start in range(skip, max(len(names), 1), QUERIES_OF_A_TABLE):
            some = names[start : start + QUERIES_OF_A_TABLE]
            queries = index.columns(collection.queries[name] for name in some)
            own = positions_of(collection.documents, some)
            table = empty_table(len(some), dtype)
            # One more than asked for: the query itself may be among them.
            for row, (positions, scores) in enumerate(retrieve(index, queries, depth + 1, compiled=compiled)):
                other = positions != own[row]
                count = min(int(other.sum()), depth)
                table["positions"][row, :count] = positions[other][:count]
                table["scores"][row, :count] = scores[other][:count]
                advance(1)
            yield table


def retrieve(
    index: Index, queries: list[list[int]], wanted: int, threads: int | None = None, *, compiled: bool
) -> Iterator[Best]:
    """The best documents of each query, of those with a score above 0.

    Args:
      queries: the columns of each, as `Index.columns` gives them.
      wanted: documents of a query at most.
      threads: default: as many as there are CPUs for this process.
      compiled: whether compiled code scores.
    """
    index.retriever.backend = "numba" if compiled else "numpy"
    of_slice = _by_compiled_code if compiled else _by_numpy
    slices = [queries[start : start + _SLICE] for start in range(0, len(queries), _SLICE)]
    with ThreadPoolExecutor(threads or cpus(), thread_name_prefix="bm25") as pool:
        for found in pool.map(lambda asked: of_slice(index, asked, wanted), slices):
            yield from found


def _by_numpy(index: Index, queries: list[list[int]], wanted: int) -> list[Best]:
    return [_best(index.retriever.get_scores_from_ids(columns), wanted) for columns in queries]


def _by_compiled_code(index: Index, queries: list[list[int]], wanted: int) -> list[Best]:
    asked = [columns for columns in queries if columns]  # bm25s does not take a query without words
    if not asked:
        return [_NOTHING] * len(queries)
    kept = min(index.documents, wanted + max(_MORE, wanted // 4))
    # One thread: this is one of several, and the compiled code runs beside the others.
    every_position, every_score = index.retriever.retrieve(asked, k=kept, n_threads=1, show_progress=False)
    found = iter(zip(asked, every_position, every_score, strict=True))
    return [_settled(index, *next(found), wanted) if columns else _NOTHING for columns in queries]


def _settled(index: Index, columns: list[int], positions: np.ndarray, scores: np.ndarray, wanted: int) -> Best:
    """The best of what the compiled code kept, or of all where that leaves a tie open; `scores` fall."""
    least = scores[-1]
    if least > 0 and len(scores) < index.documents and scores[wanted - 1] == least:
        return _best(index.retriever.get_scores_from_ids(columns), wanted)
    order = np.lexsort((positions, -scores))[:wanted]
    order = order[scores[order] > 0]
    return positions[order].astype(np.int64), scores[order]


def _best(scores: np.ndarray, wanted: int) -> Best:
    """The best of all documents, whose scores are given."""
    if wanted < len(scores):
        least = np.partition(scores, -wanted)[-wanted]
        positions = np.flatnonzero((scores >= least) & (scores > 0))
    else:
        positions = np.flatnonzero(scores > 0)
    positions = positions[np.argsort(-scores[positions], kind="stable")][:wanted]
    return positions, scores[positions]
