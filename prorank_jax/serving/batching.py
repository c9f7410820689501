"""Pairs of many requests computed together.

While batches are computed, requests queue; the next batch takes from all of them. Each request gives a few pairs in its
turn, so that one of a thousand documents doesn't keep those behind it waiting. Only pairs of one instruction share a
batch, being prompts of one template. Two threads compute: one tokenises while the other waits for the device.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

import numpy as np

from prorank_jax.errors import InputError
from prorank_jax.relevance import NotFinite, finite
from prorank_jax.serving.meters import Meters

Pair = tuple[str, str]
_LONGEST_RETRY = 60
_MEMORY = 0.9
"""What is kept of the measured speed when a batch is added to it."""

_log = logging.getLogger(__name__)


class Predictor(Protocol):
    """What scores pairs and counts the tokens of their prompts, as `Reranker` does."""

    def predict_counted(
        self, pairs: Sequence[Pair], *, instruction: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


class Busy(Exception):
    """The queue is full; `retry_after` [seconds] is about how long it takes to be computed."""

    def __init__(self, waiting: int, most: int, retry_after: int) -> None:
        super().__init__(f"{waiting} pairs wait already, of {most} that may; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Exception):
    """The batcher takes no more work."""


class Work:
    """The pairs of one request, and the future of their scores: float32 [pairs], in their order.

    Once there are all, `tokens` is the sum over the prompts that were computed for them.
    """

    def __init__(self, pairs: Sequence[Pair], instruction: str | None) -> None:
        self.pairs = pairs
        self.instruction = instruction
        self.future: Future[np.ndarray] = Future()
        self.taken = 0
        self.tokens = 0
        self._scores = np.empty(len(pairs), np.float32)
        self._missing = len(pairs)
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Pairs that no batch has taken."""
        return len(self.pairs) - self.taken

    def take(self, most: int) -> range:
        """The places of the next pairs, which a batch now takes."""
        places = range(self.taken, min(self.taken + most, len(self.pairs)))
        self.taken = places.stop
        return places

    def put(self, places: range, scores: np.ndarray, tokens: np.ndarray) -> None:
        """Scores and tokens of pairs that were taken; the future has its result once there are all."""
        self._scores[places.start : places.stop] = scores
        with self._lock:
            self.tokens += int(tokens.sum())
            self._missing -= len(places)
            complete = self._missing == 0
        if complete:
            # It may have been dropped meanwhile.
            with suppress(InvalidStateError):
                self.future.set_result(self._scores)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


Share = tuple[Work, range]


class Batcher:
    """A queue of work, and the threads that empty it.

    Args:
      predictor: scores pairs; is called by all of the threads.
      queue: pairs that may wait or be computed.
      batch: pairs computed together.
      threads: how many compute.
      first: what is done before anything else; is asked to end early by the function that it is given.
    """

    def __init__(
        self,
        predictor: Predictor,
        meters: Meters,
        *,
        queue: int,
        batch: int,
        threads: int = 2,
        first: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        self._predictor = predictor
        self._meters = meters
        self._most = queue
        self._batch = batch
        self._first = first
        self._changed = threading.Condition()
        self._queue: deque[Work] = deque()
        self._waiting = 0
        self._stopping = False
        self._ready = threading.Event()
        self._pairs_per_second = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"batcher {number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether work is done at once: warmed up, and neither stopped nor broken."""
        return self._ready.is_set() and not self._stopping and self._alive

    def submit(self, pairs: Sequence[Pair], instruction: str | None) -> Work:
        """Queues pairs, of which there is at least one.

        Raises:
          Busy: there is no room for them now.
          Stopping: there will be none.
        """
        work = Work(pairs, instruction)
        with self._changed:
            if self._stopping or not self._alive:
                raise Stopping
            if self._waiting + len(pairs) > self._most:
                raise Busy(self._waiting, self._most, self._retry_after())
            self._queue.append(work)
            self._count(len(pairs))
            self._changed.notify_all()
        return work

    def drop(self, work: Work) -> None:
        """Forgets work that nobody waits for; what of it is being computed is computed."""
        with self._changed:
            work.future.cancel()
            if work in self._queue:
                self._queue.remove(work)
                self._count(-work.left)

    def stop(self) -> None:
        """Takes no more work, and returns once all that is queued has its answer."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def _alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        if number == 0:
            try:
                if self._first is not None:
                    self._first(lambda: self._stopping)
            except Exception:
                _log.exception("warm-up failed")
            self._ready.set()
        self._ready.wait()
        while shares := self._next():
            self._compute(shares)

    def _next(self) -> list[Share]:
        """What the next batch has of each work; waits until there is some, and is empty at the end."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return []
                self._changed.wait()
            shares = shared(self._queue, self._batch)
            # Those of which something is left go behind all others.
            taken = {work for work, _ in shares}
            untouched = [work for work in self._queue if work not in taken]
            self._queue = deque([*untouched, *(work for work, _ in shares if work.left)])
            return shares

    def _compute(self, shares: list[Share]) -> None:
        pairs = [work.pairs[place] for work, places in shares for place in places]
        started = time.perf_counter()
        try:
            scores, tokens = self._computed(pairs, shares[0][0].instruction)
        except Exception as error:
            self._failed(shares, error)
        else:
            start = 0
            for work, places in shares:
                own = slice(start, start + len(places))
                work.put(places, scores[own], tokens[own])
                start = own.stop
            self._meters.pairs.inc(len(pairs))
        seconds = time.perf_counter() - started
        self._meters.batch_pairs.observe(len(pairs))
        self._meters.batch_seconds.observe(seconds)
        with self._changed:
            self._count(-len(pairs))
            speed = len(pairs) / max(seconds, 1e-9)
            old = self._pairs_per_second or speed
            self._pairs_per_second = _MEMORY * old + (1 - _MEMORY) * speed

    def _computed(self, pairs: list[Pair], instruction: str | None) -> tuple[np.ndarray, np.ndarray]:
        try:
            scores, tokens = self._predictor.predict_counted(pairs, instruction=instruction)
            return finite(scores, lambda place: f"pair {place}"), tokens
        except NotFinite:
            # No fault of the request, whose texts are not for the log.
            raise FloatingPointError("the model gives a score that is not finite") from None

    def _failed(self, shares: list[Share], error: Exception) -> None:
        """Computes alone what could not be computed together, so that one request cannot fail another."""
        for work, places in shares:
            try:
                if len(shares) == 1 or isinstance(error, InputError):
                    raise error
                work.put(places, *self._computed([work.pairs[place] for place in places], work.instruction))
            except Exception as own:
                if not isinstance(own, InputError):
                    _log.error("a batch of %d pairs failed", len(places), exc_info=own)
                with self._changed:
                    if work in self._queue:
                        self._queue.remove(work)
                        self._count(-work.left)
                work.fail(own)

    def _count(self, pairs: int) -> None:
        self._waiting += pairs
        self._meters.waiting.set(self._waiting)

    def _retry_after(self) -> int:
        seconds = self._waiting / self._pairs_per_second if self._pairs_per_second else 1
        return int(min(max(seconds, 1), _LONGEST_RETRY))


def shared(queue: "deque[Work]", batch: int) -> list[Share]:
    """Up to `batch` pairs of the works with the instruction of the first, an equal share of each.

    Works of 1, 100 and 2 pairs give 1, 5 and 2 to a batch of 8: what others don't need, the first that has more gets.
    """
    sharing = [work for work in queue if work.instruction == queue[0].instruction][:batch]
    part = batch // len(sharing)
    room = batch - sum(min(part, work.left) for work in sharing)
    shares = []
    for work in sharing:
        more = min(max(work.left - part, 0), room)
        room -= more
        shares.append((work, work.take(part + more)))
    return shares
