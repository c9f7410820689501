"""Rows as other trainers write them: a table of what our fields are called there, and paths by which they are found.

    {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c"}
    {"query": "q", "pos": "a", "neg": ["b", "c"]}

`query.text` is the field `text` of the object `query`; in a list, that of each object; `messages.role=user.content` is
`content` of the objects whose `role` is `user`. A name stands also for the numbered ones: `negative` for `negative_1`,
`negative_2` and so on, together.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

from prorank_jax.data.rows import DOCUMENTS, FIELDS
from prorank_jax.errors import InputError

Row = dict[str, Any]

_QUERY = "query anchor question query_text"
_PAIR = f"{_QUERY} sentence1 sentence_A text1"
_POSITIVE = "positive positives answer"
_NEGATIVE = "neg negative negatives hard_negative hard_negatives"
_DOCUMENT = f"document doc passage text content {_POSITIVE} sentence2 sentence_B text2"
_LIST = f"documents docs passages {_POSITIVE}"
_MESSAGES = {"query": "messages.role=user.content", "instruction?": "messages.role=system.content"}

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "Tevatron": {"query": "query query_text", "pos": "positive_passages", "neg?": "negative_passages"},
    "ms-swift": {**_MESSAGES, "pos": "positive_messages.content", "neg": "negative_messages.content"},
    "ms-swift, labelled": {**_MESSAGES, "document": "positive_messages.content", "label": "label"},
    "ms-swift, pairs": {**_MESSAGES, "pos": "positive_messages.content"},
    "ms-swift 3.8": {"query": "query", "instruction?": "system", "pos": "response", "neg": "rejected_response"},
    "OpenMatch": {"query": "query", "pos": "doc_pos", "neg": "doc_neg"},
    "Cohere": {"query": "query", "pos": "relevant_passages", "neg?": "hard_negatives"},
    "rank_llm": {"query": "query", "documents": "candidates.doc"},
    "triplets": {"query": _QUERY, "pos": f"pos {_POSITIVE}", "neg": _NEGATIVE, "scores?": "scores score"},
    "labelled lists": {"query": _QUERY, "documents": _LIST, "labels": "labels"},
    "scored lists": {"query": _QUERY, "documents": _LIST, "scores": "scores"},
    "labelled pairs": {"query": _PAIR, "document": _DOCUMENT, "label": "label", "score?": "score"},
    "scored pairs": {"query": _PAIR, "document": _DOCUMENT, "score": "score"},
    "pairs": {"query": _QUERY, "pos": _POSITIVE},
}
"""Name -> our field -> its paths, of which the first that a row has counts; with `?` it may be missing. The first
layout that a row fits counts. A list of `scores` beside `pos` has those of the positives, then those of the negatives;
one number there is a margin, which is not read."""

_IDS = {
    "positive_document_ids": "names documents by ids of another file; write their texts, as pos and neg",
    "corpus-id": "is a line of judgements; give the BEIR folder that they belong to",
}


def to_ours(place: str, row: Row, fields: dict[str, str]) -> Row:
    """A row with its fields under our names; what has no meaning for us stays as it is.

    Args:
      fields: our name -> the path that it has, before any layout.

    Raises:
      InputError: the row has no field of such a path, or has ids for documents.
    """
    if not fields and row.get("query") is not None and row.get("document") is not None:
        return row  # at once: files of pairs have the most rows
    given = tuple(name for name, value in row.items() if value is not None)
    layout = _layout(given, tuple(fields.items()))
    if layout is None and not _is_ours({*given, *fields}):
        for name in _IDS.keys() & row.keys():
            raise InputError(f"{place}: {name}: {_IDS[name]}")
    paths = (layout or {}) | fields
    found = {name: _mapped(place, row, name, path) for name, path in paths.items()}
    used = {name for path in paths.values() for name in _names(row, path)}
    ours = {name: value for name, value in row.items() if name not in used} | found
    if "pos" in found:
        ours.setdefault("neg", [])
        ours |= _split(ours, ours.pop("scores", None))
    for name, other in (("pos", "neg"), ("neg", "pos")):
        if ours.get(name) is not None and other in ours and ours[other] is None:
            ours[other] = []
    return ours


def columns(names: Sequence[str], fields: dict[str, str]) -> list[str]:
    """Which columns of a table are read: those of ours, those that become ours, and all where ours are not found."""
    layout = _layout(tuple(names), tuple(fields.items()))
    if layout is None and not _is_ours({*names, *fields}):
        return list(names)
    used = {name for path in ((layout or {}) | fields).values() for name in _names(names, path)}
    return [name for name in names if name in used or name in FIELDS]


@lru_cache(maxsize=256)
def _layout(names: tuple[str, ...], fields: tuple[tuple[str, str], ...]) -> dict[str, str] | None:
    """Our field -> its path, of the first layout that rows of such names fit; None where they are ours or fit none.

    What `fields` name is found already. Of the documents, a layout must find some, or have none left to find.
    """
    mapped = dict(fields)
    known = {*names}.difference(name for path in mapped.values() for name in _names(names, path)) | mapped.keys()
    if _is_ours(known):
        return None
    for layout in LAYOUTS.values():
        needed = {name for name in layout if not name.endswith("?")} - mapped.keys()
        wanted = {name.removesuffix("?"): paths.split() for name, paths in layout.items()}
        choices = {name: [path for path in paths if _names(names, path)] for name, paths in wanted.items()}
        paths = {name: found[0] for name, found in choices.items() if found and name not in mapped}
        documents = {name for name in wanted if name in DOCUMENTS} - mapped.keys()
        hidden = any(name in known and path != name for name, path in paths.items())
        if needed <= paths.keys() and (documents & paths.keys() or not documents) and not hidden:
            return paths
    return None


def _mapped(place: str, row: Row, name: str, path: str) -> Any:
    """What a row has for our field of that name."""
    try:
        value = _at(row, path)
    except KeyError:
        raise InputError(
            f"{place}: no field {path!r} to be read as {name}; this row has {', '.join(row)}: name one in data.fields"
        ) from None
    if name in ("query", "instruction", "document") and isinstance(value, list) and len(value) < 2:
        return value[0] if value else None
    return value


def _is_ours(names: Set[str]) -> bool:
    return "query" in names and ("document" in names or "documents" in names or {"pos", "neg"} <= names)


def _names(names: Iterable[str], path: str) -> list[str]:
    """The fields that a path begins with."""
    if "." in path and path in names:
        return [path]
    first = path.partition(".")[0]
    numbered = [name for name in names if name.startswith(f"{first}_") and name.removeprefix(f"{first}_").isdecimal()]
    numbered.sort(key=lambda name: int(name.removeprefix(f"{first}_")))
    return [name for name in (first,) if name in names] + numbered


def _at(row: Row, path: str) -> Any:
    """What a row has at a path; raises KeyError where it has nothing."""
    names = _names(row, path)
    if not names:
        raise KeyError(path)
    steps = [] if names == [path] else path.split(".")[1:]
    values = [_in(row[name], steps) for name in names]
    if len(values) == 1:
        return values[0]
    lists = (value if isinstance(value, list) else [value] for value in values if value is not None)
    return [value for values in lists for value in values]


def _in(value: Any, steps: Sequence[str]) -> Any:
    """What a value has at the rest of a path; raises KeyError where it has nothing."""
    for number, step in enumerate(steps):
        if value is None:
            return None
        if isinstance(value, list):
            name, equals, wanted = step.partition("=")
            if equals:
                value = [item for item in value if isinstance(item, dict) and item.get(name) == wanted]
                continue
            inner = [_in(item, steps[number:]) for item in value]
            # A conversation of one message is that message.
            return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in inner]
        if not isinstance(value, dict):
            raise KeyError(step)
        value = value[step]
    return value


def _split(row: Row, scores: Any) -> Row:
    """`[3.5, -1]` of one positive and a negative -> `{"pos_scores": [3.5], "neg_scores": [-1]}`."""
    if not isinstance(scores, list):
        return {}
    positives = len(row["pos"]) if isinstance(row["pos"], list) else 1
    return {"pos_scores": scores[:positives], "neg_scores": scores[positives:]}
