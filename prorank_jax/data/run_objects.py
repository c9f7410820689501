"""Run files that are objects: JSON, JSON lines, and the packed CBOR of ranx.

{query: {document: score}}                             ranx and others (`run_nested.py`)
[{"query": {"qid": ...}, "candidates": [{"docid": ..., "score": ...}]}]   rank_llm, also an object a line, or one
[{"query": ..., "hits": [{"qid": ..., "docid": ..., "score": ...}]}]      RankGPT
[{"qid": ..., "docno": ..., "score": ...}]             rows of a table that names its columns (`run_tables.py`)
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prorank_jax.data.lines import parse_object, read_lines, shown, unpacked_bytes
from prorank_jax.data.run_entries import TREC, Entry, entry, identifier, number, of_different_ranks
from prorank_jax.data.run_nested import Objects, nested
from prorank_jax.data.run_tables import named
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

_MADE_AGAIN = "make or download it again"

Placed = tuple[str, Any]
"""A value and its place, for messages."""


class Pairs(list[tuple[Any, Any]]):
    """A JSON object as it is written, keys that stand twice included."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: {value!r}" for key, value in self) + "}"


def read_json(path: Path, split: str | None) -> Iterator[Entry]:
    try:
        text = _unpacked(path) if path.name.endswith(".gz") else path.read_bytes()
        content = parse_json(text, object_pairs_hook=Pairs)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as gzip ({error}); {_MADE_AGAIN}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except json.JSONDecodeError as error:
        remedy = "name it .jsonl if each line is a value" if error.msg == "Extra data" else _MADE_AGAIN
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {_MADE_AGAIN}") from None
    if isinstance(content, Pairs) and any(key in ("candidates", "hits") and _is_list(value) for key, value in content):
        content = [content]
    if _is_list(content):
        return _rankings((f"{path}: item {position}", _plain(item)) for position, item in enumerate(content, start=1))
    return nested(path, content, split, Objects(Pairs, iter))


def read_json_lines(path: Path, split: str | None) -> Iterator[Entry]:
    wanted = '{"query": {"qid": ...}, "candidates": [...]}'
    return _rankings((place, parse_object(place, line, wanted)) for place, line in read_lines(path))


def read_lz4(path: Path, split: str | None) -> Iterator[Entry]:
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
    return nested(path, content, split, Objects(dict, dict.items))


def _unpacked(path: Path) -> bytes:
    most = unpacked_bytes(path.stat().st_size)
    with gzip.open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise EOFError(f"it unpacks to more than {most} bytes")
    return content


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file")


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value, Pairs)


def _plain(value: Any) -> Any:
    """A value of JSON with dictionaries for its objects."""
    if isinstance(value, Pairs):
        return {key: _plain(of_key) for key, of_key in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _rankings(rows: Iterable[Placed]) -> Iterator[Entry]:
    """The entries of rows, each a query with its candidates or a candidate."""
    queries: set[str] = set()
    scored: bool | None = None
    ranked: list[Entry] = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise _no_ranking(place, row)
        query, candidates, hits = row.get("query"), row.get("candidates"), row.get("hits")
        if isinstance(candidates, list) and isinstance(query, dict) and "qid" in query:
            query_id = identifier(place, query["qid"])
            if query_id in queries:
                raise InputError(f"{place}: query {shown(query_id)} stands twice; keep one of them")
            queries.add(query_id)
            for at, candidate in _objects(place, "candidate", candidates, "docid"):
                yield entry(at, query_id, candidate["docid"], number(at, candidate.get("score")))
        elif isinstance(hits, list):
            for at, hit in _objects(place, "hit", hits, "qid", "docid"):
                yield entry(at, hit["qid"], hit["docid"], number(at, hit.get("score")), hit.get("rank"))
        elif (columns := named(list(row))) is not None and scored in (None, columns.score is not None):
            scored = columns.score is not None
            one = columns.entry(place, list(row.values()), number)
            if scored:
                yield one
            else:
                ranked.append(one)
        else:
            raise _no_ranking(place, row)
    yield from of_different_ranks(ranked)


def _objects(place: str, name: str, values: list[Any], *ids: str) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = f"write one with {', '.join(ids)} and score"
    for position, value in enumerate(values, start=1):
        at = f"{place}: {name} {position}"
        if not isinstance(value, dict):
            raise InputError(f"{at}: {shown(value)} is not an object; {wanted}")
        if missing := [field for field in ids if field not in value]:
            raise InputError(f"{at}: has no {missing[0]}; {wanted}")
        yield at, value


def _no_ranking(place: str, row: Any) -> InputError:
    return InputError(f"{place}: {shown(row)} is no ranking; {TREC}")
