"""Requests to score documents for a query: from arguments, from lines of text, or from JSON lines, one at a time.

    {"query": "...", "documents": ["...", {"title": "...", "text": "..."}]}   documents of a query
    {"query": "...", "document": "..."}                                       one pair
    {"_id": "...", "title": "...", "text": "..."}                             a document of a query that is given apart

The first two may have `instruction`, and the first `top_k`. A document is a text, or an object with `text` and, if it
has them, `title` and `_id` or `id`. Null stands for what is left out, and what else a line holds is passed on.
"""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.data.lines import Line, lines_of, parse_object, read_lines, shown
from prorank_jax.errors import InputError
from prorank_jax.reranker import Document, text_of
from prorank_jax.storage import fetched

STDIN = "-"
IDS = ("_id", "id")
_FORMS = '{"query": ..., "documents": [...]} or {"query": ..., "document": ...}'
_DOCUMENT = '{"text": ...}'
_SUFFIXES = (".jsonl", ".jsonl.gz")


class Request(NamedTuple):
    """Documents to be scored for a query."""

    place: str
    """For messages."""
    fields: dict[str, Any]
    """What its answer begins with."""
    query: str
    documents: Sequence[Document]
    """As they were given."""
    texts: Sequence[str]
    """What they say."""
    instruction: str | None = None
    top_k: int | None = None
    first: int = 0
    """Index of the first document."""


def open_requests(
    source: str | None, arguments: Sequence[str], query: str | None, form: str = "text"
) -> Iterator[Request]:
    """The requests of a file or of standard input; without a source, those of arguments.

    With a query there is a request for each document, which is at the index of its line, counted from 0.

    Args:
      form: `text` or `jsonl`.

    Raises:
      InputError: the file cannot be read or holds no line, or a line is none of the forms.
    """
    if source is None:
        for number, text in enumerate(arguments):
            yield Request("--document", {"query": query}, str(query), [text], [text], first=number)
        return
    place = None
    for place, line in _stdin_lines() if source == STDIN else read_lines(Path(fetched(source))):
        if query is None:
            yield _request(place, parse_object(place, line, _FORMS))
            continue
        document: Document = line if form == "text" else _document(place, parse_object(place, line, _DOCUMENT))
        first = int(place.rpartition(":")[2]) - 1
        yield Request(place, {"query": query}, query, [document], [text_of(document)], first=first)
    if place is None:
        raise InputError(f"{source}: holds no document; write one a line")


def input_format_of(source: str | None, query: str | None, asked: str | None) -> str:
    """`text` or `jsonl`: as asked for, or by the name.

    Raises:
      InputError: it is neither, or text whose query is not given.
    """
    if asked not in (None, "text", "jsonl"):
        raise InputError(f"--input-format={asked}: not known; use text or jsonl")
    named = source is not None and (source.endswith(_SUFFIXES) or (source == STDIN and query is None))
    form = asked or ("jsonl" if named else "text")
    if source is None and form == "jsonl":
        raise InputError(f"--input-format={form}: has no meaning with --document; leave it out")
    if form == "text" and query is None:
        what = "--document" if source is None else source
        raise InputError(
            f"{what}: text has no query; give --query; of a run, --data; or name JSON lines {' or '.join(_SUFFIXES)}"
        )
    return form


def is_live(source: str) -> bool:
    """Whether lines may come as slowly as somebody types them."""
    if source == STDIN:
        return not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    return Path(source).exists() and not Path(source).is_file()


def begun(requests: Iterator[Request]) -> Iterator[Request]:
    """The same, of which the first is read at once; raises what reading it raises."""
    return chain(list(islice(requests, 1)), requests)


def _stdin_lines() -> Iterator[Line]:
    # Not `sys.stdin`: a thread that waits in it when the process ends would keep Python from closing it.
    with open(os.dup(sys.stdin.fileno()), "rb") as file:
        yield from lines_of(file, STDIN)


def _document(place: str, row: dict[str, Any]) -> dict[str, Any]:
    if row.get("query") is not None:
        raise InputError(f"{place}: query={shown(row['query'])}: the line has its own; leave --query out")
    _text(place, "the line", row)
    return row


def _request(place: str, row: dict[str, Any]) -> Request:
    if row.get("query") is None:
        raise InputError(f"{place}: no field 'query'; write {_FORMS}, or give documents alone a query with --query")
    given = [name for name in ("documents", "document") if row.get(name) is not None]
    if len(given) != 1:
        problem = "both documents and document" if given else "no field 'documents'"
        raise InputError(f"{place}: {problem}; write {_FORMS}")
    query, instruction, top_k = row["query"], row.get("instruction"), row.get("top_k")
    for name, value in {"query": query, "instruction": instruction or ""}.items():
        if not isinstance(value, str):
            raise InputError(f"{place}: {name}={shown(value)} is not a string; write it in quotes")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InputError(f"{place}: top_k={shown(top_k)} is not a count; write 1 or more, or leave it out")
    _check_id(place, "", row)
    if given == ["document"]:
        text = _text(place, "document", row["document"])
        return Request(place, row, query, [row["document"]], [text], instruction)
    documents = row["documents"]
    if not isinstance(documents, list):
        raise InputError(f"{place}: documents={shown(documents)} is not a list; write one of strings or objects")
    texts = [_text(place, f"documents[{i}]", document) for i, document in enumerate(documents)]
    fields = {name: value for name, value in row.items() if name != "documents"}
    return Request(place, fields, query, documents, texts, instruction, top_k)


def _text(place: str, name: str, document: Any) -> str:
    try:
        text = text_of(document)
    except InputError:
        raise InputError(
            f"{place}: {name}={shown(document)} is no document; write a string, or an object with the strings "
            "`text` and, if it has one, `title`"
        ) from None
    if isinstance(document, dict):
        _check_id(place, f"{name}: ", document)
    return text


def _check_id(place: str, name: str, fields: dict[str, Any]) -> None:
    for field in IDS:
        value = fields.get(field)
        if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
            raise InputError(f"{place}: {name}{field}={shown(value)} is neither a string nor a whole number; mend it")
