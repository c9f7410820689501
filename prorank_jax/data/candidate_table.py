"""The candidates of a collection's queries as arrays: a row per query, in the order of the collection's queries.

A row holds positions in the corpus, best first, and scores; where a query has fewer candidates than the table is deep,
the remaining positions are -1. For a corpus of d0, d1 and d2,

    positions    scores           as a mapping
    [2, 0]       [1.5, 0.5]       "q1": [("d2", 1.5), ("d0", 0.5)]
    [1, -1]      [0.25, 0]        "q2": [("d1", 0.25)]

The arrays may be mapped from a file: ids and scores become Python objects only for the row that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import ids_of, positions_of

NONE = -1
"""The position of no document."""


def table_dtype(depth: int, score: type[np.floating] = np.float32) -> np.dtype:
    """A row of a table: `positions` int32 [depth] and `scores` [depth]."""
    return np.dtype([("positions", np.int32, (depth,)), ("scores", score, (depth,))])


def empty_table(rows: int, dtype: np.dtype) -> np.ndarray:
    """A table without candidates."""
    table = np.zeros(rows, dtype)
    table["positions"] = NONE
    return table


class Candidates(Mapping[str, list[tuple[str, float]]]):
    """Query id -> its candidates, best first, as a run has them.

    Attributes:
      document_ids: the ids by position in the corpus.
      positions: int32 [queries, depth].
      scores: float32 or float64 [queries, depth].
    """

    def __init__(self, collection: Collection, table: np.ndarray, depth: int) -> None:
        """Takes the table of the collection's queries, of which a row's best `depth` are used."""
        self.document_ids: Sequence[str] = ids_of(collection.documents)
        self.positions: np.ndarray = table["positions"][:, :depth]
        self.scores: np.ndarray = table["scores"][:, :depth]
        self._rows = {query_id: row for row, query_id in enumerate(collection.queries)}

    @classmethod
    def of_run(cls, collection: Collection, run: Mapping[str, Sequence[tuple[str, float]]]) -> "Candidates":
        """The candidates of a run, none for the queries that it lacks.

        Raises:
          KeyError: the collection lacks a document.
        """
        rankings = [run.get(query_id, ()) for query_id in collection.queries]
        depth = max(map(len, rankings), default=0)
        table = empty_table(len(rankings), table_dtype(depth, np.float64))
        names = [name for ranking in rankings for name, _ in ranking]
        positions = positions_of(collection.documents, names)
        if NONE in positions:
            raise KeyError(names[positions.tolist().index(NONE)])
        filled = np.arange(depth) < np.array([[len(ranking)] for ranking in rankings])
        table["positions"][filled] = positions
        table["scores"][filled] = [score for ranking in rankings for _, score in ranking]
        return cls(collection, table, depth)

    def row(self, query_id: str) -> int:
        """The row of a query.

        Raises:
          KeyError: there is no such query.
        """
        return self._rows[query_id]

    def of_row(self, row: int) -> np.ndarray:
        """The positions of a query's candidates, best first: int32 [at most depth]."""
        positions = self.positions[row]
        return positions[positions != NONE]

    def without_any(self) -> np.ndarray:
        """The rows of the queries that have no candidate."""
        return np.flatnonzero((self.positions[:, :1] == NONE).all(1))

    def __getitem__(self, query_id: str) -> list[tuple[str, float]]:
        row = self._rows[query_id]
        positions = self.of_row(row).tolist()
        scores = self.scores[row, : len(positions)].tolist()
        return [(self.document_ids[position], score) for position, score in zip(positions, scores, strict=True)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
