"""A collection in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

The reader is strict: a file that another tool would read by guessing is refused with its line. The
one thing forgiven is a judgement of a query or document that the folder does not hold, because
published sets have such rows; they are counted and warned about once.

A judgement of a missing document is left out of nothing but the texts: measures still need it, since
the ideal ranking of TREC and BEIR is over all judged documents, those outside the corpus included.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prorank_jax.data.lines import parse_object, read_lines, shown
from prorank_jax.errors import InputError

_log = logging.getLogger(__name__)

# ASCII only: `int` alone would also take "1_000", " 1" and digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
# What separates the columns of a TREC run; other Unicode spaces are ordinary letters there.
_ASCII_SPACE = re.compile(r"[ \t\n\r\v\f]")


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
    """

    name: str
    split: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    def only(self, queries: Iterable[str]) -> "Collection":
        """The same collection with these queries alone."""
        kept = list(queries)
        return replace(
            self, queries={name: self.queries[name] for name in kept}, qrels={name: self.qrels[name] for name in kept}
        )


def is_beir(path: str | Path) -> bool:
    """Whether a path is a BEIR folder, whole or not."""
    return any((Path(path) / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels"))


def read_beir(path: str | Path, split: str) -> Collection:
    """Reads one split of a BEIR folder.

    Judgements of unknown queries are skipped, those of unknown documents kept for measures only; both
    are counted in one warning each.

    Raises:
      InputError: a file is missing, empty, not UTF-8 or malformed (with its line), an id is given
        twice, the split does not exist (with those that do), or no judgement is usable.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(
            f"{str(folder)!r}: no such folder; give a BEIR folder with corpus.jsonl, queries.jsonl and qrels/"
        )
    qrels_path = _qrels_path(folder, split)
    qrels = _read_qrels(qrels_path)
    all_queries = {query_id: row["text"] for query_id, row in _read_records(folder / "queries.jsonl")}
    queries = {query_id: all_queries[query_id] for query_id in qrels if query_id in all_queries}
    if not queries:
        raise InputError(
            f"{qrels_path}: none of its {len(qrels)} queries is in {folder / 'queries.jsonl'} "
            f"(first: {next(iter(qrels))!r}); use the qrels of this collection"
        )
    documents = {
        document_id: (row.get("title", "") + " " + row["text"]).strip()
        for document_id, row in _read_records(folder / "corpus.jsonl")
    }
    judged = {query_id: qrels[query_id] for query_id in queries}
    _check_unknown(qrels_path, qrels, judged, documents)
    return Collection(Path(os.path.abspath(folder)).name, split, documents, queries, judged)


def _qrels_path(folder: Path, split: str) -> Path:
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    if not splits:
        raise InputError(f"{folder / 'qrels'}: holds no .tsv file; a BEIR folder has its judgements there")
    if split not in splits:
        raise InputError(f"{folder / 'qrels'}: no split {split!r}; the splits are {', '.join(splits)}")
    return folder / "qrels" / f"{split}.tsv"


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for position, (place, line) in enumerate(read_lines(path)):
        columns = line.split("\t")
        if len(columns) != 3:
            raise InputError(
                f"{place}: {shown(line)} has {len(columns)} tab-separated columns; write query id, document id, score"
            )
        query_id, document_id, judgement = columns
        if position == 0 and judgement.strip().lower() == "score":
            continue
        if not _INTEGER.fullmatch(judgement):
            raise InputError(f"{place}: judgement {shown(judgement)} is not an integer; write 0, 1, 2, ...")
        of_query = qrels.setdefault(query_id, {})
        if of_query.setdefault(document_id, int(judgement)) != int(judgement):
            raise InputError(
                f"{place}: document {shown(document_id)} is judged {of_query[document_id]} and {judgement} "
                f"for query {shown(query_id)}; keep one of the two"
            )
    if not qrels:
        raise InputError(f"{path}: holds no judgement; write lines of query id, document id, score")
    return qrels


def _read_records(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields `(id, row)` for each line; `text` is there, `title` may be, and both are strings."""
    seen: set[str] = set()
    for place, line in read_lines(path):
        row = parse_object(place, line, '{"_id": ..., "text": ...}')
        for field in ("_id", "text"):
            if field not in row:
                raise InputError(f"{place}: no field {field!r}; every line has `_id` and `text`")
        for field in ("_id", "text", "title"):
            if not isinstance(row.get(field, ""), str):
                raise InputError(f"{place}: {field}={shown(row[field])} is not a string; write it in quotes")
        identifier = row["_id"]
        if not identifier or _ASCII_SPACE.search(identifier):
            raise InputError(
                f"{place}: _id={shown(identifier)} is empty or has white space, which a TREC run cannot hold; rename it"
            )
        if identifier in seen:
            raise InputError(f"{place}: _id={shown(identifier)} was given on a line before; ids must differ")
        seen.add(identifier)
        yield identifier, row
    if not seen:
        raise InputError(f"{path}: is empty; write one JSON object a line")


def _check_unknown(
    path: Path, qrels: dict[str, dict[str, int]], judged: dict[str, dict[str, int]], documents: dict[str, str]
) -> None:
    """Warns of judgements that name what the folder lacks; refuses qrels that share no document with it."""
    skipped = [query_id for query_id in qrels if query_id not in judged]
    if skipped:
        _log.warning(
            "%s: %d judgements of %d queries that queries.jsonl lacks are skipped (first: %r)",
            path,
            sum(len(qrels[query_id]) for query_id in skipped),
            len(skipped),
            skipped[0],
        )
    named = [document_id for row in judged.values() for document_id in row]
    unknown = [document_id for document_id in named if document_id not in documents]
    if len(unknown) == len(named):
        raise InputError(
            f"{path}: names no document of corpus.jsonl (first: {unknown[0]!r}); use the qrels of this collection"
        )
    if unknown:
        _log.warning(
            "%s: %d judgements of documents that corpus.jsonl lacks (first: %r) count in measures only",
            path,
            len(unknown),
            unknown[0],
        )
