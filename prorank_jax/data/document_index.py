"""Which documents a prepared collection has: tables on disk beside the documents, mapped into memory when used.

    ids.bin      the ids one behind another, as UTF-8
    ends.npy     where each begins in it, and the last ends; uint64 [documents + 1]
    hashes.npy   64-bit hashes of the ids, rising; uint64 [documents]
    order.npy    the position of the document of each hash; uint32 [documents]
    texts.npy    64-bit hashes of the documents' texts by position; uint64 [documents]

A hash only says where to look: ids and texts are compared themselves before two count as one.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np

from prorank_jax.data.beir_files import full_text

_IDS = "ids.bin"
_AT_A_TIME = 1 << 16
"""Ids that are looked up at a time."""
NOWHERE = -1
"""The position of a document that is not in the corpus."""
TABLES = (_IDS, "ends.npy", "hashes.npy", "order.npy", "texts.npy")


class Ids(Sequence[str]):
    """The ids by position, none of them held in memory."""

    def __init__(self, folder: Path) -> None:
        self._bytes = _mapped(folder, _IDS)
        self._ends = _mapped(folder, "ends.npy")

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self._bytes[int(self._ends[position]) : int(self._ends[position + 1])].tobytes().decode("utf-8")

    def at(self, positions: np.ndarray) -> list[bytes]:
        """The ids at these positions, as UTF-8."""
        begins, ends = self._ends[positions].tolist(), self._ends[positions + 1].tolist()
        return [self._bytes[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 4096):
            ends = self._ends[first : first + 4097].tolist()
            block = self._bytes[ends[0] : ends[-1]].tobytes()
            for start, end in zip(ends, ends[1:], strict=False):
                yield block[start - ends[0] : end - ends[0]].decode("utf-8")


class DocumentIndex:
    """Positions by id, and copies of a text."""

    def __init__(self, folder: Path) -> None:
        self.ids = Ids(folder)
        self._hashes = _mapped(folder, "hashes.npy")
        self._order = _mapped(folder, "order.npy")
        self._texts = _mapped(folder, "texts.npy")

    def position(self, document_id: str) -> int | None:
        """Where a document is in the corpus, from 0; None where it is not."""
        wanted = np.uint64(_hash(_raw(document_id)))
        place = int(self._hashes.searchsorted(wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            position = int(self._order[place])
            if self.ids[position] == document_id:
                return position
            place += 1
        return None

    def positions(self, ids: Iterable[str]) -> np.ndarray:
        """The same for many ids, `NOWHERE` for those that the corpus lacks: int32 [ids]."""
        names = iter(ids)
        found = [np.zeros(0, np.int32)]
        while some := list(islice(names, _AT_A_TIME)):
            found.append(self._positions(some))
        return np.concatenate(found)

    def _positions(self, ids: list[str]) -> np.ndarray:
        raw = [_raw(document_id) for document_id in ids]
        wanted = np.array([_hash(one) for one in raw], np.uint64)
        places = np.minimum(self._hashes.searchsorted(wanted), len(self._hashes) - 1)
        found = np.flatnonzero(self._hashes[places] == wanted)
        positions = np.full(len(ids), NOWHERE, np.int32)
        positions[found] = self._order[places[found]]
        # A hash is of one id, but for one in 10^19.
        for place, stored in zip(found.tolist(), self.ids.at(positions[found]), strict=True):
            if stored != raw[place]:
                position = self.position(ids[place])
                positions[place] = NOWHERE if position is None else position
        return positions

    def same_hash(self, positions: np.ndarray) -> dict[int, np.ndarray]:
        """Of those documents that may share their text with another: the positions of all that may have it."""
        wanted, counts = np.unique(self._texts[positions.astype(np.int64)], return_inverse=True)
        found = np.flatnonzero(np.isin(self._texts, wanted))
        hashes = self._texts[found]
        by_hash = np.argsort(hashes, kind="stable")
        starts = np.searchsorted(hashes[by_hash], wanted, side="left")
        stops = np.searchsorted(hashes[by_hash], wanted, side="right")
        several = stops[counts] - starts[counts] > 1
        return {
            position: found[by_hash[starts[group] : stops[group]]]
            for position, group in zip(positions[several].tolist(), counts[several].tolist(), strict=True)
        }


class IndexWriter:
    """Writes the tables; 24 bytes a document are held until all are added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids = (folder / _IDS).open("wb")
        self._ends, self._hashes, self._texts = array("Q", [0]), array("Q"), array("Q")
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document_id: str, title: str, text: str) -> None:
        """The next document, in corpus order."""
        raw = document_id.encode("utf-8")
        self._ends.append(self._ends[-1] + self._ids.write(raw))
        self._hashes.append(_hash(raw))
        self._texts.append(_hash(full_text(title, text).encode("utf-8")))
        for value in (raw, title.encode("utf-8"), text.encode("utf-8")):
            self._digest.update(len(value).to_bytes(8, "little") + value)

    def finish(self) -> str:
        """Writes what was held; returns a hex digest of all that was added."""
        self.close()
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        np.save(self._folder / "ends.npy", np.frombuffer(self._ends, np.uint64))
        np.save(self._folder / "hashes.npy", hashes[order])
        np.save(self._folder / "order.npy", order.astype(np.uint32))
        np.save(self._folder / "texts.npy", np.frombuffer(self._texts, np.uint64))
        return self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file that is written; tables that were not finished are of no use."""
        self._ids.close()


def first_given_twice(folder: Path) -> int | None:
    """The position of the first document whose id one before it has; None where all ids differ."""
    ids, hashes, order = Ids(folder), _mapped(folder, "hashes.npy"), _mapped(folder, "order.npy")
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    seen: set[str] = set()
    repeated = []
    # Where hashes are equal, positions rise.
    for place in np.union1d(equal, equal + 1):
        document_id = ids[int(order[place])]
        if document_id in seen:
            repeated.append(int(order[place]))
        seen.add(document_id)
    return min(repeated, default=None)


def _raw(document_id: str) -> bytes:
    # JSON can spell lone surrogates, which no id of a corpus has: what is asked for may be any string.
    return document_id.encode("utf-8", "surrogatepass")


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _mapped(folder: Path, name: str) -> np.ndarray:
    path = folder / name
    mapped = np.memmap(path, np.uint8, "r") if name == _IDS else np.load(path, mmap_mode="r")
    return mapped.view(np.ndarray)
