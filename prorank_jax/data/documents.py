"""The documents of a prepared collection, read from disk by id: no memory that grows with their number."""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path

import numpy as np

from prorank_jax.data.beir_files import full_text
from prorank_jax.data.document_index import NOWHERE, DocumentIndex
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

    def positions(self, ids: Iterable[str]) -> np.ndarray:
        """As the function `positions_of`."""
        return self._index.positions(ids)

    def copies(self, positions: np.ndarray) -> dict[int, list[int]]:
        """As the function `copies_of`, without reading what has none."""
        copies = {}
        for position, alike in self._index.same_hash(positions).items():
            text = self[self.ids[position]]
            same = [other for other in alike.tolist() if self[self.ids[other]] == text]
            if len(same) > 1:
                copies[position] = same
        return copies

    def _position(self, document_id: str) -> int | None:
        return self._index.position(document_id)


def ids_of(documents: Mapping[str, str]) -> Sequence[str]:
    """The ids by position in the corpus."""
    return documents.ids if isinstance(documents, StoredDocuments) else tuple(documents)


def positions_of(documents: Mapping[str, str], ids: Iterable[str]) -> np.ndarray:
    """The position of each in the corpus, from 0; -1 where the corpus lacks it: int32 [ids]."""
    if isinstance(documents, StoredDocuments):
        return documents.positions(ids)
    every = {document_id: position for position, document_id in enumerate(documents)}
    return np.array([every.get(document_id, NOWHERE) for document_id in ids], np.int32)


def copies_of(documents: Mapping[str, str], positions: np.ndarray) -> dict[int, list[int]]:
    """Of those documents whose text others have, too: the positions of all that have it, in corpus order.

    Collections hold the same text more than once: 40 times in NFCorpus.

    Args:
      positions: of documents in the corpus.
    """
    if isinstance(documents, StoredDocuments):
        return documents.copies(positions)
    texts = list(documents.values())
    of_text: dict[str, list[int]] = {texts[position]: [] for position in positions.tolist()}
    for position, text in enumerate(texts):
        if text in of_text:
            of_text[text].append(position)
    return {position: same for position in positions.tolist() if len(same := of_text[texts[position]]) > 1}


def copies(documents: Mapping[str, str], ids: Iterable[str]) -> dict[str, list[str]]:
    """Of each of the documents: those of the same text, itself among them, in corpus order.

    Raises:
      KeyError: a document is not there.
    """
    names = list(ids)
    positions = positions_of(documents, names)
    if NOWHERE in positions:
        raise KeyError(names[positions.tolist().index(NOWHERE)])
    every, found = ids_of(documents), copies_of(documents, positions)
    return {
        name: [every[other] for other in found.get(position, [position])]
        for name, position in zip(names, positions.tolist(), strict=True)
    }


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
