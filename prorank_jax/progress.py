"""How far long work is: a bar on a terminal, plain lines elsewhere, on standard error."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_NOTES = 30.0
"""Of work whose end is not known."""

# Control characters but the tabulator, line and paragraph separators, marks of direction, lone surrogates.
_COMMANDS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

T = TypeVar("T")


@contextmanager
def progress(what: str, total: int, shown: bool, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function that counts what has been done.

    Where there is no terminal, a line as `indexing 20000/5183000` is printed at most every few seconds, and one at the
    end.

    Args:
      what: a word for the work.
      total: the count at its end.
      shown: whether anything is printed.
      done: what was done before.
    """
    console = Console(stderr=True)
    lines = shown and not console.is_terminal
    noted = time.monotonic()
    with Progress(console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal done, noted
            done += count
            bar.advance(task, count)
            if lines and (done >= total or time.monotonic() - noted >= SECONDS_BETWEEN_LINES):
                noted = time.monotonic()
                tell(f"{what} {done}/{total}")

        yield advance


def visible(text: str) -> str:
    """Text for a terminal: what would move its cursor, break its line or turn its direction is spelled out."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell(line: str) -> None:
    """Prints a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def noted(items: Iterable[T], name: str, what: str) -> Iterator[T]:
    """The same items; where they take long, a line as `NAME: 20,000 WHAT in 31 s` now and then."""
    started = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if number % 1000 == 0 and (now := time.monotonic()) - last > SECONDS_BETWEEN_NOTES:
            last = now
            tell(f"{name}: {number:,} {what} in {now - started:.0f} s")
