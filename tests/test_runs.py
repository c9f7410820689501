"""Runs: TREC's files and ranx's, in and out, what is refused, and runs by name."""

import dataclasses
import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import pytrec_eval
from ranx.io import save_json, save_lz4

from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.candidates import candidates, find_run
from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import read_run, strictly_decreasing, write_run
from prorank_jax.errors import InputError

DRINKS = Collection(
    name="drinks",
    split="test",
    documents={"d1": "black tea", "d2": "green teas", "d3": "coffee"},
    queries={"q1": "Tea", "q2": "the milk"},
    qrels={"q1": {"d1": 1}, "q2": {"d2": 1}},
)

NESTED = {"q1": {"d3": 1.5, "d1": 2.5, "d2": 1.5}, "q2": {"d2": -1.0}}
"""The order of an object counts where scores tie."""
RANKED = {"q1": [("d1", 2.5), ("d3", 1.5), ("d2", 1.5)], "q2": [("d2", -1.0)]}


def trec_eval(qrels: dict[str, dict[str, int]], run: dict[str, list[tuple[str, float]]]) -> float:
    scored = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate({q: dict(run[q]) for q in run})
    return sum(row["ndcg_cut_10"] for row in scored.values()) / len(qrels)


def test_a_run_is_sorted_by_score_then_rank(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text(
        "q Q0 low 1 1.0 x\nq Q0 second 3 2.0 x\nq Q0 first 2 2.0 x\n\nq\tQ0\ttop\t9\t1e1\tx\np Q0 only 1 -3 x\n"
    )
    assert read_run(path) == {
        "q": [("top", 10.0), ("first", 2.0), ("second", 2.0), ("low", 1.0)],
        "p": [("only", -3.0)],
    }
    assert read_run(path, depth=2)["q"] == [("top", 10.0), ("first", 2.0)]


def test_a_read_run_drops_the_query_itself_before_it_is_cut(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("d1 Q0 d1 1 9 x\nd1 Q0 d2 2 8 x\nd1 Q0 d3 3 7 x\n")
    assert read_run(path, depth=2) == {"d1": [("d2", 8.0), ("d3", 7.0)]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q1 Q0 d2 2 1.0", "has 5 columns"),
        ("q1 Q0 d 2 2 1.0 x", "has 7 columns"),
        ("q1 Q0 d2 two 1.0 x", "rank 'two' is not an integer"),
        ("q1 Q0 d2 1_0 1.0 x", "rank '1_0' is not an integer"),
        ("q1 Q0 d2 1.0 1.0 x", "rank '1.0' is not an integer"),
        ("q1 Q0 d2 2 1_0.5 x", "score '1_0.5' is not a finite number"),
        ("q1 Q0 d2 2 high x", "score 'high' is not a finite number"),
        ("q1 Q0 d2 2 nan x", "score 'nan' is not a finite number"),
        ("q1 Q0 d2 2 -inf x", "score '-inf' is not a finite number"),
        ("q1 Q0 d2 2 1e39 x", "score '1e39' is not a finite number"),
        ("q1 Q0 d1 2 1.0 x", "document 'd1' stands twice for query 'q1'"),
        ("q1 Q0 d9 2 1.0 x", "document 'd9' is not in drinks"),
    ],
)
def test_a_bad_run_line_is_named(tmp_path, line, told):
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 d1 1 2.0 x\n" + line + "\n")
    with pytest.raises(InputError) as caught:
        candidates(DRINKS, str(path), 10)
    assert str(caught.value).startswith(f"{path}:2: {told}" if not told.startswith("has") else f"{path}:2: ")
    assert told in str(caught.value)


def test_written_scores_are_strictly_decreasing_in_32_bits(tmp_path):
    # 1 - 1e-12 differs from 1 only in 64 bits; trec_eval keeps 32.
    scores = [2.0, 1.0, 1.0, 1.0 - 1e-12, 0.0, 0.0, -5.0, -5.0]
    ranking = [(f"d{i}", score) for i, score in enumerate(scores)]
    write_run(tmp_path / "run.trec", {"q": ranking}, "x")
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [line[2] for line in lines] == [f"d{i}" for i in range(8)]
    assert [line[3] for line in lines] == [str(i) for i in range(1, 9)]
    assert {(line[0], line[1], line[5]) for line in lines} == {("q", "Q0", "x")}
    written = np.array([line[4] for line in lines], np.float32)
    assert (np.diff(written) < 0).all()
    np.testing.assert_allclose(written, scores, rtol=1e-6, atol=1e-6)
    # The names are in the reverse of trec_eval's own order of ties, so any tie would change the figure.
    qrels = {"q": {"d1": 1, "d4": 1, "d6": 1}}
    assert trec_eval(qrels, read_run(tmp_path / "run.trec")) == pytest.approx(ndcg_at_10(qrels, {"q": ranking}))


def test_scores_that_need_no_change_are_written_as_they_are(tmp_path):
    run = {"q": [("a", float(np.float32(9.561698))), ("b", 0.5)]}
    assert strictly_decreasing(run) == run
    write_run(tmp_path / "run.trec", run, "x")
    assert strictly_decreasing(read_run(tmp_path / "run.trec")) == run


def test_writing_a_run_leaves_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.trec"
    write_run(path, {"q": [("old", 1.0)]}, "x")

    def fail(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_run(path, {"q": [("new", 1.0)]}, "x")
    assert read_run(path) == {"q": [("old", 1.0)]}
    monkeypatch.undo()
    write_run(path, {"q": [("new", 1.0)]}, "x")
    assert read_run(path) == {"q": [("new", 1.0)]}


def save_parquet(run: dict[str, dict[str, float]], path: Path) -> None:
    rows = [(query, document, score) for query, row in run.items() for document, score in row.items()]
    columns = zip(*rows, strict=True)
    pyarrow.parquet.write_table(pyarrow.table(list(map(list, columns)), names=["q_id", "doc_id", "score"]), path)


def save_packed(run: dict[str, dict[str, float]], path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(run).encode()))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("run.json", save_json),
        ("run.json.gz", save_packed),
        ("run.lz4", save_lz4),
        ("run.parquet", save_parquet),
        ("run.parq", save_parquet),
    ],
)
def test_what_ranx_saves_is_read(tmp_path, name, save):
    path = tmp_path / name
    save(NESTED, path)
    assert read_run(path) == RANKED
    assert read_run(path, depth=1, collection=DRINKS) == {"q1": [("d1", 2.5)], "q2": [("d2", -1.0)]}
    save({"q1": {"d9": 1.0}}, path)
    with pytest.raises(InputError, match=r"document 'd9' is not in drinks; use a run of this collection"):
        candidates(DRINKS, str(path), 10)
    save({"q1": {"d1": math.inf}}, path)
    with pytest.raises(InputError, match="is not a finite number|score None is not a number"):
        read_run(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_packed_trec_run_is_read(tmp_path):
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(b"q Q0 d 1 2.0 x\n"))
    assert read_run(path) == {"q": [("d", 2.0)]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"q1": {"d1": 1, "d1": 2}}', ": query 'q1': document 'd1' stands twice for query 'q1'; keep one of them"),
        ('{"q1": {"d1": 1}, "q1": {"d2": 2}}', ": query 'q1': stands twice; keep one of them"),
        ('{"q1": {"d1": NaN}}', ": query 'q1': document 'd1': score nan is not a finite number"),
        ('{"q1": {"d1": 1e39}}', ": query 'q1': document 'd1': score 1e+39 is not a finite number"),
        ('{"q1": {"d1": 1%s}}' % ("0" * 400), ": query 'q1': document 'd1': score 1000"),
        ('{"q1": {"d1": "1.0"}}', ": query 'q1': document 'd1': score '1.0' is not a number"),
        ('{"q1": {"d1": true}}', ": query 'q1': document 'd1': score True is not a number"),
        ('{"q1": {"d1": null}}', ": query 'q1': document 'd1': score None is not a number"),
        ('{"q1": ["d1"]}', ": query 'q1': ['d1'] is not an object of documents"),
        ('[{"q1": {"d1": 1}}]', ": [[('q1', [('d1', 1)])]] is not an object of queries"),
        ('{"q1": {"d1": 1}', ":1: not valid JSON (Expecting ',' delimiter)"),
        ("{}", ": is empty"),
        ('{"q1": {}}', ": is empty"),
        ("", ":1: not valid JSON"),
    ],
)
def test_a_bad_json_run_is_named(tmp_path, text, told):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}{told}"), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_json_run_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b'{"q1": {"d\xff": 1}}')
    with pytest.raises(InputError, match="not readable as JSON"):
        read_run(path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"q_id": ["q1"], "doc_id": ["d1"]}, ": has no column 'score'; a run has q_id, doc_id, score"),
        ({"q_id": ["q1"], "doc_id": [1], "score": [1.0]}, ":1: id 1 is not a string"),
        ({"q_id": ["q1", None], "doc_id": ["d1", "d2"], "score": [1.0, 2.0]}, ":2: id None is not a string"),
        ({"q_id": ["q1"], "doc_id": ["d1"], "score": ["1"]}, ":1: score '1' is not a number"),
        ({"q_id": ["q1", "q1"], "doc_id": ["d1", "d1"], "score": [2, 1]}, ":2: document 'd1' stands twice for query"),
    ],
)
def test_a_bad_parquet_run_is_named(tmp_path, columns: dict[str, Any], told):
    path = tmp_path / "run.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}{told}"), str(caught.value)


def test_an_lz4_run_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "run.lz4"
    for content in (b"text", lz4.frame.compress(b"text"), lz4.frame.compress(lz4.frame.compress(b"\x1c"))):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not readable as a run of ranx"):
            read_run(path)
    save_lz4([1], path)
    with pytest.raises(InputError, match=r"\[1\] is not an object of queries"):
        read_run(path)


@pytest.mark.parametrize("name", ["run.trec", "run.json", "run.lz4", "run.parquet"])
def test_a_missing_file_is_told(tmp_path, name):
    with pytest.raises(InputError, match="No such file or directory"):
        read_run(tmp_path / name)


# Runs by name.


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """In its folder are the splits test and train."""
    for name in ("qrels/test.tsv", "qrels/train.tsv", "runs/bm25s.test.top100.trec", "runs/bm25s.train.top100.trec"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("splade.top100.trec", "e5.test.top10.trec", "e5.test.top100.trec", "bm25s-large.trec", "dense.json"):
        (tmp_path / "runs" / name).write_text("")
    (tmp_path / "runs" / "folder").mkdir()
    return dataclasses.replace(DRINKS, folder=tmp_path)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("bm25s", "bm25s.test.top100.trec"),
        ("splade", "splade.top100.trec"),
        ("bm25s-large", "bm25s-large.trec"),
        ("e5.test.top10", "e5.test.top10.trec"),
        ("dense.json", "dense.json"),
    ],
)
def test_a_run_of_the_collections_own_is_found_by_name(collection, source, found):
    assert find_run(collection, source) == collection.folder / "runs" / found


def test_a_run_of_another_split_is_not_found(collection):
    train = dataclasses.replace(collection, split="train")
    assert find_run(train, "bm25s").name == "bm25s.train.top100.trec"
    with pytest.raises(InputError, match="'e5': no such file, and no run of drinks/train has this name"):
        find_run(train, "e5")


def test_a_name_of_several_or_no_runs_is_refused(collection):
    with pytest.raises(InputError) as caught:
        find_run(collection, "e5")
    assert str(caught.value) == (
        "candidates='e5': means 2 runs of drinks: e5.test.top10.trec, e5.test.top100.trec; give more of the name"
    )
    with pytest.raises(InputError) as caught:
        find_run(collection, "spalde")
    assert str(caught.value) == (
        "candidates='spalde': no such file, and no run of drinks/test has this name (nearest: splade.top100.trec)"
    )
    with pytest.raises(InputError, match="'e5': no such file; give the path of a TREC run, or bm25"):
        find_run(DRINKS, "e5")


def test_a_file_has_the_first_word(collection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("splade").write_text("")
    assert find_run(collection, "splade") == Path("splade")


def test_a_pattern_is_filled_in(collection, tmp_path):
    (tmp_path / "drinks.test.run").write_text("q1 Q0 d1 1 2.0 x\n")
    pattern = f"{tmp_path}/{{collection}}.{{split}}.run"
    assert candidates(collection, pattern, 10)["q1"] == [("d1", 2.0)]
    with pytest.raises(InputError) as caught:
        find_run(dataclasses.replace(collection, split="dev"), pattern)
    assert str(caught.value) == (
        f"candidates={pattern!r}: {tmp_path}/drinks.dev.run: no such file; give each collection its run"
    )
    with pytest.raises(InputError, match=r"\{name\} is not known; \{collection\} and \{split\} are filled in"):
        find_run(collection, "runs/{name}.trec")


@pytest.mark.parametrize(("name", "run"), [("scifact", "bm25s"), ("nfcorpus", "bm25s"), ("trec-dl19", "splade")])
def test_the_runs_beside_the_collections_are_found(shared, name, run):
    collection = read_beir(shared / "data" / name, "test")
    assert all(len(ranking) <= 5 for ranking in candidates(collection, run, 5).values())
