"""Waiting for room on a full disk: a run pauses there, says so, and goes on by itself once there is room again."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

import jax

from prorank_jax.errors import InputError
from prorank_jax.progress import tell
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.storage import Place

T = TypeVar("T")

RETRY_SECONDS = 10.0
GO_ON = "free space and start the same command again to go on from the last checkpoint"
_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}


def full(error: Exception) -> str | None:
    """The reason why nothing more can be written, where an error says that; C++ libraries say it in words alone."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.strerror
    return next((reason for reason in _FULL.values() if reason.lower() in str(error).lower()), None)


class Room:
    """Tries again what found the disk full.

    Args:
      preemption: what says when to end early, which a waiting run does without its last steps.
    """

    def __init__(self, preemption: Preemption):
        self._preemption = preemption

    def keep_trying(self, place: Place, attempt: Callable[[], T]) -> T:
        """What `attempt` gives, as soon as there is room for it.

        Raises:
          InputError: there is no room, in a run of several processes: the others wait no longer than JAX lets them.
          Preempted: the run was asked to end while it waited.
        """
        told = False
        while True:
            try:
                done = attempt()
            except Exception as error:
                reason = full(error)
                if reason is None:
                    raise
                told = self._wait(place, reason, told)
                continue
            if told:
                tell(f"prorank: {place}: there is room again; the run goes on")
            return done

    def _wait(self, place: Place, reason: str, told: bool) -> bool:
        if jax.process_count() > 1:
            raise InputError(f"{place}: cannot be written ({reason}); {GO_ON}")
        if not told:
            tell(f"prorank: {place}: cannot be written ({reason}); the run waits, and goes on once there is room")
        end = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < end:
            self._preemption.check_waiting(f"{place}: ended while it waited for room; {GO_ON}")
            time.sleep(0.1)
        return True
