"""Ending a run when its machine is taken away: at a step that all processes agree on, behind a checkpoint.

Cloud machines that are to be preempted or maintained get SIGTERM some seconds before. In a run of one process the
signal is noted here; in a run of several JAX notes it, and all processes learn of a step that none of them has
passed.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from prorank_jax.errors import Preempted


class Preemption:
    """Whether a run was asked to end; see `watch`."""

    def __init__(self) -> None:
        self._asked = self._training = False

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step; each process asks after every step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    def end(self, stage: str, step: int) -> None:
        """Raises Preempted, behind a checkpoint of this step."""
        raise Preempted(f"preempted at step {step} of {stage}, which is saved; start the same command again to go on")

    def check_waiting(self, message: str) -> None:
        """Raises Preempted with a message where the run was asked to end; for a run that waits between two steps."""
        if self._asked:
            raise Preempted(message)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Steps follow, each of which asks whether it was the last; elsewhere nothing is lost by ending at once."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Notes SIGTERM where this process is alone in its run.

        Raises:
          Preempted: it came while no steps were made.
        """
        if jax.process_count() > 1:
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._asked = True
            if not self._training:
                raise Preempted("preempted between checkpoints; start the same command again to go on")

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
