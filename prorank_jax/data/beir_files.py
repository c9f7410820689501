"""The files of a collection in BEIR layout, read strictly: those of a folder, of a zip, or of NanoBEIR.

    corpus.jsonl, queries.jsonl   {"_id": ..., "title": ..., "text": ...} a line; the title may be left out
    qrels/<split>.tsv             query id, document id and judgement, after a line that names them

A file that another tool would read by guessing is refused with its line.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, cast

from prorank_jax.data.lines import Line, lines_of, parse_object, read_lines, shown
from prorank_jax.errors import InputError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"

# ASCII only: `int` alone would also take "1_000", " 1" and digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
# What separates the columns of a TREC run; other Unicode spaces are ordinary letters there.
_ASCII_SPACE = re.compile(r"[ \t\n\r\v\f]")

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> judgement."""


class Entry(NamedTuple):
    """A document, or a query without a title; `place` is its file and line."""

    place: str
    id: str
    title: str
    text: str


class BeirFiles(Protocol):
    """Where the parts of a collection are read from.

    Every method raises InputError, with the place, where a file is missing, empty, damaged or malformed.
    """

    def corpus(self) -> Iterator[Entry]:
        """The documents; that their ids differ is not checked."""

    def queries(self) -> Iterator[Entry]:
        """The queries, whose ids differ."""

    def splits(self) -> list[str]:
        """The names of the splits that have judgements, sorted; never empty."""

    def qrels(self, split: str) -> Qrels:
        """The judgements of a split."""

    def place(self, split: str | None) -> str:
        """The file of a split's judgements, for messages; of the queries for None."""


class FolderFiles:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise InputError(
                f"{str(folder)!r}: no such folder; give a BEIR folder with corpus.jsonl, queries.jsonl and qrels/"
            )

    def corpus(self) -> Iterator[Entry]:
        return entries(objects(read_lines(self.folder / CORPUS)), str(self.folder / CORPUS))

    def queries(self) -> Iterator[Entry]:
        return distinct(entries(objects(read_lines(self.folder / QUERIES)), self.place(None)))

    def splits(self) -> list[str]:
        return _some_splits((file.stem for file in (self.folder / QRELS).glob("*.tsv")), str(self.folder / QRELS))

    def qrels(self, split: str) -> Qrels:
        return parse_qrels(read_lines(self.folder / QRELS / f"{split}.tsv"), self.place(split))

    def place(self, split: str | None) -> str:
        return str(self.folder / QUERIES if split is None else self.folder / QRELS / f"{split}.tsv")


class ZipFiles:
    """The files of a zip, read as streams: nothing is unpacked to a path."""

    def __init__(self, path: Path, inside: str | None = None) -> None:
        """`inside` is the folder in the zip; left out, the files are at its top or in its only folder that has them.

        Raises:
          InputError: the file is no zip, or no corpus is in that place.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._names = set(archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise InputError(f"{path}: not readable as a zip ({error}); make or download it again") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable zip") from None
        self._prefix = self._find() if inside is None else f"{inside}/"
        if self._prefix + CORPUS not in self._names:
            raise InputError(f"{path}!/{self._prefix}{CORPUS}: not in the zip; give one of a BEIR collection")

    def _find(self) -> str:
        found = [name for name in self._names if PurePosixPath(name).name == CORPUS]
        if CORPUS in found:
            return ""
        prefixes = sorted(name.removesuffix(CORPUS) for name in found)
        if len(prefixes) > 1:
            raise InputError(
                f"{self.path}: holds {len(prefixes)} collections ({', '.join(name.rstrip('/') for name in prefixes)}); "
                "unpack it and give the folder of one"
            )
        return prefixes[0] if prefixes else ""

    def corpus(self) -> Iterator[Entry]:
        return entries(objects(self._lines(CORPUS)), self._place(CORPUS))

    def queries(self) -> Iterator[Entry]:
        return distinct(entries(objects(self._lines(QUERIES)), self._place(QUERIES)))

    def splits(self) -> list[str]:
        paths = [
            PurePosixPath(name.removeprefix(self._prefix)) for name in self._names if name.startswith(self._prefix)
        ]
        found = (path.stem for path in paths if path.suffix == ".tsv" and path.parent == PurePosixPath(QRELS))
        return _some_splits(found, self._place(QRELS))

    def qrels(self, split: str) -> Qrels:
        return parse_qrels(self._lines(f"{QRELS}/{split}.tsv"), self.place(split))

    def place(self, split: str | None) -> str:
        return self._place(QUERIES if split is None else f"{QRELS}/{split}.tsv")

    def _place(self, name: str) -> str:
        return f"{self.path}!/{self._prefix}{name}"

    def _lines(self, name: str) -> Iterator[Line]:
        place = self._place(name)
        if self._prefix + name not in self._names:
            raise InputError(f"{place}: not in the zip; give one of a BEIR collection")
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._prefix + name) as member:
                # It reads lines many times quicker than the member itself.
                packed = archive.getinfo(self._prefix + name).compress_size
                yield from lines_of(io.BufferedReader(cast(io.RawIOBase, member), 1 << 20), place, packed)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
            raise InputError(f"{place}: cannot be unpacked ({error}); make or download the zip again") from None
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({error.strerror}); give the path of a readable zip") from None


class NanoFiles:
    """The Parquet files of a NanoBEIR set; its one split is called `test`, after the judgements that it draws from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def corpus(self) -> Iterator[Entry]:
        return self._entries("corpus")

    def queries(self) -> Iterator[Entry]:
        return distinct(self._entries("queries"))

    def splits(self) -> list[str]:
        return ["test"]

    def qrels(self, split: str) -> Qrels:
        rows = self._rows(QRELS, ("query-id", "corpus-id"))
        return parse_qrels(
            ((place, f"{row['query-id']}\t{row['corpus-id']}\t1") for place, row in rows), self.place(split)
        )

    def place(self, split: str | None) -> str:
        return str(self.folder / ("queries" if split is None else QRELS))

    def _entries(self, part: str) -> Iterator[Entry]:
        return entries(self._rows(part, ("_id", "text")), str(self.folder / part))

    def _rows(self, part: str, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        import pyarrow
        import pyarrow.parquet

        for file in sorted((self.folder / part).glob("*.parquet")):
            number = 0
            try:
                with pyarrow.parquet.ParquetFile(file) as table:
                    if missing := [name for name in columns if name not in table.schema_arrow.names]:
                        raise InputError(f"{file}: has no column {missing[0]!r}; download it again")
                    for batch in table.iter_batches(columns=list(columns)):
                        for row in batch.to_pylist():
                            number += 1
                            yield f"{file}:{number}", row
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(f"{file}: not readable as Parquet ({reason}); download it again") from None


def parse_qrels(lines: Iterable[Line], name: str) -> Qrels:
    """The judgements on the lines of a file; `name` is the file, for messages.

    Raises:
      InputError: a line is malformed, a document is judged twice and differently, or there is no judgement.
    """
    qrels: Qrels = {}
    for position, (place, line) in enumerate(lines):
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
        raise InputError(f"{name}: holds no judgement; write lines of query id, document id, score")
    return qrels


def objects(lines: Iterable[Line]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, fields)` of each line; InputError where one is no JSON object."""
    for place, line in lines:
        yield place, parse_object(place, line, '{"_id": ..., "text": ...}')


def entries(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> Iterator[Entry]:
    """The documents or queries of rows; `name` is their file, for messages.

    Raises:
      InputError: a field is missing or no string, an id is empty or has white space, or there is no row.
    """
    empty = True
    for place, row in rows:
        empty = False
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
        yield Entry(place, identifier, row.get("title", ""), row["text"])
    if empty:
        raise InputError(f"{name}: is empty; write one JSON object a line")


def distinct(found: Iterable[Entry]) -> Iterator[Entry]:
    """The same, with every id held in memory to compare; raises InputError where one is given twice."""
    seen: set[str] = set()
    for entry in found:
        if entry.id in seen:
            raise InputError(given_twice(entry))
        seen.add(entry.id)
        yield entry


def given_twice(entry: Entry) -> str:
    """What is wrong with an entry whose id another has."""
    return f"{entry.place}: _id={shown(entry.id)} was given on a line before; ids must differ"


def full_text(title: str, text: str) -> str:
    """What a document says: its title and its text."""
    return f"{title} {text}".strip()


def _some_splits(found: Iterable[str], folder: str) -> list[str]:
    splits = sorted(found)
    if not splits:
        raise InputError(f"{folder}: holds no .tsv file; a BEIR folder has its judgements there")
    return splits
