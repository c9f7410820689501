"""What the folders of an evaluation have in common: how they are made, read and known again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from prorank_jax.data.beir import Collection
from prorank_jax.data.documents import StoredDocuments
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


def texts_digest(collection: Collection) -> str:
    """A digest of the queries, the judgements and the documents."""
    documents = collection.documents
    key = documents.key if isinstance(documents, StoredDocuments) else list(documents.items())
    return digest_of([key, collection.queries, collection.qrels])
