"""The columns of tables of judgements and candidates: how they are separated, and the names that tools give them."""

from collections.abc import Sequence

QUERY = ("query_id", "qid", "q_id", "topic_id", "topic")
"""BEIR, TREC and ir_datasets; MS MARCO and PyTerrier; ranx. `query` is its text."""
DOCUMENT = ("docno", "doc_id", "docid", "document_id", "did", "passage_id", "pid")
"""PyTerrier's `docno` goes before its `docid`, which is a number of its index."""
SCORE = ("score",)
RANK = ("rank",)
GRADE = ("score", "rel", "relevance", "label", "grade", "judgment", "judgement")


def cells(line: str) -> list[str]:
    """The cells of a line that are separated by tabs or, where it has none, by blanks.

    Only ASCII white space separates: an id may hold any other.
    """
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else by_blanks(line)


def by_blanks(line: str) -> list[str]:
    """The cells of a line that are separated by blanks or tabs."""
    return [cell.decode("utf-8") for cell in line.encode("utf-8").split()]


def find(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The place of the first of the names that a header has, in any case, `-` as `_`; None where it has none."""
    known = [name.strip().lower().replace("-", "_") for name in header]
    return next((known.index(name) for name in names if name in known), None)
