"""Runs that are objects of objects, of JSON or packed.

{query: {document: score}}                                 ranx, BEIR and mteb
{subset: {split: {query: {document: score}}}}              mteb's predictions, also without the subset
{"split": ..., "search_results": {query: {document: score}}}   FlagEmbedding's search results
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.data.lines import shown
from prorank_jax.data.run_entries import Entry, entry, identifier, number
from prorank_jax.errors import InputError

_OBJECTS = 'write {"query": {"document": score}}'
_UNKNOWN = f"{_OBJECTS}, or convert it by ranx (`Run(...).save(...)`)"
_ABOUT = "mteb_model_meta"
"""What mteb writes next to the predictions."""
_RESULTS = "search_results"
_SHOWN = 5


class Objects(NamedTuple):
    """What an object is in a format."""

    type: type
    items: Callable[[Any], Iterable[Any]]
    """The keys and values of one."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, self.type)

    def inside(self, content: Any) -> list[tuple[str, Any]]:
        """The values of an object that are objects, with their keys."""
        return [(str(key), value) for key, value in self.items(content) if value in self]


def nested(path: Path, content: Any, split: str | None, objects: Objects) -> Iterator[Entry]:
    """The entries of an object of objects.

    Args:
      split: whose entries to read where there are those of several.

    Raises:
      InputError: it is nested otherwise, has no entry, or has none of the split.
    """
    if content not in objects:
        raise InputError(f"{path}: {shown(content)} is not an object of queries; {_UNKNOWN}")
    name, content = _of_split(path, content, split, objects)
    queries: dict[str, None] = {}
    empty = True
    for query_id, documents in objects.items(content):
        place = f"{path}: query {shown(query_id)}"
        identifier(place, query_id)
        if query_id in queries:
            raise InputError(f"{place}: stands twice; keep one of them")
        queries[query_id] = None
        if documents not in objects:
            raise InputError(f"{place}: {shown(documents)} is not an object of documents; {_UNKNOWN}")
        for document_id, score in objects.items(documents):
            empty = False
            yield entry(place, query_id, document_id, number(f"{place}: document {shown(document_id)}", score))
    if empty and queries:
        first = shown(next(iter(queries)))
        raise InputError(
            f"{path}: is empty: none of the {len(queries)} queries of {name} has a document (first: {first}); "
            f"{_OBJECTS}"
        )
    if empty:
        raise InputError(f"{path}: is empty: {name} has no query; {_OBJECTS}")


def _of_split(path: Path, content: Any, split: str | None, objects: Objects) -> tuple[str, Any]:
    """The queries of the split, and what they are called in the file; the content itself where it has no splits."""
    fields = dict(objects.items(content))
    if "split" in fields and fields["split"] not in objects and fields.get(_RESULTS) in objects:
        if split not in (None, fields["split"]):
            raise InputError(
                f"{path}: split={shown(fields['split'])}: are search results of another split than {split!r}; give "
                "those of this split"
            )
        return _RESULTS, fields[_RESULTS]
    found = [("", objects.type(pair for pair in objects.items(content) if pair[0] != _ABOUT))]
    depth = 0
    while any(_is_split(value, objects) for _, value in found):
        if depth == 2:
            raise InputError(f"{path}: {shown(content)} is nested too deep; {_UNKNOWN}")
        found = [(f"{name}/{key}" if name else key, of_key) for name, of in found for key, of_key in objects.inside(of)]
        depth += 1
    if depth == 0:
        return "it", found[0][1]
    wanted = [(name, value) for name, value in found if split is None or name.rpartition("/")[2] == split]
    if not wanted:
        raise _no_split(path, content, split, found, depth, objects)
    if len(wanted) > 1:
        raise InputError(f"{path}: has the predictions of {_listed(wanted)}; keep one of them in a file")
    return wanted[0]


def _is_split(content: Any, objects: Objects) -> bool:
    """Whether an object has objects three deep, where queries have scores."""
    return any(objects.inside(documents) for _, documents in objects.inside(content))


def _no_split(
    path: Path, content: Any, split: str | None, found: list[tuple[str, Any]], depth: int, objects: Objects
) -> InputError:
    if not _has_values(objects.type(found), objects):
        return InputError(f"{path}: is empty: it has no query; {_OBJECTS}")
    for key, value in objects.items(content):
        if value not in objects:
            return InputError(f"{path}: {key}={shown(value)}: is not an object of documents; {_UNKNOWN}")
    if depth == 1 and _ABOUT not in dict(objects.items(content)):
        return InputError(
            f"{path}: is nested three deep, and none of {_listed(found)} is the split {split!r}; give the predictions "
            f"of this split, or {_UNKNOWN}"
        )
    return InputError(
        f"{path}: has the predictions of {_listed(found)}, none of the split {split!r}; give those of this split, or "
        "give them its name"
    )


def _has_values(content: Any, objects: Objects) -> bool:
    """Whether anything in an object is no object."""
    return any(value not in objects or _has_values(value, objects) for _, value in objects.items(content))


def _listed(found: list[tuple[str, Any]]) -> str:
    names = [name for name, _ in islice(found, _SHOWN)]
    return ", ".join(names + ["..."] * (len(found) > _SHOWN))
