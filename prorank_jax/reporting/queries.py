"""The queries that gained and lost most, with the texts of the documents that came first before and after."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.collections import is_at_hand, open_collection
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.reporting.evaluations import FIRST_STAGE, Evaluated
from prorank_jax.reporting.folder import RunFiles
from prorank_jax.suite_report import metric_title

MOST = 5
"""Queries of each kind that a collection shows."""
_TOP = 3
_TEXT = 480
"""Characters of a text at most."""


class Document(NamedTuple):
    """A document of a ranking; `text` is None where the texts are not at hand, `judgement` where nobody judged."""

    rank: int
    id: str
    text: str | None
    judgement: int | None
    other_rank: int | None
    """Its rank in the other ranking, where it has one."""


class Change(NamedTuple):
    """A query whose figure changed."""

    id: str
    text: str | None
    before: float
    after: float
    documents_before: list[Document]
    documents_after: list[Document]


class Changes(NamedTuple):
    """The queries of a collection that changed most, and how many did."""

    name: str
    metric_title: str
    before: str
    after: str
    better: int
    worse: int
    equal: int
    gained: list[Change]
    lost: list[Change]
    texts: bool


def changes(evaluated: Evaluated, collection: Collection | None) -> Changes:
    """Compares the final model with the first stage, or with the first model where that ranking was not kept.

    Args:
      collection: where the texts and judgements come from, if they are at hand.
    """
    metric = evaluated.metrics[0]
    columns = evaluated.columns(metric)
    difference = columns[evaluated.systems[-1].label] - columns[FIRST_STAGE]
    order = np.argsort(-difference, kind="stable")
    before, after = evaluated.candidates() or {}, evaluated.ranked()

    def change(place: int) -> Change:
        query = evaluated.queries[place]
        ranks = [{name: rank for rank, (name, _) in enumerate(run.get(query, ()), start=1)} for run in (before, after)]
        return Change(
            id=query,
            text=_cut(collection.queries[query]) if collection else None,
            before=float(columns[FIRST_STAGE][place]),
            after=float(columns[evaluated.systems[-1].label][place]),
            documents_before=_documents(query, before, ranks[1], collection),
            documents_after=_documents(query, after, ranks[0], collection),
        )

    return Changes(
        name=evaluated.name,
        metric_title=metric_title(metric),
        before=FIRST_STAGE,
        after=evaluated.systems[-1].label,
        better=int((difference > 0).sum()),
        worse=int((difference < 0).sum()),
        equal=int((difference == 0).sum()),
        gained=[change(place) for place in order[:MOST] if difference[place] > 0],
        lost=[change(place) for place in order[::-1][:MOST] if difference[place] < 0],
        texts=collection is not None,
    )


def open_texts(run: RunFiles, evaluations: Sequence[Evaluated], given: Sequence[str]) -> dict[str, Collection]:
    """The collections of evaluations whose texts are at hand, by `Evaluated.name`; nothing is downloaded.

    Args:
      given: collections that the user names; else those of the configuration, and what `prorank demo` generates.

    Raises:
      InputError: one that was given cannot be opened, or was not evaluated here.
    """
    found: dict[str, Collection] = {}
    for source in given:
        fitting = [one for one in evaluations if _names(source, one)]
        if not fitting:
            known = ", ".join(dict.fromkeys(one.collection for one in evaluations)) or "none"
            raise InputError(
                f"--data={source}: no evaluation in {run.folder} is of this collection; evaluated: {known}"
            )
        found |= {one.name: open_collection(source, one.split) for one in fitting}
    for one in evaluations:
        for source in _sources(run, one):
            if one.name in found or not _names(source, one) or not is_at_hand(source):
                continue
            try:
                found[one.name] = open_collection(source, one.split)
            except InputError:  # of another split, or damaged since: the page does without
                continue
    return {
        one.name: found[one.name]
        for one in evaluations
        if one.name in found and set(one.queries) <= found[one.name].queries.keys()
    }


def _sources(run: RunFiles, evaluated: Evaluated) -> Iterable[str]:
    config = run.config
    yield evaluated.collection
    yield str(run.folder / "world" / evaluated.collection)
    yield config.data.path
    yield from (source.path for source in config.data.mix)
    if config.score and config.score.dev and config.score.dev.path:
        yield config.score.dev.path


def _names(source: str, evaluated: Evaluated) -> bool:
    """Whether a path or a name is called as the collection is in an evaluation."""
    return evaluated.collection in (source, Path(source).resolve().name.removesuffix(".zip"))


def _documents(query: str, run: Run, other: Mapping[str, int], collection: Collection | None) -> list[Document]:
    judged = collection.qrels[query] if collection else {}
    return [
        Document(
            rank,
            name,
            _cut(collection.documents[name]) if collection and name in collection.documents else None,
            judged.get(name),
            other.get(name),
        )
        for rank, (name, _) in enumerate(run.get(query, ())[:_TOP], start=1)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT].rstrip() + " …"
