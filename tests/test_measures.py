"""ranx's measures against trec_eval and our own nDCG, by the order of the lists; and what a second process compiles."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.errors import InputError
from prorank_jax.evaluation.measures import check_metrics, per_query

Qrels = dict[str, dict[str, int]]
Run = dict[str, list[tuple[str, float]]]

# Ours -> trec_eval's.
TREC_EVAL = {
    "ndcg": "ndcg",
    "ndcg@5": "ndcg_cut_5",
    "ndcg@10": "ndcg_cut_10",
    "map": "map",
    "map@10": "map_cut_10",
    "mrr": "recip_rank",
    "recall@100": "recall_100",
    "recall@5": "recall_5",
    "precision@10": "P_10",
    "precision@200": "P_200",
    "hit_rate@10": "success_10",
}

FIRST_STAGES = {
    "scifact": ("scifact", "bm25s.test.top100.trec", 0.6762),
    "nfcorpus": ("nfcorpus", "bm25s.test.top100.trec", None),
    "dl19 bm25": ("trec-dl19", "bm25.top100.trec", 0.5058),
    "dl19 splade": ("trec-dl19", "splade.top100.trec", 0.7308),
}


def read(folder: Path, run_name: str) -> tuple[Qrels, Run]:
    """Judgements and a run, each query's lines as they stand."""
    qrels: Qrels = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query_id, document_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[document_id] = int(grade)
    run: Run = {}
    for line in (folder / "runs" / run_name).read_text().splitlines():
        query_id, _, document_id, _, score, _ = line.split()
        run.setdefault(query_id, []).append((document_id, float(score)))
    return qrels, run


def trec_eval(qrels: Qrels, run: Run) -> dict[str, list[float]]:
    """trec_eval's values of the lists' order, a query that the run lacks 0."""
    by_rank = {query_id: {name: -float(i) for i, (name, _) in enumerate(rows)} for query_id, rows in run.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(TREC_EVAL.values()), relevance_level=1)
    values = evaluator.evaluate(by_rank)
    return {ours: [values.get(q, {}).get(theirs, 0.0) for q in qrels] for ours, theirs in TREC_EVAL.items()}


def assert_agree(qrels: Qrels, run: Run) -> dict[str, np.ndarray]:
    ours = per_query(qrels, run, list(TREC_EVAL))
    assert list(ours) == list(TREC_EVAL)
    for metric, reference in trec_eval(qrels, run).items():
        assert ours[metric].dtype == np.float64
        np.testing.assert_allclose(ours[metric], reference, rtol=0, atol=1e-9, err_msg=metric)
    assert abs(ours["ndcg@10"].mean() - ndcg_at_10(qrels, run)) < 1e-9
    return ours


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stage_runs_equal_trec_eval(name: str, shared: Path) -> None:
    folder, run_name, published = FIRST_STAGES[name]
    values = assert_agree(*read(shared / "data" / folder, run_name))
    if published is not None:
        assert round(values["ndcg@10"].mean(), 4) == published


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_ties_are_in_the_order_of_the_lists(name: str, shared: Path) -> None:
    folder, run_name, _ = FIRST_STAGES[name]
    qrels, run = read(shared / "data" / folder, run_name)
    scale = 20 / max(score for rows in run.values() for _, score in rows)
    rounded = {
        query_id: [(name, float(round(scale * score))) for name, score in rows] for query_id, rows in run.items()
    }
    assert sum(len(rows) - len({score for _, score in rows}) for rows in rounded.values()) > len(rounded) * 20
    values = assert_agree(qrels, rounded)
    np.testing.assert_array_equal(values["ndcg@10"], per_query(qrels, run, ["ndcg@10"])["ndcg@10"])


def random_case(rng: np.random.Generator, queries: int) -> tuple[Qrels, Run]:
    """Judgements from -1 to 3, documents never found, queries that the run lacks and one that nobody judged."""
    qrels: Qrels = {}
    run: Run = {"unjudged query": [("d1", 1.0)]}
    for query in range(queries):
        judged = rng.choice(40, rng.integers(1, 20), replace=False)
        grades = rng.integers(-1, 4, len(judged)) if rng.random() < 0.9 else np.zeros(len(judged), int)
        qrels[f"q{query}"] = {f"d{name}": int(grade) for name, grade in zip(judged, grades, strict=True)}
        found = rng.permutation(30)[: rng.integers(0, 26)]
        if rng.random() > 1 / 6:
            run[f"q{query}"] = [(f"d{name}", -float(rank)) for rank, name in enumerate(found)]
    return qrels, run


def test_random_runs_equal_trec_eval() -> None:
    # More queries than are measured at once, and not a multiple of them.
    qrels, run = random_case(np.random.default_rng(0), 1300)
    empty = {query_id for query_id in qrels if run.get(query_id) == []}
    assert empty and len(qrels.keys() - run.keys()) > 100
    assert sum(max(grades.values()) <= 0 for grades in qrels.values()) > 100
    values = assert_agree(qrels, {query_id: rows for query_id, rows in run.items() if rows})
    for metric, with_empty_lists in per_query(qrels, run, list(TREC_EVAL)).items():
        np.testing.assert_array_equal(with_empty_lists, values[metric])


def test_by_hand() -> None:
    qrels = {"1": {"a": 2, "b": 1, "c": 1, "d": 0}, "2": {"a": 1}, "3": {"a": 0, "b": -1}}
    run = {"1": [("d", 0.1), ("b", 5.0), ("x", 5.0), ("a", 9.0)], "3": [("b", 1.0)]}
    values = per_query(qrels, run, ["mrr@3", "MRR@1", "recall", "map@2", "hit_rate@1", "ndcg@2"])
    # b is second, a fourth, c not found. Sorted by score, a would be first.
    discount = 1 / np.log2(3)
    assert {metric: value.tolist() for metric, value in values.items()} == {
        "mrr@3": [1 / 2, 0, 0],
        "mrr@1": [0, 0, 0],
        "recall": [2 / 3, 0, 0],
        "map@2": [1 / 2 / 3, 0, 0],
        "hit_rate@1": [0, 0, 0],
        "ndcg@2": [pytest.approx(discount / (2 + discount), abs=1e-15), 0, 0],
    }


def test_threads_measure_at_once() -> None:
    # ranx's own threads end a process in which two threads use them together.
    qrels, run = random_case(np.random.default_rng(1), 200)
    with ThreadPoolExecutor(4) as threads:
        first, *others = threads.map(lambda _: per_query(qrels, run, ["map", "ndcg@10"]), range(100))
    for values in others:
        np.testing.assert_array_equal(values["map"], first["map"])


def test_no_judged_query() -> None:
    (values,) = per_query({}, {"1": [("a", 1.0)]}, ["map"]).values()
    assert values.shape == (0,)


def test_names_are_told_in_one_way() -> None:
    assert check_metrics(["nDCG@10", " MAP ", "map", "mrr@010", "hit_rate@1"]) == (
        "ndcg@10",
        "map",
        "mrr@10",
        "hit_rate@1",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndgc@20", "metric 'ndgc@20': unknown; did you mean 'ndcg@20'? "),
        ("recal", "metric 'recal': unknown; did you mean 'recall'? "),
        ("ndcg@0", "metric 'ndcg@0': unknown; did you mean 'ndcg@10'? "),
        ("map@", "metric 'map@': unknown; did you mean 'map@10'? "),
        ("mrr@ten", "metric 'mrr@ten': unknown; did you mean 'mrr@10'? "),
        ("bpref", "metric 'bpref': unknown; known are ndcg@k, map@k"),
        ("precision", "metric 'precision': has no cutoff; write for example precision@10"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        per_query({"1": {"a": 1}}, {}, ["map", name])
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_no_metric_is_refused() -> None:
    with pytest.raises(InputError, match="metrics: none given"):
        check_metrics([])


# Measures a collection whose ids have a given width and tells what numba had to compile for it.
PROGRAM = """
import gc, json, os, resource, sys
if room := os.environ.get("BYTES_OF_A_FILE"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
from prorank_jax.evaluation.measures import per_query
width, queries, metrics = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
ids = [f"{i:0{width}}" for i in range(50)]
qrels = {ids[i]: {ids[i]: 1, ids[i + 1]: 2 - i % 4} for i in range(queries)}
run = {ids[i]: [(ids[j], 9.0 - j) for j in range(i, i + width)] for i in range(queries)}
values = {name: value.tolist() for name, value in per_query(qrels, run, metrics).items()}
real = sys.modules["ir_datasets"].__spec__ is not None
from numba.core.dispatcher import Dispatcher
# Not isinstance, which also asks weak references whose object is gone.
used = [d for d in gc.get_objects() if issubclass(type(d), Dispatcher) and d.__module__.startswith("ranx.")]
misses = sum(sum(d.stats.cache_misses.values()) for d in used)
hits = sum(sum(d.stats.cache_hits.values()) for d in used)
print(json.dumps({"values": values, "misses": misses, "hits": hits, "real": real}))
"""


def process(width: int, queries: int, *metrics: str, environment: dict[str, str]) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(width), str(queries), *metrics],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def test_another_collection_compiles_nothing(tmp_path: Path) -> None:
    metrics = ("ndcg@10", "map", "mrr@10", "recall@100")
    home = {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    home |= {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    process(3, 4, *metrics, environment=home)
    again, _ = process(11, 40, *metrics, "map@5", environment=home)
    assert again["misses"] == 0
    assert again["hits"] > 0
    assert again["values"]["mrr@10"][0] == 1.0
    # Nothing stands in for what ranx imports, and is left behind.
    assert again["real"]


# Bytes that a file may have: none can be written, or the first small ones can.
@pytest.mark.parametrize("room", [0, 4096])
def test_an_evaluation_works_where_nothing_can_be_kept(room: int, tmp_path: Path) -> None:
    told, warned = process(
        3,
        4,
        "mrr@10",
        environment={"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "0", "BYTES_OF_A_FILE": str(room)},
    )
    assert told["values"] == {"mrr@10": [1.0, 1.0, 1.0, 1.0]}
    assert told["hits"] == 0
    (line,) = [line for line in warned.splitlines() if "cannot be kept" in line]
    assert line == (
        "compiled measures cannot be kept (File too large) and are compiled in every process; "
        "set NUMBA_CACHE_DIR to a folder that can be written"
    )
    assert not list(tmp_path.rglob("*.tmp*")) and not list(tmp_path.rglob("*.nbc"))
