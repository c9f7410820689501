"""The columns of tables of judgements and candidates: how they are separated, and the names that tools give them."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prorank_jax.data.lines import Line
from prorank_jax.errors import InputError

QUERY = ("query_id", "qid", "q_id", "topic_id", "topic")
"""BEIR, TREC and ir_datasets; MS MARCO and PyTerrier; ranx. `query` is its text."""
DOCUMENT = ("docno", "doc_id", "docid", "document_id", "did", "passage_id", "pid")
"""PyTerrier's `docno` goes before its `docid`, which is a number of its index."""
SCORE = ("score",)
RANK = ("rank",)
GRADE = ("rel", "relevance", "label", "grade", "judgment", "judgement", "score")
"""BEIR's `score` goes last: next to another, it is that of a model."""

Row = tuple[str, list[str]]
"""`(place, cells)`."""


class Separator(NamedTuple):
    """What separates the columns of a table whose first line names them."""

    character: str
    """A tab, a comma, or a blank for any white space."""
    quoted: bool
    """Whether cells may be in quotes, as in CSV."""

    def cells(self, line: str) -> list[str]:
        """The cells of one line; all of it where it cannot be taken apart."""
        if not self.quoted:
            return by_blanks(line) if self.character == " " else _stripped(line.split(self.character))
        try:
            return _stripped(next(csv.reader([line], delimiter=self.character, skipinitialspace=True)))
        except csv.Error:  # a carriage return, or a cell of more than csv holds
            return [line]

    def rows(self, lines: Iterable[Line], remedy: str) -> Iterator[Row]:
        """The rows of lines; the place of one is its last line.

        Raises:
          InputError: quotes are not closed or are in the wrong place; with `remedy`.
        """
        if not self.quoted:
            yield from ((place, self.cells(line)) for place, line in lines)
            return
        place = ""

        def texts() -> Iterator[str]:
            nonlocal place
            for at, line in lines:
                place = at
                yield f"{line}\n"

        try:
            for row in csv.reader(texts(), delimiter=self.character, skipinitialspace=True, strict=True):
                yield place, _stripped(row)
        except csv.Error as error:
            raise InputError(f"{place}: not readable as CSV ({error}); {remedy}") from None


def separators(header: str) -> list[Separator]:
    """What may separate the columns of a header; those of a tab have quotes where it has."""
    return [Separator("\t", header.startswith('"') or '\t"' in header), Separator(",", True), Separator(" ", False)]


def cells(line: str) -> list[str]:
    """The cells of a line that are separated by tabs or, where it has none, by blanks.

    Only ASCII white space separates: an id may hold any other.
    """
    return _stripped(line.split("\t")) if "\t" in line else by_blanks(line)


def by_blanks(line: str) -> list[str]:
    """The cells of a line that are separated by blanks or tabs."""
    return [cell.decode("utf-8") for cell in line.encode("utf-8").split()]


def _stripped(row: Iterable[str]) -> list[str]:
    return [cell.strip(" ") for cell in row]


def find(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The place of the first of the names that a header has, in any case, `-` as `_`; None where it has none."""
    known = [name.strip().lower().replace("-", "_") for name in header]
    return next((known.index(name) for name in names if name in known), None)
