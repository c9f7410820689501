"""First-stage candidates: BM25 against published figures and by hand, TREC runs in and out, nDCG@10."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.bm25 import bm25_run
from prorank_jax.data.candidates import candidates
from prorank_jax.data.ndcg import ndcg_at_10, oracle_ndcg_at_10
from prorank_jax.data.runs import read_run, strictly_decreasing, write_run
from prorank_jax.errors import InputError

DRINKS = Collection(
    name="drinks",
    split="test",
    documents={"d1": "black tea", "d2": "green teas", "d3": "tea and more tea", "d4": "coffee", "d5": ""},
    queries={"q1": "Tea", "q2": "the milk", "d4": "coffee coffee"},
    qrels={"q1": {"d1": 1}, "q2": {"d2": 1}, "d4": {"d4": 1}},
)


def trec_eval(qrels: dict[str, dict[str, int]], run: dict[str, list[tuple[str, float]]]) -> float:
    scored = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate({q: dict(run[q]) for q in run})
    return sum(row["ndcg_cut_10"] for row in scored.values()) / len(qrels)


def test_bm25_by_hand():
    run = bm25_run(DRINKS, depth=10)
    # Lucene's BM25: idf * tf / (tf + k1 * (1 - b + b * length / mean length)), without the factor k1 + 1.
    # Without the stop word "and" the lengths are 2, 2, 3, 1, 0: mean 1.6.
    idf = math.log(1 + (5 - 3 + 0.5) / (3 + 0.5))
    score = {length: idf / (1 + 0.9 * (0.6 + 0.4 * length / 1.6)) for length in (2, 3)}
    twice = idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / 1.6))
    assert [name for name, _ in run["q1"]] == ["d3", "d1", "d2"]
    np.testing.assert_allclose([s for _, s in run["q1"]], [twice, score[2], score[2]], rtol=1e-6)


# One depth below and one above the size of the corpus.
@pytest.mark.parametrize("depth", [3, 10])
def test_documents_without_a_word_of_the_query_are_no_candidates(depth):
    assert [name for name, _ in bm25_run(DRINKS, depth)["q1"]] == ["d3", "d1", "d2"]
    assert bm25_run(DRINKS, depth)["q2"] == []


def test_a_document_with_the_id_of_the_query_is_dropped_and_does_not_cost_a_place():
    documents = {"d1": "coffee", "d2": "coffee cup", "d3": "coffee cup and saucer"}
    collection = Collection("c", "test", documents, {"d1": "coffee"}, {"d1": {"d2": 1}})
    assert [name for name, _ in bm25_run(collection, depth=2)["d1"]] == ["d2", "d3"]
    assert bm25_run(DRINKS, depth=10)["d4"] == []


@pytest.mark.parametrize("depth", [1, 3, 7, 8, 50])
def test_ties_at_any_depth_are_in_corpus_order(depth):
    # Eight equal documents among others; a partial sort would take an arbitrary few of them.
    names = [f"t{(7 * i) % 8}" for i in range(8)]
    documents = {"x": "coffee", **dict.fromkeys(names, "green tea"), "y": "milk"}
    collection = Collection("c", "test", documents, {"q": "tea"}, {"q": {"x": 1}})
    assert [name for name, _ in bm25_run(collection, depth)["q"]] == names[:depth]


def test_bm25_does_not_depend_on_the_hash_seed():
    code = "from test_candidates import DRINKS; from prorank_jax.data.bm25 import bm25_run; print(bm25_run(DRINKS, 3))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{bm25_run(DRINKS, 3)}\n".encode()}


def test_a_corpus_without_words_is_refused():
    collection = Collection("blank", "test", {"d1": "", "d2": "!"}, {"q": "tea"}, {"q": {"d1": 1}})
    with pytest.raises(InputError, match="blank: no document has a word in it"):
        bm25_run(collection, 10)


@pytest.mark.parametrize(("name", "published"), [("scifact", 0.6762), ("nfcorpus", 0.3177)])
def test_bm25_reaches_the_known_figure(shared, tmp_path, name, published):
    collection = read_beir(shared / "data" / name, "test")
    run = bm25_run(collection, 100)
    assert ndcg_at_10(collection.qrels, run) == pytest.approx(published, abs=0.003)
    write_run(tmp_path / "run.trec", run, "bm25")
    written = read_run(tmp_path / "run.trec")
    assert trec_eval(collection.qrels, written) == pytest.approx(published, abs=0.003)
    assert trec_eval(collection.qrels, written) == pytest.approx(ndcg_at_10(collection.qrels, run), abs=1e-12)


def test_bm25_is_bm25s_own_retrieval(shared):
    # The shared run was made by bm25s itself; its scores have six digits.
    collection = read_beir(shared / "data" / "scifact", "test")
    theirs = read_run(shared / "data" / "scifact" / "runs" / "bm25s.test.top100.trec", 50, collection)
    ours = bm25_run(collection, 50)
    for query_id in collection.queries:
        expected = [score for _, score in theirs[query_id]]
        np.testing.assert_allclose([score for _, score in ours[query_id]], expected, atol=1e-6)


@pytest.mark.parametrize(("name", "published"), [("bm25", 0.5058), ("splade", 0.7308)])
def test_the_dl19_runs_have_their_published_figure(shared, name, published):
    collection = read_beir(shared / "data" / "trec-dl19", "test")
    run = candidates(collection, str(shared / "data" / "trec-dl19" / "runs" / f"{name}.top100.trec"), 100)
    # Without the judgements of passages outside the corpus the ideal is too low: .5163 and .7451.
    assert ndcg_at_10(collection.qrels, run) == pytest.approx(published, abs=5e-5)
    assert trec_eval(collection.qrels, strictly_decreasing(run)) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "run", "published"),
    [
        ("scifact", "bm25s.test.top100", 0.914),
        ("nfcorpus", "bm25s.test.top100", 0.545),
        ("trec-dl19", "bm25.top100", 0.892),
    ],
)
def test_the_oracle_reaches_the_known_bound(shared, name, run, published):
    collection = read_beir(shared / "data" / name, "test")
    found = candidates(collection, str(shared / "data" / name / "runs" / f"{run}.trec"), 100)
    assert oracle_ndcg_at_10(collection.qrels, found) == pytest.approx(published, abs=5e-4)


def test_ndcg_by_hand():
    qrels = {"q": {"a": 2, "b": 1, "c": -1, "z": 1}}
    run = {"q": [("c", 9.0), ("b", 8.0), ("u", 7.0), ("a", 6.0)], "other": [("a", 1.0)]}
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    found = 1 / math.log2(3) + 2 / math.log2(5)
    # Exponential gain would give .4655; an ideal of the candidates alone .5672; a gain of -1 for c .1572.
    assert ndcg_at_10(qrels, run) == pytest.approx(found / ideal, abs=1e-12)
    assert oracle_ndcg_at_10(qrels, run) == pytest.approx((2 + 1 / math.log2(3)) / ideal, abs=1e-12)


def test_ndcg_counts_queries_that_the_run_lacks_or_that_have_nothing_relevant_as_0():
    qrels = {"q": {"a": 1}, "absent": {"a": 1}, "empty": {"a": 1}, "hopeless": {"a": 0}}
    run = {"q": [("a", 1.0)], "empty": [], "hopeless": [("a", 1.0)]}
    assert ndcg_at_10(qrels, run) == 0.25
    assert oracle_ndcg_at_10(qrels, run) == 0.25


def test_ndcg_equals_trec_eval_on_random_rankings():
    rng = np.random.default_rng(0)
    names = [f"d{i}" for i in range(60)]
    qrels, run = {}, {}
    for q in range(50):
        judged = rng.choice(names, rng.integers(1, 40), replace=False)
        qrels[f"q{q}"] = {str(name): int(rng.integers(-1, 4)) for name in judged}
        ranking = rng.permutation(names)[: rng.integers(1, 30)]
        run[f"q{q}"] = [(str(name), float(-rank)) for rank, name in enumerate(ranking)]
    assert ndcg_at_10(qrels, run) == pytest.approx(trec_eval(qrels, run), abs=1e-12)


def test_a_run_that_is_missing_or_empty_or_of_other_queries_is_refused(tmp_path):
    path = tmp_path / "run.trec"
    with pytest.raises(InputError, match="no such file; give the path of a TREC run, or bm25"):
        candidates(DRINKS, str(path), 10)
    path.write_text("")
    with pytest.raises(InputError, match="is empty"):
        candidates(DRINKS, str(path), 10)
    path.write_text("q9 Q0 d9 1 2.0 x\n")
    with pytest.raises(InputError, match="no candidates for any of its 3 queries"):
        candidates(DRINKS, str(path), 10)


def test_queries_without_candidates_are_counted(tmp_path, caplog):
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 d1 1 2.0 x\nother Q0 anything 1 2.0 x\n")
    assert candidates(DRINKS, str(path), 10) == {"q1": [("d1", 2.0)], "q2": [], "d4": []}
    (record,) = caplog.records
    assert "no candidates for 2 of its 3 queries (first: 'q2')" in record.getMessage()
