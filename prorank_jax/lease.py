"""The lock of a folder in a bucket: an object that its holder writes anew every few seconds.

Each write names the generation that the object must have (0: there is none), and Cloud Storage refuses it otherwise,
however long it was under way. So of two that create the object, or take over one that nobody renews, one succeeds.
A holder counts as one for `HELD_SECONDS` from when it began to write; another takes over after `GONE_SECONDS` in which
the object stayed as it is, which is later. What a holder does in the bucket is checked against that.
"""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prorank_jax.buckets import ConditionalObject, Version, guarded
from prorank_jax.errors import InputError, Preempted
from prorank_jax.progress import tell
from prorank_jax.storage import Place

RENEWED_SECONDS = 15.0
HELD_SECONDS = 45.0
GONE_SECONDS = 60.0
_AGAIN = "start the same command again to go on from the last checkpoint"


class InUseError(InputError):
    """Another process holds the folder."""

    def __init__(self, folder: Place, by: str):
        super().__init__(f"{folder}: in use by {by}; wait until it ends, or give another --workdir")


@contextmanager
def leased(folder: Place, file: str, holder: str) -> Iterator[None]:
    """Holds the lease of a folder in a bucket; in the block, what is done in that folder raises once it is lost.

    Args:
      holder: a line that says who holds it.

    Raises:
      InUseError: another process renews it.
      Preempted: in the block, where it was lost: nothing is written to the folder from then on.
    """
    lease = Lease(folder, file, holder)
    lease.take()
    try:
        with guarded(folder, lease.check):
            yield
    finally:
        lease.release()


class Lease:
    """See `leased`."""

    def __init__(self, folder: Place, file: str, holder: str):
        self._folder, self._object = folder, ConditionalObject(folder / file)
        self._own = f"{holder}\n{secrets.token_hex(8)}\n"
        self._generation, self._writes = 0, 0
        self._began = 0.0, 0.0
        """When the newest write that succeeded was begun, by both clocks."""
        self._found: Version | None = None
        """What was there where the newest write was refused."""
        self._lost: str | None = None
        self._mutex, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def take(self) -> None:
        """Waits until nobody holds the lease, and takes it; raises InUseError where that cannot be awaited."""
        while not self._written(self._free_generation()):
            # Another was quicker: it renews its lease, or is gone in its turn.
            pass
        self._thread.start()

    def check(self) -> None:
        """Raises Preempted unless the lease is held; one that was not renewed in time is renewed first."""
        if self._lost is None and self._age() <= HELD_SECONDS:
            return
        with self._mutex:
            while self._lost is None and self._age() > HELD_SECONDS:
                try:
                    self._renew()
                except InputError as error:
                    raise Preempted(f"{self._folder}: its lock could not be renewed ({error}); {_AGAIN}") from None
            if self._lost is not None:
                raise Preempted(self._lost)

    def release(self) -> None:
        """Removes the object, if it is this lease's."""
        self._ended.set()
        self._thread.join()
        with suppress(InputError):
            while not self._object.delete(self._generation):
                # The answer to the last renewal may have been lost.
                found = self._object.read()
                if found is None or not self._is_own(found.content):
                    return
                self._generation = found.generation

    def _free_generation(self) -> int:
        """0 where there is no lease, else the generation of one that was not renewed for long."""
        before = self._object.read()
        if before is None:
            return 0
        by = first_line(before.content)
        if not self._is_own(before.content):
            tell(f"prorank: {self._folder}: {by} was in it; waiting {GONE_SECONDS:.0f} s to see that it is gone")
            end = time.monotonic() + GONE_SECONDS
            while time.monotonic() < end:
                time.sleep(min(1.0, GONE_SECONDS / 10))
                found = self._object.read()
                if found is None:
                    return 0
                if found.generation != before.generation:
                    raise InUseError(self._folder, first_line(found.content))
        return before.generation

    def _written(self, generation: int) -> bool:
        """Writes the object where it has this generation, or is this lease's own."""
        while True:
            began = time.monotonic(), time.time()
            self._writes += 1
            written = self._object.write(f"{self._own}{self._writes}\n".encode(), generation)
            if written is not None:
                self._generation, self._began = written, began
                return True
            found = self._object.read()
            if found is None or not self._is_own(found.content):
                self._found = found
                return False
            # An earlier write succeeded without an answer. That was some time ago: only a new one counts.
            generation = found.generation

    def _renew(self) -> None:
        if not self._written(self._generation):
            by = "it was removed" if self._found is None else f"{first_line(self._found.content)} took it over"
            self._lost = f"{self._folder}: its lock was lost ({by}); nothing more is written to it; {_AGAIN}"

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_SECONDS):
            # A bucket that cannot be reached now may be reached the next time.
            with self._mutex, suppress(InputError):
                if self._lost is None:
                    self._renew()

    def _age(self) -> float:
        # A machine that was asleep sees that by the clock on the wall alone, which may be set back.
        return max(time.monotonic() - self._began[0], time.time() - self._began[1])

    def _is_own(self, content: bytes) -> bool:
        return content.startswith(self._own.encode())


def first_line(written: bytes) -> str:
    return next(iter(written.decode(errors="replace").splitlines()), "another process")
