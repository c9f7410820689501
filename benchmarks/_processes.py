"""Processes of their own, for what is measured: one call in a fresh one, or systems that live side by side in turns.

A process inherits the peak memory of the one that starts it, so this file imports nothing large.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Prompts = list[tuple[int, ...]]


class Task(NamedTuple):
    """What both systems do: `folder` holds the model, `batches` the prompts of each step, `warmup` the settings.

    The end of a turn is token number `vocabulary`, which the model does not have: no completion ends early.
    """

    folder: Path
    vocabulary: int
    group_size: int
    batches: list[Prompts]
    warmup: dict[str, Any]
    pad: int


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


class Report(NamedTuple):
    """One step: wall time, how many cores other processes used, resident memory when it began and the most of it so
    far, the prompt of each completion, and their tokens."""

    seconds: float
    other_cores: float
    before_bytes: int
    peak_bytes: int
    prompts: Prompts
    tokens: int


class Turns:
    """A child's end of the pipe: waits until a step is asked for, times it, and reports it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def begin(self) -> None:
        self.pipe.recv()
        self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        self.others = _seconds_of_others()
        self.start = time.perf_counter()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self.start
        self.others = _seconds_of_others() - self.others

    def report(self, prompts: Prompts, tokens: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.pipe.send(Report(self.seconds, self.others / self.seconds, self.before, peak, prompts, tokens))


Serve = Callable[[Turns, Task], None]


def _child(serve: Serve, pipe: Connection, task: Task) -> None:
    """What runs in a new interpreter, until it is terminated."""
    serve(Turns(pipe), task)
    pipe.recv()  # to end now would take cores from the other's last step


@contextmanager
def alive(name: str, serve: Serve, task: Task) -> Iterator[Callable[[], Report]]:
    """A system in a process of its own, and the function that asks it for one step."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(serve, theirs, task), daemon=True)
    process.start()
    theirs.close()  # else the end of the child would leave us waiting

    def step() -> Report:
        try:
            ours.send(None)
            return ours.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{name}: ended before its last step; its error stands above") from None

    try:
        yield step
    finally:
        process.terminate()
        process.join()


def _seconds_of_others() -> float:
    """CPU time of all processes but this one, since some moment."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()
