"""Files of judgements (qrels): BEIR's, TREC's, and tables that name their columns.

    query-id  corpus-id  score       BEIR: three columns, with or without this line
    query  iteration  document  grade    TREC: four columns; the iteration (0, Q0, 4.5) is not read
    qid  docid  rel  ...             a first line that names the columns, in any order

Columns are separated by tabs, or by blanks where a line has no tab; those that a first line names also by commas. A
grade is a whole number, also as 1.0. One below 0, which TREC gives to junk, is kept: trec_eval, pytrec_eval and ranx
count it as 0 in every measure here.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from prorank_jax.data.columns import DOCUMENT, GRADE, QUERY, Row, cells, find, separators
from prorank_jax.data.lines import Line, shown
from prorank_jax.errors import InputError

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> judgement."""

# ASCII only: `int` alone would also take "1_000", " 1" and digits of other scripts.
_WHOLE = re.compile(r"([+-]?[0-9]{1,9})(\.0*)?")
_FORMS = "write query id, document id and judgement, or TREC's four: query id, 0, document id and judgement"
_POSITIONS = {3: (0, 1, 2), 4: (0, 2, 3)}


def parse_qrels(lines: Iterable[Line], name: str) -> Qrels:
    """The judgements on the lines of a file; `name` is the file, for messages.

    Raises:
      InputError: a line is malformed, a document is judged twice and differently, or there is no judgement.
    """
    qrels: Qrels = {}
    lines = iter(lines)
    if (first := next(lines, None)) is None:
        raise _empty(name)
    width, positions, rows = _layout(*first, lines)
    for place, columns in rows:
        # Empty cells at the end are tabs at the end.
        while len(columns) > width and not columns[-1]:
            columns.pop()
        if len(columns) != width:
            line = shown(", ".join(columns))
            raise InputError(f"{place}: {line} has {len(columns)} columns, and the first line {width}; {_FORMS}")
        query_id, document_id, judgement = (columns[position] for position in positions)
        if not (whole := _WHOLE.fullmatch(judgement)):
            raise InputError(f"{place}: judgement {shown(judgement)} is not an integer; write 0, 1, 2, ...")
        grade = int(whole[1])
        of_query = qrels.setdefault(query_id, {})
        if of_query.setdefault(document_id, grade) != grade:
            raise InputError(
                f"{place}: document {shown(document_id)} is judged {of_query[document_id]} and {judgement} "
                f"for query {shown(query_id)}; keep one of the two"
            )
    if not qrels:
        raise _empty(name)
    return qrels


def _empty(name: str) -> InputError:
    return InputError(f"{name}: holds no judgement; write lines of query id, document id, score")


def _layout(place: str, first: str, others: Iterator[Line]) -> tuple[int, tuple[int, int, int], Iterator[Row]]:
    """How many columns a file has, where query, document and judgement are, and its rows, by its first line."""
    for separator in separators(first):
        header = separator.cells(first)
        if (positions := _header(header)) is not None:
            if separator.quoted:
                return len(header), positions, separator.rows(others, _FORMS)
            return len(header), positions, ((at, cells(line)) for at, line in others)
    columns = cells(first)
    while len(columns) > min(_POSITIONS) and not columns[-1]:
        columns.pop()
    by_commas = "\t" not in first and columns[0].endswith(",")
    if (width := len(columns)) not in _POSITIONS or by_commas:
        commas = "separate them by tabs, or by commas after a first line of names" if "," in first else _FORMS
        raise InputError(f"{place}: {shown(first)} has {width} columns; {commas}")
    return width, _POSITIONS[width], ((at, cells(line)) for at, line in chain([(place, first)], others))


def _header(columns: list[str]) -> tuple[int, int, int] | None:
    """Where a line that names the columns has query, document and judgement; None where it is no such line."""
    query, document, grade = find(columns, QUERY), find(columns, (*DOCUMENT, "corpus_id")), find(columns, GRADE)
    if query is not None and document is not None and grade is not None:
        return query, document, grade
    if len(columns) in _POSITIONS and find(columns[-1:], GRADE) is not None:
        return _POSITIONS[len(columns)]
    return None
