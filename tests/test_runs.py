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
        ("q1 Q0 d2 1.5 1.0 x", "rank '1.5' is not an integer"),
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
        ('[{"q1": {"d1": 1}}]', ": item 1: {'q1': {'d1': 1}} is no ranking; "),
        ('{"q1": {"d1": {"a": {"b": {}}}}}', ": {'q1': {'d1': {'a': {'b': {}}}}} is nested too deep; "),
        ('{"q1": [{"d1": 1}]}', ": query 'q1': [{'d1': 1}] is not an object of documents"),
        ("3", ": 3 is not an object of queries"),
        (
            '{"q1": {"d1": 1}}\n{"q2": {"d1": 1}}',
            ":2: not valid JSON (Extra data); name it .jsonl if each line is a value",
        ),
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("colbert4.tsv", {"q1": [("d1", 21.5), ("d2", 20.1)]}),
        ("floatrank.trec", {"q1": [("d1", 9.0), ("d2", 8.0)]}),
        ("header_pandas.tsv", {"q1": [("d1", 9.5)]}),
        # No scores: minus the rank.
        ("msmarco.tsv", {"q1": [("d1", -1.0), ("d2", -2.0)], "q2": [("d3", -1.0)]}),
        ("mteb2.json", {"q1": [("d1", 9.5), ("d2", 8.5)]}),
        ("pyterrier.parquet", {"q1": [("d1", 9.5), ("d2", 8.5)]}),
        ("rankllm.json", {"q1": [("d1", 9.5), ("d2", 8.5)]}),
        ("rankllm.jsonl", {"q1": [("d1", 9.5), ("d2", 8.5)]}),
    ],
)
def test_runs_of_other_tools_are_read(shared, tmp_path, name, expected):
    path = shared / "trials" / "11-runs-of-other-tools" / name
    assert read_run(path) == expected
    assert candidates(DRINKS, str(path), 10) == {"q1": [], "q2": []} | expected
    if not name.endswith(".parquet"):
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read_run(packed) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # The rank decides where there is nothing else, whatever the order of lines; the score where there is one.
        ("run.tsv", "q1\td2\t2\nq1\td1\t1\n", [("d1", -1.0), ("d2", -2.0)]),
        ("run.tsv", "q1 d2 1\nq1 d1 0\n", [("d1", 0.0), ("d2", -1.0)]),
        ("run.tsv", "q1 d2 9\nq1 d1 1\n", [("d1", -1.0), ("d2", -9.0)]),
        ("run.tsv", "q1 d2 1 3.5\nq1 d1 2 4.5\n", [("d1", 4.5), ("d2", 3.5)]),
        ("run.tsv", "q1\td2\t2\t4.5\nq1\td1\t1\t4.5\n", [("d1", 4.5), ("d2", 4.5)]),
        # Tevatron: query, document, score.
        ("rank.txt", "q1\td2\t71.25\nq1\td1\t80.0\n", [("d1", 80.0), ("d2", 71.25)]),
        ("rank.txt", "q1\td2\t-1e-05\nq1\td1\t0.5\n", [("d1", 0.5), ("d2", -1e-05)]),
        # PyTerrier: ranks from 0, `docid` is a number of its index, texts with commas and quotes.
        (
            "res.csv",
            ',qid,docid,docno,rank,score,query\n0,q1,7,d2,1,1.5,"tea, ""black"""\n1,q1,3,d1,0,2.5,"a\nb"\n',
            [("d1", 2.5), ("d2", 1.5)],
        ),
        ("res.csv", 'qid, docno , score\nq1, "d2", 1.5\n q1 , d1 , 2.5\n', [("d1", 2.5), ("d2", 1.5)]),
        ("res.tsv", '"qid"\t"docno"\t"score"\n"q1"\t"d2"\t1.5\n"q1"\t"d1"\t"2.5"\n', [("d1", 2.5), ("d2", 1.5)]),
        # Ranks that are not there where there are scores, as after a join.
        (
            "res.csv",
            "qid,docno,rank,score\nq1,d1,,2.5\nq1,d3,2.0,1.5\nq1,d2,NaN,9.0\n",
            [("d2", 9.0), ("d1", 2.5), ("d3", 1.5)],
        ),
        ("res.jsonl", '{"qid": "q1", "docno": "d1", "score": 2, "rank": NaN}\n', [("d1", 2.0)]),
        ("res.json", '[{"qid": "q1", "docno": "d1", "score": 2, "rank": null}]', [("d1", 2.0)]),
        ("res.csv", "qid,docno,rank\nq1,d2,1.0\nq1,d1,0.0\n", [("d1", 0.0), ("d2", -1.0)]),
        ("res.tsv", '\ufeffQuery-ID\tDoc-ID\tScore\ttext\r\nq1\td1\t2\t"a\r\n\r\nq1\td2\t1\tb', [("d1", 2), ("d2", 1)]),
        ("res.trec", "query_id q0 doc_id rank score run_id\nq1 Q0 d1 1 9.5 t\n", [("d1", 9.5)]),
        ("rows.jsonl", '{"qid": "q1", "docno": "d1", "score": 2, "rank": 0}\n', [("d1", 2.0)]),
        (
            "rows.json",
            '[{"query_id": "q1", "doc_id": "d2", "rank": 2}, {"rank": 1, "query_id": "q1", "doc_id": "d1"}]',
            [("d1", -1.0), ("d2", -2.0)],
        ),
        # RankGPT.
        (
            "hits.json",
            '[{"query": "x", "hits": [{"qid": "q1", "docid": "d1", "rank": 1, "score": 2.5, "content": "y"}]}]',
            [("d1", 2.5)],
        ),
        # FlagEmbedding.
        (
            "cn.json",
            '{"eval_name": "e", "model_name": "m", "reranker_name": "NoReranker", "split": "test", '
            '"dataset_name": "cn", "search_results": {"q1": {"d1": 1.0, "d2": 2.5}}}',
            [("d2", 2.5), ("d1", 1.0)],
        ),
        # One object of rank_llm, not in a list.
        (
            "one.json",
            '{"query": {"text": "x", "qid": "q1"}, "candidates": [{"docid": "d1", "score": 2.5, "doc": {"a": 1}}]}',
            [("d1", 2.5)],
        ),
        ("old.json", '{"test": {"q1": {"d1": 1.5}}, "dev": {"q1": {"d2": 1.0}}}', [("d1", 1.5)]),
        ("new.json", '{"en": {"test": {"q1": {"d1": 1}}}, "de": {"dev": {"q1": {"d2": 1}}}}', [("d1", 1.0)]),
    ],
)
def test_runs_as_other_tools_write_them(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, newline="")
    assert candidates(DRINKS, str(path), 10)["q1"] == expected


def test_ids_that_are_numbers_are_read(tmp_path):
    (tmp_path / "run.json").write_text(
        '[{"query": {"qid": 264014}, "candidates": [{"docid": 7, "score": 1}, {"docid": "8", "score": 2}]}]'
    )
    assert read_run(tmp_path / "run.json") == {"264014": [("8", 2.0), ("7", 1.0)]}
    pyarrow.parquet.write_table(pyarrow.table({"qid": [1], "pid": [22], "rank": [3]}), tmp_path / "run.parquet")
    assert read_run(tmp_path / "run.parquet") == {"1": [("22", -3.0)]}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.tsv", "q1 d1\n", ":1: 'q1 d1' has 2 columns; write `query Q0 document rank score tag`, or convert it by"),
        ("run.tsv", "q1 Q0 d1 1 2.5\n", ":1: 'q1 Q0 d1 1 2.5' has 5 columns; write"),
        ("run.csv", "q1,d1,1\n", ":1: 'q1,d1,1' has 1 columns; write"),
        ("run.tsv", "q1\td1\t1\nq1\td2\t2\t3.0\n", ":2: has 4 columns, and the first line 3; "),
        ("run.txt", "a\rb", ":1: 'a\\rb' has 2 columns; write"),
        ("run.txt", "x," * 99_999 + '"' + "y" * 200_000, ":1: 'x,x,x,"),
        # Whole scores in the place of ranks, of the best document and of any query.
        (
            "run.tsv",
            "q0 d1 90\nq0 d2 80\nq1 d1 1\n",
            ":2: rank 80 is the best of query 'q0': the third column of three is the rank, which begins at 0 or 1; "
            "write scores with a point (80.0), or `query Q0 document rank score tag`",
        ),
        ("run.tsv", "q0\td1\t1\nq1\td1\t2\nq1\td2\t7\n", ":2: rank 2 is the best of query 'q1': the third "),
        ("run.tsv", "q0 d1 0\nq0 d2 -8\n", ":2: rank -8 is the best of query 'q0': the third "),
        # Judgements, which are no ranks, and a rank after scores.
        ("qrels.tsv", "q1\td1\t1\nq1\td2\t1\n", ":2: rank 1 stands twice for query 'q1'; "),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n", ":1: the columns query-id, corpus-id, score are not "),
        ("run.tsv", "q1\td1\t0.5\nq1\td2\t1\n", ":2: '1' is a rank, and the first line has a score; "),
        ("run.tsv", "q1\td1\t1\nq1\td2\t1.5\n", ":2: rank '1.5' is not an integer; "),
        ("run.tsv", "q1\td1\tnan\n", ":1: score 'nan' is not a finite number"),
        ("run.csv", "qid,docno,rank\nq1,d1,\n", ":2: rank '' is not an integer; "),
        ("run.csv", "qid,docno,score,rank\nq1,d1,1,x\n", ":2: rank 'x' is not an integer; "),
        ("run.jsonl", '{"qid": "q1", "docno": "d1", "rank": NaN}', ":1: rank nan is not an integer; "),
        ("run.jsonl", '{"qid": "q1", "docno": "d1", "rank": null}', ":1: rank None is not an integer; "),
        ("run.csv", "qid,docno,score\nq1,d1,inf\n", ":2: score 'inf' is not a finite number"),
        ("run.csv", "qid,docno,score\nq1,d1\n", ":2: has 2 columns, and the first line 3; "),
        ("run.csv", 'qid,docno,score\n"q1,d1,1\n', ":2: not readable as CSV ("),
        ("run.csv", "qid,title,score\nq1,d1,1\n", ":1: the columns qid, title, score are not those of a run; "),
        ("run.jsonl", '{"qid": "q1", "docid": "d1"}\n', ":1: {'qid': 'q1', 'docid': 'd1'} is no ranking; "),
        ("run.jsonl", '{"qid": "q1", "docid": "d1", "score": NaN}\n', ":1: score nan is not a finite number"),
        (
            "run.json",
            '[{"query": {"text": "x"}, "hits": 3}]',
            ": item 1: {'query': {'text': 'x'}, 'hits': 3} is no ranking; ",
        ),
        (
            "run.json",
            '[{"query": {"qid": "q"}, "candidates": [{"docid": "d"}]}]',
            ": item 1: candidate 1: score None is no",
        ),
        (
            "run.jsonl",
            '{"qid": "q", "docid": "d", "score": null, "rank": 1}',
            ":1: score None is not a number; write one",
        ),
        (
            "run.jsonl",
            '{"qid": "q", "pid": 1, "score": 1}\n{"qid": "q", "pid": 2, "rank": 2}',
            ":2: {'qid': 'q', 'pid': 2, ",
        ),
        ("run.json", '[{"query": {"qid": "q"}, "candidates": ["d"]}]', ": item 1: candidate 1: 'd' is not an object"),
        (
            "run.jsonl",
            '{"query": {"qid": 1}, "candidates": []}\n' * 2,
            ":2: query '1' stands twice; keep one of them",
        ),
        ("run.json", "[]", ": is empty"),
        ("run.json", '[["q1", "d1"]]', ": item 1: ['q1', 'd1'] is no ranking; "),
        (
            "run.json",
            '{"mteb_model_meta": {}, "x": {"dev": {"q1": {"d1": 1}}}}',
            ": has the predictions of x/dev, none of the split 'test'; give those of this split",
        ),
        (
            "run.json",
            '{"model_name": "m", "split": "dev", "search_results": {"q1": {"d1": 1.0}}}',
            ": split='dev': are search results of another split than 'test'; give those of this split",
        ),
        (
            "run.json",
            '{"model_name": "m", "results": {"q1": {"d1": 1.0}}}',
            ": model_name='m': is not an object of documents; write {",
        ),
        (
            "run.json",
            '{"q1": {"d1": {"score": 1.0, "text": "x"}}, "q2": {"d1": {"score": 1.0}}, "q3": {}, "q4": {}, "q5": {}, '
            '"q6": {}}',
            ": is nested three deep, and none of q1, q2, q3, q4, q5, ... is the split 'test'; give the predictions "
            "of this split, or write {",
        ),
        (
            "run.json",
            '{"mteb_model_meta": {}, "default": {"train": {"q1": {"d1": 1}}}}',
            ": has the predictions of default/train, none of the split 'test'; give those of this split, or give them "
            "its name",
        ),
        (
            "run.json",
            '{"default": {"test": {"q1": {}, "q2": {}}}}',
            ": is empty: none of the 2 queries of default/test has a document (first: 'q1'); ",
        ),
        ("run.json", '{"default": {"test": {}}}', ": is empty: it has no query; "),
        ("run.json", '{"default": {"dev": {"q1": {"d1": 1}}, "test": {}}}', ": is empty: default/test has no query; "),
        ("run.json", '{"mteb_model_meta": {"a": "b"}}', ": is empty: it has no query; "),
        ("run.json", '[{"query": {"qid": 1}, "candidates": []}]', ": is empty; give a run in which a query has a docu"),
        (
            "run.json",
            '[{"query": "x", "hits": [{"docid": "d1", "score": 2}]}]',
            ": item 1: hit 1: has no qid; write one with qid, docid and score",
        ),
        (
            "run.jsonl",
            '{"query": {"qid": "q1"}, "candidates": [{"id": "d1", "score": 2}]}',
            ":1: candidate 1: has no docid; write one with docid and score",
        ),
        (
            "run.json",
            '{"en": {"test": {"q1": {"d1": 1}}}, "de": {"test": {"q1": {"d2": 1}}}}',
            ": has the predictions of en/test, de/test; keep one of them in a file",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text, newline="")
    with pytest.raises(InputError) as caught:
        candidates(DRINKS, str(path), 10)
    assert str(caught.value).startswith(f"{path}{told}"), str(caught.value)
    assert "\n" not in str(caught.value) and "[('" not in str(caught.value)


def test_a_json_run_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b'{"q1": {"d\xff": 1}}')
    with pytest.raises(InputError, match="not readable as JSON"):
        read_run(path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"q_id": ["q1"], "doc_id": ["d1"]},
            ": the columns q_id, doc_id are not those of a run; name them qid, docno, ",
        ),
        ({"query-id": ["q1"], "corpus-id": ["d1"], "score": [1]}, ": the columns query-id, corpus-id, score are not "),
        ({"q_id": ["q1"], "doc_id": [1.0], "score": [1.0]}, ":1: id 1.0 is not a string"),
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
    for name in (
        "splade.top100.trec",
        "e5.test.top10.trec",
        "e5.test.top100.trec",
        "bm25s-large.trec",
        "dense.json",
        "._spalde.trec",
    ):
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


def test_ranks_that_are_missing_next_to_scores_are_read(tmp_path):
    columns = {"qid": ["q", "q"], "docno": ["a", "b"], "score": [1.0, 2.0], "rank": [math.nan, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "run.parquet")
    assert read_run(tmp_path / "run.parquet") == {"q": [("b", 2.0), ("a", 1.0)]}
