"""The files of a collection in BEIR layout, read strictly: those of a folder, of a zip, or of NanoBEIR.

    corpus.jsonl, queries.jsonl   {"_id": ..., "title": ..., "text": ...} a line; the title may be left out, or null
    qrels/<split>.tsv             judgements, as `qrels_files.py` reads them

A file that another tool would read by guessing is refused with its line.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, cast

from prorank_jax.data.lines import Line, lines_of, parse_object, read_lines, shown
from prorank_jax.data.qrels_files import Qrels, parse_qrels
from prorank_jax.errors import InputError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"

# What separates the columns of a TREC run; other Unicode spaces are ordinary letters there.
_ASCII_SPACE = re.compile(r"[ \t\n\r\v\f]")


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
        folder = self.folder / QRELS
        return _splits([file.name for file in folder.iterdir()] if folder.is_dir() else [], str(folder))

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
        return _splits([path.name for path in paths if path.parent == PurePosixPath(QRELS)], self._place(QRELS))

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
                others = f", but {', '.join(map(shown, list(row)[:5]))}" if row else ""
                raise InputError(f"{place}: no field {field!r}{others}; every line has `_id` and `text`")
        yield Entry(place, _id(place, row["_id"]), _title(place, row.get("title")), _text(place, row["text"]))
    if empty:
        raise InputError(f"{name}: is empty; write one JSON object a line")


def _id(place: str, value: Any) -> str:
    # pandas writes ids that are numbers as numbers.
    identifier = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(identifier, str):
        raise InputError(f"{place}: _id={_of_json(value)} is not a string; write it in quotes")
    if not identifier or _ASCII_SPACE.search(identifier):
        raise InputError(
            f"{place}: _id={shown(identifier)} is empty or has white space, which a TREC run cannot hold; rename it"
        )
    return identifier


def _title(place: str, value: Any) -> str:
    # `datasets` and pandas write null where there is none, and Python's own json NaN for theirs.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise InputError(f"{place}: title={shown(value)} is not a string; write it in quotes")
    return value


def _text(place: str, value: Any) -> str:
    if not isinstance(value, str):
        remedy = 'write "" where there is none' if value is None else "write it in quotes"
        raise InputError(f"{place}: text={_of_json(value)} is not a string; {remedy}")
    return value


def _of_json(value: Any) -> str:
    return "null" if value is None else shown(value)


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


def _splits(names: Iterable[str], folder: str) -> list[str]:
    """The splits that the files of a folder of judgements are of."""
    # Hidden files, as macOS puts next to each, are none.
    files = sorted(name for name in names if not name.startswith("."))
    splits = [name.removesuffix(".tsv") for name in files if name.endswith(".tsv")]
    if not splits and files:
        raise InputError(f"{folder}: holds no .tsv file, but {files[0]}; name judgements by their split, as test.tsv")
    if not splits:
        raise InputError(f"{folder}: holds no .tsv file; a BEIR folder has its judgements there")
    return splits
