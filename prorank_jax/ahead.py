"""Work done by another thread, a little ahead of who needs it; and how many there is room for."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def cpus() -> int:
    """How many CPUs this process may use: under taskset or in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """The same items in the same order, of which up to `depth` are made by another thread while one is used.

    What making an item raises is raised here, in its place. Where the iteration is left early, no more is made.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        waiting = deque(worker.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(worker.submit(next, iterator, end))
                yield item  # type: ignore[misc]
        finally:
            worker.shutdown(cancel_futures=True)
