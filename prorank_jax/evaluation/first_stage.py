"""The first stage of an evaluation: where candidates come from, and the file that they are kept in.

first_stage.trec    the candidates of a collection
first_stage.json    what they were made of; written last
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.atomic import write_atomically, writing
from prorank_jax.data.beir import Collection
from prorank_jax.data.bm25_index import ANSERINI, index_identity
from prorank_jax.data.candidates import BM25, candidates, find_run
from prorank_jax.data.runs import Run, read_run, write_run
from prorank_jax.data.words import spaceless_scripts
from prorank_jax.evaluation.folder import GO_ON, digest_of, make, read_json, texts_digest

_FILE = "first_stage.trec"
_RECORD = "first_stage.json"
_VERSION = 1


class FirstStage(NamedTuple):
    """Where candidates come from."""

    source: str = "bm25"
    """`bm25`, or a run as `candidates.candidates` takes it."""
    depth: int = 100
    """Candidates per query."""
    bm25: BM25 = ANSERINI

    def identity(self, collection: Collection) -> list[Any]:
        """What the candidates come from: how the index is made, or the bytes of the run and the split read of them.

        Raises:
          InputError: as `candidates.find_run`.
        """
        if self.source == "bm25":
            return [self.depth, index_identity(len(collection.documents), self.bm25)]
        with find_run(collection, self.source).open("rb") as file:
            return [self.depth, hashlib.file_digest(file, "sha256").hexdigest(), collection.split]

    def protocol(self, collection: Collection) -> str:
        """The first stage with its settings, and how the queries of the collection were taken apart where that is not
        by spaces: `BM25 (k1 0.9, b 0.4, title and text, character bigrams for Han)`.
        """
        if self.source != "bm25":
            return self.source
        fields = "title and text" if self.bm25.title_weight is None else f"text, title^{self.bm25.title_weight:g}"
        scripts = spaceless_scripts(collection.queries.values())
        words = f", character bigrams for {', '.join(scripts)}" if scripts else ""
        return f"BM25 (k1 {self.bm25.k1:g}, b {self.bm25.b:g}, {fields}{words})"


def kept_candidates(
    collection: Collection, first_stage: FirstStage, folder: Path, *, show_progress: bool = False
) -> Run:
    """The candidates of a collection's queries, retrieved once and kept in `folder`.

    Raises:
      InputError: as `candidates.candidates`, or the folder cannot be written.
    """
    path, record = folder / _FILE, folder / _RECORD
    made_of = {"digest": digest_of([_VERSION, first_stage.identity(collection), texts_digest(collection)])}
    make(folder)
    if read_json(record) != made_of or not path.is_file():
        found = candidates(
            collection, first_stage.source, first_stage.depth, bm25=first_stage.bm25, show_progress=show_progress
        )
        with writing(folder, GO_ON):
            record.unlink(missing_ok=True)
            write_run(path, found, tag="first-stage")
            write_atomically(record, json.dumps(made_of) + "\n")
    # Read back also where it has just been written: scores have the digits of the file either way.
    found = read_run(path)
    return {query_id: found.get(query_id, []) for query_id in collection.queries}
