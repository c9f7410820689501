"""Training examples as endless streams: labelled pairs for the warmup, groups of documents for scoring.

A stream is a pure function of its seed: element `i` never depends on how it is cut into batches, so a
batch is a window of the stream, `f(seed, step)`, and any step can be computed again.

A *positive* is a document judged relevant. Every other document is labelled 0, and hard negatives are drawn from
those among the query's first-stage candidates. They may hold relevant documents that nobody judged, but never
one judged relevant, nor a copy of its text under another id. A `Selection` says more closely what is drawn.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.candidates import Run
from prorank_jax.errors import InputError

Pair = tuple[str, str]

# Keeps the random numbers of the epoch orders apart from those of the draws.
_ORDER, _DRAW = 0, 1


class Selection(NamedTuple):
    """Which documents are examples."""

    relevant_from: int = 1
    """The lowest judgement that makes a positive."""
    found_only: bool = False
    """Keep the positives that are among their query's candidates. The others are no negatives either."""
    random_negatives: float = 0.0
    """Share of the negatives drawn from the whole corpus, and not from the candidates."""


@dataclass(frozen=True)
class _Judged:
    """One query and its documents by their part in training; `grades` are those of `positives`."""

    query_id: str
    positives: tuple[str, ...]
    grades: tuple[int, ...]
    hard_negatives: tuple[str, ...]
    never_negative: frozenset[str]


@dataclass(frozen=True)
class Pairs:
    """A label-balanced stream of (query, document) pairs.

    Row `g` of the stream belongs to positive `g // 2` of the epoch orders: the positive itself where `g`
    is even, and a negative of the same query where it is odd. An epoch is a random order of all positives
    of the collection, so each is seen once before any is seen again. The negative is drawn uniformly from
    the query's hard negatives, or from the corpus: by chance, or where the query has none.
    """

    collection: Collection
    judged: tuple[_Judged, ...]
    positives: tuple[tuple[int, int], ...]
    """For each positive, the positions of its query in `judged` and of the document therein."""
    document_ids: tuple[str, ...]
    random_negatives: float

    @classmethod
    def from_collection(cls, collection: Collection, run: Run, selection: Selection) -> "Pairs":
        """Raises InputError where the collection has no positive, or a query no negative."""
        judged = _judged(collection, run, selection)
        positives = tuple((q, p) for q, query in enumerate(judged) for p in range(len(query.positives)))
        return cls(collection, judged, positives, tuple(collection.documents), selection.random_negatives)

    def batch(self, seed: int, step: int, size: int) -> tuple[list[Pair], np.ndarray]:
        """Rows `step * size` and on: `size` pairs, and labels int32 `[size]` that alternate 1, 0."""
        rows = range(step * size, (step + 1) * size)
        order = _epoch_order(seed, len(self.positives), rows[0] // 2, rows[-1] // 2 + 1)
        pairs = []
        for row in rows:
            query, positive = self.positives[order[row // 2 - rows[0] // 2]]
            judged = self.judged[query]
            if row % 2 == 0:
                document_id = judged.positives[positive]
            else:
                rng = _rng(seed, _DRAW, row // 2)
                random = self.random_negatives > 0 and rng.random() < self.random_negatives
                hard = [] if random else _draw(rng, judged.hard_negatives, 1)
                document_id = (hard or _fill(rng, self.document_ids, 1, judged.never_negative))[0]
            pairs.append((self.collection.queries[judged.query_id], self.collection.documents[document_id]))
        return pairs, np.array([1 - row % 2 for row in rows], np.int32)


@dataclass(frozen=True)
class Groups:
    """A stream of groups: several documents of one query, with graded labels.

    An epoch is a random order of the queries, so each is seen once before any is seen again, however
    many positives it has. A group of N documents holds, in this order,

    1. one positive, drawn uniformly;
    2. where the query has positives of other grades too and N >= 3, one of them, so that graded
       judgements are compared with one another and not only with 0;
    3. hard negatives, drawn uniformly without replacement;
    4. random documents of the corpus that are not positives: their share of the negatives, rounded, and more where
       hard negatives run out.

    A label is the judgement of a positive, and 0 for all else.
    """

    collection: Collection
    judged: tuple[_Judged, ...]
    document_ids: tuple[str, ...]
    random_negatives: float

    @classmethod
    def from_collection(cls, collection: Collection, run: Run, selection: Selection) -> "Groups":
        """Raises InputError where the collection has no positive, or a query no negative."""
        judged = _judged(collection, run, selection)
        return cls(collection, judged, tuple(collection.documents), selection.random_negatives)

    def batch(self, seed: int, step: int, queries: int, documents: int) -> tuple[list[list[Pair]], np.ndarray]:
        """Groups `step * queries` and on: `queries` lists of `documents` pairs, labels float32 `[Q, N]`.

        A list is shorter, its labels padded with 0, only where the corpus is too small to fill it.
        """
        first = step * queries
        order = _epoch_order(seed, len(self.judged), first, first + queries)
        groups = []
        labels = np.zeros((queries, documents), np.float32)
        for row, query in enumerate(order):
            judged = self.judged[query]
            chosen = self._group(_rng(seed, _DRAW, first + row), judged, documents)
            text = self.collection.queries[judged.query_id]
            groups.append([(text, self.collection.documents[document_id]) for document_id, _ in chosen])
            labels[row, : len(chosen)] = [label for _, label in chosen]
        return groups, labels

    def _group(self, rng: np.random.Generator, judged: _Judged, size: int) -> list[tuple[str, int]]:
        first = int(rng.integers(len(judged.positives)))
        chosen = [first]
        others = [i for i, grade in enumerate(judged.grades) if grade != judged.grades[first]]
        if others and size >= 3:
            chosen.append(others[int(rng.integers(len(others)))])
        wanted = size - len(chosen)
        negatives = _draw(rng, judged.hard_negatives, wanted - round(wanted * self.random_negatives))
        missing = wanted - len(negatives)
        negatives += _fill(rng, self.document_ids, missing, judged.never_negative.union(negatives))
        return [(judged.positives[i], judged.grades[i]) for i in chosen] + [(name, 0) for name in negatives]


def _judged(collection: Collection, run: Run, selection: Selection) -> tuple[_Judged, ...]:
    """The queries that have a positive with a text, in the collection's order."""
    # Collections hold the same text more than once: 40 times in NFCorpus.
    copies: dict[str, list[str]] = {}
    for document_id, text in collection.documents.items():
        copies.setdefault(text, []).append(document_id)
    found = []
    for query_id, judgements in collection.qrels.items():
        grades = {
            document_id: judgement
            for document_id, judgement in judgements.items()
            if judgement >= selection.relevant_from and document_id in collection.documents and document_id != query_id
        }
        if not grades:
            continue
        ranking = [document_id for document_id, _ in run.get(query_id, ())]
        never = {copy for document_id in grades for copy in copies[collection.documents[document_id]]}
        never |= {query_id} & collection.documents.keys()
        if len(never) == len(collection.documents):
            raise InputError(
                f"{collection.name}/{collection.split}: every document is relevant to query {query_id!r}; "
                "add documents that are not"
            )
        negatives = tuple(document_id for document_id in ranking if document_id not in never)
        if selection.found_only:
            grades = {document_id: grades[document_id] for document_id in ranking if document_id in grades}
        if grades:
            found.append(_Judged(query_id, tuple(grades), tuple(grades.values()), negatives, frozenset(never)))
    if not found:
        missing, remedy = f"no document of the corpus is judged {selection.relevant_from} or higher", "lower"
        if selection.found_only:
            missing, remedy = f"{missing} and among its query's candidates", "set data.found_only=false or lower"
        raise InputError(f"{collection.name}/{collection.split}: {missing}; {remedy} data.relevant_from")
    return tuple(found)


def _epoch_order(seed: int, count: int, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of endless random orders of `range(count)`, one after the other."""
    positions = np.arange(start, stop)
    epochs = positions // count
    return np.concatenate(
        [
            _rng(seed, _ORDER, epoch).permutation(count)[positions[epochs == epoch] % count]
            for epoch in np.unique(epochs)
        ]
    )


def _draw(rng: np.random.Generator, names: tuple[str, ...], count: int) -> list[str]:
    """`count` of the names without replacement, or all there are, in random order."""
    return [names[i] for i in rng.choice(len(names), min(count, len(names)), replace=False)] if names else []


def _fill(rng: np.random.Generator, names: tuple[str, ...], count: int, excluded: frozenset[str]) -> list[str]:
    """`count` random names that are not excluded, or all there are."""
    # Among this many distinct names, at least `count` are not excluded.
    tries = min(count + len(excluded), len(names)) if count else 0
    drawn = rng.choice(len(names), tries, replace=False)
    return [names[i] for i in drawn if names[i] not in excluded][:count]


def _rng(seed: int, purpose: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, purpose, int(index)))
