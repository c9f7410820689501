"""What is written of a ranking: lines of text for a reader, a JSON line, or lines of a TREC run.

    text    2.1875<tab>3<tab>It serves fish.                    score, number of the document from 1, what it says
    jsonl   {"_id": "q1", "query": "...", "hits": [{"index": 2, "_id": "d3", "score": 2.1875}]}
    trec    q1 Q0 d3 1 2.1875 prorank

A JSON line begins with what its request had; that of a pair has `score` in place of `hits`.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prorank_jax.atomic import replacing, writing
from prorank_jax.data.lines import shown
from prorank_jax.data.runs import trec_lines
from prorank_jax.errors import InputError
from prorank_jax.reranker import Hit, text_of
from prorank_jax.reranking.requests import IDS
from prorank_jax.reranking.stream import Ranking

TEXT, JSONL, TREC = FORMATS = ("text", "jsonl", "trec")
_SUFFIXES = {".jsonl": JSONL, ".jsonl.gz": JSONL, ".trec": TREC}

Form = Callable[[Ranking], list[str]]
"""The lines that are written of a ranking."""


def text_form(ranking: Ranking) -> list[str]:
    """A line for each hit: score, number of the document from 1, and what it says, with line ends spelled out."""
    return [
        f"{hit.score:.4f}\t{hit.index + 1}\t" + text_of(hit.document or "").replace("\n", "\\n").replace("\r", "\\r")
        for hit in ranking.hits
    ]


def json_form(with_documents: bool) -> Form:
    """One line: what the request had and `hits`, or, of a pair, `score`; with the documents as they were given."""

    def form(ranking: Ranking) -> list[str]:
        if ranking.fields.get("document") is not None:
            answer = {**ranking.fields, "score": _short(ranking.hits[0].score)}
        else:
            answer = {**ranking.fields, "hits": [_hit(hit, with_documents) for hit in ranking.hits]}
        return [json.dumps(answer, ensure_ascii=False)]

    return form


def trec_form(tag: str) -> Form:
    """A line for each hit, as `write_run` has them.

    Raises:
      InputError: the tag is not one word; later, by the form: a query or document has no id that a run can hold, or one
        that was given before.
    """
    if not _is_word(tag):
        raise InputError(f"--tag={tag!r}: is not one word, which a TREC run needs; write one")
    queries: set[str] = set()

    def form(ranking: Ranking) -> list[str]:
        place = ranking.place
        if ranking.fields.get("document") is not None:
            raise InputError(
                f"{place}: is a pair, and a run has all documents of a query; write {{..., 'documents': ...}}"
            )
        query_id = _id(place, "the query", ranking.fields, queries)
        documents: set[str] = set()
        rows = [(_id(place, f"documents[{hit.index}]", hit.document, documents), hit.score) for hit in ranking.hits]
        return trec_lines({query_id: rows}, tag)

    return form


def format_of(out: Path | None, asked: str | None, usual: str) -> str:
    """The format to write: by the name of the file, as asked for, or the usual one.

    Raises:
      InputError: there is no such format, or the file's name says another.
    """
    if asked not in (None, *FORMATS):
        raise InputError(f"--format={asked}: not known; use {', '.join(FORMATS)}")
    named = next((form for suffix, form in _SUFFIXES.items() if out is not None and out.name.endswith(suffix)), None)
    if asked and named and asked != named:
        raise InputError(f"--format={asked}: {out} is named as {named}; leave --format out, or rename the file")
    return asked or named or usual


@contextmanager
def written(out: Path) -> Iterator[Callable[[Iterable[str]], None]]:
    """Gives a function that adds lines to a file, which is whole or not there, and packed where its name ends in .gz.

    Raises:
      InputError: it cannot be written.
    """
    with writing(out, "give another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file, ExitStack() as stack:
            packed = out.name.endswith(".gz")
            # Equal lines give equal bytes: neither time nor name is packed.
            into = stack.enter_context(gzip.GzipFile("", "wb", mtime=0, fileobj=file)) if packed else file
            yield lambda lines: into.writelines(f"{line}\n".encode() for line in lines)


def _hit(hit: Hit, with_document: bool) -> dict[str, Any]:
    fields = hit.document if isinstance(hit.document, Mapping) else {}
    ids = {name: fields[name] for name in IDS if name in fields}
    shown_document = {"document": hit.document} if with_document else {}
    return {"index": hit.index, **ids, "score": _short(hit.score), **shown_document}


def _short(score: float) -> float:
    """With as few digits as give back the same 32 bits."""
    return float(str(np.float32(score)))


def _is_word(text: str) -> bool:
    # bytes.split takes ASCII white space only, as readers of runs do.
    return text.encode("utf-8").split() == [text.encode("utf-8")]


def _id(place: str, name: str, fields: object, seen: set[str]) -> str:
    """The id of a query or document; adds it to those seen."""
    given = [fields[field] for field in IDS if fields.get(field) is not None] if isinstance(fields, Mapping) else []
    if not given:
        raise InputError(f"{place}: {name} has no `_id`, which a TREC run needs; give it one, or write jsonl")
    identifier = str(given[0])
    if not _is_word(identifier):
        raise InputError(
            f"{place}: _id={shown(identifier)} is empty or has white space, which a TREC run cannot hold; rename it"
        )
    if identifier in seen:
        raise InputError(f"{place}: _id={shown(identifier)} of {name} was given before; ids must differ")
    seen.add(identifier)
    return identifier
