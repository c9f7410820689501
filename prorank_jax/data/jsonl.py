"""Rows of queries and documents as JSON lines, plain (`.jsonl`) or compressed (`.jsonl.gz`), read and written.

A row has its documents in one of the three shapes of `files.py`. Here labels and scores may be missing, for a row may
be read to be given some, and what else a row holds is kept.

A file is written whole or not at all, and equal rows give equal bytes: a compressed file names no time and no file.
"""

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from prorank_jax.data.beir import shown
from prorank_jax.errors import InputError

Row = dict[str, Any]

SHAPES = {("document",): "document", ("pos", "neg"): "pos and neg", ("documents",): "documents"}
"""The fields of a row that hold its documents, and their names for messages."""
_SUFFIXES = (".jsonl", ".jsonl.gz")
_BLOCK = 1024
"""Rows written at a time."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields `(place, row)` for each line that is not blank; `place` is `path:number`, for messages.

    Scores that stand beside documents are checked: as many as documents, and finite.

    Raises:
      InputError: the file cannot be read or holds no row, or a line is not a row of the shape of the first.
    """
    shape: tuple[str, ...] | None = None
    for place, line in _lines(path):
        row = _parse(place, line)
        found = shape_of(row, place)
        if shape is not None and shape != found:
            raise InputError(
                f"{place}: has {SHAPES[found]}, and the lines before have {SHAPES[shape]}; keep one shape in a file"
            )
        shape = found
        yield place, _checked(row, found, place)
    if shape is None:
        raise InputError(f"{path}: holds no row; write one JSON object a line")


def shape_of(row: Row, place: str) -> tuple[str, ...]:
    """The fields of a row that hold its documents.

    Raises:
      InputError: it has those of no shape, or of more than one.
    """
    found = [fields for fields in SHAPES if any(row.get(field) is not None for field in fields)]
    names = ", or ".join(SHAPES.values())
    if len(found) != 1:
        fields = ", ".join(map(repr, row))
        raise InputError(f"{place}: has the fields {fields}; beside query, write one of: {names}")
    if missing := [field for field in found[0] if row.get(field) is None]:
        raise InputError(f"{place}: no field {missing[0]!r}; write pos and neg, an empty list where there are none")
    return found[0]


def check_out(out: Path) -> None:
    """Makes the folder of a file to be written.

    Raises:
      InputError: the name has another ending, or the file could not lie there.
    """
    if not out.name.endswith(_SUFFIXES):
        raise InputError(f"{out}: is not named .jsonl or .jsonl.gz, the formats that can be written; rename it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be made ({error.strerror}); give another --out") from None
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the path of a file")


def encode_rows(rows: Iterable[Row], out: Path) -> bytes:
    """The bytes that rows add to a file of that name; those of several calls, joined, are a whole file too."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    return gzip.compress(text, mtime=0) if out.name.endswith(".gz") else text


@contextmanager
def write_rows(out: Path) -> Iterator[Callable[[Row], None]]:
    """Gives a function that adds a row; the file is there once the block ends, and not where it raises.

    Raises:
      InputError: the file cannot be written.
    """
    check_out(out)
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    waiting: list[Row] = []
    try:
        with unfinished.open("wb") as file:

            def write(row: Row) -> None:
                waiting.append(row)
                if len(waiting) == _BLOCK:
                    file.write(encode_rows(waiting, out))
                    waiting.clear()

            yield write
            file.write(encode_rows(waiting, out))
        os.replace(unfinished, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    if not path.name.endswith(_SUFFIXES):
        raise InputError(f"{path}: is not named .jsonl or .jsonl.gz, the formats that can be read here; rename it")
    number = 0
    try:
        with cast(IO[bytes], gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}:{number + 1}: not readable as gzip ({error}); write the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def _parse(place: str, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
        # JSON can spell half of a surrogate pair (\ud800), which no file takes.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: column {error.colno}: not valid JSON ({error.msg}); mend that line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8") from None
    except UnicodeEncodeError:
        raise InputError(f"{place}: a \\u escape is half of a surrogate pair; write both halves or none") from None
    except (ValueError, RecursionError):
        raise InputError(f"{place}: not readable JSON (a number too long, or nested too deep); mend it") from None
    if not isinstance(row, dict):
        raise InputError(f'{place}: {shown(row)} is not a JSON object; write {{"query": ..., "document": ...}}')
    return row


def _checked(row: Row, shape: tuple[str, ...], place: str) -> Row:
    """The row, where what it holds is of the right types; a text that stands for a list becomes a list of one."""
    if row.get("query") is None:
        raise InputError(f"{place}: no field 'query'; every line has one")
    for field in ("query", "instruction", "document"):
        if not isinstance(row.get(field), str | None):
            raise InputError(f"{place}: {field}={shown(row[field])} is not a string; write it in quotes")
    if shape == ("document",):
        return row
    row = row | {field: [row[field]] for field in shape if isinstance(row[field], str)}
    for field in shape:
        if not isinstance(row[field], list) or not all(isinstance(text, str) for text in row[field]):
            raise InputError(f"{place}: {field}={shown(row[field])} is not a list; write a list of strings")
        scores = "scores" if field == "documents" else f"{field}_scores"
        for name in (scores, f"{field}_ids"):
            values = row.get(name)
            if values is not None and (not isinstance(values, list) or len(values) != len(row[field])):
                raise InputError(
                    f"{place}: {name}={shown(values)} is not a list of {len(row[field])}, and {field} is; "
                    "give one for each"
                )
        for score in row.get(scores) or ():
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise InputError(f"{place}: {scores}: {shown(score)} is not a finite number; score the file again")
    if not any(row[field] for field in shape):
        raise InputError(f"{place}: has no document; give one or more, or leave the row out")
    return row
