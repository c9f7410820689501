"""A folder of prepared training data: groups in ArrayRecord files, read by position.

    prepared.json               what the folder holds and what it was made of; written last, so that a folder has it
                                only when it is whole
    groups-00000.array_record   a group a record, as compact JSON: query, instruction, documents, labels, scores

`prepare.py` writes it. Reading takes no memory that grows with the number of groups.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from prorank_jax.data.examples import Example, Group, hard
from prorank_jax.data.records import Records
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

Target = Literal["label", "score", "sigmoid", "softmax"]

ABOUT = "prepared.json"
VERSION = 1


class Record(NamedTuple):
    """A group as it lies in a file."""

    query: str
    instruction: str | None
    documents: list[str]
    labels: list[float]
    scores: list[float] | None

    @property
    def has_positive(self) -> bool:
        return any(label > 0 for label in self.labels)

    def packed(self) -> bytes:
        return json.dumps(self, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


class Shard(NamedTuple):
    """An ArrayRecord file."""

    file: str
    size: int
    """Bytes."""
    groups: int


@dataclass(frozen=True)
class PreparedFolder:
    """What a folder holds, as `prepared.json` says."""

    folder: Path
    shape: str
    """The fields of the rows."""
    single: bool
    """Whether each document is a group alone."""
    scored: bool
    """Whether the rows have a teacher's scores."""
    rows: int
    groups: int
    skipped: int
    """Groups that were left out because no document of theirs is relevant."""
    without_positive: int
    """Groups without a relevant document that were kept."""
    lowest_label: float
    longest_instruction: str | None
    shards: tuple[Shard, ...]


def open_prepared(folder: Path) -> PreparedFolder:
    """A prepared folder as it is.

    Raises:
      InputError: there is none, or it is damaged.
    """
    about = read_about(folder)
    if about is None:
        raise InputError(f"{folder}: holds no {ABOUT} of this version; remove the folder, and it is prepared again")
    del about["made_of"]
    shards = tuple(Shard(*shard) for shard in about.pop("shards"))
    for shard in shards:
        file = folder / shard.file
        if not file.is_file() or file.stat().st_size != shard.size:
            raise InputError(f"{file}: is not the file that {ABOUT} lists; remove the folder, and it is prepared again")
    return PreparedFolder(folder=folder, shards=shards, **about)


def read_about(folder: Path) -> dict[str, Any] | None:
    """What `prepared.json` says; None where it is missing, damaged or of another version."""
    try:
        about = parse_json((folder / ABOUT).read_text(encoding="utf-8"))
        return about if about["made_of"]["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class RowSource:
    """The groups of a prepared folder, with the targets that `target` says:

    label    the labels
    score    the teacher's scores as they are, differences of logits
    sigmoid  the probabilities that they mean, each by itself
    softmax  the probabilities that they mean among the documents drawn

    Of a group with more documents than are asked for, labels draw a relevant one, an irrelevant one where there is one
    and room for it, and others at random; scores draw all at random. With random negatives, labels draw their share of
    the negatives, and what the group lacks, from the documents of all groups.

    Raises:
      InputError: the target needs scores, and the rows have none; or random negatives, which have no score.
    """

    prepared: PreparedFolder
    target: Target = "label"
    name: str = ""
    random_negatives: float = 0.0
    """Share of the negatives that come from other groups."""

    def __post_init__(self) -> None:
        if self.random_negatives and (self.target != "label" or self.prepared.single):
            where = "single pairs" if self.prepared.single else f"target={self.target}"
            raise InputError(
                f"{self.name}: random_negatives={self.random_negatives:g}: are for groups that learn labels, and not "
                f"for {where}; leave it out"
            )
        if self.target != "label" and not self.prepared.scored:
            raise InputError(
                f"{self.name}: target={self.target}: its rows have no scores ({self.prepared.shape}); "
                "score them with `prorank data score`, or use target=label"
            )

    def __len__(self) -> int:
        return self.prepared.groups

    @cached_property
    def _records(self) -> Records:
        shards = self.prepared.shards
        return Records([self.prepared.folder / shard.file for shard in shards], [shard.groups for shard in shards])

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        record = self._read(index)
        others = size - 1 - hard(rng, size - 1, self.random_negatives) if self.random_negatives else 0
        chosen = list(range(len(record.documents)))
        if len(chosen) > size - others:
            chosen = self._choose(record, rng, size - others)
        documents = [record.documents[i] for i in chosen]
        labels = [record.labels[i] for i in chosen]
        if self.random_negatives:
            documents += self._others(record, rng, size - len(documents))
            labels += [0.0] * (len(documents) - len(labels))
        targets = tuple(labels)
        if self.target != "label":
            assert record.scores is not None
            targets = _targets(self.target, np.array([record.scores[i] for i in chosen]))
        return Group(record.query, tuple(documents), tuple(labels), targets, record.instruction)

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example | None, Example | None]:
        record = self._read(index)

        def one(label: int) -> Example | None:
            of_kind = [i for i, judgement in enumerate(record.labels) if (judgement > 0) == bool(label)]
            if not of_kind:
                return None
            chosen = of_kind[int(rng.integers(len(of_kind)))]
            return Example(record.query, record.documents[chosen], label, record.instruction)

        relevant = one(1)
        if self.random_negatives and not hard(rng, 1, self.random_negatives):
            found = self._others(record, rng, 1)
            return relevant, Example(record.query, found[0], 0, record.instruction) if found else one(0)
        return relevant, one(0)

    def _choose(self, record: Record, rng: np.random.Generator, size: int) -> list[int]:
        order = [int(i) for i in rng.permutation(len(record.documents))]
        if self.target != "label":
            return order[:size]
        kinds = ([i for i in order if record.labels[i] > 0], [i for i in order if record.labels[i] <= 0])
        first = [of_kind[0] for of_kind in kinds if of_kind][:size]
        return first + [i for i in order if i not in first][: size - len(first)]

    def _others(self, record: Record, rng: np.random.Generator, count: int) -> list[str]:
        """Documents of other groups, none of them one of this group; fewer where most are."""
        found: list[str] = []
        for _ in range(10 * count):
            if len(found) == count:
                break
            other = self._read(int(rng.integers(len(self)))).documents
            document = other[int(rng.integers(len(other)))]
            if document not in record.documents and document not in found:
                found.append(document)
        return found

    def _read(self, index: int) -> Record:
        return Record(*json.loads(self._records[index]))


def _targets(target: Target, scores: np.ndarray) -> tuple[float, ...]:
    if target == "sigmoid":
        scores = np.exp(-np.logaddexp(0.0, -scores))
    elif target == "softmax":
        scores = np.exp(scores - np.logaddexp.reduce(scores))
    return tuple(scores.tolist())
