"""What a stage reports while it trains: `metrics.jsonl`, TensorBoard events, and a line or a bar to look at.

A row of `metrics.jsonl` is `{"step": 10, <the metrics>, <the time fields>}`. Everything before the time
fields depends on the configuration and the seed alone, so two runs of one seed can be compared row by row.
Write the row of a step before its checkpoint: on resume, the rows after the restored step are dropped and
written again.
"""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prorank_jax.atomic import write_atomically, writing
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json
from prorank_jax.runtime.room import GO_ON, Room
from prorank_jax.storage import Mirror, Place, fetched, free_bytes

FILE_NAME = "metrics.jsonl"
TIME_FIELDS = ("tokens_per_second", "seconds")
"""The fields of a row that a clock decides, which come last in it."""
_PUBLISH_SECONDS = 30.0
_EVENTS_BYTES = 1 << 18
"""More than the events of a row take."""

Row = dict[str, Any]


class RowFile:
    """A file of rows, `{"step": 10, ...}` a line, that a resumed run goes on with; a context manager.

    In a multi-host run only process 0 writes.

    Args:
      path: the file.
      resume_from: the step that was restored; later rows are dropped. 0 drops all.
      room: who waits where the disk is full; default: nobody.
    """

    def __init__(self, path: Path, resume_from: int, room: Room | None = None):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        there = read_metrics(path) if resume_from and path.exists() else []
        self.kept = [row for row in there if row["step"] <= resume_from]
        self._path, self._room = path, room
        self._patiently(lambda: write_atomically(path, "".join(map(_line, self.kept))))
        # Not buffered: what could not be written is not written later either.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._file.close()

    def write(self, row: Row) -> None:
        """Appends a row, which can be read at once.

        Raises:
          InputError: it cannot be written.
        """
        if self._writes:
            self._patiently(lambda: self._append(_line(row).encode()))

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self._file.fileno(), size)
            raise

    def _patiently(self, write: Callable[[], None]) -> None:
        with writing(self._path, GO_ON):
            write() if self._room is None else self._room.keep_trying(self._path, write)


class MetricsWriter:
    """Writes the metrics of one stage; a context manager. In a multi-host run only process 0 writes.

    Args:
      folder: the stage's folder; holds `metrics.jsonl` and the TensorBoard events. Where it lies in a bucket, what is
        written is there some seconds later, or after `publish`.
      stage: its name on the screen.
      total_steps: the last step.
      resume_from: the step that was restored, 0 at the start; as of `RowFile`.
      headline: names of the metrics to print; those that a row lacks are left out.
      room: as of `RowFile`.
    """

    def __init__(
        self,
        folder: Place,
        stage: str,
        total_steps: int,
        resume_from: int,
        headline: Sequence[str] = (),
        room: Room | None = None,
    ):
        self._writes = jax.process_index() == 0
        self._resume_from, self._room = resume_from, room
        if not self._writes:
            return
        self._mirror = Mirror(folder, without=("checkpoints",))
        self._stage, self._total, self._headline = stage, total_steps, headline
        self._rows = RowFile(self._mirror.here / FILE_NAME, resume_from, room)
        kept = self._rows.kept
        # Where torch is installed tensorboardX imports it, a second that reading rows should not cost.
        from tensorboardX import SummaryWriter

        # An event file is named by the second: a quick restart must not overwrite the one before it.
        suffix = f".{resume_from}.{os.getpid()}"
        self._events = SummaryWriter(str(self._mirror.here), purge_step=resume_from + 1, filename_suffix=suffix)
        self._start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[headline]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(stage, total=total_steps, completed=resume_from, headline="")

    def __enter__(self) -> Self:
        if self._writes:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._progress.stop()
            self._events.close()
            self._rows.__exit__(kind, error, trace)
            self._mirror.__exit__(kind, error, trace)

    @property
    def kept(self) -> list[Row]:
        """The rows of the steps before, on process 0."""
        return self._rows.kept if self._writes else []

    def rows(self, name: str) -> RowFile:
        """Another file of rows in the stage's folder."""
        return RowFile(self._mirror.here / name if self._writes else Path(name), self._resume_from, self._room)

    def publish(self) -> None:
        """Puts into the stage's folder what has been written. To be called before a checkpoint is."""
        if self._writes:
            self._mirror.publish()

    def note(self, text: str) -> None:
        """Shows a line above the progress bar."""
        if not self._writes:
            return
        if self._console.is_terminal:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one row and shows its headline.

        Args:
          metrics: `tokens_per_second` is kept among the time fields. What is not finite becomes null, for JSON has
            no word for it.
        """
        if not self._writes:
            return
        row: Row = {
            "step": step,
            **{name: value for name, value in metrics.items() if name not in TIME_FIELDS},
        }
        row |= {name: metrics[name] for name in TIME_FIELDS if name in metrics}
        row["seconds"] = round(time.monotonic() - self._start, 3)
        self._rows.write(row)
        self._wait_for_events()
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self._events.add_scalar(name, value, step)
        self._events.flush()
        self._mirror.publish(every=_PUBLISH_SECONDS)
        self._show(step, row)

    def _wait_for_events(self) -> None:
        # The library writes events in a thread, which would end at the first that finds no room.
        def check() -> None:
            if free_bytes(self._mirror.here) < _EVENTS_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if self._room is not None:
            self._room.keep_trying(self._mirror.here, check)

    def _show(self, step: int, row: Row) -> None:
        parts = [f"{name} {row[name]:.4g}" for name in self._headline if name in row]
        if "tokens_per_second" in row:
            parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
        headline = "  ".join(parts)
        self._progress.update(self._task, completed=step, headline=headline)
        if not self._console.is_terminal:
            print(f"{self._stage} {step}/{self._total}  {headline}".rstrip(), file=sys.stderr)


def read_metrics(path: Place) -> list[Row]:
    """The rows of a `metrics.jsonl`; a last line that a killed run left half written is left out.

    Raises:
      InputError: another line is not a row; names its number.
    """
    rows: list[Row] = []
    lines = Path(fetched(path)).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(f"{path}:{number}: not a row of metrics: {line.strip()[:60]!r}; delete the line") from None
        rows.append(row)
    return rows


def _line(row: Row) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
