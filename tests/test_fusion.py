"""Fusion against a weighted sum in numpy, and the weights that tuning must find."""

from pathlib import Path

import numpy as np
import pytest

from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import Run, read_run
from prorank_jax.errors import InputError
from prorank_jax.evaluation.fusion import GRID, Weights, fuse, tune

HALF = Weights(0.5, 0.5)


def scored(seed: int, run: Run) -> Run:
    """The candidates of a run by scores of their own, on another scale."""
    rng = np.random.default_rng(seed)
    return {
        query_id: sorted(((name, float(rng.normal(5, 20))) for name, _ in rows), key=lambda row: -row[1])
        for query_id, rows in run.items()
    }


def by_numpy(first_stage: Run, reranked: Run, weights: Weights) -> Run:
    fused: Run = {}
    for query_id, rows in first_stage.items():
        total = np.zeros(len(rows))
        for run, weight in zip((first_stage, reranked), weights, strict=True):
            score = dict(run[query_id])
            scores = np.array([score[name] for name, _ in rows])
            span = np.ptp(scores) if len(scores) else 0
            total += weight * ((scores - scores.min()) / span if span else np.zeros(len(rows)))
        fused[query_id] = [(rows[i][0], float(total[i])) for i in np.argsort(-total, kind="stable")]
    return fused


def assert_same(ours: Run, reference: Run) -> None:
    assert list(ours) == list(reference)
    for query_id, rows in reference.items():
        assert [name for name, _ in ours[query_id]] == [name for name, _ in rows]
        np.testing.assert_allclose([s for _, s in ours[query_id]], [s for _, s in rows], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def first_stage() -> Run:
    rng = np.random.default_rng(0)
    run: Run = {
        f"query {q}": [(f"document {q * 7 + d}", float(s)) for d, s in enumerate(np.sort(rng.random(20) * 30)[::-1])]
        for q in range(12)
    }
    return run | {"no candidate": [], "one candidate": [("d", 3.0)]}


@pytest.mark.parametrize("weights", [Weights(1.0, 0.0), Weights(0.3, 0.7), HALF, Weights(0.0, 1.0)])
def test_the_weighted_sum_is_numpys(first_stage: Run, weights: Weights) -> None:
    reranked = scored(1, first_stage)
    assert_same(fuse(first_stage, reranked, weights), by_numpy(first_stage, reranked, weights))


def test_each_run_alone_keeps_its_order(first_stage: Run) -> None:
    reranked = scored(1, first_stage)
    for weights, run in ((Weights(1.0, 0.0), first_stage), (Weights(0.0, 1.0), reranked)):
        order = {
            query_id: [name for name, _ in rows] for query_id, rows in fuse(first_stage, reranked, weights).items()
        }
        assert order == {query_id: [name for name, _ in rows] for query_id, rows in run.items()}


def test_a_query_without_a_difference_in_scores() -> None:
    first_stage: Run = {"1": [("b", 2.0), ("a", 2.0), ("c", 2.0)], "2": [("a", 0.0), ("b", 0.0)]}
    reranked: Run = {"1": [("c", 9.0), ("a", 7.0), ("b", 5.0)], "2": [("b", 1.0), ("a", 1.0)]}
    assert fuse(first_stage, reranked, HALF) == {
        "1": [("c", 0.5), ("a", 0.25), ("b", 0.0)],
        "2": [("a", 0.0), ("b", 0.0)],
    }


def test_equal_sums_are_in_first_stage_order() -> None:
    # Ids in the reverse of the alphabet; the first run's best is the second's worst, for all of them 1/2.
    first_stage: Run = {"q": [("z", 2.0), ("y", 1.0), ("x", 0.0)]}
    reranked: Run = {"q": [("x", 20.0), ("y", 10.0), ("z", 0.0)]}
    assert fuse(first_stage, reranked, HALF) == {"q": [("z", 0.5), ("y", 0.5), ("x", 0.5)]}


def test_no_candidates_at_all() -> None:
    assert fuse({"1": [], "2": []}, {"1": []}, HALF) == {"1": [], "2": []}


def test_the_grid() -> None:
    assert GRID[0] == Weights(0.0, 1.0) and GRID[-1] == Weights(1.0, 0.0)
    assert [weights.reranker for weights in GRID] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert {round(sum(weights), 12) for weights in GRID} == {1.0}


@pytest.mark.parametrize(("score", "found"), [(0.55, Weights(0.5, 0.5)), (0.65, Weights(0.4, 0.6))])
def test_tuning_finds_the_best_weights(score: float, found: Weights) -> None:
    # The relevant document's sum is `score` with any weights, those of the others are the weights themselves: it is
    # first where both are lower, which with 0.65 is so from (0.4, 0.6) to (0.6, 0.4).
    first_stage: Run = {"q": [("x", 3.0), ("relevant", 3 * score), ("y", 0.0)]}
    reranked: Run = {"q": [("y", 1.0), ("relevant", score), ("x", 0.0)]}
    assert tune({"q": {"relevant": 1}}, first_stage, reranked) == found


def test_of_equal_weights_the_reranker_has_the_most() -> None:
    first_stage: Run = {"q": [("a", 2.0), ("b", 1.0)]}
    assert tune({"q": {"a": 1}}, first_stage, first_stage) == Weights(0.0, 1.0)
    assert tune({"q": {"x": 1}}, first_stage, {"q": [("b", 2.0), ("a", 1.0)]}) == Weights(0.0, 1.0)


def test_the_measure_decides() -> None:
    # By precision@1 the first stage is right, by recall@2 any weights are.
    first_stage: Run = {"q": [("a", 2.0), ("b", 1.9), ("c", 0.0)]}
    reranked: Run = {"q": [("b", 2.0), ("a", 1.0), ("c", 0.0)]}
    qrels = {"q": {"a": 1}}
    assert tune(qrels, first_stage, reranked, "recall@2") == Weights(0.0, 1.0)
    assert tune(qrels, first_stage, reranked, "Precision@1") == Weights(1.0, 0.0)


def test_a_real_first_stage_and_a_better_one(shared: Path) -> None:
    folder = shared / "data" / "trec-dl19"
    bm25, splade = (read_run(folder / "runs" / f"{name}.top100.trec") for name in ("bm25", "splade"))
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[document_id] = int(grade)
    common = {q: [(d, s) for d, s in rows if d in dict(splade[q])] for q, rows in bm25.items()}
    reranked = {q: [(d, s) for d, s in rows if d in dict(common[q])] for q, rows in splade.items()}
    values = {weights: ndcg_at_10(qrels, by_numpy(common, reranked, weights)) for weights in GRID}
    assert len(set(values.values())) == len(GRID)
    assert tune(qrels, common, reranked) == max(values, key=values.__getitem__)


@pytest.mark.parametrize(
    ("reranked", "message"),
    [
        ({"q": [("a", 1.0)]}, "query 'q': document 'b' is in one run alone; "),
        ({"q": [("a", 1.0), ("b", 1.0), ("x", 0.0)]}, "query 'q': document 'x' is in one run alone; "),
        ({"q": [("a", 1.0), ("b", 1.0), ("b", 0.0)]}, "query 'q': a document stands twice; "),
        ({}, "query 'q': document 'a' is in one run alone; "),
        ({"q": [("a", 1.0), ("b", 1.0)], "r": [("a", 1.0)]}, "query 'r': document 'a' is in one run alone; "),
    ],
)
def test_runs_of_other_candidates_are_refused(reranked: Run, message: str) -> None:
    with pytest.raises(InputError) as refused:
        fuse({"q": [("a", 2.0), ("b", 1.0)]}, reranked, HALF)
    assert str(refused.value).startswith(message)
