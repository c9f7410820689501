"""The numpy nDCG@10 against ranx and trec_eval on random runs, and by its own rule where scores tie."""

import math
import warnings

import numpy as np
import pytest
import pytrec_eval

from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import Run

Qrels = dict[str, dict[str, int]]

RUNS, QUERIES = 1000, 6


def random_case(rng: np.random.Generator) -> tuple[Qrels, Run]:
    """Judgements from -1 to 3 of six queries over 30 documents, and a run without ties.

    It has from no document to 25 of a query, judged and unjudged ones, lacks every sixth query, and ranks a query that
    nobody judged.
    """
    qrels: Qrels = {}
    run: Run = {"unjudged query": [("d1", 1.0)]}
    for query in range(QUERIES):
        judged = rng.choice(40, rng.integers(1, 20), replace=False)
        grades = rng.integers(-1, 4, len(judged)) if rng.random() < 0.9 else np.zeros(len(judged), int)
        # Documents from 30 on are judged and never found.
        qrels[f"q{query}"] = {f"d{name}": int(grade) for name, grade in zip(judged, grades, strict=True)}
        found = rng.choice(30, rng.integers(0, 26), replace=False)
        scores = np.sort(rng.choice(10_000, len(found), replace=False) / 64.0 - 50.0)[::-1]
        if rng.random() > 1 / 6 and len(found):
            run[f"q{query}"] = [(f"d{name}", float(score)) for name, score in zip(found, scores, strict=True)]
    return qrels, run


@pytest.fixture(scope="module")
def cases() -> list[tuple[Qrels, Run]]:
    rng = np.random.default_rng(0)
    return [random_case(rng) for _ in range(RUNS)]


def test_the_cases_hold_what_they_are_made_for(cases: list[tuple[Qrels, Run]]) -> None:
    queries = [(judgements, run.get(name, [])) for qrels, run in cases for name, judgements in qrels.items()]
    missing = sum(not ranking for _, ranking in queries)
    beyond = sum(
        any(judgements.get(name, 0) > 0 for name, _ in ranking[10:]) and len(ranking) > 10
        for judgements, ranking in queries
    )
    no_relevant = sum(max(judgements.values()) <= 0 for judgements, _ in queries)
    many = sum(sum(grade > 0 for grade in judgements.values()) > 10 for judgements, _ in queries)
    assert min(missing, beyond, no_relevant, many) > 300
    for _, run in cases:
        for ranking in run.values():
            assert len({np.float32(score) for _, score in ranking}) == len(ranking)


def test_random_runs_equal_trec_eval(cases: list[tuple[Qrels, Run]]) -> None:
    for qrels, run in cases:
        scored = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(
            {query: dict(ranking) for query, ranking in run.items()}
        )
        expected = sum(row["ndcg_cut_10"] for row in scored.values()) / len(qrels)
        assert ndcg_at_10(qrels, run) == pytest.approx(expected, abs=1e-9)


def test_random_runs_equal_ranx(cases: list[tuple[Qrels, Run]]) -> None:
    """All runs as one of 6,000 queries: ranx compiles for each call of another shape."""
    import ranx
    from numba.core.errors import NumbaTypeSafetyWarning

    qrels = {f"{i}/{name}": dict(row) for i, (qrels, _) in enumerate(cases) for name, row in qrels.items()}
    run = {f"{i}/{name}": dict(row) for i, (_, run) in enumerate(cases) for name, row in run.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaTypeSafetyWarning)
        theirs = ranx.Run(run)
        ranx.evaluate(ranx.Qrels(qrels), theirs, "ndcg@10", make_comparable=True)
    scores = theirs.scores["ndcg@10"]
    assert scores.keys() == qrels.keys()
    for i, (of_run, ranking) in enumerate(cases):
        expected = sum(scores[f"{i}/{name}"] for name in of_run) / len(of_run)
        assert ndcg_at_10(of_run, ranking) == pytest.approx(expected, abs=1e-9)


def test_ties_are_in_the_order_of_the_list(cases: list[tuple[Qrels, Run]]) -> None:
    """The list is in first-stage order where scores tie: the scores, and with them their ties, are not read."""
    for qrels, run in cases[:100]:
        tied = {query: [(name, float(score > 0)) for name, score in ranking] for query, ranking in run.items()}
        assert ndcg_at_10(qrels, tied) == ndcg_at_10(qrels, run)
    qrels = {"q": {"b": 2, "z": 1}}
    # trec_eval orders ties by falling name: z, b, a. That is 1 + 2 / log2(3), and not 1 / log2(3) + 2 / log2(4).
    run = {"q": [("a", 1.0), ("z", 1.0), ("b", 1.0)]}
    ideal = 2 + 1 / math.log2(3)
    assert ndcg_at_10(qrels, run) == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal, abs=1e-12)
    by_trec_eval = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate({"q": dict(run["q"])})
    assert by_trec_eval["q"]["ndcg_cut_10"] == pytest.approx((1 + 2 / math.log2(3)) / ideal, abs=1e-9)
    eleventh = [(f"n{i}", 1.0) for i in range(10)] + [("b", 1.0)]
    assert ndcg_at_10(qrels, {"q": eleventh}) == 0.0
    assert ndcg_at_10(qrels, {"q": eleventh[1:]}) == pytest.approx(2 / math.log2(11) / ideal, abs=1e-12)
