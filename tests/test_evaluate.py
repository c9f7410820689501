"""Rerank and measure: the order that is written, its figures by three tools, and what stands beside them."""

import json

import numpy as np
import pytest
import pytrec_eval
from made_run import COLLECTION, RUN, FakeReranker, evaluation

from prorank_jax.data.beir import read_beir
from prorank_jax.data.candidates import candidates
from prorank_jax.data.ndcg import ndcg_at_10, oracle_ndcg_at_10
from prorank_jax.data.runs import read_run
from prorank_jax.errors import InputError
from prorank_jax.evaluation.rerank import rerank

pytestmark = pytest.mark.usefixtures("own_scores")


def mean_by_trec_eval(qrels, run, measure_name):
    """As most scripts do it: the mean over the queries that the run has."""
    scored = pytrec_eval.RelevanceEvaluator(qrels, {measure_name}).evaluate({q: dict(run[q]) for q in run})
    return float(np.mean([row[measure_name] for row in scored.values()]))


def test_reranking_sorts_by_score_and_ties_by_first_stage_rank():
    reranker = FakeReranker({"b": 2.0, "e": -1.0})
    # c and a tie at 0, and so do d and f: they keep their order, and are not sorted by name or score.
    assert rerank(reranker, COLLECTION, RUN) == {
        "p": [("b", 2.0), ("c", 0.0), ("a", 0.0)],
        "q": [("d", 0.0), ("f", 0.0), ("e", -1.0)],
        "none": [],
    }
    assert reranker.asked[:2] == [("query p", "text of c"), ("query p", "text of a")]
    assert len(reranker.asked) == 6


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(score):
    with pytest.raises(
        InputError, match=f"made: the model's score of query 'q' and document 'f' is {score}, not a finite"
    ):
        rerank(FakeReranker({"f": score}), COLLECTION, RUN)


def test_evaluate_writes_the_run_and_its_figures(tmp_path):
    reranker = FakeReranker({"b": 2.0, "a": 1.0})
    out = tmp_path / "evaluation" / "made"
    summary = evaluation(reranker).write(out)
    metrics = summary["metrics"]
    # p is in its ideal order; q has its one retrievable document, of two judged, third: 0.5 / 1.63093;
    # "none" has no candidates and counts 0, where a mean over the queries of the run would be .6533.
    assert metrics["ndcg@10"] == pytest.approx((1 + 0.5 / (1 + 1 / np.log2(3)) + 0) / 3, abs=1e-9)
    assert metrics["map"] == pytest.approx((1 + 1 / 3 / 2 + 0) / 3, abs=1e-9)
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-9)
    assert metrics["recall@100"] == pytest.approx((1 + 1 / 2 + 0) / 3, abs=1e-9)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "per_query.tsv", "run.trec"]
    assert json.loads((out / "metrics.json").read_text()) == summary
    assert summary["first_stage"]["mrr@10"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3, abs=1e-9)
    assert summary["oracle"] == {"ndcg@10": pytest.approx((1 + 1 / (1 + 1 / np.log2(3)) + 0) / 3, abs=1e-9)}
    assert summary["protocol"] == {
        "collection": "made",
        "split": "test",
        "first_stage": "bm25",
        "depth": 3,
        "reranked": True,
        "max_length": 128,
        "dtype": "bfloat16",
        "instruction": None,
        "queries": 3,
        "queries_without_candidates": 1,
        "documents": 6,
    }
    written = read_run(out / "run.trec")
    assert {query: [name for name, _ in ranking] for query, ranking in written.items()} == {
        "p": ["b", "a", "c"],
        "q": ["d", "f", "e"],
        # The first document that is not relevant stands in: "a" is relevant.
        "none": ["b"],
    }
    assert mean_by_trec_eval(COLLECTION.qrels, written, "ndcg_cut_10") == pytest.approx(metrics["ndcg@10"], abs=1e-9)
    assert all(a[1] > b[1] for ranking in written.values() for a, b in zip(ranking, ranking[1:], strict=False))


def test_evaluate_takes_the_first_stage_as_it_is(tmp_path):
    metrics = evaluation(None).write(tmp_path)["metrics"]
    assert metrics["ndcg@10"] == pytest.approx(ndcg_at_10(COLLECTION.qrels, RUN), abs=1e-12)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["first_stage"] == summary["metrics"] == metrics
    assert summary["protocol"]["reranked"] is False
    assert summary["protocol"]["max_length"] is summary["protocol"]["dtype"] is None


def test_evaluate_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = evaluation(FakeReranker({})).compute()
    assert list(tmp_path.iterdir()) == []
    assert evaluation(FakeReranker({})).write(tmp_path) == summary


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    reranker = FakeReranker({})
    with pytest.raises(InputError, match="cannot be made"):
        evaluation(reranker).write(tmp_path / "file" / "out")
    assert reranker.asked == []


def test_ranx_numpy_and_trec_eval_agree_where_many_scores_tie(shared, tmp_path):
    collection = read_beir(shared / "data" / "trec-dl19", "test")
    path = shared / "data" / "trec-dl19" / "runs" / "bm25.top100.trec"
    run = candidates(collection, str(path), 100)

    class Coarse(FakeReranker):
        def score(self, document):
            return len(document) % 3

    metrics = evaluation(Coarse({}), collection, run, depth=100).write(tmp_path)["metrics"]
    written = read_run(tmp_path / "run.trec")
    assert metrics["ndcg@10"] == pytest.approx(ndcg_at_10(collection.qrels, written), abs=1e-12)
    for ours, theirs in {"ndcg@10": "ndcg_cut_10", "map": "map", "recall@100": "recall_100"}.items():
        assert metrics[ours] == pytest.approx(mean_by_trec_eval(collection.qrels, written, theirs), abs=1e-12)
    reciprocal = mean_by_trec_eval(
        collection.qrels, {query: ranking[:10] for query, ranking in written.items()}, "recip_rank"
    )
    assert metrics["mrr@10"] == pytest.approx(reciprocal, abs=1e-12)


@pytest.mark.parametrize(("name", "published"), [("scifact", 0.6762), ("nfcorpus", 0.3177)])
def test_the_first_stage_has_its_known_figure_in_every_tool(shared, tmp_path, name, published):
    collection = read_beir(shared / "data" / name, "test")
    run = candidates(collection, "bm25", 100)
    metrics = evaluation(None, collection, run, depth=100).write(tmp_path)["metrics"]
    assert metrics["ndcg@10"] == pytest.approx(published, abs=0.003)
    written = read_run(tmp_path / "run.trec")
    # NFCorpus has 15 queries of which no word occurs in the corpus; left out of the run, this mean is .3336.
    assert mean_by_trec_eval(collection.qrels, written, "ndcg_cut_10") == pytest.approx(metrics["ndcg@10"], abs=1e-12)
    assert ndcg_at_10(collection.qrels, run) == pytest.approx(metrics["ndcg@10"], abs=1e-12)


def test_a_reranker_that_knows_the_judgements_reaches_the_oracle(shared):
    collection = read_beir(shared / "data" / "scifact", "test")
    run = candidates(collection, str(shared / "data" / "scifact" / "runs" / "bm25s.test.top100.trec"), 100)

    class Knowing(FakeReranker):
        def predict_chunks(self, chunks, *, instruction=None):
            for pairs in chunks:
                yield np.array([float(pair in relevant) for pair in pairs], np.float32)

    relevant = {
        (collection.queries[query], collection.documents[name])
        for query, judgements in collection.qrels.items()
        for name, judgement in judgements.items()
        if judgement > 0
    }
    reached = ndcg_at_10(collection.qrels, rerank(Knowing({}), collection, run))
    assert reached == pytest.approx(oracle_ndcg_at_10(collection.qrels, run), abs=1e-12)
    assert reached == pytest.approx(0.914, abs=5e-4)
