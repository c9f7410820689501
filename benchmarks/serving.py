"""How many requests `prorank serve` answers, one by one and from many clients, and what overload does to it.

    python benchmarks/serving.py [--clients N] [--requests N] [--overload MINUTES] [--model MODEL] [--out FILE.json]

The server is a process of its own on the same cores. A request has one query and one document. First one client sends
requests one by one; then 64 send them at once, each the next one when it has its answer. The shapes that this takes are
compiled before. Both ways the scores are compared with those of one request that has all pairs of a query. Clients are
threads with the standard library's HTTP: httpx takes more time of the cores for a request than the server does.

What many clients can gain is what a batch saves: on a CPU little (one pair keeps a core busy already), on an
accelerator much. `alone_over_batched` is that bound for the model itself, measured without the server: time of a pair
alone over time of a pair among 32.

Under overload 64 clients send requests of 20 documents to a queue of 400, and wait a tenth of a second after a refusal
instead of the time that it names. Every request must end with all of its scores or a refusal (429). Memory is the
server's resident memory, looked at twice a second; its growth is the median of the last tenth over the median of the
second tenth.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _record import parser, write

from prorank_jax.demo.world import towns

TARGETS = {"many_over_one": 3.0, "growth_percent": 5.0}
ROUNDS = 3
OVERLOAD_DOCUMENTS = 20
PATIENCE = 0.1
"""Seconds that a client waits after a refusal."""


class Server(subprocess.Popen[str]):
    """`prorank serve` on a free port."""

    def __init__(self, model: str, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("prorank")), "serve", model, "--port", "0", *options]
        super().__init__(command, stderr=subprocess.PIPE, text=True)
        assert self.stderr is not None
        told = next((found for line in self.stderr if (found := re.search(r"http://\S+:\d+", line))), None)
        if told is None:
            raise SystemExit("the server has ended before it was ready")
        self.address = told[0]
        # What else it says must not fill the pipe.
        threading.Thread(target=self.stderr.read, daemon=True).start()
        while httpx.get(f"{self.address}/health").status_code != 200:
            time.sleep(0.1)

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    server = Server(model, *options)
    try:
        yield server
    finally:
        server.terminate()
        if status := server.wait(120):
            raise SystemExit(f"the server has ended with status {status}")


Answer = tuple[int, list[float]]
"""A status, and the scores in the order sent."""
Ask = Callable[[str, list[str]], Answer]


@contextmanager
def connected(address: str) -> Iterator[Ask]:
    """A connection, and the function that asks for scores through it."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=600)

    def ask(query: str, documents: list[str]) -> Answer:
        body = json.dumps({"query": query, "documents": documents, "raw_scores": True})
        connection.request("POST", "/v1/rerank", body.encode(), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        results = sorted(answer.get("results", []), key=lambda result: result["index"])
        return response.status, [result["relevance_score"] for result in results]

    try:
        yield ask
    finally:
        connection.close()


def at_once(clients: int, address: str, work: Callable[[Ask, int], None]) -> None:
    """Work of so many threads, each with a connection of its own and a number."""

    def one(number: int) -> None:
        with connected(address) as ask:
            work(ask, number)

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(one, number) for number in range(clients)]:
            future.result()


def measure(server: Server, clients: int, requests: int) -> dict[str, Any]:
    """Requests per second and latencies, from one client and from many, in turns."""
    pairs: list[tuple[str, str]] = []
    expected: list[float] = []
    with connected(server.address) as ask:
        for town in towns(1, 50):
            documents = [place.text for place in town.places]
            for query in town.queries:
                pairs += [(query.text, document) for document in documents]
                expected += ask(query.text, documents)[1]
            if len(pairs) >= requests:
                break

    def timed(count: int, start: int, number_of_clients: int) -> tuple[float, list[float], float]:
        """Seconds for `count` requests, those of each, and the largest difference of a score."""
        todo = iter(range(start, start + count))
        lock = threading.Lock()
        seconds: list[float] = []
        off: list[float] = []

        def work(ask: Ask, number: int) -> None:
            while True:
                with lock:
                    place = next(todo, None)
                if place is None:
                    return
                query, document = pairs[place % len(pairs)]
                begun = time.perf_counter()
                _, [score] = ask(query, [document])
                seconds.append(time.perf_counter() - begun)
                off.append(abs(score - expected[place % len(pairs)]))

        begun = time.perf_counter()
        at_once(number_of_clients, server.address, work)
        return time.perf_counter() - begun, seconds, max(off)

    few = requests // 4  # one by one they take long
    timed(requests, 0, clients)
    timed(few, 0, 1)
    rounds: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        row: dict[str, Any] = {}
        for way, number_of_clients, count in (("one", 1, few), ("many", clients, requests)):
            taken, seconds, off = timed(count, number * requests // ROUNDS, number_of_clients)
            low, high = np.percentile(seconds, [50, 95])
            row[way] = {
                "requests_per_second": round(count / taken, 1),
                "p50_ms": round(1000 * float(low), 1),
                "p95_ms": round(1000 * float(high), 1),
                "largest_difference": off,
            }
        rounds.append(row)
        print(f"round {number + 1}: {row}", flush=True)
    middle = {
        way: {name: statistics.median(row[way][name] for row in rounds) for name in rounds[0][way]}
        for way in ("one", "many")
    }
    many_over_one = middle["many"]["requests_per_second"] / middle["one"]["requests_per_second"]
    return {"clients": clients, "rounds": rounds, **middle, "many_over_one": round(many_over_one, 2)}


def overload(server: Server, clients: int, minutes: float) -> dict[str, Any]:
    """Answers by status, lost answers, and the growth of the server's memory."""
    [town] = towns(1, 1)
    documents = [place.text for place in town.places][:OVERLOAD_DOCUMENTS]
    queries = [query.text for query in town.queries]
    with connected(server.address) as ask_first:
        expected = {query: ask_first(query, documents)[1] for query in queries}
    end = time.monotonic() + 60 * minutes
    lock, counts, off = threading.Lock(), Counter[str](), [0.0]
    memory: list[int] = []
    over = threading.Event()

    def work(ask: Ask, number: int) -> None:
        turn = number
        while time.monotonic() < end:
            query = queries[turn % len(queries)]
            turn += 1
            with lock:
                counts["sent"] += 1
            status, found = ask(query, documents)
            with lock:
                counts[str(status)] += 1
            if status == 429:
                time.sleep(PATIENCE)
                continue
            if len(found) != len(documents):
                raise SystemExit(f"{len(found)} scores for {len(documents)} documents")
            difference = float(np.abs(np.subtract(found, expected[query])).max())
            with lock:
                off[0] = max(off[0], difference)

    def watch() -> None:
        while not over.wait(0.5):
            memory.append(server.resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        at_once(clients, server.address, work)
    finally:
        over.set()
        watcher.join()
    tenth = max(len(memory) // 10, 1)
    before, after = statistics.median(memory[tenth : 2 * tenth]), statistics.median(memory[-tenth:])
    return {
        "minutes": minutes,
        "answers": dict(counts),
        "lost": counts["sent"] - counts["200"] - counts["429"],
        "largest_difference": off[0],
        "megabytes": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "peak_megabytes": round(max(memory) / 1e6, 1),
        "growth_percent": round(100 * (after / before - 1), 2),
    }


def alone_over_batched(model: str) -> float:
    """How much longer a pair takes alone than among 32, in this process."""
    from prorank_jax.reranker import Reranker

    reranker = Reranker.from_pretrained(model)
    [town] = towns(1, 1)
    pairs = [(query.text, place.text) for query in town.queries for place in town.places][:32]

    def seconds(parts: list[list[tuple[str, str]]]) -> float:
        def once() -> float:
            begun = time.perf_counter()
            for part in parts:
                reranker.predict(part)
            return time.perf_counter() - begun

        once()
        return statistics.median(once() for _ in range(5))

    return round(seconds([[pair] for pair in pairs]) / seconds([pairs]), 2)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="builtin:tiny")
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--requests", type=int, default=1200, help="in a round of many clients")
    arguments.add_argument("--overload", type=float, default=0.5, metavar="MINUTES")
    options = arguments.parse_args()
    with serving(options.model, "--warm-up") as server:
        figures = measure(server, options.clients, options.requests)
    figures["alone_over_batched"] = alone_over_batched(options.model)
    with serving(options.model, "--max-queue", "400", "--max-documents", str(OVERLOAD_DOCUMENTS)) as server:
        figures["overload"] = overload(server, options.clients, options.overload)
    print(f"overload: {figures['overload']}")
    if options.out:
        write(options.out, figures | {"targets": TARGETS}, libraries=["jax", "fastapi", "uvicorn", "httpx"])
    one, many = figures["one"], figures["many"]
    print(
        f"many_over_one: {figures['many_over_one']:.1f}; {options.clients} clients {many['requests_per_second']:.0f} "
        f"requests/s (p50 {many['p50_ms']:.0f} ms), one {one['requests_per_second']:.0f} (p50 {one['p50_ms']:.0f} ms); "
        f"a pair alone takes {figures['alone_over_batched']:.1f} times as long as one of 32; "
        f"target at least {TARGETS['many_over_one']:.0f}"
    )


if __name__ == "__main__":
    main()
