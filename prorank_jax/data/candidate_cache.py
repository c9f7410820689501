"""Tables of candidates in the cache folder, each made once.

    candidates/<documents>-<digest>/top100.npy         the table of a depth, of which a smaller depth is a part
    candidates/<documents>-<digest>/top100.npy.part    what there is of it so far

The digest is of the queries and the first stage. A table is an ordinary `.npy` file of rows as `candidate_table.py`
has them, mapped into memory. It is written some thousand queries at a time, and one that was interrupted is resumed.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prorank_jax.atomic import alone
from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import StoredDocuments
from prorank_jax.data.part import Part, rows_done
from prorank_jax.errors import InputError

_VERSION = 1
"""Of the tables; one of another version is made again."""

_TABLE = re.compile(r"top([0-9]+)\.npy")

Make = Callable[[int], Iterator[np.ndarray]]
"""Makes the rows after so many, in tables of one dtype."""


def cached_table(collection: Collection, first_stage: Any, depth: int, make: Make) -> np.ndarray:
    """The table of a collection's queries, at least `depth` deep where a query has so many candidates.

    That of documents in memory, which have no key, is made each time. Of several processes that need one table, the
    first makes it and the others wait.

    Args:
      first_stage: what decides which candidates are found, as JSON takes it.

    Raises:
      InputError: as `make`, or the cache folder cannot be written.
    """
    documents, queries = collection.documents, len(collection.queries)
    if not isinstance(documents, StoredDocuments):
        return np.concatenate(list(make(0)))
    made_of = {"version": _VERSION, "first_stage": first_stage, "queries": _digest(list(collection.queries.items()))}
    folder = cache_folder() / "candidates" / f"{documents.key}-{_digest(made_of)[:16]}"
    if (table := _find(folder, depth, queries)) is not None:
        return table
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, f"{collection.name}/{collection.split}: candidates"):
            if (table := _find(folder, depth, queries)) is not None:
                return table
            path = folder / f"top{depth}.npy"
            _write(path, queries, {"made_of": made_of}, make)
            return _mapped(path)
    except OSError as error:
        raise InputError(
            f"{folder}: the candidates cannot be kept there ({error.strerror or error}); free space, or name another "
            f"folder in the environment variable {VARIABLE}"
        ) from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _find(folder: Path, depth: int, queries: int) -> np.ndarray | None:
    """The smallest table that is deep enough, if there is one."""
    names = [_TABLE.fullmatch(file.name) for file in folder.glob("*.npy")]
    depths = {int(name[1]): folder / name[0] for name in names if name}
    for found in sorted(found for found in depths if found >= depth):
        try:
            table = _mapped(depths[found])
        except (OSError, ValueError, EOFError):  # damaged
            continue
        if len(table) == queries:
            return table
    return None


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _write(path: Path, queries: int, made_of: dict[str, Any], make: Make) -> None:
    if not rows_done(path, made_of):
        Part(path).discard()
    with Part(path) as part:
        for table in make(part.open(made_of)):
            if not part.bytes:
                part.add(_header(table.dtype, queries), 0)
            part.add(table.tobytes(), len(table))
        part.finish()


def _header(dtype: np.dtype, queries: int) -> bytes:
    """The beginning of a `.npy` file."""
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (queries,)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
