"""An output file that is written chunk by chunk, and goes on behind its last whole chunk wherever it was cut.

`OUT.part` holds the finished chunks; `OUT.part.json` says how many rows and bytes they are, and what they were made
of. It is replaced behind each chunk: what `OUT.part` holds beyond is of a chunk that was cut, and is written again.
"""

import fcntl
import glob
import json
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from prorank_jax.atomic import write_atomically, writing
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json


class Part:
    """The unfinished file, and what is known of it, as a context: the lock on it goes with the process that holds it.

    Raises:
      InputError: another process is writing it, or it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_name(f"{out.name}.part")
        self.record = out.with_name(f"{out.name}.part.json")
        self.made_of: dict[str, Any] = {}
        self.rows = self.bytes = 0

    def __enter__(self) -> "Part":
        with self._writing():
            self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"{self.path}: another process is writing it; wait until it ends, or give another --out"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        # What a full disk did not take is tried again here; it is told already, and nobody counts on it.
        with suppress(OSError):
            self._file.close()

    def open(self, made_of: dict[str, Any]) -> int:
        """Begins the file, or cuts it behind its last whole chunk; returns the rows that it has.

        Raises:
          InputError: it was begun with something else, or is damaged.
        """
        self.made_of = made_of
        start_again = f"delete {self.path} to start again, or give another --out"
        if not self.path.stat().st_size:
            with self._writing():
                self._note()
            return 0
        try:
            record = parse_json(self.record.read_text(encoding="utf-8"))
            before, self.rows, self.bytes = record["made_of"], int(record["rows"]), int(record["bytes"])
            changed = [name for name, value in made_of.items() if before[name] != value]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self.record}: does not say what {self.path} was made of; {start_again}") from None
        if changed:
            name = changed[0]
            values = f" ({before[name]} -> {made_of[name]})" if name.startswith("--") else ""
            raise InputError(f"{self.path}: was begun with other settings: {name} changed{values}; {start_again}")
        if self.path.stat().st_size < self.bytes:
            raise InputError(f"{self.path}: is shorter than the {self.bytes} bytes written; {start_again}")
        os.truncate(self._file.fileno(), self.bytes)
        return self.rows

    def add(self, chunk: bytes, rows: int) -> None:
        """Writes a chunk, and notes it once it is on the disk.

        Raises:
          InputError: it cannot be written; the chunks before it stay.
        """
        with self._writing():
            self._file.write(chunk)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.rows += rows
            self.bytes += len(chunk)
            self._note()

    def finish(self) -> None:
        """Gives the file its name."""
        os.replace(self.path, self.out)
        self._forget()

    def discard(self) -> None:
        """Removes the file, whose content has become another's."""
        self.path.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        for left in (self.record, *self.out.parent.glob(f"{glob.escape(self.record.name)}.*.tmp")):
            left.unlink(missing_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        remedy = "make room for it and run the command again, which goes on behind the last whole chunk"
        return writing(self.path, remedy)

    def _note(self) -> None:
        record = {"rows": self.rows, "bytes": self.bytes, "made_of": self.made_of}
        write_atomically(self.record, json.dumps(record, indent=2) + "\n")


def rows_done(out: Path, made_of: dict[str, Any]) -> int:
    """Rows of `out` that an unfinished file has, where it was made of the same and is as long as noted."""
    part = Part(out)
    try:
        record = parse_json(part.record.read_text(encoding="utf-8"))
        whole = record["made_of"] == made_of and part.path.stat().st_size >= record["bytes"]
        return int(record["rows"]) if whole else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
