"""Rows of training data prepared once: groups in ArrayRecord files, read by position.

    prepared.json               what the folder holds and what it was made of; written last, so that a folder has it
                                only when it is whole
    groups-00000.array_record   a group a record, as compact JSON: query, instruction, documents, labels, scores

Consecutive pointwise rows of one query and instruction become one group. Neither preparing nor reading needs memory
that grows with the number of rows.
"""

import bisect
import fcntl
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from prorank_jax.data.candidates import write_atomically
from prorank_jax.data.examples import Example, Group
from prorank_jax.data.files import HUB, Row, find_files, read_rows
from prorank_jax.errors import InputError

_log = logging.getLogger(__name__)

Target = Literal["label", "score", "sigmoid", "softmax"]

ABOUT = "prepared.json"
VERSION = 1
SHARD_GROUPS = 500_000
MOST_DOCUMENTS = 1024
"""Documents of a group; the rows of a query that has more become several groups."""
_SHARDS = "groups-*.array_record"
# One thread reads one record: what is read ahead of it would be thrown away.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"
# Single records are read: a chunk of more would be read and unpacked whole for each.
_WRITER_OPTIONS = "group_size:1,zstd:1"
_SECONDS_BETWEEN_NOTES = 30.0


class _Record(NamedTuple):
    query: str
    instruction: str | None
    documents: list[str]
    labels: list[float]
    scores: list[float] | None

    @property
    def has_positive(self) -> bool:
        return any(label > 0 for label in self.labels)


class Shard(NamedTuple):
    """An ArrayRecord file."""

    file: str
    size: int
    """Bytes."""
    groups: int


@dataclass(frozen=True)
class PreparedFolder:
    """What a folder holds, as `prepared.json` says."""

    folder: Path
    shape: str
    """The fields of the rows."""
    single: bool
    """Whether each document is a group alone."""
    scored: bool
    """Whether the rows have a teacher's scores."""
    rows: int
    groups: int
    skipped: int
    """Groups that were left out because no document of theirs is relevant."""
    without_positive: int
    """Groups without a relevant document that were kept."""
    lowest_label: float
    longest_instruction: str | None
    shards: tuple[Shard, ...]


def prepare(
    path: str | Path,
    out: Path,
    *,
    single: bool,
    positives_only: bool,
    remedy: str = "name another folder in data.cache",
) -> PreparedFolder:
    """Prepares rows into the folder `out`, unless it was done before from the same files and in the same way.

    Of several processes that prepare one folder, the first does it and the others wait.

    Args:
      path: what `files.find_files` takes.
      single: make a group of each document alone, for losses that learn from single pairs.
      positives_only: skip the groups without a relevant document, from which a ranking loss of labels learns nothing;
        they are counted in one warning.
      remedy: what to do where `out` cannot be written, for the message.

    Raises:
      InputError: as `files.read_rows`; no group is left; `out` cannot be written.
    """
    files = find_files(path)
    made_of = {
        "version": VERSION,
        "single": single,
        "positives_only": positives_only,
        "files": [_fingerprint(file, on_hub=str(path).startswith(HUB)) for file in files],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            if (about := _read_about(out)) is not None and about["made_of"] == made_of:
                return open_prepared(out)
            (out / ABOUT).unlink(missing_ok=True)
            for unfinished in out.glob(_SHARDS):
                unfinished.unlink()
            prepared = _write(path, out, single, positives_only)
            about = asdict(prepared) | {"made_of": made_of}
            del about["folder"]
            write_atomically(out / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            return prepared
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); {remedy}") from None


def open_prepared(folder: Path) -> PreparedFolder:
    """A prepared folder as it is.

    Raises:
      InputError: there is none, or it is damaged.
    """
    about = _read_about(folder)
    if about is None:
        raise InputError(f"{folder}: holds no {ABOUT} of this version; remove the folder, and it is prepared again")
    del about["made_of"]
    shards = tuple(Shard(*shard) for shard in about.pop("shards"))
    for shard in shards:
        file = folder / shard.file
        if not file.is_file() or file.stat().st_size != shard.size:
            raise InputError(f"{file}: is not the file that {ABOUT} lists; remove the folder, and it is prepared again")
    return PreparedFolder(folder=folder, shards=shards, **about)


@dataclass(frozen=True)
class RowSource:
    """The groups of a prepared folder, with the targets that `target` says:

    label    the labels
    score    the teacher's scores as they are, differences of logits
    sigmoid  the probabilities that they mean, each by itself
    softmax  the probabilities that they mean among the documents drawn

    Of a group with more documents than are asked for, labels draw a relevant one, an irrelevant one where there is one
    and room for it, and others at random; scores draw all at random.

    Raises:
      InputError: the target needs scores, and the rows have none.
    """

    prepared: PreparedFolder
    target: Target = "label"
    name: str = ""

    def __post_init__(self) -> None:
        if self.target != "label" and not self.prepared.scored:
            raise InputError(
                f"{self.name}: target={self.target}: its rows have no scores ({self.prepared.shape}); "
                "score them with `prorank data score`, or use target=label"
            )

    def __len__(self) -> int:
        return self.prepared.groups

    @cached_property
    def _records(self) -> "_Records":
        return _Records(self.prepared)

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        record = self._read(index)
        chosen = list(range(len(record.documents)))
        if len(chosen) > size:
            chosen = self._choose(record, rng, size)
        labels = tuple(record.labels[i] for i in chosen)
        targets = labels
        if self.target != "label":
            assert record.scores is not None
            targets = _targets(self.target, np.array([record.scores[i] for i in chosen]))
        return Group(record.query, tuple(record.documents[i] for i in chosen), labels, targets, record.instruction)

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example | None, Example | None]:
        record = self._read(index)

        def one(label: int) -> Example | None:
            of_kind = [i for i, judgement in enumerate(record.labels) if (judgement > 0) == bool(label)]
            if not of_kind:
                return None
            chosen = of_kind[int(rng.integers(len(of_kind)))]
            return Example(record.query, record.documents[chosen], label, record.instruction)

        return one(1), one(0)

    def _choose(self, record: _Record, rng: np.random.Generator, size: int) -> list[int]:
        order = [int(i) for i in rng.permutation(len(record.documents))]
        if self.target != "label":
            return order[:size]
        kinds = ([i for i in order if record.labels[i] > 0], [i for i in order if record.labels[i] <= 0])
        first = [of_kind[0] for of_kind in kinds if of_kind][:size]
        return first + [i for i in order if i not in first][: size - len(first)]

    def _read(self, index: int) -> _Record:
        return _Record(*json.loads(self._records[index]))


class _Records:
    """The records of a folder by position, for any number of threads.

    `ArrayRecordDataSource` of grain reads by a call that takes 200 us for one record, whatever its size; to seek and
    then read takes 10. Files are opened when they are first read from.
    """

    def __init__(self, prepared: PreparedFolder) -> None:
        self._files = [str(prepared.folder / shard.file) for shard in prepared.shards]
        self._ends = list(accumulate(shard.groups for shard in prepared.shards))
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._files)
        self._locks = [threading.Lock() for _ in self._files]

    def __getitem__(self, index: int) -> bytes:
        shard = bisect.bisect_right(self._ends, index)
        with self._locks[shard]:
            reader = self._readers[shard]
            if reader is None:
                reader = ArrayRecordReader(self._files[shard], _READER_OPTIONS, file_reader_buffer_size=4096)
                self._readers[shard] = reader
            reader.seek(index - (self._ends[shard - 1] if shard else 0))
            return bytes(reader.read())


def _targets(target: Target, scores: np.ndarray) -> tuple[float, ...]:
    if target == "sigmoid":
        scores = np.exp(-np.logaddexp(0.0, -scores))
    elif target == "softmax":
        scores = np.exp(scores - np.logaddexp.reduce(scores))
    return tuple(scores.tolist())


def _write(path: str | Path, out: Path, single: bool, positives_only: bool) -> PreparedFolder:
    tally = _Tally(str(path))
    records = tally.kept(_grouped(tally.counted(read_rows(path)), single), positives_only)
    shards: list[Shard] = []
    for first in records:
        file = out / f"groups-{len(shards):05d}.array_record"
        writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)
        try:
            for record in chain([first], islice(records, SHARD_GROUPS - 1)):
                writer.write(_packed(record))
        finally:
            writer.close()
        shards.append(Shard(file.name, file.stat().st_size, tally.groups - sum(shard.groups for shard in shards)))
    if not shards:
        raise InputError(
            f"{path}: none of its {tally.skipped} groups has a relevant document (a label above 0); give each query "
            "one, or learn from scores (data.target; in `prorank data prepare`, --for-scores)"
        )
    if tally.skipped:
        _log.warning(
            "%s: %d of %d groups have no relevant document and are skipped",
            path,
            tally.skipped,
            tally.skipped + tally.groups,
        )
    return PreparedFolder(
        folder=out,
        shape=tally.shape,
        single=single,
        scored=tally.scored,
        rows=tally.rows,
        groups=tally.groups,
        skipped=tally.skipped,
        without_positive=tally.without_positive,
        lowest_label=tally.lowest_label,
        longest_instruction=tally.longest_instruction,
        shards=tuple(shards),
    )


class _Tally:
    """Counts what passes, and says on standard error how far a long preparation is."""

    def __init__(self, name: str) -> None:
        self.name, self.shape, self.scored = name, "", False
        self.rows = self.groups = self.skipped = self.without_positive = 0
        self.lowest_label = math.inf
        self.longest_instruction: str | None = None

    def counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        started = noted = time.monotonic()
        for row in rows:
            self.rows += 1
            if self.rows == 1:
                self.shape, self.scored = row.shape, row.scores is not None
            self.lowest_label = min(self.lowest_label, *row.labels)
            if row.instruction and len(row.instruction) > len(self.longest_instruction or ""):
                self.longest_instruction = row.instruction
            if self.rows % 1000 == 0 and (now := time.monotonic()) - noted > _SECONDS_BETWEEN_NOTES:
                noted = now
                print(f"{self.name}: {self.rows:,} rows in {now - started:.0f} s", file=sys.stderr, flush=True)
            yield row

    def kept(self, records: Iterable[_Record], positives_only: bool) -> Iterator[_Record]:
        for record in records:
            if not record.has_positive:
                if positives_only:
                    self.skipped += 1
                    continue
                self.without_positive += 1
            self.groups += 1
            yield record


def _grouped(rows: Iterable[Row], single: bool) -> Iterator[_Record]:
    """Groups of rows; `single` makes one of each document."""
    waiting: _Record | None = None
    for row in rows:
        if single:
            for i, document in enumerate(row.documents):
                scores = None if row.scores is None else [row.scores[i]]
                yield _Record(row.query, row.instruction, [document], [row.labels[i]], scores)
            continue
        # Only a pointwise row is a part of a group.
        partial = row.shape.startswith("query, document,")
        if waiting is not None and not (
            partial
            and (waiting.query, waiting.instruction) == (row.query, row.instruction)
            and len(waiting.documents) < MOST_DOCUMENTS
        ):
            yield waiting
            waiting = None
        if waiting is None:
            scores = None if row.scores is None else list(row.scores)
            waiting = _Record(row.query, row.instruction, list(row.documents), list(row.labels), scores)
        else:
            waiting.documents.extend(row.documents)
            waiting.labels.extend(row.labels)
            if waiting.scores is not None:
                waiting.scores.extend(row.scores or ())
    if waiting is not None:
        yield waiting


def _packed(record: _Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _fingerprint(file: Path, on_hub: bool) -> list[str | int]:
    """What changes when a file does; the cache of the hub has the revision in a file's path."""
    found = file.stat()
    return [str(file.absolute()), found.st_size, 0 if on_hub else found.st_mtime_ns]


def _read_about(folder: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about if about["made_of"]["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
