"""The relevant documents of a split as arrays: positions in the corpus and judgements, query by query.

Half a million judgements are 8 MB so; as a tuple and a set for each query they would be half a gigabyte.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.document_index import NOWHERE
from prorank_jax.data.documents import copies_of, positions_of


@dataclass(frozen=True)
class Judgements:
    """What is judged relevant to each query, of documents that the corpus has.

    Attributes:
      query_ids: the judged queries, in the collection's order.
      positions: of the relevant documents, one query after another: int32 [pairs].
      values: the judgement of each: int64 [pairs].
      ends: where the pairs of each query begin, and the last end: int64 [queries + 1].
      own: the position of the document with the query's own id, or -1: int32 [queries].
      copies: of the relevant documents whose text others have: the positions of all that have it.
    """

    query_ids: tuple[str, ...]
    positions: np.ndarray
    values: np.ndarray
    ends: np.ndarray
    own: np.ndarray
    copies: dict[int, list[int]]

    def queries(self) -> np.ndarray:
        """The numbers of the queries that have a relevant document, rising."""
        return np.flatnonzero(np.diff(self.ends))

    def query_of_each(self) -> np.ndarray:
        """The number of the query of each pair."""
        return np.repeat(np.arange(len(self.query_ids)), np.diff(self.ends))

    def grades(self, query: int) -> dict[int, int]:
        """The relevant documents of a query and their judgements, as the qrels have them."""
        pairs = slice(self.ends[query], self.ends[query + 1])
        return dict(zip(self.positions[pairs].tolist(), self.values[pairs].tolist(), strict=True))

    def known(self, query: int) -> set[int]:
        """What is no negative: the relevant documents, the copies of their texts, and the query's own document."""
        known = {copy for position in self.grades(query) for copy in self.copies.get(position, [position])}
        return known if self.own[query] == NOWHERE else known | {int(self.own[query])}

    def relevant_to_all(self, documents: int) -> Iterator[int]:
        """The queries that leave none of so many documents to be a negative."""
        most = np.diff(self.ends) * max(map(len, self.copies.values()), default=1) + 1
        for query in np.flatnonzero(most >= documents).tolist():
            if self.ends[query] < self.ends[query + 1] and len(self.known(query)) == documents:
                yield query


def read_judgements(collection: Collection, lowest: int) -> Judgements:
    """The judgements of `lowest` or higher; the document with the query's own id is never relevant."""
    documents = collection.documents
    names: list[str] = []
    values: list[int] = []
    counts = []
    for query_id, of_query in collection.qrels.items():
        relevant = [item for item in of_query.items() if item[1] >= lowest and item[0] != query_id]
        names.extend(name for name, _ in relevant)
        values.extend(value for _, value in relevant)
        counts.append(len(relevant))
    positions = positions_of(documents, names)
    there = positions != NOWHERE
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(there)])
    ends = before[np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])]
    positions = positions[there]
    return Judgements(
        query_ids=tuple(collection.qrels),
        positions=positions,
        values=np.array(values, np.int64)[there],
        ends=ends,
        own=positions_of(documents, collection.qrels),
        copies=copies_of(documents, np.unique(positions)),
    )
