"""The documents of a prepared collection, read from disk by id: no memory that grows with their number."""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path

from prorank_jax.data.beir_files import full_text
from prorank_jax.data.document_index import DocumentIndex
from prorank_jax.data.records import Records
from prorank_jax.data.tf_example import unpack


class StoredDocuments(Mapping[str, str]):
    """Document id -> `(title + " " + text).strip()`, in corpus order, for any number of threads."""

    def __init__(self, folder: Path, records: Records, key: str) -> None:
        self.folder = folder
        self.key = key
        """Hex digest that changes when the documents do; names caches of what is made of them."""
        self._records = records
        self._index = DocumentIndex(folder)

    @property
    def ids(self) -> Sequence[str]:
        """The ids by position in the corpus."""
        return self._index.ids

    def __getitem__(self, document_id: str) -> str:
        position = self._position(document_id)
        if position is None:
            raise KeyError(document_id)
        return full_text(*unpack(self._records[position], "title", "text"))

    def __contains__(self, document_id: object) -> bool:
        return isinstance(document_id, str) and self._position(document_id) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def items(self) -> ItemsView[str, str]:
        """Read one after another, which is quicker than by id."""
        return _Items(self)

    def values(self) -> ValuesView[str]:
        """As `items`."""
        return _Values(self)

    def fields(self) -> Iterator[tuple[str, str]]:
        """Title and text of each document, in corpus order."""
        for record in self._records:
            title, text = unpack(record, "title", "text")
            yield title, text

    def positions(self, ids: Iterable[str]) -> list[int | None]:
        """The position of each in the corpus, from 0; None where it is not there."""
        return [self._position(document_id) for document_id in ids]

    def copies(self, ids: Iterable[str]) -> dict[str, list[str]]:
        """As the function `copies`, without reading what has none."""
        names = list(ids)
        positions = dict(zip(names, self.positions(names), strict=True))
        found = {position: self.ids[position] for position in positions.values() if position is not None}
        alike = self._index.same_hash(list(found))
        copies = {}
        for name, position in positions.items():
            if position is None:
                raise KeyError(name)
            copies[name] = [name]
            if position in alike:
                text = self[name]
                copies[name] = [other for other in map(self.ids.__getitem__, alike[position]) if self[other] == text]
        return copies

    def _position(self, document_id: str) -> int | None:
        return self._index.position(document_id)


def ids_of(documents: Mapping[str, str]) -> Sequence[str]:
    """The ids by position in the corpus."""
    return documents.ids if isinstance(documents, StoredDocuments) else tuple(documents)


def copies(documents: Mapping[str, str], ids: Iterable[str]) -> dict[str, list[str]]:
    """Of each of the documents: those of the same text, itself among them, in corpus order.

    Collections hold the same text more than once: 40 times in NFCorpus.

    Raises:
      KeyError: a document is not there.
    """
    if isinstance(documents, StoredDocuments):
        return documents.copies(ids)
    names = list(ids)
    of_text: dict[str, list[str]] = {documents[name]: [] for name in names}
    for document_id, text in documents.items():
        if text in of_text:
            of_text[text].append(document_id)
    return {name: of_text[documents[name]] for name in names}


class _Items(ItemsView[str, str]):
    _mapping: StoredDocuments

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self._mapping.ids, _texts(self._mapping), strict=True)


class _Values(ValuesView[str]):
    _mapping: StoredDocuments

    def __iter__(self) -> Iterator[str]:
        return _texts(self._mapping)


def _texts(documents: StoredDocuments) -> Iterator[str]:
    return (full_text(title, text) for title, text in documents.fields())
