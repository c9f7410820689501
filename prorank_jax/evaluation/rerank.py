"""Candidates get a reranker's scores and its order, in chunks of whole queries.

Where chunks end depends on the candidates and on the prompt's length alone, and a chunk's scores on nothing outside of
it: work that was cut goes on behind the last whole chunk, and ends with the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.lines import read_lines
from prorank_jax.data.part import Part
from prorank_jax.data.runs import Run
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


def rerank(
    reranker: PairScorer,
    collection: Collection,
    run: Run,
    show_progress: bool = False,
    instruction: str | None = None,
) -> Run:
    """Orders each query's candidates by the reranker's score, equal scores by first-stage rank.

    Raises:
      InputError: a score is not finite.
    """
    reranked: Run = {}
    with progress("reranking", len(run), show_progress) as advance:
        for some in rerank_chunks(reranker, collection, run, instruction):
            reranked |= some
            advance(len(some))
    return reranked


def rerank_chunks(
    reranker: PairScorer, collection: Collection, run: Run, instruction: str | None = None
) -> Iterator[Run]:
    """The same, some queries at a time, in the order of the run."""
    for scored in _scored(reranker, collection, run, 0, instruction):
        yield {query_id: _ordered(ranking) for query_id, ranking in scored.items()}


def rerank_into(
    out: Path,
    made_of: Mapping[str, Any],
    reranker: PairScorer,
    collection: Collection,
    run: Run,
    show_progress: bool,
    instruction: str | None,
    kept: Callable[[], None],
) -> Run:
    """The same, with what is scored kept beside `out`, where a later call finds it; `kept` is called after a chunk."""
    with Part(out) as part:
        found = part.open(dict(made_of))
        with progress("reranking", len(run), show_progress, done=found) as advance:
            for scored in _scored(reranker, collection, run, found, instruction):
                # In 32 bits, the digits that `str` gives are those that give back the same number.
                lines = [
                    f"{query_id}\t{document_id}\t{np.float32(score)}\n"
                    for query_id, ranking in scored.items()
                    for document_id, score in ranking
                ]
                part.add("".join(lines).encode("utf-8"), len(scored))
                kept()
                advance(len(scored))
        reranked: Run = {query_id: [] for query_id in run}
        for _, line in read_lines(part.path):
            query_id, document_id, score = line.split("\t")
            reranked[query_id].append((document_id, float(score)))
    return {query_id: _ordered(ranking) for query_id, ranking in reranked.items()}


def _scored(
    reranker: PairScorer, collection: Collection, run: Run, skip: int, instruction: str | None
) -> Iterator[Run]:
    """Chunks of whole queries, with the reranker's scores in the order of the candidates.

    Args:
      skip: queries at the start that are left out, which end a chunk.
    """
    chunks = list(_chunks(run, max(CHUNK_TOKENS // reranker.max_length, 1), skip))
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


def _chunks(run: Run, pairs: int, skip: int) -> Iterator[list[str]]:
    """Queries that have together as many candidates as `pairs` says, or just more."""
    chunk: list[str] = []
    count = 0
    for number, (query_id, ranking) in enumerate(run.items()):
        chunk.append(query_id)
        count += len(ranking)
        if count >= pairs or number == len(run) - 1:
            if number >= skip:
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
