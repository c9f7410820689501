"""Documents on disk: the same mapping as one in memory, for threads and forked processes, with ids and copies."""

import json
import multiprocessing
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prorank_jax.data import document_index
from prorank_jax.data.collections import open_collection
from prorank_jax.data.document_index import DocumentIndex, IndexWriter, first_given_twice
from prorank_jax.data.documents import StoredDocuments, copies, ids_of

ROWS = [
    {"_id": "b", "title": "Bread", "text": "is baked."},
    {"_id": "a", "text": "No title."},
    {"_id": "é 1".replace(" ", "\u00a0"), "title": "Ünïcode ", "text": " 東京\nline two "},
    {"_id": "empty", "title": "", "text": ""},
    {"_id": "copy", "text": "Bread is baked."},
    {"_id": "c", "title": "Bread is", "text": "baked."},
    {"_id": "10", "text": "ten"},
]
TEXTS = {
    "b": "Bread is baked.",
    "a": "No title.",
    "é\u00a01": "Ünïcode   東京\nline two",
    "empty": "",
    "copy": "Bread is baked.",
    "c": "Bread is baked.",
    "10": "ten",
}


def write_collection(folder: Path, rows: list[dict[str, str]]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "what?"}\n')
    (folder / "qrels" / "test.tsv").write_text(f"q\t{rows[0]['_id']}\t1\n")
    return folder


def stored(folder: Path) -> StoredDocuments:
    documents = open_collection(folder, "test").documents
    assert isinstance(documents, StoredDocuments)
    return documents


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> StoredDocuments:
    return stored(write_collection(tmp_path_factory.mktemp("documents") / "made", ROWS))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StoredDocuments:
    rows = [{"_id": f"d{i}", "title": f"title {i}", "text": f"text {i % 700} " * 20} for i in range(20_000)]
    return stored(write_collection(tmp_path_factory.mktemp("many") / "made", rows))


def test_it_is_the_mapping_that_the_file_spells(documents: StoredDocuments) -> None:
    assert documents == TEXTS
    assert list(documents) == list(TEXTS) and len(documents) == 7
    assert list(documents.items()) == list(TEXTS.items())
    assert list(documents.values()) == list(TEXTS.values())
    assert {name: documents[name] for name in TEXTS} == TEXTS
    assert all(name in documents for name in TEXTS)
    assert "d" not in documents and "" not in documents and "\ud800" not in documents
    assert documents.get("d") is None
    with pytest.raises(KeyError, match="nothing"):
        documents["nothing"]


def test_titles_are_kept_apart(documents: StoredDocuments) -> None:
    assert list(documents.fields()) == [(row.get("title", ""), row["text"]) for row in ROWS]


def test_ids_by_position(documents: StoredDocuments) -> None:
    names = list(TEXTS)
    assert [documents.ids[i] for i in range(7)] == names
    assert documents.ids[-1] == "10" and documents.ids[1:3] == names[1:3]
    drawn: Any = np.arange(7)
    assert [documents.ids[i] for i in drawn] == names
    for outside in (7, -8):
        with pytest.raises(IndexError):
            documents.ids[outside]
    assert documents.positions(["c", "nothing", "b", "\ud800"]).tolist() == [5, -1, 0, -1]
    assert list(ids_of(documents)) == list(ids_of(TEXTS)) == names


@pytest.mark.parametrize("kind", ["stored", "dict"])
def test_copies(documents: StoredDocuments, kind: str) -> None:
    found = copies(documents if kind == "stored" else TEXTS, ["c", "a", "b"])
    assert found == {"c": ["b", "copy", "c"], "a": ["a"], "b": ["b", "copy", "c"]}
    with pytest.raises(KeyError):
        copies(documents, ["nothing"])


def test_the_key_changes_with_the_documents_alone(documents: StoredDocuments, tmp_path: Path) -> None:
    same = stored(write_collection(tmp_path / "same", ROWS))
    assert same.folder != documents.folder and same.key == documents.key
    # The same characters, of another title.
    moved = [{**ROWS[0], "title": "Bread is", "text": "baked."}, *ROWS[1:]]
    assert stored(write_collection(tmp_path / "moved", moved)).key != documents.key
    assert stored(write_collection(tmp_path / "swapped", [ROWS[1], ROWS[0], *ROWS[2:]])).key != documents.key


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes only say where to look."""
    monkeypatch.setattr(document_index, "_hash", lambda raw: 1)
    documents = stored(write_collection(tmp_path / "made", ROWS))
    assert documents == TEXTS
    assert documents.positions(["a", "b", "c", "d"]).tolist() == [1, 0, 5, -1]
    assert copies(documents, ["a", "b"]) == {"a": ["a"], "b": ["b", "copy", "c"]}


@pytest.mark.parametrize("colliding", [False, True])
def test_an_id_given_twice_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colliding: bool) -> None:
    if colliding:
        monkeypatch.setattr(document_index, "_hash", lambda raw: 1)

    def first(ids: str) -> int | None:
        writer = IndexWriter(tmp_path)
        for name in ids:
            writer.add(name, "", "text")
        writer.finish()
        return first_given_twice(tmp_path)

    assert first("abcdef") is None
    assert first("a") is None
    # "c" comes again before "a" does.
    assert first("abccba") == 3
    assert first("abcdea") == 5


def test_threads_read_at_once(many: StoredDocuments) -> None:
    """Also where one is interrupted between finding a record and reading it."""

    def read(seed: int) -> list[int]:
        numbers = random.Random(seed).sample(range(20_000), 3_000)
        return [i for i in numbers if many[f"d{i}"] != f"title {i} " + (f"text {i % 700} " * 20).strip()]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(read, range(8))) == [[]] * 8
    finally:
        sys.setswitchinterval(interval)


# JAX warns of every fork; the child here does not use it.
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_process_reads_too(many: StoredDocuments) -> None:
    """Even where another thread was reading, and held the lock, when the process was forked."""
    expected = many["d7"]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    (lock,) = many._records._locks
    with lock:
        process = context.Process(target=lambda: sender.send(many["d7"]), daemon=True)
        process.start()
    assert receiver.poll(20) and receiver.recv() == expected
    process.join()


def test_a_document_is_read_quickly(many: StoredDocuments) -> None:
    names = [f"d{i}" for i in random.Random(1).sample(range(20_000), 2_000)]
    many["d0"]

    def microseconds() -> float:
        started = time.perf_counter()
        for name in names:
            many[name]
        return (time.perf_counter() - started) / len(names) * 1e6

    # 20 on one core; by the data source of grain, 200.
    assert min(microseconds() for _ in range(3)) < 100


def test_what_is_read_is_not_kept(many: StoredDocuments) -> None:
    """The texts are 4 MB, and ten times as many cost no more memory."""
    list(many.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        assert sum(map(len, many.values())) > 3e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000  # KiB


def test_copies_in_a_real_collection_are_those_of_its_texts(shared: Path) -> None:
    from prorank_jax.data.beir import read_beir

    expected = read_beir(shared / "data" / "nfcorpus", "dev")
    found = open_collection(shared / "data" / "nfcorpus", "dev").documents
    names = list(expected.documents)
    assert copies(found, names) == copies(expected.documents, names)
    assert sum(len(of_text) > 1 for of_text in copies(found, names).values()) > 20
    assert isinstance(found, StoredDocuments) and DocumentIndex(found.folder).ids[0] == names[0]
