"""BM25: bm25s itself and the formula as references, ties, both ways to score, and the index on disk."""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer

from prorank_jax.atomic import alone
from prorank_jax.cache import VARIABLE
from prorank_jax.data import bm25, bm25_index
from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.bm25 import bm25_run, retrieve
from prorank_jax.data.bm25_index import BM25, open_index
from prorank_jax.data.collections import open_collection
from prorank_jax.data.stems import Stems
from prorank_jax.errors import InputError

Documents = dict[str, tuple[str, str]]
"""Document id -> title and text."""

WORDS = [f"w{letter}{digit}" for letter in "abcdefghij" for digit in "0123456789"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["numpy", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to score."""
    monkeypatch.setattr(bm25, "COMPILE_FROM", 0 if request.param == "compiled" else 10**12)
    return str(request.param)


def bm25s_tokens(texts: Iterable[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    tokens: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return tokens


def random_documents(count: int, seed: int = 0) -> Documents:
    """Short ones of few words, so that scores tie; some without a title or without both."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    drawn = lambda most: " ".join(rng.choice(WORDS, rng.integers(0, most), p=weights / weights.sum()))  # noqa: E731
    return {f"d{i}": (drawn(3), drawn(8)) for i in rng.permutation(count)}


def random_queries(count: int, seed: int = 1) -> dict[str, str]:
    """Some with a word twice, an unknown word, a stop word or no word at all."""
    rng = np.random.default_rng(seed)
    words = [*WORDS, "unknown", "the"]
    return {f"q{i}": " ".join(rng.choice(words, i % 6)) for i in range(count)}


def in_memory(documents: Documents, queries: Mapping[str, str]) -> Collection:
    texts = {name: f"{title} {text}".strip() for name, (title, text) in documents.items()}
    return Collection("c", "test", texts, dict(queries), {name: {"d0": 1} for name in queries})


def stored(folder: Path, documents: Documents, queries: Mapping[str, str]) -> Collection:
    """The same, on disk."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": title, "text": text} for name, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in queries.items())
    )
    (folder / "qrels" / "test.tsv").write_text("".join(f"{name}\td0\t1\n" for name in queries))
    return open_collection(folder, "test")


def dense(texts: list[str], query: str, k1: float, b: float) -> np.ndarray:
    """Lucene's BM25 of one field, written out: float64 [documents]."""
    tokens = bm25s_tokens(texts)
    lengths = np.array([len(of_text) for of_text in tokens])
    scores = np.zeros(len(texts))
    for stem in bm25s_tokens([query])[0]:
        counts = np.array([of_text.count(stem) for of_text in tokens])
        holders = (counts > 0).sum()
        if holders:
            idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
            scores += idf * counts / (counts + k1 * (1 - b + b * lengths / lengths.mean()))
    return scores


def test_stems_are_those_of_bm25s(shared: Path):
    texts = [*list(read_beir(shared / "data" / "scifact", "test").documents.values())[:300], "", "!", "The a I"]
    texts += ["Ünïcode naïve İstanbul straße 東京 dog's 3.5mm under_score", "word\x1cword\u2028word", "tea tea"]
    stems = Stems()
    numbers, lengths = stems.encode(texts)
    names = list(stems.numbers)
    parts = np.split(numbers, np.cumsum(lengths)[:-1])
    assert [[names[i] for i in part] for part in parts] == bm25s_tokens(texts)
    assert numbers.dtype == lengths.dtype == np.dtype(np.int32)
    assert list(stems.numbers.values()) == list(range(len(names)))


def test_stems_that_are_given_are_all_there_are():
    stems = Stems({"black": 0, "tea": 1})
    numbers, lengths = stems.encode(["Teas, green teas", "", "black"])
    assert (numbers.tolist(), lengths.tolist()) == ([1, 1, 0], [2, 0, 1])
    assert stems.numbers == {"black": 0, "tea": 1}


def test_scores_are_those_of_bm25s_to_the_last_bit(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bm25_index, "_CHUNK_CHARACTERS", 100_000)
    documents = dict(list(read_beir(shared / "data" / "nfcorpus", "test").documents.items())[:500])
    theirs = bm25s.BM25(k1=1.1, b=0.3)
    theirs.index(bm25s_tokens(documents.values()), show_progress=False)
    index = open_index(documents, BM25(k1=1.1, b=0.3), "c")
    for query in ("breast cancer", "statins and the risk of diabetes diabetes", "vitamin D in children's milk"):
        ours = index.retriever.get_scores_from_ids(index.columns([query])[0])
        assert ours.any() and np.array_equal(ours, theirs.get_scores(bm25s_tokens([query])[0]))


@pytest.mark.parametrize("title_weight", [None, 1.0, 2.5])
def test_rankings_are_those_of_the_formula(tmp_path: Path, way: str, title_weight: float | None):
    documents, queries = random_documents(300), random_queries(30)
    settings = BM25(k1=1.2, b=0.6, title_weight=title_weight)
    run = bm25_run(stored(tmp_path / "data", documents, queries), 20, settings)
    titles, texts = [title for title, _ in documents.values()], [text for _, text in documents.values()]
    for query_id, query in queries.items():
        if title_weight is None:
            scores = dense([f"{title} {text}" for title, text in documents.values()], query, 1.2, 0.6)
        else:
            scores = dense(texts, query, 1.2, 0.6) + title_weight * dense(titles, query, 1.2, 0.6)
        order = sorted(range(len(scores)), key=lambda i: (-round(float(scores[i]), 5), i))[:20]
        names = list(documents)
        assert [name for name, _ in run[query_id]] == [names[i] for i in order if scores[i] > 0]
        np.testing.assert_allclose([s for _, s in run[query_id]], [scores[i] for i in order if scores[i] > 0], 1e-6)
    assert any(len(ranking) == 20 for ranking in run.values())


def test_titles_count_more_the_higher_their_weight(tmp_path: Path):
    documents = {"d0": ("tea", "black leaves"), "d1": ("leaves", "black tea tea tea"), "d2": ("", "milk")}
    collection = stored(tmp_path / "data", documents, {"q": "tea"})
    best = {weight: bm25_run(collection, 2, BM25(title_weight=weight))["q"][0][0] for weight in (0.01, 2.0)}
    assert best == {0.01: "d1", 2.0: "d0"}


def test_documents_without_titles_score_by_their_texts(tmp_path: Path):
    documents = {name: ("", text) for name, (_, text) in random_documents(50).items()}
    collection = stored(tmp_path / "data", documents, random_queries(12))
    assert bm25_run(collection, 10, BM25(title_weight=3.0)) == bm25_run(collection, 10)


def test_both_ways_and_any_number_of_threads_give_the_same():
    index = open_index(in_memory(random_documents(2000), {}).documents, BM25(), "c")
    queries = index.columns(random_queries(100).values())
    found = []
    for compiled, threads in [(True, 1), (True, 2), (False, 1), (False, 2)]:
        found.append([(list(p), list(s)) for p, s in retrieve(index, queries, 50, threads, compiled=compiled)])
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 100 and found[0][0] == ([], []) and any(len(p) == 50 for p, _ in found[0])


@pytest.mark.parametrize("depth", [1, 3, 40, 299, 300, 1000])
def test_ties_at_any_depth_are_in_corpus_order(way: str, depth: int, monkeypatch: pytest.MonkeyPatch):
    # More equal documents than the compiled code keeps: which it keeps is its own choice.
    documents = {"x": ("", "coffee"), **{f"t{7 * i % 300}": ("", "green tea") for i in range(300)}, "y": ("", "milk")}
    again = []
    best = bm25._best

    def counted(scores: np.ndarray, wanted: int) -> bm25.Best:
        again.append(wanted)
        return best(scores, wanted)

    monkeypatch.setattr(bm25, "_best", counted)
    run = bm25_run(in_memory(documents, {"q": "tea", "none": ""}), depth)
    assert [name for name, _ in run["q"]] == list(documents)[1:301][:depth]
    assert run["none"] == []
    if way == "compiled":
        # 300 of 302 are kept where 269 or more are wanted: all that match.
        assert len(again) == (1 if depth < 240 else 0)


def test_the_query_itself_is_dropped_and_does_not_cost_a_place(way: str):
    documents = {"q": ("", "coffee"), "d1": ("", "coffee cup"), "d2": ("", "coffee cup and saucer")}
    assert [name for name, _ in bm25_run(in_memory(documents, {"q": "coffee"}), 2)["q"]] == ["d1", "d2"]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[BM25]:
    """The settings of the indexes that are made."""
    made: list[BM25] = []
    build = bm25_index._build

    def counted(documents: Mapping[str, str], settings: BM25, name: str, show_progress: bool) -> bm25_index.Index:
        made.append(settings)
        return build(documents, settings, name, show_progress)

    monkeypatch.setattr(bm25_index, "_build", counted)
    return made


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return stored(tmp_path / "data", random_documents(100), random_queries(10))


def test_the_index_of_stored_documents_is_made_once_and_mapped(collection: Collection, builds: list[BM25], way: str):
    first = bm25_run(collection, 10)
    assert first == bm25_run(dataclasses.replace(collection, documents=dict(collection.documents)), 10)
    assert len(builds) == 2  # the second is of documents in memory
    assert bm25_run(collection, 10) == first and len(builds) == 2
    index = open_index(collection.documents, BM25(), "c")
    assert len(builds) == 2 and isinstance(index.retriever.scores["data"], np.memmap)
    assert not index.retriever.scores["data"].flags.writeable


def test_other_settings_documents_and_versions_have_an_index_of_their_own(
    collection: Collection, builds: list[BM25], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    every = [BM25(), BM25(k1=1.0), BM25(b=0.5), BM25(title_weight=1.0), BM25(title_weight=2.0)]
    for settings in every * 2:
        bm25_run(collection, 10, settings)
    assert builds == every
    other = stored(tmp_path / "other", {**random_documents(100), "more": ("", "text")}, {"q": "text"})
    assert [name for name, _ in bm25_run(other, 10)["q"]] == ["more"]
    assert len(builds) == 6
    monkeypatch.setattr(bm25_index, "_VERSION", bm25_index._VERSION + 1)
    bm25_run(collection, 10)
    assert len(builds) == 7


def test_the_index_is_one_that_bm25s_opens(collection: Collection, cache: Path):
    run = bm25_run(collection, 10)
    (folder,) = cache.glob("bm25/*/index")
    theirs = bm25s.BM25.load(folder, mmap=True)
    query_id, ranking = max(run.items(), key=lambda item: len(item[1]))
    scores = theirs.get_scores(bm25s_tokens([collection.queries[query_id]])[0])
    assert [float(scores[list(collection.documents).index(name)]) for name, _ in ranking] == [s for _, s in ranking]


def test_what_was_cut_or_damaged_is_made_again(collection: Collection, builds: list[BM25], cache: Path):
    run = bm25_run(collection, 10)
    (folder,) = cache.glob("bm25/*/index")
    data = folder / "data.csc.index.npy"
    damages = [
        lambda: data.write_bytes(data.read_bytes()[:-4]),
        lambda: data.unlink(),
        lambda: (folder / "prorank.json").write_text("{"),
        lambda: (folder / "prorank.json").write_text(json.dumps({"made_of": {}, "bytes": {}})),
        lambda: (folder / "prorank.json").unlink(),
        lambda: os.replace(folder, folder.with_name("unfinished")),
    ]
    for number, damage in enumerate(damages, start=2):
        damage()
        assert bm25_run(collection, 10) == run
        assert len(builds) == number
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index", "lock"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(
    collection: Collection, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    save = np.save

    def full(path: Path, array: np.ndarray, **options: bool) -> None:
        save(path, array[:1], **options)
        if "indptr" in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(InputError) as caught:
            bm25_run(collection, 10)
    (folder,) = (cache / "bm25").iterdir()
    assert str(caught.value) == (
        f"{folder}: the BM25 index cannot be kept there (No space left on device); make room, or name another folder "
        "in the environment variable PRORANK_CACHE"
    )
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert bm25_run(collection, 10)


def test_one_makes_an_index_while_another_waits(collection: Collection, builds: list[BM25], cache: Path):
    run = bm25_run(collection, 10)
    (folder,) = (cache / "bm25").iterdir()
    with ThreadPoolExecutor(1) as pool:
        with alone(folder):
            (folder / "index").rename(folder / "aside")
            waiting = pool.submit(bm25_run, collection, 10)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert len(builds) == 1
            (folder / "aside").rename(folder / "index")
        # It takes what the other has made.
        assert waiting.result(30) == run and len(builds) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (BM25(k1=-0.1), "k1=-0.1: is not a number from 0 up"),
        (BM25(k1=math.nan), "k1=nan: is not a number from 0 up"),
        (BM25(b=1.01), "b=1.01: is not between 0 and 1"),
        (BM25(b=math.nan), "b=nan: is not between 0 and 1"),
        (BM25(title_weight=0.0), "title_weight=0.0: is not a number above 0"),
        (BM25(title_weight=math.inf), "title_weight=inf: is not a number above 0"),
    ],
)
def test_settings_out_of_their_range_are_refused(settings: BM25, told: str):
    with pytest.raises(InputError) as caught:
        open_index({"d": "tea"}, settings, "c")
    assert str(caught.value).startswith(f"BM25: {told}")


def test_titles_are_refused_where_documents_have_none_of_their_own():
    with pytest.raises(
        InputError, match=r"^drinks: BM25: title_weight=2.0: its documents have no titles; leave it out"
    ):
        open_index({"d": "tea"}, BM25(title_weight=2.0), "drinks")


def test_a_corpus_without_words_is_refused(tmp_path: Path, cache: Path):
    collection = stored(tmp_path / "data", {"d0": ("", "!"), "d1": ("the", "")}, {"q": "tea"})
    for settings in (BM25(), BM25(title_weight=1.0)):
        with pytest.raises(InputError, match="no document has a word in it; BM25 needs words"):
            bm25_run(collection, 10, settings)
    assert not list(cache.glob("bm25/*/index"))


def test_progress_is_told(capsys: pytest.CaptureFixture[str]):
    bm25_run(in_memory(random_documents(30), random_queries(3)), 5, show_progress=True)
    assert capsys.readouterr().err == "indexing 30/30\nretrieving 3/3\n"
    bm25_run(in_memory(random_documents(30), random_queries(3)), 5)
    assert capsys.readouterr().err == ""
