"""The index of a collection for BM25: for each stem, the documents that have it and the score that it gives each.

A stem has a column for each field: of the whole document, or of the text and another of the title. Each field has its
own statistics: document frequencies, lengths and their mean. The score of a document for a query is the sum over the
columns of the query's stems, and those of a title are weighted.

The index of stored documents is made once. It is kept as bm25s keeps its own, in the cache folder under a name that
changes with the documents and the settings, and is memory-mapped.
"""

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prorank_jax.atomic import alone
from prorank_jax.cache import cache_folder
from prorank_jax.data.documents import StoredDocuments
from prorank_jax.data.stems import Stems
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json
from prorank_jax.progress import progress

if TYPE_CHECKING:
    import bm25s

_VERSION = 2
"""Of how an index is made; one of another version is made again."""
_ABOUT = "prorank.json"
_CHUNK_CHARACTERS = 8_000_000
"""Text that is taken apart at a time: some ten million bytes of Python objects for each million."""


class BM25(NamedTuple):
    """How documents are scored: Lucene's BM25, as Anserini sets it."""

    k1: float = 0.9
    """How slowly more of the same word stop counting; 0 or more."""
    b: float = 0.4
    """How much a document's length counts; from 0 to 1."""
    title_weight: float | None = None
    """Of the score of the title as a field of its own, beside that of the text; None: both are one field."""


ANSERINI = BM25()


class Index(NamedTuple):
    """An index in memory, or memory-mapped."""

    retriever: "bm25s.BM25"
    stems: Stems
    fields: int
    """1, or 2 where titles have their own columns, which stand behind those of the texts."""

    @property
    def documents(self) -> int:
        return int(self.retriever.scores["num_docs"])

    def columns(self, queries: Iterable[str]) -> list[list[int]]:
        """The columns of each query, in the order of its words and as often; none for a query of unknown words."""
        stems, lengths = self.stems.encode(queries)
        all_fields = [
            [field * len(self.stems.numbers) + stem for field in range(self.fields) for stem in of_query]
            for of_query in (part.tolist() for part in np.split(stems, np.cumsum(lengths)[:-1]))
        ]
        return all_fields[: len(lengths)]


def open_index(documents: Mapping[str, str], settings: BM25, name: str, *, show_progress: bool = False) -> Index:
    """The index of documents: of stored ones from the cache folder, where it is put if it is not there yet.

    Of several processes that need one index, the first makes it and the others wait.

    Args:
      name: of the collection, for messages.

    Raises:
      InputError: a setting is out of its range, titles are asked of documents without fields, no document has a word,
        or the index cannot be written.
    """
    _check(settings)
    if not isinstance(documents, StoredDocuments):
        return _build(documents, settings, name, show_progress)
    made_of = index_identity(len(documents), settings)
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "bm25" / f"{documents.key}-{digest}"
    whole, unfinished = folder / "index", folder / "unfinished"
    try:
        if _is_whole(whole, made_of):
            return _load(whole, settings)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, f"{name}: BM25 index"):
            if not _is_whole(whole, made_of):
                shutil.rmtree(whole, ignore_errors=True)
                shutil.rmtree(unfinished, ignore_errors=True)
                try:
                    _save(_build(documents, settings, name, show_progress), unfinished, made_of)
                    os.replace(unfinished, whole)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
        return _load(whole, settings)
    except OSError as error:
        raise InputError(
            f"{folder}: the BM25 index cannot be kept there ({error.strerror or error}); make room, or name another "
            "folder in the environment variable PRORANK_CACHE"
        ) from None


def index_identity(documents: int, settings: BM25) -> dict[str, Any]:
    """What an index of so many documents is made with; with the texts it decides what BM25 finds."""
    return {
        "version": _VERSION,
        **{library: importlib.metadata.version(library) for library in ("bm25s", "PyStemmer")},
        **settings._asdict(),
        "documents": documents,
    }


def _check(settings: BM25) -> None:
    if not (math.isfinite(settings.k1) and settings.k1 >= 0):
        raise InputError(f"BM25: k1={settings.k1}: is not a number from 0 up; 0.9 is Anserini's, 1.2 Lucene's")
    if not 0 <= settings.b <= 1:
        raise InputError(f"BM25: b={settings.b}: is not between 0 and 1; 0.4 is Anserini's, 0.75 Lucene's")
    weight = settings.title_weight
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        raise InputError(
            f"BM25: title_weight={weight}: is not a number above 0; 1 counts a title's score as much as the text's"
        )


def _build(documents: Mapping[str, str], settings: BM25, name: str, show_progress: bool) -> Index:
    stems = Stems()
    texts: Iterable[tuple[str, ...]]
    if settings.title_weight is None:
        fields = [_Field(weight=1.0)]
        texts = ((text,) for _, text in documents.items())
    elif isinstance(documents, StoredDocuments):
        fields = [_Field(weight=1.0), _Field(settings.title_weight)]
        texts = ((text, title) for title, text in documents.fields())
    else:
        raise InputError(
            f"{name}: BM25: title_weight={settings.title_weight}: its documents have no titles; leave it out"
        )
    with progress("indexing", len(documents), show_progress) as advance:
        for chunk in _chunks(texts):
            for field, of_field in zip(fields, zip(*chunk, strict=True), strict=True):
                field.add(*stems.encode(of_field))
            advance(len(chunk))
    if not stems.numbers:
        raise InputError(f"{name}: no document has a word in it; BM25 needs words")
    columns = [field.columns(len(stems.numbers), settings) for field in fields]
    return _index(stems.numbers, columns[0] if len(columns) == 1 else _side_by_side(columns), len(documents), settings)


def _chunks(texts: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    chunk, characters = [], 0
    for fields in texts:
        chunk.append(fields)
        characters += sum(map(len, fields))
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class _Columns(NamedTuple):
    """Columns in compressed form: column c is `data[starts[c]:starts[c + 1]]`, in the order of documents."""

    data: np.ndarray
    documents: np.ndarray
    starts: np.ndarray


class _Field:
    """Collects the stems of one field, four bytes for each, and makes its columns of them."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.chunks: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, stems: np.ndarray, lengths: np.ndarray) -> None:
        self.chunks.append((stems, lengths))

    def columns(self, stems: int, settings: BM25) -> _Columns:
        """Lucene's BM25: `idf * tf / (tf + k1 * (1 - b + b * length / mean length))`, where
        `idf = ln(1 + (N - n + 0.5) / (n + 0.5))` for n of N documents.

        In 64 bits but for the idf and the result, as bm25s computes it: the scores are the same to the last bit.
        """
        holders = np.zeros(stems, np.int64)
        for of_chunk, _, _ in self._counted():
            holders += np.bincount(of_chunk, minlength=stems)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(holders)])
        lengths = np.concatenate([lengths for _, lengths in self.chunks])
        idf = _idf(holders, len(lengths))
        data = np.empty(starts[-1], np.float32)
        documents = np.empty(starts[-1], np.int32)
        mean = lengths.mean()
        free = starts[:-1].copy()
        for of_chunk, held_by, counts in self._counted():
            dampening = settings.k1 * ((1 - settings.b) + settings.b * lengths[held_by] / mean)
            scores = idf[of_chunk] * (counts / (dampening + counts))
            # The stems of a chunk are sorted: those before the first of its kind are the sum of the smaller ones.
            of_stem = np.bincount(of_chunk, minlength=stems)
            places = np.arange(len(of_chunk)) + (free - np.cumsum(of_stem) + of_stem)[of_chunk]
            data[places] = self.weight * scores
            documents[places] = held_by
            free += of_stem
        return _Columns(data, documents, starts)

    def _counted(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each chunk, each stem with each document that has it, sorted so, and how often it does."""
        first = 0
        for stems, lengths in self.chunks:
            documents = np.repeat(np.arange(first, first + len(lengths)), lengths)
            pairs = stems.astype(np.int64) << 32 | documents
            pairs.sort()
            begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(pairs)), bool), pairs[1:] != pairs[:-1]]))
            counts = np.diff(begins, append=len(pairs))
            pairs = pairs[begins]
            yield pairs >> 32, pairs & 0xFFFFFFFF, counts
            first += len(lengths)


def _idf(holders: np.ndarray, documents: int) -> np.ndarray:
    """In 64 bits, of 32: float64 [stems]."""
    distinct, place = np.unique(holders, return_inverse=True)
    values = [math.log(1 + (documents - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(values, np.float32).astype(np.float64)[place]


def _side_by_side(columns: list[_Columns]) -> _Columns:
    text, title = columns
    return _Columns(
        np.concatenate([text.data, title.data]),
        np.concatenate([text.documents, title.documents]),
        np.concatenate([text.starts, text.starts[-1] + title.starts[1:]]),
    )


def _index(numbers: dict[str, int], columns: _Columns, documents: int, settings: BM25) -> Index:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    retriever = bm25s.BM25(k1=settings.k1, b=settings.b)
    retriever.scores = {
        "data": columns.data,
        "indices": columns.documents,
        "indptr": columns.starts,
        "num_docs": documents,
    }
    retriever.vocab_dict = numbers
    retriever.nonoccurrence_array = None
    return _ready(retriever, settings)


def _ready(retriever: "bm25s.BM25", settings: BM25) -> Index:
    # What bm25s looks a query's columns up in.
    retriever.unique_token_ids_set = range(len(retriever.scores["indptr"]) - 1)
    return Index(retriever, Stems(retriever.vocab_dict), fields=1 if settings.title_weight is None else 2)


def _save(index: Index, folder: Path, made_of: Mapping[str, Any]) -> None:
    index.retriever.save(folder, show_progress=False)
    about = {"made_of": made_of, "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}}
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _is_whole(folder: Path, made_of: Mapping[str, Any]) -> bool:
    try:
        about = parse_json((folder / _ABOUT).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in about["bytes"]}
        return bool(about["made_of"] == made_of and about["bytes"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _load(folder: Path, settings: BM25) -> Index:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return _ready(bm25s.BM25.load(folder, mmap=True, show_progress=False), settings)
