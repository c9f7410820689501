"""Rows as other trainers write them: a table of what our fields are called there, and paths by which they are found.

    {"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c"}
    {"query": "q", "pos": "a", "neg": ["b", "c"]}

`query.text` is the field `text` of the object `query`; in a list, that of each object; `messages.role=user.content` is
`content` of the objects whose `role` is `user`. A name also means the numbered ones: `negative` is `negative_1`,
`negative_2` and so on, together. `negatives+hard_negatives` is all that a row has of these, together.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

from prorank_jax.data.rows import DOCUMENTS, FIELDS, one_for_each
from prorank_jax.errors import InputError

Row = dict[str, Any]

_QUERY = "query anchor question query_text"
_PAIR = f"{_QUERY} sentence1 sentence_A text1"
_POSITIVE = "positive+positives answer"
_NEGATIVE = "neg+negative+negatives+hard_negative+hard_negatives"
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
    "triplets": {"query": _QUERY, "pos": f"pos {_POSITIVE}", "neg": _NEGATIVE, "scores?": "scores score label labels"},
    "labelled lists": {"query": _QUERY, "documents": _LIST, "labels": "labels"},
    "scored lists": {"query": _QUERY, "documents": _LIST, "scores": "scores"},
    "labelled pairs": {"query": _PAIR, "document": _DOCUMENT, "label": "label", "score?": "score"},
    "scored pairs": {"query": _PAIR, "document": _DOCUMENT, "score": "score"},
    "pairs": {"query": _QUERY, "pos": _POSITIVE},
    "ms-swift 3.8, labelled": {"query": "query", "instruction?": "system", "document": "response", "label": "label"},
    "ms-swift 3.8, scored": {"query": "query", "instruction?": "system", "document": "response", "score": "score"},
    "ms-swift 3.8, pairs": {"query": "query", "instruction?": "system", "pos": "response"},
}
"""Name -> our field -> its paths, of which the first that a row has counts; with `?` it may be missing. The first
layout that a row fits counts. A list of `scores` next to `pos` has those of the positives, then those of the negatives;
one number there is a margin, which is not read."""

_ANSWERS = ("answer", "response")
"""What is a document only where a row has no other: next to a text to answer from, it may be a few words of it."""

_SOURCES = frozenset(
    "context contexts passage passages document documents doc docs text texts content contents body segment paragraph "
    "paragraphs article chunk chunks evidence abstract ctxs positive_ctxs".split()
)
"""What a text to answer from is called."""

_IDS = {
    "positive_document_ids": "names documents by ids of another file; write their texts, as pos and neg",
    "corpus-id": "is a line of judgements; give the BEIR folder that they belong to",
}


def to_ours(place: str, row: Row, fields: dict[str, str]) -> Row:
    """A row with its fields under our names; what has no meaning for us stays as it is.

    Args:
      fields: our name -> the path that it has, before any layout.

    Raises:
      InputError: the row has no field of such a path, has ids for documents, or has an answer and a text next to it.
    """
    if not fields and all(row.get(name) is not None for name in ("query", "document")) and row.get("title") is None:
        return row  # at once: files of pairs have the most rows
    given = tuple(name for name, value in row.items() if value is not None)
    layout = _layout(given, tuple(fields.items()))
    _refuse_doubtful(place, row, layout, fields)
    paths = (layout or {}) | fields
    found = {name: _mapped(place, row, name, path) for name, path in paths.items()}
    used = {name for path in paths.values() for name in _names(row, path)}
    ours = {name: value for name, value in row.items() if name not in used} | found
    if "documents" in fields:
        ours = {name: value for name, value in ours.items() if name not in ("pos", "neg") or value != []}
    if "pos" in found:
        ours.setdefault("neg", [])
    if ours.get("pos") is not None and isinstance(ours.get("scores"), list):
        ours |= _split(place, ours, paths.get("scores", "scores"))
    if isinstance(ours.get("document"), str) and _has_title(paths) and isinstance(ours.get("title"), str):
        ours["document"] = {"title": ours.pop("title"), "text": ours["document"]}
    if isinstance(ours.get("query"), list):
        ours |= _pairs(ours)
    for name in ("labels", "scores", "pos_scores", "neg_scores"):
        if ours.get(name) == []:
            del ours[name]
    for name, other in (("pos", "neg"), ("neg", "pos")):
        if ours.get(name) is not None and other in ours and ours[other] is None:
            ours[other] = []
    return ours


def columns(names: Sequence[str], fields: dict[str, str]) -> list[str]:
    """Which columns of a table are read: those of ours, those that become ours, and all where ours are not found."""
    layout = _layout(tuple(names), tuple(fields.items()))
    if layout is None and not _is_ours({*names, *fields}):
        return list(names)
    paths = (layout or {}) | fields
    used = {name for path in paths.values() for name in _names(names, path)} | {*_answered(names, layout or {})}
    if _has_title(paths) and ("document" in paths or "document" in names):
        used.add("title")
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
        hidden = any(name in known and name not in path.split("+") for name, path in paths.items())
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


def _refuse_doubtful(place: str, row: Row, layout: Mapping[str, str] | None, fields: Mapping[str, str]) -> None:
    """Refuses a row with ids for documents, or with an answer and a text that it may be taken from."""
    given = [name for name, value in row.items() if value is not None]
    doubtful = _answered(given, layout or {})
    if not _is_ours({*given, *fields}) and not fields.keys() & DOCUMENTS:
        for name in _IDS.keys() & given:
            if layout is None or name in doubtful:
                raise InputError(f"{place}: {name}: {_IDS[name]}")
    named = {name for path in fields.values() for name in _names(row, path)}
    for other in doubtful:
        if other in _SOURCES - named and row[other] not in ("", [], {}):
            name, path = next((name, path) for name, path in (layout or {}).items() if path in _ANSWERS)
            raise InputError(
                f"{place}: both {path} and {other}, and either may be the document; "
                f"name one in data.fields, as {name}: {other}"
            )


def _answered(names: Iterable[str], layout: Mapping[str, str]) -> list[str]:
    """The fields that make it doubtful whether an answer, which a layout takes for a document, is one."""
    if not any(path in _ANSWERS for path in layout.values()):
        return []
    return [name for name in names if name in _SOURCES or name in _IDS]


def _has_title(paths: Mapping[str, str]) -> bool:
    """Whether a `title` in the row is the document's: next to a question and its answer it may be the question's."""
    return paths.get("document") not in _ANSWERS


def _is_ours(names: Set[str]) -> bool:
    if "query" not in names or not names & {"document", "documents", "pos"}:
        return False
    # Next to other negatives, those of `neg` are not all.
    return not names.isdisjoint(("document", "documents")) or ("pos" in names and _names(names, _NEGATIVE) == ["neg"])


def _names(names: Iterable[str], path: str) -> list[str]:
    """The fields that a path begins with."""
    if path in names and ("." in path or "+" in path):
        return [path]
    found: list[str] = []
    for joined in path.split("+"):
        first = joined.partition(".")[0]
        numbered = [n for n in names if n.startswith(f"{first}_") and n.removeprefix(f"{first}_").isdecimal()]
        numbered.sort(key=lambda name: int(name.removeprefix(f"{first}_")))
        found += [name for name in (first,) if name in names] + numbered
    return found


def _at(row: Row, path: str) -> Any:
    """What a row has at a path; raises KeyError where it has nothing."""
    values = []
    for joined in [path] if _names(row, path) == [path] else path.split("+"):
        names = _names(row, joined)
        steps = [] if names == [joined] else joined.split(".")[1:]
        values += [_in(row[name], steps) for name in names]
    if not values:
        raise KeyError(path)
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


def _split(place: str, row: Row, name: str) -> Row:
    """`"scores": [3.5, -1]` of one positive and a negative -> `{"pos_scores": [3.5], "neg_scores": [-1]}`.

    Args:
      name: what the row calls its scores, for messages.
    """
    positives, negatives = (
        len(value) if isinstance(value, list) else int(value is not None) for value in (row["pos"], row.get("neg"))
    )
    scores = row.pop("scores")
    if not scores or row.get("pos_scores") is not None:
        return {}
    one_for_each(place, name, scores, "documents", positives + negatives)
    return {"pos_scores": scores[:positives], "neg_scores": scores[positives:]}


def _pairs(row: Row) -> Row:
    """`"query": ["Answer.", "q"], "pos": [["", "a"]]` -> `"instruction": "Answer.", "query": "q", "pos": ["a"]`.

    So GritLM writes them. A document has no instruction here, and its own is left out.
    """
    texts = {name: row.get(name) or [] for name in ("pos", "neg")}
    pairs = [row["query"], *(pair for name in texts for pair in texts[name])]
    if not texts["pos"] or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return {}
    instruction, query = row["query"]
    return {"instruction": instruction or None, "query": query} | {
        name: [text for _, text in of_name] for name, of_name in texts.items()
    }
