"""What a row of training data holds: three shapes, and the checks of their values.

    pointwise  {"query": "...", "document": "...", "label": 1}                       or "score", or both
    triples    {"query": "...", "pos": ["..."], "neg": ["..."]}                      "pos_scores" and "neg_scores" too
    listwise   {"query": "...", "documents": ["...", "..."], "scores": [2.5, -1]}    or "labels", or both

Each may have an `instruction`. A text or a number may stand for a list of one, and null for what is left out. A
document is a text, or an object with a text and, if it has one, a `title`. A label may be true or false, and a number
may be in quotes. Rows of other trainers become these in `layouts.py`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

import numpy as np

from prorank_jax.config import RowField
from prorank_jax.data.beir_files import full_text
from prorank_jax.data.lines import shown
from prorank_jax.errors import InputError

T = TypeVar("T")

SHAPES = "query and document, query, pos and neg, or query and documents"
_LARGEST = float(np.finfo(np.float32).max)
# The fields that hold the documents of a shape; behind each, the numbers that may stand beside its documents.
_BESIDE: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    ("document",): {"document": ("label", "score")},
    ("pos", "neg"): {"pos": ("pos_scores",), "neg": ("neg_scores",)},
    ("documents",): {"documents": ("labels", "scores")},
}
_SHAPE_OF = {field: fields for fields in _BESIDE for field in fields}
DOCUMENTS = tuple(_SHAPE_OF)
FIELDS: tuple[RowField, ...] = get_args(RowField)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LABELS = ("label", "labels")
_TEXTS = ("text", "contents", "content", "segment", "body", "passage")
"""What the text of a document is called in its object; the first that is there counts."""


def shape_of(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that hold its documents: `("document",)`, `("pos", "neg")` or `("documents",)`.

    Raises:
      InputError: it has no query, or documents of no shape or of more than one.
    """
    given = [name for name in _SHAPE_OF if row.get(name) is not None]
    if not given or row.get("query") is None:
        missing = "query" if row.get("query") is None else "document"
        raise InputError(
            f"{place}: no field {missing!r}; a row has {SHAPES}, and this one has "
            f"{', '.join(row) or 'nothing'}; name its fields in data.fields"
        )
    fields = _SHAPE_OF[given[0]]
    if others := [name for name in given if name not in fields]:
        raise InputError(f"{place}: both {given[0]} and {others[0]}; a row has {SHAPES}")
    for name in fields:
        if name == "neg" and name not in given and row.get("pos_scores"):
            raise InputError(
                f"{place}: no field 'neg'; write an empty list where there are none, or, where pos has documents of "
                "both kinds, name documents: pos and scores: pos_scores in data.fields"
            )
        if name not in given:
            raise InputError(f"{place}: no field {name!r}; write pos and neg, an empty list where there are none")
    return fields


def checked(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has of the fields of its shape: query, instruction, documents, then the numbers beside them.

    What stands for a list of one is a list. Of `pos_scores` and `neg_scores` it has both or none: those of one side
    alone are no teacher's scores, and are left out.

    Raises:
      InputError: a value is of the wrong type, a number not finite in 32 bits, numbers are not one for each document,
        or there is no document.
    """
    fields = shape_of(place, row)
    found: dict[str, Any] = {"query": _text(place, "query", row["query"])}
    if row.get("instruction") is not None:
        found["instruction"] = _text(place, "instruction", row["instruction"])
    if fields == ("document",):
        found["document"] = _text(place, "document", row["document"])
        for name in _BESIDE[fields]["document"]:
            if row.get(name) is not None:
                found[name] = _number(place, name, row[name])
        return found
    for field in fields:
        found[field] = _texts(place, field, row[field])
    if not any(found[field] for field in fields):
        what = "pos and neg are both" if len(fields) > 1 else f"{fields[0]}=[] is"
        raise InputError(f"{place}: {what} empty; give one document or more, or leave the row out")
    beside = [(name, field) for field, names in _BESIDE[fields].items() for name in names]
    given = [(name, field) for name, field in beside if row.get(name) is not None]
    if len(fields) > 1 and any(row.get(name) is None and found[field] for name, field in beside):
        # Grades of one side, as votes for answers, compare nothing with the other.
        given = []
    for name, field in beside if given and len(fields) > 1 else given:
        value = row.get(name)
        found[name] = _numbers(place, name, [] if value is None else value, field, len(found[field]))
    return found


def of_one_shape(rows: Iterable[tuple[str, str, T]]) -> Iterator[tuple[str, T]]:
    """`(place, row)` of each `(place, shape, row)`.

    Raises:
      InputError: a row has another shape than the first.
    """
    first: tuple[str, str] | None = None
    for place, shape, row in rows:
        first = first or (shape, place)
        if shape != first[0]:
            raise InputError(
                f"{place}: a row of {shape} after rows of {first[0]} ({first[1]}); "
                "keep one shape in a file, and mix files in data.mix"
            )
        yield place, row


def one_for_each(place: str, name: str, value: Any, field: str, count: int) -> list[Any]:
    """`value`, which says something of each of the `count` documents of `field`; one for one may be without a list.

    Raises:
      InputError: it is more or less.
    """
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        raise InputError(f"{place}: {len(values)} {name} for {count} {field}; give one for each")
    return values


def _text(place: str, name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        text = next((value[field] for field in _TEXTS if value.get(field) is not None), None)
        title = value.get("title")
        if title is None or title != title:  # NaN, as pandas writes what is missing
            title = ""
        if not isinstance(text, str) or not isinstance(title, str):
            raise InputError(
                f"{place}: {name}={shown(value)} is no document; write a string, or an object with the strings "
                "`text` and, if it has one, `title`"
            )
        return full_text(title, text)
    if not isinstance(value, str):
        raise InputError(f"{place}: {name}={shown(value)} is not a string; write it in quotes")
    return value


def _texts(place: str, name: str, value: Any) -> list[str]:
    if isinstance(value, str | Mapping):
        return [_text(place, name, value)]
    if not isinstance(value, list):
        raise InputError(f"{place}: {name}={shown(value)} is not a list; write a list of strings")
    return [_text(place, f"{name}[{i}]", text) for i, text in enumerate(value)]


def _numbers(place: str, name: str, value: Any, field: str, count: int) -> list[float]:
    values = one_for_each(place, name, value, field, count)
    if value is values:
        return [_number(place, name, number, f"[{i}]") for i, number in enumerate(values)]
    return [_number(place, name, value)]


def _number(place: str, name: str, value: Any, index: str = "") -> float:
    if isinstance(value, bool) and name in _LABELS:
        value = int(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place}: {name}{index}={shown(value)} is not a number; write one, as 1, 0 or -2.5")
    # Not `math.isfinite`, which fails on whole numbers above all floats; NaN is below nothing.
    if not abs(value) <= _LARGEST:
        raise InputError(
            f"{place}: {name}{index}={shown(value)} is not finite in 32 bits; mend it or leave the row out"
        )
    return value
