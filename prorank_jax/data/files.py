"""Rows of training data from files, one at a time: never is a whole file in memory.

Files are `.jsonl`, `.jsonl.gz` or `.parquet` with columns of the same names; `rows.py` says what a row holds, and
`layouts.py` how those of other trainers are read. A label is a judgement, relevant above 0. A score is a teacher's, a
difference of logits: where a row has only scores, its labels are 1 for those above 0 and 0 for the others. Where all
scores are from 0 to 1, they are probabilities, and the labels are 1 for those above 0.5.
"""

import logging
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from prorank_jax.data.layouts import columns, to_ours
from prorank_jax.data.lines import parse_object, read_lines
from prorank_jax.data.repeats import Repeats
from prorank_jax.data.rows import SHAPES, checked, of_one_shape
from prorank_jax.errors import InputError
from prorank_jax.storage import fetched

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
HUB = "hf://datasets/"
_GLOB = frozenset("*?[")
_PARQUET_ROWS = 512
NONE: Mapping[str, str] = MappingProxyType({})
_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A query with documents and what is known of them."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    scores: tuple[float, ...] | None
    instruction: str | None
    shape: str
    """The fields that the row was read from."""

    @property
    def pointwise(self) -> bool:
        """Whether it is a part of what is known of its query."""
        return self.shape.startswith("query, document,")


def read_rows(path: str | Path, fields: Mapping[str, str] = NONE) -> Iterator[Row]:
    """The rows of a file, of a folder or pattern of files, or of files on the Hugging Face hub, all of one shape.

    A document that a row repeats is there once, by its highest label; the last row is followed by one warning, where
    there were such, and by one where labels were made of probabilities.

    Raises:
      InputError: there is no such file; a file is empty, damaged or not of these shapes; a value is of the wrong type
        or not finite; a row has neither labels nor scores; shapes are mixed. With the file, the line (of a Parquet
        file, the row) and the remedy.
    """
    repeats = Repeats()
    threshold = _threshold(path, fields)
    rows = ((place, _row(place, row, repeats, threshold)) for place, row in read_fields(path, fields))
    for _, row in of_one_shape((place, row.shape, row) for place, row in rows):
        yield row
    repeats.warn(str(path), "rows")
    if threshold:
        _warn_of_probabilities(str(path))


def read_fields(path: str | Path, fields: Mapping[str, str] = NONE) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, row)` of each row of the files that `path` means; `place` is `file:number`, for messages.

    Rows of other trainers have our names (`layouts.py`). Of JSON, all fields are there; of Parquet, those that a row of
    training data may have, where they are not null.

    Args:
      fields: our name -> the path that it has in these files, where that is not known by the names of a row.

    Raises:
      InputError: there is no such file, one cannot be read or holds no row, or a row lacks one of the fields.
    """
    names = dict(fields)
    for file in find_files(path):
        place, is_table = None, file.name.endswith(".parquet")
        for place, row in _parquet(file, names) if is_table else _json(file):
            ours = to_ours(place, row, names)
            yield place, {name: value for name, value in ours.items() if value is not None} if is_table else ours
        if place is None:
            raise InputError(f"{file}: holds no row; write rows of {SHAPES}")


def find_files(path: str | Path) -> list[Path]:
    """The files that a path means: a file, the files of a folder or pattern, or of `hf://datasets/OWNER/NAME/PATTERN`,
    downloaded or found in the local cache; of a bucket, their copies. In the order of their names.

    Raises:
      InputError: there are none, or the hub cannot give them.
    """
    if str(path).startswith(HUB):
        return _from_hub(str(path))
    found = Path(fetched(path))
    if found.is_dir():
        if files := _with_suffix(found.iterdir()):
            return files
        raise InputError(f"{found}: a folder without corpus.jsonl and without files of rows ({', '.join(SUFFIXES)})")
    if found.is_file():
        if not found.name.endswith(SUFFIXES):
            raise InputError(f"{found}: not a file of rows; its name ends in one of {', '.join(SUFFIXES)}")
        return [found]
    if _GLOB & set(str(found)):
        anchor = Path(found.anchor or ".")
        pattern = str(found.relative_to(found.anchor) if found.anchor else found)
        if files := _with_suffix(anchor.glob(pattern)):
            return files
        raise InputError(f"{path}: matches no file of rows ({', '.join(SUFFIXES)}); mend the pattern")
    kind = "file" if found.name.endswith(SUFFIXES) else "folder"
    raise InputError(
        f"{str(path)!r}: no such {kind}; give files of rows ({', '.join(SUFFIXES)}), "
        "or, to data.path, a collection (a name as beir/scifact, a BEIR folder, or a zip of one)"
    )


def from_hub(repository: str, patterns: list[str], *, place: str, revision: str | None = None) -> Path:
    """The folder with the files of a data set on the Hugging Face hub, downloaded or found in the local cache.

    Raises:
      InputError: the hub cannot give them; `place` begins the message.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # errors of the HTTP library, which is the hub's own choice, have no common base
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{place}: the hub did not give it ({reason}); download it and give the path here") from None


def _with_suffix(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.name.endswith(SUFFIXES))


def _from_hub(url: str) -> list[Path]:
    owner, _, rest = url.removeprefix(HUB).partition("/")
    name, _, pattern = rest.partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name:
        raise InputError(f"{url}: names no data set; write {HUB}OWNER/NAME/FOLDER/*.parquet")
    wanted = [pattern] if pattern else [f"*{suffix}" for suffix in SUFFIXES]
    folder = from_hub(f"{owner}/{name}", wanted, revision=revision or None, place=url)
    files = _with_suffix(folder.glob(pattern) if pattern else folder.rglob("*"))
    if not files:
        raise InputError(f"{url}: matches no file of rows ({', '.join(SUFFIXES)}); mend the pattern")
    return files


def _json(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in read_lines(file):
        yield place, parse_object(place, line, f"rows of {SHAPES}")


def _parquet(file: Path, fields: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            found = columns(table.schema_arrow.names, fields)
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=found):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", _plain(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: not readable as Parquet ({reason}); make or download it again") from None


def _plain(value: Any) -> Any:
    """A value of a table as JSON would have it: bytes as the text that they encode, a decimal as a number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:  # an image, say: refused where a text is wanted
            return value
    return value


def _threshold(path: str | Path, fields: Mapping[str, str]) -> float:
    """The score above which a document without a label is relevant: 0, or 0.5 where all scores are probabilities.

    Reads rows until one has a score that is no probability, or a label.
    """
    between = False
    for place, row in read_fields(path, fields):
        found = checked(place, row)
        scores = found.get("scores", [found["score"]] if "score" in found else [])
        if "label" in found or "labels" in found or not scores or not all(0 <= score <= 1 for score in scores):
            return 0.0
        between |= any(0 < score < 1 for score in scores)
    return 0.5 if between else 0.0


@lru_cache  # once: a preparation may read rows twice
def _warn_of_probabilities(path: str) -> None:
    _log.warning(
        "%s: no labels, and all scores are from 0 to 1, as probabilities are: documents above 0.5 are taken as "
        "relevant; for another limit write labels, and for targets made of scores, write differences of logits",
        path,
    )


def _row(place: str, fields: Mapping[str, Any], repeats: Repeats, threshold: float) -> Row:
    row = checked(place, fields)
    documents: list[str]
    labels: list[float] | None
    scores: list[float] | None
    if "pos" in row:
        documents = [*row["pos"], *row["neg"]]
        labels = [1.0] * len(row["pos"]) + [0.0] * len(row["neg"])
        scores = [*row["pos_scores"], *row["neg_scores"]] if "pos_scores" in row else None
    elif "documents" in row:
        documents, labels, scores = row["documents"], row.get("labels"), row.get("scores")
    else:
        documents = [row["document"]]
        labels, scores = ([row[name]] if name in row else None for name in ("label", "score"))
    if labels is None:
        if scores is None:
            problem = (
                "no field 'labels'; a query and its documents need labels or scores: name them in data.fields (where "
                "rank_llm's are a teacher's, scores: candidates.score)"
                if "documents" in row
                else "no field 'label'; a query and a document need a label or a score: name one in data.fields"
            )
            raise InputError(f"{place}: {problem}, or get scores with prorank data score")
        labels = [score > threshold for score in scores]
    kept = repeats.kept(documents, labels)
    return Row(
        query=row["query"],
        documents=tuple(documents[i] for i in kept),
        labels=tuple(float(labels[i]) for i in kept),
        scores=None if scores is None else tuple(float(scores[i]) for i in kept),
        instruction=row.get("instruction"),
        shape=", ".join(name for name in row if name != "instruction"),
    )
