"""A collection in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

The one thing forgiven is a judgement of a query or document that the collection does not hold, because
published sets have such rows; they are counted and warned about once.

A judgement of a missing document is left out of nothing but the texts: measures still need it, since
the ideal ranking of TREC and BEIR is over all judged documents, those outside the corpus included.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prorank_jax.data.beir_files import CORPUS, QRELS, QUERIES, FolderFiles, distinct, full_text
from prorank_jax.data.qrels_files import Qrels
from prorank_jax.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """One split of a collection.

    Attributes:
      name: the folder's name, for tables and messages.
      split: the name of the qrels file.
      documents: document id -> `(title + " " + text).strip()`, in corpus order.
      queries: query id -> text, only the queries judged in this split, in qrels order.
      qrels: query id -> document id -> judgement, for exactly the queries above. It may name
        documents that `documents` lacks: they count in measures and can never be examples.
      folder: the BEIR folder that it is from; None where it is from none. Its own runs are in `runs` there.
    """

    name: str
    split: str
    documents: Mapping[str, str]
    queries: dict[str, str]
    qrels: Qrels
    folder: Path | None = None

    def only(self, queries: Iterable[str]) -> "Collection":
        """The same collection with these queries alone."""
        kept = list(queries)
        return replace(
            self, queries={name: self.queries[name] for name in kept}, qrels={name: self.qrels[name] for name in kept}
        )


def is_beir(path: str | Path) -> bool:
    """Whether a path is a BEIR folder, whole or not."""
    return any((Path(path) / name).exists() for name in (CORPUS, QUERIES, QRELS))


def read_beir(path: str | Path, split: str) -> Collection:
    """Reads one split of a BEIR folder into memory.

    Judgements of unknown queries are skipped, those of unknown documents kept for measures only; both
    are counted in one warning each.

    Raises:
      InputError: a file is missing, empty, not UTF-8 or malformed (with its line), an id is given
        twice, the split does not exist (with those that do), or no judgement is usable.
    """
    files = FolderFiles(Path(path))
    check_split(split, files.splits(), str(files.folder / QRELS))
    qrels = files.qrels(split)
    queries = judged_queries(((entry.id, entry.text) for entry in files.queries()), qrels)
    documents = {entry.id: full_text(entry.title, entry.text) for entry in distinct(files.corpus())}
    name = Path(os.path.abspath(files.folder)).name
    collection = judged_collection(name, split, documents, queries, qrels, files.place(split))
    return replace(collection, folder=files.folder)


def check_split(split: str, splits: list[str], place: str) -> None:
    """Raises InputError where a split is none of those there are."""
    if split not in splits:
        raise InputError(f"{place}: no split {split!r}; the splits are {', '.join(splits)}")


def judged_queries(queries: Iterable[tuple[str, str]], qrels: Qrels) -> dict[str, str]:
    """The texts of the queries that have judgements, in the order of these."""
    texts = {query_id: text for query_id, text in queries if query_id in qrels}
    return {query_id: texts[query_id] for query_id in qrels if query_id in texts}


def judged_collection(
    name: str, split: str, documents: Mapping[str, str], queries: dict[str, str], qrels: Qrels, place: str
) -> Collection:
    """The collection of a split; `place` is where its judgements are from, for messages.

    Raises:
      InputError: no judgement is usable.
    """
    if not queries:
        raise InputError(
            f"{place}: none of its {len(qrels)} queries is in {QUERIES} (first: {next(iter(qrels))!r}); "
            "use the qrels of this collection"
        )
    skipped = [query_id for query_id in qrels if query_id not in queries]
    if skipped:
        _log.warning(
            "%s: %d judgements of %d queries that %s lacks are skipped (first: %r)",
            place,
            sum(len(qrels[query_id]) for query_id in skipped),
            len(skipped),
            QUERIES,
            skipped[0],
        )
    judged = {query_id: qrels[query_id] for query_id in queries}
    if all(score <= 0 for row in judged.values() for score in row.values()):
        raise InputError(f"{place}: judges no document relevant (above 0); nothing can be measured by it or learnt")
    named = [document_id for row in judged.values() for document_id in row]
    unknown = [document_id for document_id in named if document_id not in documents]
    if len(unknown) == len(named):
        raise InputError(
            f"{place}: names no document of {CORPUS} (first: {unknown[0]!r}); use the qrels of this collection"
        )
    if unknown:
        _log.warning(
            "%s: %d judgements of documents that %s lacks (first: %r) count in measures only",
            place,
            len(unknown),
            CORPUS,
            unknown[0],
        )
    return Collection(name, split, documents, queries, judged)
