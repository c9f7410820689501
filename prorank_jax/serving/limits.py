"""How much the server takes on: what is more is refused with a status that says so."""

import dataclasses

from prorank_jax.errors import InputError

MIB = 2**20
MOST_DOCUMENTS = 100_000
"""No server takes more documents in a request than this, whatever its limits."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request and all together may hold.

    Attributes:
      documents: of one request; more are answered with 422.
      body_bytes: of one request; more are answered with 413.
      held_bytes: bodies of all requests that are not answered yet; more are answered with 429.
      queue: pairs of a query and a document that wait or are computed; more are answered with 429.
      batch: pairs that are computed together.
      body_seconds: time for a body to arrive; later ones are answered with 408.
    """

    documents: int = 1000
    body_bytes: int = 16 * MIB
    held_bytes: int = 128 * MIB
    queue: int = 4096
    batch: int = 32
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.documents <= MOST_DOCUMENTS:
            raise InputError(f"--max-documents={self.documents}: give a number from 1 to {MOST_DOCUMENTS}")
        if self.queue < self.documents:
            raise InputError(
                f"--max-queue={self.queue}: a request may have {self.documents} documents (--max-documents); "
                "give at least as many"
            )
        if self.held_bytes < self.body_bytes:
            raise InputError(
                f"--max-held={self.held_bytes // MIB}: a body may have {self.body_bytes // MIB} MiB (--max-body); "
                "give at least as many"
            )
