"""Collections by name, folder or zip: prepared once into the cache, and read from there."""

import difflib
import hashlib
import json
import logging
import re
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prorank_jax.atomic import alone, writing
from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.data.beir import Collection, is_beir
from prorank_jax.data.beir_files import CORPUS, QRELS, QUERIES
from prorank_jax.data.download import fetch
from prorank_jax.data.prepared_collection import TFDS_VERSION, PreparedCollection, read_prepared, records_of
from prorank_jax.data.published import BEIR, COLLECTIONS, zip_of
from prorank_jax.errors import InputError
from prorank_jax.storage import fetched

_log = logging.getLogger(__name__)

_QUIET_SECONDS = 1.0


def open_collection(source: str | Path, split: str) -> Collection:
    """A split of a collection, prepared first where it is not yet; its documents stay on disk.

    Args:
      source: as of `prepare_collection`.

    Raises:
      InputError: as `prepare_collection`; there is no such split (with those there are), or no judgement is usable.
    """
    source = fetched(source)
    collection = prepare_collection(source).split(split)
    return replace(collection, folder=Path(source)) if is_beir(source) else collection


def splits(source: str | Path) -> list[str]:
    """The splits that a collection has judgements of, malformed ones too; prepares it as `open_collection` does."""
    prepared = prepare_collection(source)
    return sorted([*prepared.qrels, *prepared.refused])


def prepare_collection(source: str | Path) -> PreparedCollection:
    """Prepares a collection, unless it was done before and its files have not changed since.

    Of several processes that prepare one collection, the first does it and the others wait.

    Args:
      source: a BEIR folder; a zip of one; or a name of `COLLECTIONS`, where no such folder is.

    Raises:
      InputError: there is no such thing (with the nearest names); a file is missing or malformed (with its line);
        a download fails or is not the published file; the cache cannot be written.
    """
    where = _locate(fetched(source))
    folder = where.folder / TFDS_VERSION
    with suppress(InputError):
        # Without the lock, so that a cache may be read where it cannot be written.
        if (prepared := read_prepared(folder)) is not None:
            return prepared
    with writing(folder, f"free space, or name another folder in {VARIABLE}"):
        where.folder.mkdir(parents=True, exist_ok=True)
        with alone(where.folder):
            return _read(folder) or _prepare(where, folder)


def is_collection(source: str | Path) -> bool:
    """Whether it is a BEIR folder, whole or not, a zip, or reads as the name of a collection, known or not."""
    path = Path(fetched(source))
    if path.exists():
        return is_beir(path) or _is_zip(path)
    return _is_zip(path) or str(source).startswith(("beir/", "nano-beir/"))


def is_at_hand(source: str | Path) -> bool:
    """Whether a collection can be opened without a network: a folder or zip of this machine, or one prepared before."""
    if not is_collection(source):
        return False
    try:
        where = _locate(source)
        return where.path is not None or read_prepared(where.folder / TFDS_VERSION) is not None
    except InputError:
        return False


def _is_zip(path: Path) -> bool:
    return path.suffix == ".zip" and not path.is_dir()


def describe(prepared: PreparedCollection, seconds: float) -> str:
    """A line on what there is and where."""
    judgements = ", ".join(f"{split} {records_of(shards):,}" for split, shards in sorted(prepared.qrels.items()))
    if prepared.refused:
        reason = prepared.refused[min(prepared.refused)]
        judgements += f"; not readable: {', '.join(sorted(prepared.refused))} ({reason})"
    return (
        f"{prepared.name}: {records_of(prepared.corpus):,} documents, {records_of(prepared.queries):,} queries; "
        f"judgements: {judgements}; {seconds:.1f} s: {prepared.folder}"
    )


class _Located(NamedTuple):
    """Where a collection comes from and where it is prepared."""

    builder: str
    """TFDS' name for its builder."""
    config: str
    name: str
    path: Path | None
    """The folder or zip, of a local collection."""

    @property
    def folder(self) -> Path:
        return cache_folder() / "collections" / self.builder / self.config


def _locate(source: str | Path) -> _Located:
    path, name = Path(source), str(source)
    if is_beir(path) or (_is_zip(path) and path.exists()):
        path = path.resolve()
        called = path.name.removesuffix(".zip") if path.is_file() else path.name
        shown = re.sub(r"[^A-Za-z0-9_.]+", "-", called).strip("-.")[-40:]
        return _Located("local_beir", f"{shown}-{_fingerprint(path)}", called, path)
    if path.exists():
        raise InputError(
            f"{path}: is no collection; give a BEIR folder ({CORPUS}, {QUERIES} and {QRELS}/), a zip of one, or a name"
        )
    if name in COLLECTIONS:
        config = name.partition("/")[2].replace("/", ".")
        return _Located("beir" if name in BEIR else "nano_beir", config, name, None)
    near = difflib.get_close_matches(name, COLLECTIONS, n=3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}?" if near else "names are as beir/scifact and nano-beir/scifact"
    raise InputError(f"{name!r}: no such folder, zip or collection; {remedy}")


def _fingerprint(path: Path) -> str:
    """What differs where the path, or the size or time of a file, does."""
    files = [path] if path.is_file() else [path / CORPUS, path / QUERIES, *sorted((path / QRELS).glob("*.tsv"))]
    found = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(json.dumps([str(path), found]).encode()).hexdigest()[:12]


def _read(folder: Path) -> PreparedCollection | None:
    try:
        return read_prepared(folder)
    except InputError as error:
        _log.warning("%s; it is prepared again", error)
        shutil.rmtree(folder)
        return None


def _prepare(where: _Located, folder: Path) -> PreparedCollection:
    # TensorFlow Datasets takes half a second.
    from prorank_jax.data import tfds_beir

    started = time.monotonic()
    for unfinished in [*where.folder.glob("*incomplete*"), folder]:
        shutil.rmtree(unfinished, ignore_errors=True)
    data_dir = cache_folder() / "collections"
    builder: tfds_beir.BeirBuilder
    downloads = where.folder
    if where.path is not None:
        local = tfds_beir.local_beir(where.config, where.name, where.path)
        builder = local(config=where.config, data_dir=data_dir)
    elif where.builder == "nano_beir":
        builder = tfds_beir.NanoBeir(config=where.config, data_dir=data_dir)
    else:
        zipped = zip_of(BEIR[where.name])
        downloads = cache_folder() / "downloads" / zipped.name
        fetch(zipped, downloads)
        builder = tfds_beir.Beir(config=where.config, data_dir=data_dir)
    tfds_beir.prepare(builder, downloads)
    prepared = read_prepared(folder)
    assert prepared is not None
    if (seconds := time.monotonic() - started) > _QUIET_SECONDS:
        note = f"{where.name}: {records_of(prepared.corpus):,} documents prepared in {seconds:.0f} s: {folder}"
        print(note, file=sys.stderr, flush=True)
    return prepared
