"""Run files, entry by entry: TREC's, and those that ranx saves. The name's ending says which.

.json, .json.gz   an object of queries, each an object of documents and their scores
.lz4              the same in CBOR, packed twice, as `ranx.Run.save` does
.parquet, .parq   columns `q_id`, `doc_id` and `score`
anything else     lines of `query Q0 document rank score tag`, packed where the name ends in .gz
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prorank_jax.data.lines import read_lines, shown, unpacked_bytes
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

_TREC = "write `query Q0 document rank score tag`"
_OBJECTS = 'write {"query": {"document": score}}'
_MADE_AGAIN = "make or download it again"
_LARGEST = float(np.finfo(np.float32).max)
# ASCII only: `int` and `float` alone would also take "1_000" and digits of other scripts.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Entry(NamedTuple):
    """A document of a query."""

    place: str
    """For messages."""
    query_id: str
    document_id: str
    rank: int
    """As it is written; 0 where the format has none."""
    score: float
    """Finite, and within 32-bit floats."""


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a run file, in its order.

    Raises:
      InputError: the file is missing or malformed, or a score is not finite; with the line, row or query.
    """
    for suffixes, reader in _READERS.items():
        if path.name.endswith(suffixes):
            return reader(path)
    return _trec(path)


def _trec(path: Path) -> Iterator[Entry]:
    for place, line in read_lines(path):
        # bytes.split takes ASCII white space only; ids may hold other Unicode spaces.
        columns = [column.decode("utf-8") for column in line.encode("utf-8").split()]
        if len(columns) != 6:
            raise InputError(f"{place}: {shown(line)} has {len(columns)} columns; {_TREC}")
        query_id, _, document_id, rank, score, _ = columns
        if not _INTEGER.fullmatch(rank):
            raise InputError(f"{place}: rank {shown(rank)} is not an integer; write 1, 2, 3, ...")
        value = float(score) if _NUMBER.fullmatch(score) else math.nan
        yield Entry(place, query_id, document_id, int(rank), _finite(place, value, score))


def _finite(place: str, score: float, written: object) -> float:
    if not abs(score) <= _LARGEST:
        raise InputError(f"{place}: score {shown(written)} is not a finite number; write one within 32-bit floats")
    return float(score)


class _Pairs(list[tuple[Any, Any]]):
    """A JSON object as it is written, keys that stand twice included."""


def _json(path: Path) -> Iterator[Entry]:
    try:
        text = _unpacked(path) if path.name.endswith(".gz") else path.read_bytes()
        content = parse_json(text, object_pairs_hook=_Pairs)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as gzip ({error}); {_MADE_AGAIN}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); {_MADE_AGAIN}") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {_MADE_AGAIN}") from None
    return _nested(path, content, _Pairs, iter)


def _unpacked(path: Path) -> bytes:
    most = unpacked_bytes(path.stat().st_size)
    with gzip.open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise EOFError(f"it unpacks to more than {most} bytes")
    return content


def _lz4(path: Path) -> Iterator[Entry]:
    import cbor2
    import lz4.frame

    try:
        packed, most = path.read_bytes(), unpacked_bytes(path.stat().st_size)
        for _ in range(2):
            # What is there without a limit may be more than memory holds.
            reader = lz4.frame.LZ4FrameDecompressor()
            packed = reader.decompress(packed, max_length=most)
            if not reader.eof:
                raise EOFError(f"cut short, or it unpacks to more than {most} bytes")
        content = cbor2.loads(packed)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (RuntimeError, ValueError, EOFError, RecursionError, cbor2.CBORDecodeError) as error:
        raise InputError(f"{path}: not readable as a run of ranx ({error}); {_MADE_AGAIN}") from None
    return _nested(path, content, dict, dict.items)


def _nested(path: Path, content: Any, objects: type, items: Callable[[Any], Iterable[Any]]) -> Iterator[Entry]:
    """The entries of an object of objects; `items` gives the keys and values of one."""
    if not isinstance(content, objects):
        raise InputError(f"{path}: {shown(content)} is not an object of queries; {_OBJECTS}")
    queries: set[str] = set()
    for query_id, documents in items(content):
        place = f"{path}: query {shown(query_id)}"
        _check_string(place, query_id)
        if query_id in queries:
            raise InputError(f"{place}: stands twice; keep one of them")
        queries.add(query_id)
        if not isinstance(documents, objects):
            raise InputError(f"{place}: {shown(documents)} is not an object of documents; {_OBJECTS}")
        for document_id, score in items(documents):
            _check_string(place, document_id)
            yield Entry(place, query_id, document_id, 0, _score(f"{place}: document {shown(document_id)}", score))


def _parquet(path: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    names = ("q_id", "doc_id", "score")
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            if missing := [name for name in names if name not in table.schema_arrow.names]:
                raise InputError(f"{path}: has no column {missing[0]!r}; a run has {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(columns=list(names)):
                columns = (batch.column(name).to_pylist() for name in names)
                for query_id, document_id, score in zip(*columns, strict=True):
                    number += 1
                    place = f"{path}:{number}"
                    _check_string(place, query_id)
                    _check_string(place, document_id)
                    yield Entry(place, query_id, document_id, 0, _score(place, score))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: not readable as Parquet ({reason}); {_MADE_AGAIN}") from None


def _check_string(place: str, identifier: object) -> None:
    if not isinstance(identifier, str):
        raise InputError(f"{place}: id {shown(identifier)} is not a string; write it as one")


def _score(place: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: score {shown(value)} is not a number; write one")
    return _finite(place, value, value)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file")


_READERS = {(".json", ".json.gz"): _json, (".lz4",): _lz4, (".parquet", ".parq"): _parquet}
