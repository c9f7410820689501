"""What Prometheus is told: counts and times of requests, batches and pairs."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEFT = "499"
"""The status counted where the client left before its answer, as nginx has it."""
STATUS = "prorank.status"
"""Where in a request's scope stands what is counted in place of the status sent."""


class Meters:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "prorank_requests", "Requests answered, by page and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "prorank_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pairs = Counter("prorank_pairs", "Pairs of a query and a document scored.", registry=self.registry)
        self.waiting = Gauge("prorank_waiting_pairs", "Pairs that wait or are computed.", registry=self.registry)
        self.held = Gauge("prorank_held_bytes", "Bodies of requests not answered yet.", registry=self.registry)
        self.batch_pairs = Histogram(
            "prorank_batch_pairs", "Pairs computed together.", buckets=_PAIRS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "prorank_batch_seconds", "Time to compute a batch.", buckets=_SECONDS, registry=self.registry
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Metered:
    """Counts and times the requests of an application.

    Args:
      paths: the pages that are counted by name; all others are counted as one, so that clients cannot make series.
    """

    def __init__(self, app: ASGIApp, meters: Meters, paths: Iterable[str]) -> None:
        self._app = app
        self._meters = meters
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status, started = "500", time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._meters.requests.labels(path, scope.get(STATUS, status)).inc()
            self._meters.seconds.labels(path).observe(time.perf_counter() - started)
