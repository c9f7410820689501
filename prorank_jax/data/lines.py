"""Lines of text files and the JSON objects on them, each with its place for messages."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prorank_jax.errors import InputError

Line = tuple[str, str]
"""`(place, line)`."""


def read_lines(path: Path) -> Iterator[Line]:
    """Yields `(place, line)` for each line that is not blank; `place` is `path:number`, for messages.

    Lines end at a newline only. The carriage return before it and a byte order mark are dropped. A file whose name
    ends in `.gz` is unpacked while it is read.

    Raises:
      InputError: the file cannot be opened or unpacked, or a line is not UTF-8.
    """
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            yield from lines_of(file, str(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as gzip ({error}); make or download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def lines_of(file: Iterable[bytes], name: str) -> Iterator[Line]:
    """As `read_lines`, of an open file; `name` stands for the path in `place`.

    Raises:
      InputError: a line is not UTF-8.
    """
    for number, raw in enumerate(file, start=1):
        place = f"{name}:{number}"
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
        row = json.loads(line)
        # JSON can spell half of a surrogate pair (\ud800), which no file or tokenizer takes.
        if "\\ud" in line or "\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: column {error.colno}: not valid JSON ({error.msg}); mend that line") from None
    except UnicodeEncodeError:
        raise InputError(f"{place}: a \\u escape is half of a surrogate pair; write both halves or none") from None
    except (ValueError, RecursionError):
        raise InputError(f"{place}: not readable JSON (a number too long, or nested too deep); mend it") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: {shown(row)} is not a JSON object; write {wanted}")
    return row


def shown(value: Any) -> str:
    """The value on one short line, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
