"""One training run at a time in a run folder.

On this machine, and on file systems that it shares, that is a lock which goes with the process that holds it; in a
bucket a lease (`lease.py`).
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prorank_jax.atomic import check_writable
from prorank_jax.errors import InputError
from prorank_jax.lease import InUseError, first_line, leased
from prorank_jax.storage import Place, read_bytes

LOCK_FILE = "lock"


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Holds the lock of a run folder, which is there.

    Raises:
      InputError: another process holds it; says which.
      Preempted: in the block, where a lock in a bucket was lost to another process.
    """
    with _locked_here(folder) if isinstance(folder, Path) else leased(folder, LOCK_FILE, _ourselves()):
        yield


def check_free(folder: Place) -> None:
    """Refuses a run folder, or the place of one, that another process holds or that cannot be written to.

    Nothing of it is left on this machine, nor in a bucket, where the lock is taken and given back.

    Raises:
      InputError: another process holds it.
      OSError: nothing can be written there.
    """
    if not isinstance(folder, Path):
        with locked(folder):
            return
    if (by := holder(folder)) is not None:
        raise InUseError(folder, by)
    check_writable(folder)


@contextmanager
def _locked_here(folder: Path) -> Iterator[None]:
    with _opened(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(folder, _holder(folder)) from None
        except OSError as error:
            raise InputError(
                f"{folder}: its file system has no locks ({error.strerror}); give a --workdir on another"
            ) from None
        # Not removed afterwards: whoever had opened it before would then hold a lock that nobody else sees.
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{_ourselves()}\n".encode(), 0)
        yield
        os.ftruncate(lock, 0)


def holder(folder: Place) -> str | None:
    """Who holds the lock of a run folder; None where nobody does. Of a bucket: who held it last and did not end."""
    if not isinstance(folder, Path):
        written = read_bytes(folder / LOCK_FILE)
        return None if written is None else first_line(written)
    if not (folder / LOCK_FILE).exists():
        return None
    with _opened(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(folder)
    return None


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock
    finally:
        os.close(lock)


def _holder(folder: Path) -> str:
    return first_line((folder / LOCK_FILE).read_bytes())


def _ourselves() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
