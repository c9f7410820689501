"""Rows of training data from files, one at a time: never is a whole file in memory.

Three shapes, each with an optional `instruction`:

    pointwise  {"query": "...", "document": "...", "label": 1}                       or "score", or both
    triples    {"query": "...", "pos": ["..."], "neg": ["..."]}                      "pos_scores" and "neg_scores" too
    listwise   {"query": "...", "documents": ["...", "..."], "scores": [2.5, -1]}    or "labels", or both

A label is a judgement, relevant above 0. A score is a teacher's, a difference of logits: where a row has only scores,
its labels are 1 for those above 0 and 0 for the others. Files are `.jsonl`, `.jsonl.gz` or `.parquet` with columns of
the same names; other fields are left alone.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prorank_jax.data.beir import shown
from prorank_jax.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
HUB = "hf://datasets/"
_FIELDS = (
    *("query", "instruction", "document", "label", "score", "pos", "neg", "pos_scores", "neg_scores"),
    *("documents", "labels", "scores"),
)
_SHAPES = "query and document, query, pos and neg, or query and documents"
_GLOB = frozenset("*?[")
_LARGEST = float(np.finfo(np.float32).max)
_PARQUET_ROWS = 512


class Row(NamedTuple):
    """A query with documents and what is known of them."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    scores: tuple[float, ...] | None
    instruction: str | None
    shape: str
    """The fields that the row was read from."""


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file, of a folder or pattern of files, or of files on the Hugging Face hub, all of one shape.

    Raises:
      InputError: there is no such file; a file is empty, damaged or not of these shapes; a value is of the wrong type
        or not finite; shapes are mixed. With the file, the line (of a Parquet file, the row) and the remedy.
    """
    first: tuple[str, str] | None = None
    for file in find_files(path):
        empty = True
        for place, fields in _parquet(file) if file.name.endswith(".parquet") else _json_lines(file):
            empty = False
            row = _row(place, fields)
            first = first or (row.shape, place)
            if row.shape != first[0]:
                raise InputError(
                    f"{place}: a row of {row.shape} after rows of {first[0]} ({first[1]}); "
                    "keep one shape in a file, and mix files in data.mix"
                )
            yield row
        if empty:
            raise InputError(f"{file}: is empty; write rows of {_SHAPES}")


def find_files(path: str | Path) -> list[Path]:
    """The files that a path means: a file, the files of a folder or pattern, or of `hf://datasets/OWNER/NAME/PATTERN`,
    downloaded or found in the local cache. In the order of their names.

    Raises:
      InputError: there are none, or the hub cannot give them.
    """
    if str(path).startswith(HUB):
        return _from_hub(str(path))
    found = Path(path)
    if found.is_dir():
        if files := _with_suffix(found.iterdir()):
            return files
        raise InputError(f"{found}: a folder without corpus.jsonl and without files of rows ({', '.join(SUFFIXES)})")
    if found.is_file():
        if not found.name.endswith(SUFFIXES):
            raise InputError(f"{found}: not a file of rows; its name ends in one of {', '.join(SUFFIXES)}")
        return [found]
    if _GLOB & set(str(path)):
        anchor = Path(found.anchor or ".")
        pattern = str(found.relative_to(found.anchor) if found.anchor else found)
        if files := _with_suffix(anchor.glob(pattern)):
            return files
        raise InputError(f"{path}: matches no file of rows ({', '.join(SUFFIXES)}); mend the pattern")
    kind = "file" if found.name.endswith(SUFFIXES) else "folder"
    raise InputError(
        f"{str(path)!r}: no such {kind}; give a BEIR folder with corpus.jsonl, queries.jsonl and qrels/, "
        f"or files of rows ({', '.join(SUFFIXES)})"
    )


def _with_suffix(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.name.endswith(SUFFIXES))


def _from_hub(url: str) -> list[Path]:
    owner, _, rest = url.removeprefix(HUB).partition("/")
    name, _, pattern = rest.partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name:
        raise InputError(f"{url}: names no data set; write {HUB}OWNER/NAME/FOLDER/*.parquet")
    wanted = [pattern] if pattern else [f"*{suffix}" for suffix in SUFFIXES]
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(f"{owner}/{name}", repo_type="dataset", revision=revision or None, allow_patterns=wanted)
        )
    except Exception as error:  # errors of the HTTP library, which is the hub's own choice, have no common base
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{url}: the hub did not give it ({reason}); download it and give the path here") from None
    files = _with_suffix(folder.glob(pattern) if pattern else folder.rglob("*"))
    if not files:
        raise InputError(f"{url}: matches no file of rows ({', '.join(SUFFIXES)}); mend the pattern")
    return files


def _json_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                place = f"{file}:{number}"
                try:
                    line = raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{place}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
                    ) from None
                if line.strip():
                    yield place, _object(place, line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: not readable as gzip ({error}); make or download it again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give the path of a readable file") from None


def _object(place: str, line: str) -> Mapping[str, Any]:
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
        raise InputError(f"{place}: {shown(row)} is not a JSON object; write rows of {_SHAPES}")
    return row


def _parquet(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in _FIELDS]
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", fields
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: not readable as Parquet ({reason}); make or download it again") from None


def _row(place: str, fields: Mapping[str, Any]) -> Row:
    # Parquet has a column for every row; what is null there is left out.
    fields = {name: fields[name] for name in _FIELDS if fields.get(name) is not None}
    kinds = [name for name in ("document", "pos", "documents") if name in fields]
    if "pos" not in kinds and "neg" in fields:
        kinds.append("pos")
    if len(kinds) > 1:
        raise InputError(f"{place}: both {kinds[0]} and {kinds[1]}; a row has {_SHAPES}")
    if "query" not in fields or not kinds:
        missing = "query" if "query" not in fields else "document"
        raise InputError(f"{place}: no field {missing!r}; a row has {_SHAPES}")
    query = _text(place, "query", fields["query"])
    instruction = _text(place, "instruction", fields["instruction"]) if "instruction" in fields else None
    read = {"document": _pointwise, "pos": _triples, "documents": _listwise}[kinds[0]]
    documents, labels, scores, shape = read(place, fields)
    if labels is None:
        assert scores is not None
        labels = tuple(float(score > 0) for score in scores)
    return Row(query, documents, labels, scores, instruction, shape)


_Read = tuple[tuple[str, ...], tuple[float, ...] | None, tuple[float, ...] | None, str]


def _pointwise(place: str, fields: Mapping[str, Any]) -> _Read:
    document = _text(place, "document", fields["document"])
    label, score = ((_number(place, name, fields[name]),) if name in fields else None for name in ("label", "score"))
    if label is None and score is None:
        raise InputError(f"{place}: no field 'label'; a query and a document need a label or a score")
    return (document,), label, score, _shape(fields, "query", "document", "label", "score")


def _triples(place: str, fields: Mapping[str, Any]) -> _Read:
    for name in ("pos", "neg"):
        if name not in fields:
            raise InputError(f"{place}: no field {name!r}; write pos and neg, an empty list where there are none")
    documents, scores = [], []
    scored = "pos_scores" in fields or "neg_scores" in fields
    labels: list[float] = []
    for name, label in (("pos", 1.0), ("neg", 0.0)):
        texts = _texts(place, name, fields[name])
        documents += texts
        labels += [label] * len(texts)
        if scored:
            scores += _numbers(place, f"{name}_scores", fields.get(f"{name}_scores", []), name, len(texts))
    if not documents:
        raise InputError(f"{place}: pos and neg are both empty; give one document or more, or leave the row out")
    shape = "query, pos, neg" + (", pos_scores, neg_scores" if scored else "")
    return tuple(documents), tuple(labels), tuple(scores) if scored else None, shape


def _listwise(place: str, fields: Mapping[str, Any]) -> _Read:
    documents = _texts(place, "documents", fields["documents"])
    if not documents:
        raise InputError(f"{place}: documents=[] is empty; give one document or more, or leave the row out")
    labels, scores = (
        tuple(_numbers(place, name, fields[name], "documents", len(documents))) if name in fields else None
        for name in ("labels", "scores")
    )
    if labels is None and scores is None:
        raise InputError(f"{place}: no field 'labels'; a query and its documents need labels or scores")
    return tuple(documents), labels, scores, _shape(fields, "query", "documents", "labels", "scores")


def _shape(fields: Mapping[str, Any], *names: str) -> str:
    return ", ".join(name for name in names if name in fields)


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: {name}={shown(value)} is not a string; write it in quotes")
    return value


def _texts(place: str, name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise InputError(f"{place}: {name}={shown(value)} is not a list; write a list of strings")
    return [_text(place, f"{name}[{i}]", text) for i, text in enumerate(value)]


def _numbers(place: str, name: str, value: Any, of: str, count: int) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        raise InputError(f"{place}: {len(values)} {name} for {count} {of}; give one for each")
    if value is values:
        return [_number(place, f"{name}[{i}]", number) for i, number in enumerate(values)]
    return [_number(place, name, value)]


def _number(place: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: {name}={shown(value)} is not a number; write one, as 1, 0 or -2.5")
    if not (math.isfinite(value) and abs(value) <= _LARGEST):
        raise InputError(f"{place}: {name}={shown(value)} is not finite in 32 bits; mend it or leave the row out")
    return float(value)
