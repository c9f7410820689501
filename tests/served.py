"""A server in a thread of this process, and rerankers for it whose scores are known."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from prorank_jax.errors import InputError
from prorank_jax.serving.server import bind


def known_score(query: str, document: str, instruction: str | None = None) -> np.float32:
    """What `FakeReranker` gives: a number in -4..4 that no other pair is likely to have."""
    return np.float32(crc32(repr((query, document, instruction)).encode()) / 2**32 * 8 - 4)


def known_tokens(query: str, document: str) -> int:
    """The tokens that `FakeReranker` counts of a prompt."""
    return 10 + len(query) + 3 * len(document)


class FakeReranker:
    """Scores by `known_score`, and remembers how many pairs each call had.

    A document that is `fail` cannot be scored, one that is `nan` has no number; an instruction that is `none` has no
    place. Calls take `seconds`, and do not end while it is paused.
    """

    max_length = 64
    dtype = "float32"
    seconds = 0.0

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def predict_counted(
        self, pairs: Sequence[tuple[str, str]], *, instruction: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(list(pairs))
        self.begun.set()
        time.sleep(self.seconds)
        assert self.go_on.wait(30)
        if instruction == "none":
            raise InputError("model: instruction='none': the template has no place for it; leave it out")
        if any(document == "fail" for _, document in pairs):
            raise RuntimeError("out of memory")
        scores = [
            np.nan if document == "nan" else known_score(query, document, instruction) for query, document in pairs
        ]
        return np.array(scores, np.float32), np.array([known_tokens(*pair) for pair in pairs])

    def warm_up(self, pairs: int, stopping: Callable[[], bool]) -> None:
        self.predict_counted([("warm", "up")] * pairs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls begin and do not end."""
        self.begun.clear()
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """An application behind a port of this machine: its address."""
    with bind("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        eventually(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def eventually(true: Callable[[], Any], seconds: float = 30) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it has not come to be so"
        time.sleep(0.005)


def metric(address: str, line: str) -> float:
    """The value of the line of `/metrics` that begins so."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(one.rpartition(" ")[2]) for one in lines if one.startswith(line + " "))
