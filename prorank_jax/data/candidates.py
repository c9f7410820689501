"""First-stage candidates: BM25 over a collection, or a TREC run made elsewhere.

A run maps each query id to its candidates, best first. The order of the list *is* the ranking. A
document whose id is the query's own (ArguAna, Quora) is never a candidate.

Tools that read a TREC file sort it by score, each with its own order of ties, and trec_eval keeps
scores in 32 bits. Written scores are therefore strictly decreasing as 32-bit floats.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prorank_jax.atomic import write_atomically
from prorank_jax.data.beir import Collection
from prorank_jax.data.lines import read_lines, shown
from prorank_jax.errors import InputError

__all__ = ["Run", "bm25_run", "candidates", "read_run", "strictly_decreasing", "write_atomically", "write_run"]

_log = logging.getLogger(__name__)

Run = dict[str, list[tuple[str, float]]]


def candidates(collection: Collection, source: str, depth: int) -> Run:
    """The best `depth` candidates of each query of the collection, an empty list where there are none.

    Args:
      source: `bm25`, or the path of a TREC run.

    Raises:
      InputError: the run cannot be read, names a document that the collection lacks, or has no
        candidate for any query of the collection.
    """
    if source == "bm25":
        found = bm25_run(collection, depth)
    elif Path(source).is_file():
        found = read_run(source, depth, collection)
    else:
        raise InputError(f"candidates={source!r}: no such file; give the path of a TREC run, or bm25")
    run = {query_id: found.get(query_id, []) for query_id in collection.queries}
    place = f"{source}: {collection.name}/{collection.split}"
    empty = [query_id for query_id, ranking in run.items() if not ranking]
    if len(empty) == len(run):
        raise InputError(
            f"{place}: no candidates for any of its {len(run)} queries (first: {empty[0]!r}); "
            "use a first stage of this collection and split"
        )
    if empty:
        _log.warning(
            "%s: no candidates for %d of its %d queries (first: %r); they count 0 in measures",
            place,
            len(empty),
            len(run),
            empty[0],
        )
    return run


def bm25_run(collection: Collection, depth: int) -> Run:
    """BM25 (k1 0.9, b 0.4, as Anserini) over title and text in one field, English stop words and stemmer.

    Only documents that share a word with the query are candidates: a document of score 0 is no match.
    Ties are in corpus order.
    """
    # bm25s loads numba, which takes seconds; readers of a TREC run do without.
    import bm25s
    import Stemmer

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

    def tokenize(texts: Sequence[str]) -> list[list[str]]:
        stemmer = Stemmer.Stemmer("english")
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return tokens

    corpus_tokens = tokenize(list(collection.documents.values()))
    if not any(corpus_tokens):
        raise InputError(f"{collection.name}: no document has a word in it; BM25 needs words")
    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(corpus_tokens, show_progress=False)
    document_ids = list(collection.documents)
    run: Run = {}
    for query_id, tokens in zip(collection.queries, tokenize(list(collection.queries.values())), strict=True):
        # bm25s does not take a query without tokens.
        scores = index.get_scores(tokens) if tokens else np.zeros(len(document_ids), np.float32)
        # One more than asked for: the query itself may be among them.
        best = _best(scores, depth + 1)
        ranking = [(document_ids[i], float(scores[i])) for i in best if document_ids[i] != query_id]
        run[query_id] = ranking[:depth]
    return run


def read_run(path: str | Path, depth: int | None = None, collection: Collection | None = None) -> Run:
    """Reads a TREC run: lines of `query Q0 document rank score tag`.

    Candidates are sorted by score, ties by the rank column and then by line.

    Args:
      depth: candidates kept per query; all where None.
      collection: where given, lines of other queries are left out, and documents are checked.

    Raises:
      InputError: the file is missing, empty or malformed (with its line), a document stands twice for
        a query, a score is not finite, or the collection lacks a document.
    """
    path = Path(path)
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    empty = True
    for place, line in read_lines(path):
        empty = False
        query_id, document_id, rank, score = _parse_row(place, line)
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
                f"{place}: document {shown(document_id)} stands twice for query {shown(query_id)}; keep one line"
            )
        of_query[document_id] = (-score, rank)
    if empty:
        raise InputError(f"{path}: is empty; write lines of `query Q0 document rank score tag`")
    run: Run = {}
    for query_id, of_query in rows.items():
        order = sorted(of_query, key=of_query.__getitem__)
        run[query_id] = [(name, -of_query[name][0]) for name in order if name != query_id][:depth]
    return run


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Writes a TREC run atomically, with the scores of `strictly_decreasing`; `tag` is one word."""
    lines = [
        f"{query_id} Q0 {document_id} {rank} {np.float32(score)} {tag}\n"
        for query_id, ranking in strictly_decreasing(run).items()
        for rank, (document_id, score) in enumerate(ranking, start=1)
    ]
    write_atomically(path, "".join(lines))


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


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the highest `count` scores above 0, highest first, equal scores by position."""
    if count < len(scores):
        least = np.partition(scores, -count)[-count]
        positions = np.flatnonzero((scores >= least) & (scores > 0))
    else:
        positions = np.flatnonzero(scores > 0)
    return positions[np.argsort(-scores[positions], kind="stable")][:count]


def _parse_row(place: str, line: str) -> tuple[str, str, int, float]:
    # bytes.split takes ASCII white space only; ids may hold other Unicode spaces.
    columns = [column.decode("utf-8") for column in line.encode("utf-8").split()]
    if len(columns) != 6:
        raise InputError(f"{place}: {shown(line)} has {len(columns)} columns; write `query Q0 document rank score tag`")
    query_id, _, document_id, rank, score, _ = columns
    try:
        parsed = int(rank)
    except ValueError:
        raise InputError(f"{place}: rank {shown(rank)} is not an integer; write 1, 2, 3, ...") from None
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{place}: score {shown(score)} is not a finite number; write one within 32-bit floats")
    return query_id, document_id, parsed, value
