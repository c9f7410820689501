"""A prepared collection on disk: ArrayRecord files as TFDS writes them, tables of the documents, and what they are.

    collection.json                       what the folder holds; a folder that has it is whole
    beir-corpus.array_record-00000-of-*   document_id, title and text a record, in corpus order
    beir-queries.array_record-*           query_id and text
    beir-qrels_<split>.array_record-*     query_id, document_id and score

`tfds_beir.py` writes it; `document_index.py` says what the tables are.
"""

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.data.beir import Collection, check_split, judged_collection, judged_queries
from prorank_jax.data.documents import StoredDocuments
from prorank_jax.data.qrels_files import Qrels
from prorank_jax.data.records import Records
from prorank_jax.data.tf_example import unpack
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

ABOUT = "collection.json"
VERSION = 1
TFDS_VERSION = "1.0.0"
"""Of what the builders write, which TFDS makes a part of the path."""
CORPUS, QUERIES = "corpus", "queries"


class Shard(NamedTuple):
    """An ArrayRecord file."""

    file: str
    size: int
    """Bytes."""
    records: int


Shards = tuple[Shard, ...]
"""The files of one TFDS split."""


@dataclass(frozen=True)
class PreparedCollection:
    """What a folder holds."""

    folder: Path
    name: str
    key: str
    """Hex digest of the documents."""
    corpus: Shards
    queries: Shards
    qrels: dict[str, Shards]
    """The judgements by the name of their split."""
    tables: dict[str, int]
    """The files of `document_index.py`, and their bytes."""
    places: dict[str, str]
    """The file that the judgements of a split were read from, for messages."""
    refused: dict[str, str]
    """What is wrong with the judgements of a split that could not be read."""

    def split(self, split: str) -> Collection:
        """The queries and judgements of a split, read into memory, and the documents, which stay on disk.

        Raises:
          InputError: there is no such split, its judgements are malformed, or none of them is usable.
        """
        if split in self.refused:
            raise InputError(self.refused[split])
        check_split(split, sorted(self.qrels), f"{self.name}: qrels")
        qrels: Qrels = {}
        for record in self._records(self.qrels[split]):
            query_id, document_id, score = unpack(record, "query_id", "document_id", "score")
            qrels.setdefault(query_id, {})[document_id] = score
        texts = (tuple(unpack(record, "query_id", "text")) for record in self._records(self.queries))
        queries = judged_queries(((query_id, text) for query_id, text in texts), qrels)
        return judged_collection(self.name, split, self.documents(), queries, qrels, self.places[split])

    def documents(self) -> StoredDocuments:
        return StoredDocuments(self.folder, self._records(self.corpus), self.key)

    def _records(self, shards: Shards) -> Records:
        return Records([self.folder / shard.file for shard in shards], [shard.records for shard in shards])

    def write(self) -> None:
        """Writes `collection.json`."""
        about: dict[str, Any] = {"version": VERSION} | asdict(self)
        del about["folder"]
        (self.folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_prepared(folder: Path) -> PreparedCollection | None:
    """The prepared collection in a folder; None where there is none.

    Raises:
      InputError: it is of another version, or a file of it is missing or cut short.
    """
    try:
        about = parse_json((folder / ABOUT).read_text(encoding="utf-8"))
        if about["version"] != VERSION:
            raise ValueError(about["version"])
        prepared = PreparedCollection(
            folder=folder,
            name=about["name"],
            key=about["key"],
            corpus=_shards(about["corpus"]),
            queries=_shards(about["queries"]),
            qrels={split: _shards(shards) for split, shards in about["qrels"].items()},
            tables=about["tables"],
            places=about["places"],
            refused=about.get("refused", {}),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder}: was prepared by another version of prorank_jax") from None
    shards = chain(prepared.corpus, prepared.queries, *prepared.qrels.values())
    for name, size in chain(((shard.file, shard.size) for shard in shards), prepared.tables.items()):
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise InputError(f"{folder / name}: is not the file that {ABOUT} lists")
    return prepared


def records_of(shards: Shards) -> int:
    """How many records the files have."""
    return sum(shard.records for shard in shards)


def _shards(fields: list[Any]) -> Shards:
    return tuple(Shard(*shard) for shard in fields)
