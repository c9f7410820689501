"""Training examples: groups of documents of one query, and the sources that they are drawn from.

A source holds numbered groups and draws from one of them: a pure function of the number and of a random generator.
`stream.py` makes endless streams of what sources draw; `prepared.py` has the source of files of rows.

In a BEIR split a *positive* is a document judged relevant. Every other document is labelled 0, and hard negatives
are drawn from those among the query's first-stage candidates. They may hold relevant documents that nobody judged,
but never one judged relevant, nor a copy of its text under another id. A `Selection` says more closely what is drawn.
"""

from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.candidate_table import Candidates
from prorank_jax.data.judgements import Judgements, read_judgements
from prorank_jax.errors import InputError

_PAIRS_AT_A_TIME = 1 << 14
"""Judged pairs that are looked for among the candidates at a time."""


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


class _Judged(NamedTuple):
    """One query and its documents, by their positions in the corpus and by their part in training; `grades` are those
    of `positives`."""

    positives: list[int]
    grades: list[int]
    hard_negatives: list[int]
    never_negative: set[int]


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

    Documents are positions in the corpus here, and a query's candidates are read when it is drawn from: memory does
    not grow with the number of candidates.
    """

    collection: Collection
    candidates: Candidates
    selection: Selection
    judgements: Judgements
    groups: np.ndarray
    """The queries that have a positive, by their number among the judged: int [groups]."""

    @classmethod
    def from_collection(cls, collection: Collection, candidates: Candidates, selection: Selection) -> "JudgedSource":
        """Raises InputError where the collection has no positive, or a query no negative."""
        judgements = read_judgements(collection, selection.relevant_from)
        place, groups = f"{collection.name}/{collection.split}", judgements.queries()
        query = next(judgements.relevant_to_all(len(collection.documents)), None)
        if query is not None:
            raise InputError(
                f"{place}: every document is relevant to query {judgements.query_ids[query]!r}; "
                "add documents that are not"
            )
        missing, remedy = f"no document of the corpus is judged {selection.relevant_from} or higher", "lower"
        if selection.found_only:
            groups = _with_a_candidate(judgements, candidates)
            missing, remedy = f"{missing} and among its query's candidates", "set data.found_only=false or lower"
        if not len(groups):
            raise InputError(f"{place}: {missing}; {remedy} data.relevant_from")
        return cls(collection, candidates, selection, judgements, groups)

    @property
    def name(self) -> str:
        return f"{self.collection.name}/{self.collection.split}"

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        query_id, judged = self._judged(index)
        chosen = self._group(rng, judged, max(size, 2))
        if size == 1:
            chosen = [chosen[int(rng.integers(2))]]
        ids = self.candidates.document_ids
        documents = tuple(self.collection.documents[ids[position]] for position, _ in chosen)
        labels = tuple(float(label) for _, label in chosen)
        return Group(self.collection.queries[query_id], documents, labels, labels)

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example, Example]:
        query, (positive, negative), *_ = self.draw(index, rng, 2)
        return Example(query, positive, 1), Example(query, negative, 0)

    def _judged(self, index: int) -> tuple[str, _Judged]:
        query = int(self.groups[index])
        query_id = self.judgements.query_ids[query]
        grades, never = self.judgements.grades(query), self.judgements.known(query)
        ranking = self.candidates.of_row(self.candidates.row(query_id)).tolist()
        hard_negatives = [position for position in ranking if position not in never]
        if self.selection.found_only:
            grades = {position: grades[position] for position in ranking if position in grades}
        return query_id, _Judged(list(grades), list(grades.values()), hard_negatives, never)

    def _group(self, rng: np.random.Generator, judged: _Judged, size: int) -> list[tuple[int, int]]:
        first = int(rng.integers(len(judged.positives)))
        chosen = [first]
        others = [i for i, grade in enumerate(judged.grades) if grade != judged.grades[first]]
        if others and size >= 3:
            chosen.append(others[int(rng.integers(len(others)))])
        wanted = size - len(chosen)
        negatives = _draw(rng, judged.hard_negatives, hard(rng, wanted, self.selection.random_negatives))
        missing = wanted - len(negatives)
        documents = len(self.collection.documents)
        negatives += _fill(rng, documents, missing, judged.never_negative.union(negatives))
        return [(judged.positives[i], judged.grades[i]) for i in chosen] + [(position, 0) for position in negatives]


def hard(rng: np.random.Generator, wanted: int, random_negatives: float) -> int:
    """How many of the negatives are hard and not random; one alone is by chance, as its share cannot be rounded."""
    if wanted == 1 and random_negatives > 0:
        return int(rng.random() >= random_negatives)
    return wanted - round(wanted * random_negatives)


def _with_a_candidate(judgements: Judgements, candidates: Candidates) -> np.ndarray:
    """The queries of which a positive is among the candidates, rising."""
    row_of = np.array([candidates.row(query_id) for query_id in judgements.query_ids], np.int64)
    of_pairs = judgements.query_of_each()
    found = np.zeros(len(of_pairs), bool)
    for start in range(0, len(of_pairs), _PAIRS_AT_A_TIME):
        some = slice(start, start + _PAIRS_AT_A_TIME)
        rankings = candidates.positions[row_of[of_pairs[some]]]
        found[some] = (rankings == judgements.positions[some, None]).any(1)
    return np.unique(of_pairs[found])


def _draw(rng: np.random.Generator, positions: list[int], count: int) -> list[int]:
    """`count` of the positions without replacement, or all there are, in random order."""
    if not positions:
        return []
    return [positions[i] for i in rng.choice(len(positions), min(count, len(positions)), replace=False)]


def _fill(rng: np.random.Generator, documents: int, count: int, excluded: set[int]) -> list[int]:
    """`count` random positions of so many documents that are not excluded, or all there are."""
    # Among this many distinct positions, at least `count` are not excluded.
    tries = min(count + len(excluded), documents) if count else 0
    drawn = rng.choice(documents, tries, replace=False).tolist()
    return list(islice((position for position in drawn if position not in excluded), count))
