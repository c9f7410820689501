"""Training examples: groups of documents of one query, and the sources that they are drawn from.

A source holds numbered groups and draws from one of them: a pure function of the number and of a random generator.
`stream.py` makes endless streams of what sources draw; `prepared.py` has the source of files of rows.

In a BEIR split a *positive* is a document judged relevant. Every other document is labelled 0, and hard negatives
are drawn from those among the query's first-stage candidates. They may hold relevant documents that nobody judged,
but never one judged relevant, nor a copy of its text under another id. A `Selection` says more closely what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import copies, ids_of
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError


class Group(NamedTuple):
    """Documents of one query, with what is known of them."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    """Judgements, or 0 and 1; a document is relevant where its label is above 0."""
    targets: tuple[float, ...]
    """What the ranking loss learns: the labels, or what a teacher's scores become."""
    instruction: str | None = None
    """Replaces the task statement of the prompt."""


class Example(NamedTuple):
    """A query and a document, with the right answer."""

    query: str
    document: str
    label: int
    """1 where the document is relevant, else 0."""
    instruction: str | None = None


class Source(Protocol):
    """Numbered groups to draw from."""

    @property
    def name(self) -> str:
        """For messages."""

    def __len__(self) -> int:
        """Groups that an epoch has."""

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        """At most `size` documents of group `index`."""

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example | None, Example | None]:
        """A relevant and an irrelevant document of group `index`, where it has them."""


class Selection(NamedTuple):
    """Which documents of a BEIR split are examples."""

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
class JudgedSource:
    """The queries of a BEIR split that have a positive, each a group.

    A group of N documents holds, in this order,

    1. one positive, drawn uniformly;
    2. where the query has positives of other grades too and N >= 3, one of them, so that graded
       judgements are compared with one another and not only with 0;
    3. hard negatives, drawn uniformly without replacement;
    4. random documents of the corpus that are not positives: their share of the negatives, rounded, and more where
       hard negatives run out.

    It is smaller only where the corpus is too small to fill it. A group of one is, by the toss of a coin, the first
    or the last of a group of two. A label is the judgement of a positive, and 0 for all else.
    """

    collection: Collection
    judged: tuple[_Judged, ...]
    document_ids: Sequence[str]
    random_negatives: float

    @classmethod
    def from_collection(cls, collection: Collection, run: Run, selection: Selection) -> "JudgedSource":
        """Raises InputError where the collection has no positive, or a query no negative."""
        judged = _judged(collection, run, selection)
        return cls(collection, judged, ids_of(collection.documents), selection.random_negatives)

    @property
    def name(self) -> str:
        return f"{self.collection.name}/{self.collection.split}"

    def __len__(self) -> int:
        return len(self.judged)

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        judged = self.judged[index]
        chosen = self._group(rng, judged, max(size, 2))
        if size == 1:
            chosen = [chosen[int(rng.integers(2))]]
        documents = tuple(self.collection.documents[document_id] for document_id, _ in chosen)
        labels = tuple(float(label) for _, label in chosen)
        return Group(self.collection.queries[judged.query_id], documents, labels, labels)

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example, Example]:
        query, (positive, negative), *_ = self.draw(index, rng, 2)
        return Example(query, positive, 1), Example(query, negative, 0)

    def _group(self, rng: np.random.Generator, judged: _Judged, size: int) -> list[tuple[str, int]]:
        first = int(rng.integers(len(judged.positives)))
        chosen = [first]
        others = [i for i, grade in enumerate(judged.grades) if grade != judged.grades[first]]
        if others and size >= 3:
            chosen.append(others[int(rng.integers(len(others)))])
        wanted = size - len(chosen)
        negatives = _draw(rng, judged.hard_negatives, _hard(rng, wanted, self.random_negatives))
        missing = wanted - len(negatives)
        negatives += _fill(rng, self.document_ids, missing, judged.never_negative.union(negatives))
        return [(judged.positives[i], judged.grades[i]) for i in chosen] + [(name, 0) for name in negatives]


def _hard(rng: np.random.Generator, wanted: int, random_negatives: float) -> int:
    """How many of the negatives are hard ones; a single negative is one by chance, as its share cannot be rounded."""
    if wanted == 1 and random_negatives > 0:
        return int(rng.random() >= random_negatives)
    return wanted - round(wanted * random_negatives)


def _judged(collection: Collection, run: Run, selection: Selection) -> tuple[_Judged, ...]:
    """The queries that have a positive with a text, in the collection's order."""
    graded = {}
    for query_id, judgements in collection.qrels.items():
        grades = {
            document_id: judgement
            for document_id, judgement in judgements.items()
            if judgement >= selection.relevant_from and document_id != query_id and document_id in collection.documents
        }
        if grades:
            graded[query_id] = grades
    of_text = copies(collection.documents, {document_id: None for grades in graded.values() for document_id in grades})
    found = []
    for query_id, grades in graded.items():
        ranking = [document_id for document_id, _ in run.get(query_id, ())]
        never = {copy for document_id in grades for copy in of_text[document_id]}
        if query_id in collection.documents:
            never.add(query_id)
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


def _draw(rng: np.random.Generator, names: tuple[str, ...], count: int) -> list[str]:
    """`count` of the names without replacement, or all there are, in random order."""
    return [names[i] for i in rng.choice(len(names), min(count, len(names)), replace=False)] if names else []


def _fill(rng: np.random.Generator, names: Sequence[str], count: int, excluded: frozenset[str]) -> list[str]:
    """`count` random names that are not excluded, or all there are."""
    # Among this many distinct names, at least `count` are not excluded.
    tries = min(count + len(excluded), len(names)) if count else 0
    drawn = (names[i] for i in rng.choice(len(names), tries, replace=False))
    return list(islice((name for name in drawn if name not in excluded), count))
