"""Run files that are tables: lines of text, and Parquet.

    query Q0 document rank score tag   TREC, by blanks or tabs
    query document rank score          ColBERT
    query document rank                MS MARCO: whole numbers, and the rank decides
    query document score               Tevatron: numbers with a point
    qid docno rank score ...           a first line that names the columns, by tabs, commas or blanks; or Parquet

Of named columns, those of query and document (`columns.py` has their names) and `score` or `rank` are read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.data.columns import DOCUMENT, QUERY, RANK, SCORE, Row, by_blanks, find, separators
from prorank_jax.data.lines import Line, read_lines, shown
from prorank_jax.data.run_entries import TREC, Entry, entry, is_whole, number, of_different_ranks, parsed, whole
from prorank_jax.errors import InputError

_MISSING = ("", "nan", "na", "null", "none")
"""How tools write a rank that is not there."""


class Named(NamedTuple):
    """The places of the columns in a table that names them."""

    query: int
    document: int
    score: int | None
    rank: int | None

    def entry(self, place: str, row: Sequence[object], read: Callable[[str, Any], float]) -> Entry:
        """The entry of a row; `read` makes a score of a cell."""
        score = None if self.score is None else read(place, row[self.score])
        rank = None if self.rank is None else row[self.rank]
        if score is not None and (rank is None or str(rank).lower() in _MISSING):
            return entry(place, row[self.query], row[self.document], score)
        return entry(place, row[self.query], row[self.document], score, whole(place, rank))

    def entries(
        self, rows: Iterable[tuple[str, Sequence[object]]], read: Callable[[str, Any], float]
    ) -> Iterator[Entry]:
        """The entries of `(place, cells)`."""
        found = (self.entry(place, row, read) for place, row in rows)
        return of_different_ranks(found) if self.score is None else found

    def without_others(self) -> "Named":
        """The places where a table has these columns alone, in this order."""
        score = None if self.score is None else 2
        rank = None if self.rank is None else 2 + (score is not None)
        return Named(0, 1, score, rank)


def named(names: Sequence[str]) -> Named | None:
    """Where a header has the columns of a run; None where it lacks one."""
    query, document, score, rank = (find(names, known) for known in (QUERY, DOCUMENT, SCORE, RANK))
    if query is None or document is None or (score is None and rank is None):
        return None
    return Named(query, document, score, rank)


def read_text(path: Path) -> Iterator[Entry]:
    lines = read_lines(path)
    if (first := next(lines, None)) is None:
        return iter(())
    place, line = first
    for separator in separators(line):
        if find(header := separator.cells(line), QUERY) is not None:
            if (columns := named(header)) is None:
                raise _no_columns(place, header)
            return columns.entries(_of_width(separator.rows(lines, TREC), len(header)), parsed)
    return _unnamed(chain([first], lines), place, line)


def read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if (columns := named(names)) is None:
                raise _no_columns(str(path), names)
            wanted = [names[position] for position in columns if position is not None]
            rows = chain.from_iterable(
                zip(*(batch.column(name).to_pylist() for name in wanted), strict=True)
                for batch in table.iter_batches(columns=wanted)
            )
            placed = ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
            yield from columns.without_others().entries(placed, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: not readable as Parquet ({reason}); make or download it again") from None


def _unnamed(lines: Iterable[Line], place: str, first: str) -> Iterator[Entry]:
    cells = by_blanks(first)
    rows = _of_width(((place, by_blanks(line)) for place, line in lines), len(cells))
    if len(cells) == 6:
        return Named(query=0, document=2, score=4, rank=3).entries(rows, parsed)
    if len(cells) == 4:
        return Named(query=0, document=1, score=3, rank=2).entries(rows, parsed)
    if len(cells) != 3:
        raise InputError(f"{place}: {shown(first)} has {len(cells)} columns; {TREC}")
    if is_whole(cells[2]):
        return _from_the_first(Named(query=0, document=1, score=None, rank=2).entries(rows, parsed))
    return Named(query=0, document=1, score=2, rank=None).entries(rows, _no_rank)


def _from_the_first(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same; InputError where the ranks of a query begin neither at 0 nor at 1, as whole scores would not."""
    best: dict[str, Entry] = {}
    for one in entries:
        if (before := best.get(one.query_id)) is None or one.rank < before.rank:
            best[one.query_id] = one
        yield one
    for query_id, one in best.items():
        if one.rank not in (0, 1):
            raise InputError(
                f"{one.place}: rank {one.rank} is the best of query {shown(query_id)}: the third column of three is "
                f"the rank, which begins at 0 or 1; write scores with a point ({one.rank}.0), or `query Q0 document "
                "rank score tag`"
            )


def _no_rank(place: str, score: str) -> float:
    if is_whole(score):
        raise InputError(f"{place}: {shown(score)} is a rank, and the first line has a score; write one or the other")
    return parsed(place, score)


def _of_width(rows: Iterable[Row], width: int) -> Iterator[Row]:
    for place, cells in rows:
        if len(cells) != width:
            raise InputError(f"{place}: has {len(cells)} columns, and the first line {width}; {TREC}")
        yield place, cells


def _no_columns(place: str, names: Sequence[str]) -> InputError:
    return InputError(
        f"{place}: the columns {', '.join(names)} are not those of a run; name them qid, docno, and score or rank"
    )
