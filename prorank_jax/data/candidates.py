"""First-stage candidates: BM25 over a collection, or a run made elsewhere, by its file or its name."""

import difflib
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.bm25 import bm25_tables
from prorank_jax.data.bm25_index import ANSERINI, BM25, index_identity
from prorank_jax.data.candidate_cache import cached_table
from prorank_jax.data.candidate_table import Candidates
from prorank_jax.data.run_candidates import run_candidates
from prorank_jax.data.runs import Run, read_run
from prorank_jax.errors import InputError
from prorank_jax.storage import fetched, in_bucket

__all__ = ["BM25", "candidates", "find_run", "open_candidates"]

_log = logging.getLogger(__name__)

_FIELD = re.compile(r"\{([^{}]*)\}")
_RUNS = "runs"


def candidates(
    collection: Collection, source: str, depth: int, *, bm25: BM25 = ANSERINI, show_progress: bool = False
) -> Run:
    """The candidates of `open_candidates` in memory, an empty list for a query without any.

    Raises:
      InputError: as `open_candidates`.
    """
    return dict(open_candidates(collection, source, depth, bm25=bm25, show_progress=show_progress))


def open_candidates(
    collection: Collection, source: str, depth: int, *, bm25: BM25 = ANSERINI, show_progress: bool = False
) -> Candidates:
    """The best `depth` candidates of each query of the collection, mapped from the cache.

    Args:
      source: `bm25`, or a run as `find_run` takes it.
      bm25: how BM25 scores.

    Raises:
      InputError: BM25 cannot index the collection, the run is not found or cannot be read, names a document that
        the collection lacks, or has no candidate for any query of the collection; or the cache cannot be written.
    """
    if source == "bm25":
        found = _of_bm25(collection, depth, bm25, show_progress)
    elif (path := find_run(collection, source)).is_file():
        found = _of_run_file(collection, path, depth)
    else:
        found = Candidates.of_run(collection, read_run(path, depth, collection))
    if len(without := found.without_any()):
        place = f"{source}: {collection.name}/{collection.split}"
        first = list(collection.queries)[without[0]]
        if len(without) == len(found):
            raise InputError(
                f"{place}: no candidates for any of its {len(found)} queries (first: {first!r}); "
                "use a first stage of this collection and split"
            )
        _log.warning(
            "%s: no candidates for %d of its %d queries (first: %r); they count 0 in measures",
            place,
            len(without),
            len(found),
            first,
        )
    return found


def _of_bm25(collection: Collection, depth: int, settings: BM25, show_progress: bool) -> Candidates:
    def make(skip: int) -> Iterator[np.ndarray]:
        return bm25_tables(collection, depth, settings, skip, show_progress=show_progress)

    made_by = index_identity(len(collection.documents), settings)
    return Candidates(collection, cached_table(collection, {"bm25": made_by}, depth, make), depth)


def _of_run_file(collection: Collection, path: Path, depth: int) -> Candidates:
    def make(skip: int) -> Iterator[np.ndarray]:
        yield run_candidates(path, depth, collection)[skip:]

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # The name says how the bytes are read, and the split which of them where a file has several splits.
    first_stage = {"run": digest, "name": path.name, "split": collection.split}
    return Candidates(collection, cached_table(collection, first_stage, depth, make), depth)


def find_run(collection: Collection, source: str) -> Path:
    """The run file that `source` means for a split of a collection.

    Args:
      source: the path of a file; a path with `{collection}` and `{split}` in it; or the name of one of the collection's
        own runs, the files in `runs` in its BEIR folder: `splade` is `runs/splade.trec`, `runs/splade.test.trec` for
        the split `test`, and `runs/splade.top100.trec`.

    Raises:
      InputError: there is no such file, or several have the name.
    """
    # A pipe, as /dev/stdin, is no file, and can be read.
    if Path(source).exists() and not Path(source).is_dir():
        return Path(source)
    if fields := _FIELD.findall(source):
        if unknown := [field for field in fields if field not in ("collection", "split")]:
            raise InputError(
                f"candidates={source!r}: {{{unknown[0]}}} is not known; {{collection}} and {{split}} are filled in"
            )
        path = Path(fetched(source.replace("{collection}", collection.name).replace("{split}", collection.split)))
        if not path.is_file():
            raise InputError(f"candidates={source!r}: {path}: no such file; give each collection its run")
        return path
    if in_bucket(source):
        return Path(fetched(source))
    names = _own_runs(collection)
    found = [name for name in names if f"{name}.".startswith(f"{source}.")]
    if len(found) > 1:
        raise InputError(
            f"candidates={source!r}: means {len(found)} runs of {collection.name}: {', '.join(found)}; give more of "
            "the name"
        )
    if not found:
        raise InputError(f"candidates={source!r}: no such file{_others(source, names, collection)}")
    assert collection.folder is not None
    return collection.folder / _RUNS / found[0]


def _own_runs(collection: Collection) -> list[str]:
    """The names of the collection's own runs, without those of another split."""
    if collection.folder is None or not (collection.folder / _RUNS).is_dir():
        return []
    others = {file.stem for file in (collection.folder / "qrels").glob("*.tsv")} - {collection.split}
    # Not the hidden files that macOS puts next to each.
    names = sorted(file.name for file in (collection.folder / _RUNS).glob("[!.]*") if file.is_file())
    return [name for name in names if not others.intersection(name.split(".")[1:])]


def _others(source: str, names: Sequence[str], collection: Collection) -> str:
    """What there is instead, for the message."""
    if not names:
        return "; give the path of a TREC run, or bm25"
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.4) or names[:3]
    return f", and no run of {collection.name}/{collection.split} has this name (nearest: {', '.join(near)})"
