"""Candidates get a reranker's scores and its order, in chunks of whole queries.

Where chunks end depends on the pairs that have no score yet and on the prompt's length alone, and a chunk's scores on
nothing outside of it: interrupted work resumes after the last whole chunk, and ends with the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run
from prorank_jax.evaluation.score_cache import ScoreCache
from prorank_jax.progress import progress
from prorank_jax.relevance import finite

CHUNK_TOKENS = 1 << 17
"""Tokens of a chunk at most, unless one query has more: about sixteen batches."""

Pairs = list[tuple[str, str]]


class PairScorer(Protocol):
    """What reranking needs of a reranker."""

    @property
    def max_length(self) -> int: ...

    def predict_chunks(
        self, chunks: Iterable[Sequence[tuple[str, str]]], *, instruction: str | None = None
    ) -> Iterator[np.ndarray]: ...


def nothing() -> None:
    """Does nothing."""


def rerank(
    reranker: PairScorer,
    collection: Collection,
    run: Run,
    show_progress: bool = False,
    instruction: str | None = None,
    cache: ScoreCache | None = None,
    kept: Callable[[], None] = nothing,
) -> Run:
    """Orders each query's candidates by the reranker's score, equal scores by first-stage rank.

    Args:
      cache: the reranker's scores of pairs of this collection. Those that it has are not computed; those that it lacks
        are added, chunk by chunk.
      kept: called after each chunk that was added.

    Raises:
      InputError: a score is not finite, or the cache cannot be used.
    """
    scores = {} if cache is None else known_scores(cache, collection, run)
    left = without(run, scores)
    if cache is not None and left:
        # What cannot be written is refused before any work.
        cache.add([])
    with progress("reranking", len(run), show_progress, done=len(run) - len(left)) as advance:
        for scored in _scored(reranker, collection, left, instruction):
            if cache is not None:
                cache.add(
                    (collection.queries[query_id], document_id, score)
                    for query_id, ranking in scored.items()
                    for document_id, score in ranking
                )
                kept()
            for query_id, ranking in scored.items():
                scores.setdefault(query_id, {}).update(ranking)
            advance(len(scored))
    return {
        query_id: _ordered([(document_id, scores[query_id][document_id]) for document_id, _ in ranking])
        for query_id, ranking in run.items()
    }


def rerank_chunks(
    reranker: PairScorer, collection: Collection, run: Run, instruction: str | None = None
) -> Iterator[Run]:
    """The same, some queries at a time, in the order of the run."""
    for scored in _scored(reranker, collection, run, instruction):
        yield {query_id: _ordered(ranking) for query_id, ranking in scored.items()}


def known_scores(cache: ScoreCache, collection: Collection, run: Run) -> dict[str, dict[str, float]]:
    """Query id -> document id -> the score that the cache has, of the run's candidates and maybe of others."""
    return {query_id: cache.known(collection.queries[query_id]) for query_id in run}


def without(run: Run, known: Mapping[str, Iterable[str]]) -> Run:
    """The candidates that are not known, and the queries that have any.

    `{"q": [("a", 2.0), ("b", 1.0)], "p": [("c", 1.0)]}` without `{"q": ["a"], "p": ["c"]}` is `{"q": [("b", 1.0)]}`.
    """
    left = {}
    for query_id, ranking in run.items():
        done = set(known.get(query_id, ()))
        if unknown := [entry for entry in ranking if entry[0] not in done]:
            left[query_id] = unknown
    return left


def _scored(reranker: PairScorer, collection: Collection, run: Run, instruction: str | None) -> Iterator[Run]:
    """Chunks of whole queries, with the reranker's scores in the order of the candidates."""
    chunks = list(_chunks(run, max(CHUNK_TOKENS // reranker.max_length, 1)))
    texts = (_pairs(collection, run, chunk) for chunk in chunks)
    for chunk, scores in zip(chunks, reranker.predict_chunks(texts, instruction=instruction), strict=True):
        if scores.shape != (count := sum(len(run[query_id]) for query_id in chunk),):
            raise ValueError(f"the reranker gave scores of shape {scores.shape} for {count} pairs")
        values = iter(finite(scores, partial(_named, collection, run, chunk)).tolist())
        yield {query_id: [(document_id, next(values)) for document_id, _ in run[query_id]] for query_id in chunk}


def _named(collection: Collection, run: Run, chunk: Sequence[str], place: int) -> str:
    named = [(query_id, document_id) for query_id in chunk for document_id, _ in run[query_id]]
    query_id, document_id = named[place]
    return f"{collection.name}: the model's score of query {query_id!r} and document {document_id!r}"


def _chunks(run: Run, pairs: int) -> Iterator[list[str]]:
    """Queries that have together as many candidates as `pairs` says, or just more."""
    chunk: list[str] = []
    count = 0
    for number, (query_id, ranking) in enumerate(run.items()):
        chunk.append(query_id)
        count += len(ranking)
        if count >= pairs or number == len(run) - 1:
            yield chunk
            chunk, count = [], 0


def _pairs(collection: Collection, run: Run, queries: Iterable[str]) -> Pairs:
    return [
        (collection.queries[query_id], collection.documents[document_id])
        for query_id in queries
        for document_id, _ in run[query_id]
    ]


def _ordered(ranking: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(ranking, key=lambda entry: -entry[1])
