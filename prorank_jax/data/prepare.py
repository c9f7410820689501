"""Rows of training data become ArrayRecord files, once: groups that `prepared.py` reads by position.

Pointwise rows of one query and instruction become one group, in the order of the queries' first rows. Where a query
comes back after another, rows wait on disk to be put in order (`by_query.py`), with some bytes of memory for each.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from array_record.python.array_record_module import ArrayRecordWriter

from prorank_jax.atomic import alone, write_atomically, writing
from prorank_jax.data.by_query import ScatteredQuery, consecutive, in_order, query_of
from prorank_jax.data.files import HUB, NONE, Row, find_files, read_rows
from prorank_jax.data.prepared import ABOUT, VERSION, PreparedFolder, Record, Shard, open_prepared, read_about
from prorank_jax.data.repeats import Repeats
from prorank_jax.errors import InputError
from prorank_jax.progress import noted

_log = logging.getLogger(__name__)

SHARD_GROUPS = 500_000
MOST_DOCUMENTS = 1024
"""Documents of a group; the rows of a query that has more become several groups."""
_SHARDS = "groups-*.array_record"
_WAITING = "rows-"
# Single records are read: a chunk of more would be read and unpacked whole for each.
_WRITER_OPTIONS = "group_size:1,zstd:1"
_GROUPING = "by query, probabilities relevant above 0.5"
"""How groups and their labels are made; groups that were made in another way are made again."""


def prepare(
    path: str | Path,
    out: Path,
    *,
    single: bool,
    positives_only: bool,
    fields: Mapping[str, str] = NONE,
    remedy: str = "name another folder in data.cache",
) -> PreparedFolder:
    """Prepares rows into the folder `out`, unless it was done before from the same files and in the same way.

    Of several processes that prepare one folder, the first does it and the others wait.

    Args:
      path: what `files.find_files` takes.
      single: make a group of each document alone, for losses that learn from single pairs.
      positives_only: skip the groups without a relevant document, from which a ranking loss of labels learns nothing;
        they are counted in one warning.
      fields: as `files.read_fields`.
      remedy: what to do where `out` cannot be written, for the message.

    Raises:
      InputError: as `files.read_rows`; no group is left; `out` cannot be written.
    """
    files = find_files(path)
    made_of = {
        "version": VERSION,
        "grouping": _GROUPING,
        "single": single,
        "positives_only": positives_only,
        "fields": dict(fields),
        "files": [_fingerprint(file, on_hub=str(path).startswith(HUB)) for file in files],
    }
    with writing(out, remedy):
        out.mkdir(parents=True, exist_ok=True)
        with alone(out):
            if (about := read_about(out)) is not None and about["made_of"] == made_of:
                return open_prepared(out)
            (out / ABOUT).unlink(missing_ok=True)
            prepared = _prepare(path, fields, out, single, positives_only)
            about = asdict(prepared) | {"made_of": made_of}
            del about["folder"]
            write_atomically(out / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            return prepared


def _prepare(
    path: str | Path, fields: Mapping[str, str], out: Path, single: bool, positives_only: bool
) -> PreparedFolder:
    _empty(out)
    try:
        return _write(path, consecutive(read_rows(path, fields)), out, single, positives_only)
    except ScatteredQuery:
        _empty(out)
    with TemporaryDirectory(dir=out, prefix=_WAITING) as waiting:
        rows = in_order(noted(read_rows(path, fields), str(path), "rows read"), Path(waiting))
        return _write(path, rows, out, single, positives_only)


def _empty(out: Path) -> None:
    """Removes what an unfinished preparation has left."""
    for unfinished in out.glob(_SHARDS):
        unfinished.unlink()
    for waiting in out.glob(f"{_WAITING}*"):
        shutil.rmtree(waiting)


def _write(path: str | Path, rows: Iterable[Row], out: Path, single: bool, positives_only: bool) -> PreparedFolder:
    tally = _Tally(str(path))
    groups = _distinct(_grouped(tally.counted(rows)), tally.repeats)
    records = tally.kept(_alone(groups) if single else groups, positives_only)
    shards: list[Shard] = []
    for first in records:
        file = out / f"groups-{len(shards):05d}.array_record"
        writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)
        try:
            for record in chain([first], islice(records, SHARD_GROUPS - 1)):
                writer.write(record.packed())
        finally:
            writer.close()
        shards.append(Shard(file.name, file.stat().st_size, tally.groups - sum(shard.groups for shard in shards)))
    if not shards:
        raise InputError(
            f"{path}: none of its {tally.skipped} groups has a relevant document (a label above 0); give each query "
            "one, or learn from scores (data.target; in `prorank data prepare`, --for-scores)"
        )
    tally.repeats.warn(str(path), "queries")
    if tally.lowest_label > 0:
        _log.warning(
            "%s: none of its %d rows has a document that is not relevant (a label of 0 or less): the warmup needs both "
            "kinds, and losses that compare documents learn nothing from equal labels; add some (`prorank data mine`)",
            *(path, tally.rows),
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
        self.repeats = Repeats()

    def counted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in noted(rows, self.name, "rows"):
            self.rows += 1
            if self.rows == 1:
                self.shape, self.scored = row.shape, row.scores is not None
            self.lowest_label = min(self.lowest_label, *row.labels)
            if row.instruction and len(row.instruction) > len(self.longest_instruction or ""):
                self.longest_instruction = row.instruction
            yield row

    def kept(self, records: Iterable[Record], positives_only: bool) -> Iterator[Record]:
        for record in records:
            if not record.has_positive:
                if positives_only:
                    self.skipped += 1
                    continue
                self.without_positive += 1
            self.groups += 1
            yield record


def _grouped(rows: Iterable[Row]) -> Iterator[Record]:
    """Consecutive pointwise rows of a query become a group; another row is one."""
    waiting: Record | None = None
    query = None
    for row in rows:
        more = waiting is not None and row.pointwise and query_of(row) == query
        if waiting is not None and not (more and len(waiting.documents) < MOST_DOCUMENTS):
            yield waiting
            waiting = None
        if waiting is None:
            scores = None if row.scores is None else list(row.scores)
            waiting = Record(row.query, row.instruction, list(row.documents), list(row.labels), scores)
            query = query_of(row)
        else:
            waiting.documents.extend(row.documents)
            waiting.labels.extend(row.labels)
            if waiting.scores is not None:
                waiting.scores.extend(row.scores or ())
    if waiting is not None:
        yield waiting


def _distinct(groups: Iterable[Record], repeats: Repeats) -> Iterator[Record]:
    """The groups with each document once, which `files.read_rows` cannot see to in pointwise rows."""
    for group in groups:
        kept = repeats.kept(group.documents, group.labels)
        yield group if len(kept) == len(group.documents) else _at(group, kept)


def _alone(groups: Iterable[Record]) -> Iterator[Record]:
    """Each document of the groups as a group."""
    for group in groups:
        for position in range(len(group.documents)):
            yield _at(group, [position])


def _at(group: Record, positions: list[int]) -> Record:
    """The group with some of its documents."""
    scores = None if group.scores is None else [group.scores[i] for i in positions]
    return group._replace(
        documents=[group.documents[i] for i in positions], labels=[group.labels[i] for i in positions], scores=scores
    )


def _fingerprint(file: Path, on_hub: bool) -> list[str | int]:
    """What changes when a file does; the cache of the hub has the revision in a file's path."""
    found = file.stat()
    return [str(file.absolute()), found.st_size, 0 if on_hub else found.st_mtime_ns]
