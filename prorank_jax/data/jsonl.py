"""Rows of queries and documents that are read to be given scores or to be chosen from, and written as JSON lines.

A row has its documents in one of the three shapes of `rows.py`. Here labels and scores may be missing, and what else a
row of JSON holds is kept.

A file is written whole or not at all, and equal rows give equal bytes: a compressed file names no time and no file.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prorank_jax.data.files import NONE, read_fields
from prorank_jax.data.rows import checked, of_one_shape, shape_of
from prorank_jax.errors import InputError

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".jsonl.gz")
_BLOCK = 1024
"""Rows written at a time."""


def read_rows(path: str | Path, fields: Mapping[str, str] = NONE) -> Iterator[tuple[str, Row]]:
    """Yields `(place, row)` for each row of the files that `files.find_files` finds; `place` is for messages.

    Numbers that stand beside documents are checked: one for each, and finite.

    Raises:
      InputError: a file cannot be read or holds no row, or a row is not of the shape of the first.
    """
    rows = ((place, row | checked(place, row)) for place, row in read_fields(path, fields))
    yield from of_one_shape((place, ", ".join(("query", *shape_of(place, row))), row) for place, row in rows)


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
