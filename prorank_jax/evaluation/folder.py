"""What the folders of an evaluation have in common: how they are made, read and known again."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import StoredDocuments
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

GO_ON = "make room for it and run the command again, which goes on where it was"
"""What to do where an evaluation cannot be written."""


def make(folder: Path) -> None:
    """Raises InputError where the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give the path of a folder") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest_of(value: Any) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(value).encode("utf-8")).hexdigest()


def documents_digest(collection: Collection) -> str:
    """A digest of the documents."""
    documents = collection.documents
    return documents.key if isinstance(documents, StoredDocuments) else digest_of(list(documents.items()))


def texts_digest(collection: Collection) -> str:
    """A digest of the queries, the judgements and the documents."""
    return _with_judgements(documents_digest(collection), collection)


class Digests(NamedTuple):
    """What the candidates of a collection are known by."""

    documents: str
    texts: str
    """Of queries, judgements and documents."""
    run: str

    @classmethod
    def of(cls, collection: Collection, run: Run) -> "Digests":
        """Reads all texts of a collection that is in memory: once is enough, however many models rerank it."""
        documents = documents_digest(collection)
        return cls(documents, _with_judgements(documents, collection), digest_of(run))


def _with_judgements(documents: str, collection: Collection) -> str:
    return digest_of([documents, collection.queries, collection.qrels])
