"""Lines of text files and the JSON objects on them, each with its place for messages."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

Line = tuple[str, str]
"""`(place, line)`."""

LONGEST_LINE = 64 << 20
_ANY_FILE = 1 << 30
_MOST_TIMES = 200
"""Text packs ten to thirty times; what was made to fill memory or a disk, a thousand times."""


def read_lines(path: Path) -> Iterator[Line]:
    """Yields `(place, line)` for each line that is not blank; `place` is `path:number`, for messages.

    Lines end at a newline only. The carriage return before it and a byte order mark are dropped. A file whose name
    ends in `.gz` is unpacked while it is read.

    Raises:
      InputError: the file cannot be opened or unpacked, or a line is not UTF-8.
    """
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rb") as file:
                yield from lines_of(file, str(path), path.stat().st_size)
            return
        with path.open("rb") as plain:
            yield from lines_of(plain, str(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as gzip ({error}); make or download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def unpacked_bytes(packed: int) -> int:
    """The bytes that a packed file may have at most, which is no bomb."""
    return max(_ANY_FILE, _MOST_TIMES * packed)


def lines_of(file: IO[bytes] | gzip.GzipFile, name: str, packed: int | None = None) -> Iterator[Line]:
    """As `read_lines`, of an open file; `name` stands for the path in `place`.

    Args:
      packed: bytes of the file before it was unpacked; None: it is not packed.

    Raises:
      InputError: a line is not UTF-8 or longer than 64 MiB, or the file unpacks to far more than text does.
    """
    most = float("inf") if packed is None else unpacked_bytes(packed)
    for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        place = f"{name}:{number}"
        if len(raw) > LONGEST_LINE:
            raise InputError(f"{place}: is longer than {LONGEST_LINE >> 20} MiB; write one object or entry a line")
        most -= len(raw)
        if most < 0:
            raise InputError(f"{place}: the file unpacks to more than {_MOST_TIMES} times its size; unpack it yourself")
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{place}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
            ) from None
        if number == 1:
            line = line.removeprefix("\ufeff")
        if line.strip():
            yield place, line


def parse_object(place: str, line: str, wanted: str) -> dict[str, Any]:
    """The JSON object on a line; `wanted` says in messages what to write there.

    Raises:
      InputError: the line is not JSON, or another value than an object.
    """
    try:
        row = parse_json(line)
        # JSON can spell half of a surrogate pair (\ud800), which no file or tokenizer takes.
        if "\\ud" in line or "\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: column {error.colno}: not valid JSON ({error.msg}); mend that line") from None
    except UnicodeEncodeError:
        raise InputError(f"{place}: a \\u escape is half of a surrogate pair; write both halves or none") from None
    except ValueError:
        raise InputError(f"{place}: not readable JSON (a number too long, or nested too deep); mend it") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: {shown(row)} is not a JSON object; write {wanted}")
    return row


def shown(value: Any) -> str:
    """The value on one short line, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
