"""Scores of a stream of requests, in its order, in memory that does not grow with it.

A thread reads ahead. What it has read is scored together, in chunks, and while it has more to give, a chunk is
tokenised as the one before it is computed. Where it has not, as when requests are typed, what there is gets its answer.
"""

import heapq
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from queue import Empty, Queue
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from prorank_jax.errors import InputError
from prorank_jax.evaluation.rerank import Pairs, PairScorer
from prorank_jax.relevance import finite
from prorank_jax.reranker import Hit
from prorank_jax.reranking.requests import Request

_READ_AHEAD = 16
_CHUNK_PAIRS = 1024
_CHUNK_CHARACTERS = 1 << 24
_PATIENCE = 0.01
"""Seconds in which a live stream may give more to be scored together."""

_END = object()


class Ranking(NamedTuple):
    """Documents of a query, best first."""

    place: str
    """For messages."""
    fields: Mapping[str, Any]
    """What a JSON line begins with."""
    hits: list[Hit]


def ranked(
    reranker: PairScorer,
    requests: Iterable[Request],
    query: str | None = None,
    instruction: str | None = None,
    top_k: int | None = None,
    *,
    live: bool = False,
) -> Iterator[Ranking]:
    """A ranking of each request; where all have one `query`, one of all their documents.

    Args:
      top_k: documents to keep of each, where the request doesn't say. Of one query, no more are held in memory.
      instruction, live: as `scored`.

    Raises:
      InputError: as `scored`.
    """
    answered = scored(reranker, requests, instruction, live=live)
    if query is None:
        for request, scores in answered:
            yield Ranking(request.place, request.fields, best(_hits(request, scores), request.top_k or top_k))
        return
    hits = (hit for request, scores in answered for hit in _hits(request, scores))
    yield Ranking("--query", {"query": query}, best(hits, top_k))


def best(hits: Iterable[Hit], top_k: int | None) -> list[Hit]:
    """Best first, equal scores in the order given."""
    if top_k is None:
        return sorted(hits, key=_score, reverse=True)
    return heapq.nlargest(top_k, hits, key=_score)


def scored(
    reranker: PairScorer, requests: Iterable[Request], instruction: str | None = None, *, live: bool = False
) -> Iterator[tuple[Request, np.ndarray]]:
    """Each request with the scores of its documents, float32 [documents].

    Args:
      instruction: of requests that have none.
      live: whether an answer must not wait for the next request. Otherwise what is scored together depends on the
        requests alone, and not on when they come.

    Raises:
      InputError: an instruction does not fit, or a score is not finite; what reading requests raises, behind the scores
        of those before.
    """
    with _Reading(requests, _PATIENCE if live else None) as reading:
        while (request := reading.wait()) is not None:
            begun: deque[list[Request]] = deque()
            chunks = _pairs(reading.together(request.instruction), begun)
            for scores in _predicted(reranker, chunks, request, instruction):
                values = iter(scores)
                for answered in begun.popleft():
                    own = np.fromiter(values, np.float32, len(answered.texts))
                    yield answered, finite(own, partial(_named, answered))


def _named(request: Request, number: int) -> str:
    return f"{request.place}: the model's score of document {number}"


def _hits(request: Request, scores: np.ndarray) -> Iterator[Hit]:
    for number, (document, score) in enumerate(zip(request.documents, scores.tolist(), strict=True)):
        yield Hit(request.first + number, score, document)


def _score(hit: Hit) -> float:
    return hit.score


def _predicted(
    reranker: PairScorer, chunks: Iterable[Pairs], first: Request, instruction: str | None
) -> Iterator[np.ndarray]:
    try:
        yield from reranker.predict_chunks(chunks, instruction=first.instruction or instruction)
    except InputError as error:
        raise (InputError(f"{first.place}: {error}") if first.instruction else error) from None


def _pairs(chunks: Iterable[list[Request]], begun: deque[list[Request]]) -> Iterator[Pairs]:
    for chunk in chunks:
        begun.append(chunk)
        yield [(request.query, text) for request in chunk for text in request.texts]


class _Reading:
    """Requests that a thread reads ahead of who takes them; a context manager.

    Args:
      patience: seconds that a chunk may take to come together; None: as long as the requests take.
    """

    def __init__(self, requests: Iterable[Request], patience: float | None) -> None:
        self._waiting: Queue[object] = Queue(_READ_AHEAD)
        self._next: object = None
        self._patience = patience
        self._left = threading.Event()
        # A read that waits for somebody to type must not keep the process from ending.
        threading.Thread(target=self._read, args=(requests,), name="requests", daemon=True).start()

    def wait(self) -> Request | None:
        """The next request, which stays the next; None behind the last.

        Raises:
          what reading it raised.
        """
        found = self._peek(None)
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(found, Request) else None

    def together(self, instruction: str | None) -> Iterator[list[Request]]:
        """Chunks of requests that have this instruction, until another has not, or none comes in time."""
        found: object = _END
        while found is not None:
            chunk: list[Request] = []
            pairs = characters = 0
            until = None if self._patience is None else time.monotonic() + self._patience
            while pairs < _CHUNK_PAIRS and characters < _CHUNK_CHARACTERS:
                found = self._peek(until)
                if not isinstance(found, Request) or found.instruction != instruction:
                    break
                self._next = None
                chunk.append(found)
                pairs += max(len(found.texts), 1)
                characters += len(found.query) + sum(map(len, found.texts))
            if not chunk:
                return
            yield chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        # The thread may wait for room.
        while not self._waiting.empty():
            self._waiting.get_nowait()

    def _read(self, requests: Iterable[Request]) -> None:
        last: object = _END
        try:
            for request in requests:
                self._waiting.put(request)
                if self._left.is_set():
                    return
        except BaseException as error:  # told to who waits, in its place
            last = error
        self._waiting.put(last)

    def _peek(self, until: float | None) -> object:
        """The next request, what ended them, or None where nothing has come by then."""
        if self._next is None:
            try:
                self._next = self._waiting.get(timeout=None if until is None else max(until - time.monotonic(), 0))
            except Empty:
                return None
        return self._next
