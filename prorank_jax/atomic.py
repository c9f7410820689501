"""Files that are whole or not there, and folders that one process makes while others wait."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prorank_jax.errors import InputError
from prorank_jax.progress import tell


def write_atomically(path: str | Path, text: str) -> None:
    """Writes a text file so that a reader, or a run cut short, sees the old file or the whole new one.

    Raises:
      OSError: it cannot be written; nothing of it is left.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which takes its place at the end of the block; where that raises, nothing of it is left."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            # A machine that loses its power must not keep the new name and lose what it names.
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def writing(place: Path, remedy: str) -> Iterator[None]:
    """Raises InputError, which names the place and says what to do, where something in the block cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror or error}); {remedy}") from None


def check_writable(folder: Path) -> None:
    """Raises OSError where a folder, which may still have to be made, cannot be written to; a full disk is not seen."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def alone(folder: Path, work: str | None = None) -> Iterator[None]:
    """One process at a time in a folder, which is there; the lock goes with the process that holds it.

    Args:
      work: what is done in the folder: one that waits for another says so in a line.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if work is not None:
                tell(f"{work}: waiting for another process, which is at work in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
