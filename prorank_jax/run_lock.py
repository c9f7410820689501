"""One run at a time in a run folder.

On this machine, and on file systems that it shares, that is a lock which goes with the process that holds it. In a
bucket it is an object that its holder writes anew every few seconds: where one stays as it is, its run is gone.
"""

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prorank_jax.errors import InputError
from prorank_jax.progress import tell
from prorank_jax.storage import Place, read_bytes, write_text

LOCK_FILE = "lock"
RENEWED_SECONDS = 15.0
GONE_SECONDS = 60.0
"""A lock in a bucket that stays as it is for so long has lost its run."""
SETTLED_SECONDS = 2.0


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Holds the lock of a run folder, which is there.

    Raises:
      InputError: another process holds it; says which.
    """
    with _locked_here(folder) if isinstance(folder, Path) else _leased(folder):
        yield


@contextmanager
def _locked_here(folder: Path) -> Iterator[None]:
    with _opened(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder, _holder(folder)) from None
        except OSError as error:
            raise InputError(
                f"{folder}: its file system has no locks ({error.strerror}); give a --workdir on another"
            ) from None
        # Not removed afterwards: whoever had opened it before would then hold a lock that nobody else sees.
        os.ftruncate(lock, 0)
        os.pwrite(lock, _ourselves().encode(), 0)
        yield
        os.ftruncate(lock, 0)


@contextmanager
def _leased(folder: Place) -> Iterator[None]:
    """Two runs that begin in the same seconds both write the object; the one that finds its own there goes on."""
    lock, own = folder / LOCK_FILE, f"{_ourselves()}{secrets.token_hex(8)}\n"
    if (before := read_bytes(lock)) is not None:
        _wait_until_gone(folder, lock, before)
    ended = threading.Event()

    def renew() -> None:
        number = 0
        while not ended.wait(RENEWED_SECONDS):
            number += 1
            # A bucket that cannot be reached now may be reached the next time.
            with suppress(InputError):
                write_text(lock, f"{own}{number}\n")

    write_text(lock, own)
    time.sleep(SETTLED_SECONDS)
    if (found := read_bytes(lock)) != own.encode():
        raise _in_use(folder, _first_line(found or b""))
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(InputError):
            lock.unlink()


def _wait_until_gone(folder: Place, lock: Place, before: bytes) -> None:
    tell(f"prorank: {folder}: {_first_line(before)} was in it; waiting {GONE_SECONDS:.0f} s to see that it is gone")
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, GONE_SECONDS))
        found = read_bytes(lock)
        if found is None:
            return
        if found != before:
            raise _in_use(folder, _first_line(found))


def holder(folder: Place) -> str | None:
    """Who holds the lock of a run folder; None where nobody does. Of a bucket: who held it last and did not end."""
    if not isinstance(folder, Path):
        written = read_bytes(folder / LOCK_FILE)
        return None if written is None else _first_line(written)
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
    return _first_line((folder / LOCK_FILE).read_bytes())


def _first_line(written: bytes) -> str:
    return next(iter(written.decode(errors="replace").splitlines()), "another process")


def _ourselves() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _in_use(folder: Place, by: str) -> InputError:
    return InputError(f"{folder}: in use by {by}; wait until it ends, or give another --workdir")
