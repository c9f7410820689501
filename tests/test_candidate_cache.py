"""Candidates in the cache: retrieved once for all who need them, resumed where they were interrupted, never stale."""

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prorank_jax.atomic import alone
from prorank_jax.cache import VARIABLE
from prorank_jax.config import DataConfig, DevConfig
from prorank_jax.data import bm25, bm25_index
from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.candidate_table import Candidates
from prorank_jax.data.candidates import BM25, candidates, open_candidates
from prorank_jax.data.collections import open_collection
from prorank_jax.data.mixture import Mixture, open_mixture
from prorank_jax.data.part import Part
from prorank_jax.data.runs import Run, read_run, write_run
from prorank_jax.data.stream import groups
from prorank_jax.errors import InputError
from prorank_jax.evaluation.development import Development
from prorank_jax.evaluation.first_stage import FirstStage, kept_candidates

QUERIES = 30
WORDS = [f"w{letter}" for letter in "abcdefghijklmnopqrst"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_collection(folder: Path, queries: int = QUERIES, documents: int = 80) -> Path:
    """Short texts of few words, so that scores tie; a query may have the id of a document, or no word."""
    rng = np.random.default_rng(0)
    text = lambda most: " ".join(rng.choice(WORDS, rng.integers(0, most)))  # noqa: E731
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "text": text(9)} for i in range(documents)]
    asked = [{"_id": f"d{i}" if i % 5 == 0 else f"q{i}", "text": text(5)} for i in range(queries)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = "".join(f"{row['_id']}\td{(i + 1) % documents}\t1\n" for i, row in enumerate(asked))
    (folder / "qrels" / "train.tsv").write_text(judged)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "made")


@pytest.fixture
def collection(folder: Path) -> Collection:
    return open_collection(folder, "train")


@pytest.fixture
def retrieved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries are retrieved, at each time that some are."""
    counts: list[int] = []
    retrieve = bm25.retrieve

    def counted(index: bm25_index.Index, queries: list[list[int]], *rest: Any, **options: Any) -> Iterator[bm25.Best]:
        counts.append(len(queries))
        return retrieve(index, queries, *rest, **options)

    monkeypatch.setattr(bm25, "retrieve", counted)
    return counts


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Queries that are retrieved and written at a time."""
    monkeypatch.setattr(bm25, "QUERIES_OF_A_TABLE", 7)
    return 7


def mixture_of(folder: Path, **settings: Any) -> Mixture:
    return open_mixture(DataConfig(path=str(folder), **settings), folder)


def in_memory(collection: Collection) -> Collection:
    return dataclasses.replace(collection, documents=dict(collection.documents))


def test_training_development_mining_and_evaluation_retrieve_once(
    folder: Path, tmp_path: Path, retrieved: list[int], prorank: Callable[..., tuple[int, str, str]]
):
    first = groups(mixture_of(folder).sources, [1.0], 0, 4)[3]
    assert retrieved == [QUERIES]
    assert groups(mixture_of(folder).sources, [1.0], 0, 4)[3] == first
    dev = Development.open(DevConfig(split="train", queries=None), str(folder), lambda params: pytest.fail("unused"))
    code, told, _ = prorank("data", "mine", "--data", folder, "--out", tmp_path / "mined.jsonl")
    assert code == 0 and f"{QUERIES} queries: " in told
    collection = open_collection(folder, "train")
    run = kept_candidates(collection, FirstStage(), tmp_path / "evaluation")
    assert retrieved == [QUERIES]
    assert {query: [name for name, _ in ranking][:30] for query, ranking in run.items()} == {
        query: [name for name, _ in ranking] for query, ranking in dev.run.items()
    }


def test_candidates_are_made_ahead_of_training(
    folder: Path, retrieved: list[int], prorank: Callable[..., tuple[int, str, str]]
):
    code, told, _ = prorank("data", "prepare", folder, "--split", "train", "--depth", 20)
    assert code == 0 and f"made/train: candidates of {QUERIES} queries; " in told
    assert retrieved == [QUERIES]
    mixture_of(folder, depth=20)
    assert retrieved == [QUERIES]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["made", "--depth", 20], "--depth=20: is of the candidates of a split; name the split in --split"),
        (["made", "--first-stage", "x"], "--first-stage=x: is of the candidates of a split; name the split in --split"),
        (["rows.jsonl", "--split", "train"], "--split=train: is for collections, and rows.jsonl is none; leave it out"),
        (["made", "--split", "dev"], "qrels: no split 'dev'; the splits are train"),
    ],
)
def test_a_split_that_has_no_meaning_is_refused(
    folder: Path,
    options: list[Any],
    told: str,
    prorank: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(folder.parent)
    code, _, error = prorank("data", "prepare", *options)
    assert code == 2 and told in error and error.count("\n") == 1


def test_what_is_cached_is_what_is_retrieved(collection: Collection, slices: int):
    expected = candidates(in_memory(collection), "bm25", 100)
    assert candidates(collection, "bm25", 100) == candidates(collection, "bm25", 100) == expected
    found = open_candidates(collection, "bm25", 100)
    assert found.positions.dtype == np.int32 and found.scores.dtype == np.float32
    assert list(found) == list(collection.queries) and len(found) == QUERIES
    assert all(query_id not in dict(ranking) for query_id, ranking in expected.items())
    assert any(ranking == [] for ranking in expected.values()) and "none" not in found


def test_a_smaller_depth_is_read_from_a_deeper_table(collection: Collection, retrieved: list[int], cache: Path):
    for depth, times in [(10, 1), (3, 1), (10, 1), (40, 2), (25, 2), (3, 2)]:
        expected = bm25.bm25_run(in_memory(collection), depth)
        retrieved.pop()
        assert candidates(collection, "bm25", depth) == expected
        assert len(retrieved) == times
    assert sorted(path.name for path in cache.glob("candidates/*/*")) == ["lock", "top10.npy", "top40.npy"]


def test_other_queries_settings_and_versions_have_candidates_of_their_own(
    collection: Collection, folder: Path, retrieved: list[int], monkeypatch: pytest.MonkeyPatch
):
    few = collection.only(list(collection.queries)[3:9])
    reworded = dataclasses.replace(collection, queries=dict.fromkeys(collection.queries, "wa wb"))
    swapped = dataclasses.replace(collection, queries=dict(reversed(collection.queries.items())))
    for number, other in enumerate([collection, few, reworded, swapped], start=1):
        for _ in range(2):
            assert candidates(other, "bm25", 5) == bm25.bm25_run(in_memory(other), 5)
            retrieved.pop()
        assert len(retrieved) == number
    assert candidates(collection, "bm25", 5, bm25=BM25(k1=2.0)) != candidates(collection, "bm25", 5)
    assert len(retrieved) == 5
    # As it is raised where texts are taken apart in another way.
    monkeypatch.setattr(bm25_index, "_VERSION", bm25_index._VERSION + 1)
    candidates(collection, "bm25", 5)
    assert len(retrieved) == 6
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "new", "text": "wa wa wa wa"}\n')
    assert candidates(open_collection(folder, "train"), "bm25", 5) != candidates(collection, "bm25", 5)
    assert len(retrieved) == 7


class Killed(BaseException):
    """What no code on the way catches."""


def interrupt(collection: Collection, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ends the work once so many tables are retrieved."""
    counts: list[int] = []
    retrieve = bm25.retrieve

    def killed(*arguments: Any, **options: Any) -> Iterator[bm25.Best]:
        counts.append(1)
        if len(counts) > after:
            raise Killed
        return retrieve(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bm25, "retrieve", killed)
        with pytest.raises(Killed):
            candidates(collection, "bm25", 20)


def test_interrupted_work_is_resumed_after_its_last_slice(
    collection: Collection,
    retrieved: list[int],
    slices: int,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    expected = candidates(in_memory(collection), "bm25", 20)
    retrieved.clear()
    interrupt(collection, monkeypatch, after=2)
    (part,) = cache.glob("candidates/*/top20.npy.part")
    with part.open("ab") as file:
        file.write(b"half a slice")
    capsys.readouterr()
    assert dict(open_candidates(collection, "bm25", 20, show_progress=True)) == expected
    assert capsys.readouterr().err.splitlines()[0].startswith("retrieving ")
    assert retrieved == [7, 7] + [7, 7, 2]
    assert sorted(path.name for path in part.parent.iterdir()) == ["lock", "top20.npy"]


@pytest.mark.parametrize("damage", ["no record", "another record", "a short file", "no file"])
def test_what_cannot_be_resumed_is_begun_again(
    collection: Collection, slices: int, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
):
    expected = candidates(in_memory(collection), "bm25", 20)
    interrupt(collection, monkeypatch, after=3)
    (part,) = cache.glob("candidates/*/*.part")
    record = part.with_name(f"{part.name}.json")
    if damage == "no record":
        record.unlink()
    elif damage == "another record":
        record.write_text(record.read_text().replace('"version"', '"other"'))
    elif damage == "a short file":
        part.write_bytes(part.read_bytes()[:-1])
    else:
        part.unlink()
    assert candidates(collection, "bm25", 20) == candidates(collection, "bm25", 20) == expected
    assert not list(cache.glob("candidates/*/*.part*"))


def test_a_damaged_table_is_made_again(collection: Collection, retrieved: list[int], cache: Path):
    expected = candidates(collection, "bm25", 20)
    (table,) = cache.glob("candidates/*/top20.npy")
    for number, content in enumerate([table.read_bytes()[:-1], b""], start=2):
        table.write_bytes(content)
        assert candidates(collection, "bm25", 20) == expected
        assert len(retrieved) == number


def test_one_retrieves_while_another_waits(
    collection: Collection, retrieved: list[int], cache: Path, capsys: pytest.CaptureFixture[str]
):
    expected = candidates(collection, "bm25", 20)
    (table,) = cache.glob("candidates/*/top20.npy")
    with ThreadPoolExecutor(1) as pool:
        with alone(table.parent):
            # What is there is read without the lock.
            assert candidates(collection, "bm25", 20) == expected
            table.rename(table.with_name("aside"))
            waiting = pool.submit(candidates, collection, "bm25", 20)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            table.with_name("aside").rename(table)
        assert waiting.result(30) == expected and len(retrieved) == 1
    told = f"made/train: candidates: waiting for another process, which is at work in {table.parent}\n"
    assert capsys.readouterr().err == told


def test_a_cache_that_cannot_be_written_is_refused(collection: Collection, cache: Path):
    bm25_index.open_index(collection.documents, BM25(), "made")
    (cache / "candidates").write_text("in the way")
    with pytest.raises(InputError, match=r"candidates/.*: the candidates cannot be kept there \(.*\); free space, or"):
        candidates(collection, "bm25", 20)


def test_a_full_disk_is_refused_in_one_line(collection: Collection, monkeypatch: pytest.MonkeyPatch):
    bm25_index.open_index(collection.documents, BM25(), "made")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(InputError, match=r"top20.npy.part.*: cannot be written \(No space left on device\); make"):
            candidates(collection, "bm25", 20)
    assert candidates(collection, "bm25", 20) == candidates(in_memory(collection), "bm25", 20)


def test_a_source_holds_no_object_for_each_candidate(tmp_path: Path):
    """400 queries with 100 candidates each: ids and scores in Python would be 144 bytes each, 5.8 MB."""
    folder = write_collection(tmp_path / "many", 400, 300)
    mixture_of(folder)
    tracemalloc.start()
    try:
        mixture = mixture_of(folder)
        assert len(mixture.sources[0]) == 400
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# Run files.


def test_a_run_file_is_read_once_for_its_bytes(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.trec"
    write_run(path, bm25.bm25_run(collection, 20), tag="x")
    expected = candidates(collection, str(path), 20)
    with monkeypatch.context() as patch:
        patch.setattr("prorank_jax.data.run_candidates.entries", lambda *_: pytest.fail("read again"))
        assert candidates(collection, str(path), 20) == expected
        assert candidates(collection, str(path), 4) == {query: found[:4] for query, found in expected.items()}
    path.write_text(path.read_text().replace(" Q0 d7 ", " Q0 d8x ").replace(" Q0 d8 ", " Q0 d7 ").replace("d8x", "d8"))
    assert candidates(collection, str(path), 20) == as_read(path, 20, collection) != expected


def test_a_run_file_whose_table_was_not_named_yet_is_resumed(
    collection: Collection, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.trec"
    write_run(path, bm25.bm25_run(collection, 20), tag="x")

    def killed(part: Part) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Part, "finish", killed)
        with pytest.raises(Killed):
            candidates(collection, str(path), 20)
    assert candidates(collection, str(path), 20) == as_read(path, 20, collection)


def as_read(path: Path, depth: int, collection: Collection) -> Run:
    found = read_run(path, depth, collection)
    return {query_id: found.get(query_id, []) for query_id in collection.queries}


@pytest.mark.parametrize("depth", [1, 5, 1000])
@pytest.mark.parametrize("scores", ["single", "double"])
def test_a_run_file_gives_what_read_run_gives(collection: Collection, tmp_path: Path, depth: int, scores: str):
    """Queries in pieces and out of order, ties of score and of rank, queries of another split, the query itself."""
    rng = np.random.default_rng(1)
    lines = []
    for query_id in [*collection.queries, "another"]:
        for name in rng.choice(80, int(rng.integers(1, 30)), replace=False):
            score = float(rng.integers(-3, 4)) / (1 if scores == "single" else 3)
            lines.append(f"{query_id} Q0 d{name} {rng.integers(1, 4)} {score!r} x\n")
    path = tmp_path / "run.trec"
    path.write_text("".join(lines[i] for i in rng.permutation(len(lines))))
    for asked in (collection, in_memory(collection)):
        assert candidates(asked, str(path), depth) == as_read(path, depth, asked)
    found = open_candidates(collection, str(path), depth)
    assert found.scores.dtype == (np.float32 if scores == "single" else np.float64)


def test_a_run_file_of_several_splits_is_read_for_each(folder: Path, tmp_path: Path):
    """The splits have the same queries, as multilingual sets have."""
    (folder / "qrels" / "dev.tsv").write_bytes((folder / "qrels" / "train.tsv").read_bytes())
    path = tmp_path / "predictions.json"
    splits = {"dev": {"q1": {"d1": 2.0, "d2": 1.0}}, "train": {"q1": {"d2": 2.0, "d1": 1.0}}}
    path.write_text(json.dumps({"default": splits}))
    for split in ("dev", "train"):
        expected = list(splits[split]["q1"].items())
        collection = open_collection(folder, split)
        assert candidates(collection, str(path), 10)["q1"] == expected
        assert kept_candidates(collection, FirstStage(str(path), 10), tmp_path / "out")["q1"] == expected


def test_candidates_of_another_bm25_are_not_kept(
    collection: Collection, tmp_path: Path, retrieved: list[int], monkeypatch: pytest.MonkeyPatch
):
    for asked in (collection, in_memory(collection)):
        retrieved.clear()
        for _ in range(2):
            kept_candidates(asked, FirstStage(), tmp_path / "out")
        with monkeypatch.context() as patched:
            patched.setattr(bm25_index, "_VERSION", bm25_index._VERSION + 1)
            kept_candidates(asked, FirstStage(), tmp_path / "out")
        assert retrieved == [QUERIES, QUERIES]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "q1 Q0 d1 1 2 x\nq1 Q0 d2 2 1 x\nq2 Q0 d1 1 1 x\nq1 Q0 d1 3 0.5 x\n",
            r"run.trec:4: document 'd1' stands twice",
        ),
        ("q1 Q0 d1 1 2 x\nq2 Q0 no 2 1 x\n", r"run.trec:2: document 'no' is not in made; use a run of this collection"),
        ("", r"run.trec: is empty; "),
        ("q1 Q0 d1 1 2\n", r"run.trec:1: .* has 5 columns"),
        ("other Q0 d1 1 2 x\n", r"made/train: no candidates for any of its 30 queries \(first: 'd0'\)"),
    ],
)
def test_a_bad_run_file_is_refused_each_time(collection: Collection, tmp_path: Path, text: str, told: str):
    path = tmp_path / "run.trec"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(InputError, match=told):
            candidates(collection, str(path), 10)


def test_a_document_that_no_corpus_can_hold_is_refused(collection: Collection, tmp_path: Path):
    path = tmp_path / "run.json"
    path.write_text('{"q1": {"\\ud800": 1.0}}')
    with pytest.raises(InputError, match=r"run.json: query 'q1': document '.ud800' is not in made; use a run of"):
        candidates(collection, str(path), 10)


def test_a_source_of_a_run_that_names_an_unknown_document_is_refused(collection: Collection):
    with pytest.raises(KeyError, match="unknown"):
        Candidates.of_run(collection, {"q1": [("d1", 2.0), ("unknown", 1.0)]})


def test_real_runs_are_those_that_read_run_gives(shared: Path):
    folder = shared / "data" / "nfcorpus"
    collection = open_collection(folder, "dev")
    path = folder / "runs" / "bm25s.dev.top100.trec"
    expected = as_read(path, 100, collection)
    assert candidates(collection, str(path), 100) == expected
    assert candidates(read_beir(folder, "dev"), str(path), 100) == expected
