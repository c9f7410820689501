"""Scores that were computed before: an SQLite file for each model, its settings, and the documents of a collection.

A row is a pair, known by the query's text and the document's id, and its score. First stage, depth and metrics have no
part in it: what another of them needs is scored only where it is new. SQLite writes a chunk of scores wholly or not at
all, also where the process is killed, and lets several processes add to one file.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from prorank_jax.atomic import writing
from prorank_jax.errors import InputError

_SECONDS = 60.0
"""To wait for another process that is adding scores."""
_TABLE = """
CREATE TABLE IF NOT EXISTS scores (query BLOB, document TEXT, score REAL, PRIMARY KEY (query, document)) WITHOUT ROWID
"""


class ScoreCache:
    """One such file, as a context manager; it is made where the first score is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def known(self, query: str) -> dict[str, float]:
        """Document id -> score, of all pairs of a query.

        Raises:
          InputError: the file is damaged or cannot be read.
        """
        if self._connection is None and not self.path.exists():
            return {}
        with self._using() as connection:
            return dict(connection.execute("SELECT document, score FROM scores WHERE query = ?", [_key(query)]))

    def add(self, scores: Iterable[tuple[str, str, float]]) -> None:
        """Adds scores, each of a query's text and a document's id; they are on the disk afterwards.

        Raises:
          InputError: they cannot be written; those of earlier calls stay.
        """
        with self._using() as connection, connection:
            rows = ((_key(query), document_id, score) for query, document_id, score in scores)
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        remedy = "free space, or name another folder in PRORANK_CACHE, and run the command again, which resumes"
        try:
            if self._connection is None:
                with writing(self.path.parent, remedy):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(self.path, timeout=_SECONDS)
                self._connection.execute(_TABLE)
            yield self._connection
        except sqlite3.OperationalError as error:
            raise InputError(f"{self.path}: cannot be read or written ({error}); {remedy}") from None
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path}: is damaged ({error}); delete it, and its scores are computed again"
            ) from None


def _key(query: str) -> bytes:
    return hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16).digest()
