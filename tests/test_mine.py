"""Hard negatives: which documents a row takes, against the definition and by hand; what a teacher's scores leave."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Prorank

from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.bm25 import bm25_run
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.collections import open_collection
from prorank_jax.data.false_negatives import Doubt, drop_false_negatives
from prorank_jax.data.jsonl import read_rows, write_rows
from prorank_jax.data.mine import Choice, Window, depth_of, mine, parse_ranks
from prorank_jax.data.runs import Run, write_run
from prorank_jax.errors import InputError

# "p2" is a copy of "p1" under another id, "n5" one of "n4", and "copy" one of the query's own document.
DOCUMENTS = {
    "q": "own",
    "p1": "one",
    "p2": "one",
    "p3": "three",
    "copy": "own",
    "n1": "a",
    "n2": "b",
    "n3": "c",
    "n4": "d",
    "n5": "d",
    "n6": "e",
    "empty": "",
}
MADE = Collection("made", "train", DOCUMENTS, {"q": "what?"}, {"q": {"p3": 1, "p1": 2, "n2": 0, "q": 2, "gone": 1}})
RANKING = [
    *(("n1", 10.0), ("p2", 9.5), ("p1", 9.0), ("copy", 8.5), ("n2", 8.0), ("empty", 7.5)),
    *(("n3", 7.0), ("p3", 6.0), ("n4", 5.0), ("n5", 4.0), ("n6", 2.0)),
]
RUN: Run = {"q": RANKING}


def mined(window: Window | None = None, choice: Choice | None = None, run: Run = RUN) -> dict[str, Any]:
    return mine(MADE, run, window or Window(), choice or Choice()).rows[0]


def test_a_row_by_hand() -> None:
    """Positives by judgement, not by rank; negatives by rank; "n2" is judged not relevant and taken."""
    assert mined() == {
        "query_id": "q",
        "query": "what?",
        "pos": ["one", "three"],
        "neg": ["a", "b", "c", "d", "e"],
        "pos_ids": ["p1", "p3"],
        "neg_ids": ["n1", "n2", "n3", "n4", "n6"],
    }


def test_positives_of_equal_judgement_are_by_first_stage_rank_and_unfound_ones_last() -> None:
    collection = replace(MADE, qrels={"q": {"n6": 1, "p1": 1, "n3": 1, "p3": 2}})
    run = {"q": [("n3", 3.0), ("p1", 2.0), ("n1", 1.0)]}
    assert mine(collection, run, Window(), Choice()).rows[0]["pos_ids"] == ["p3", "n3", "p1", "n6"]
    (row,) = mine(collection, run, Window(), Choice(positives=2)).rows
    assert (row["pos_ids"], row["neg_ids"]) == (["p3", "n3"], ["n1"])


@pytest.mark.parametrize(
    ("window", "taken"),
    [
        # Ranks are those of the run: n2 stands fifth, and fourth to seventh of the negatives would be n4 and n6.
        (Window(ranks=(4, 7)), ["n2", "n3"]),
        (Window(ranks=(9, 10)), ["n4"]),
        (Window(ranks=(10, 10)), ["n5"]),
        (Window(ranks=(1, 1)), ["n1"]),
        # The lowest positive is p3 with 6; below the highest, 9, there are n2 and n3 too.
        (Window(absolute_margin=0.0), ["n4", "n6"]),
        (Window(absolute_margin=1.0), ["n4", "n6"]),
        (Window(absolute_margin=1.01), ["n5", "n6"]),
        (Window(relative_margin=0.3), ["n5", "n6"]),
        (Window(relative_margin=0.3, absolute_margin=3.0), ["n6"]),
        (Window(relative_margin=0.1, absolute_margin=4.0), ["n6"]),
        # With judgements from 2 on, p3 is no positive any more, and the only one is p1 with 9.
        (Window(relevant_from=2, ranks=(6, 9)), ["n3", "p3", "n4"]),
        (Window(relevant_from=2, absolute_margin=1.0, ranks=(1, 7)), ["n2", "n3"]),
    ],
)
def test_the_window_by_hand(window: Window, taken: list[str]) -> None:
    assert mined(window)["neg_ids"] == taken


def test_a_relative_margin_of_negative_scores_is_below_the_positive() -> None:
    """-2 - 0.25 * 2 = -2.5; a factor of 0.75 would give -1.5, above the positive."""
    run = {"q": [("n1", -1.0), ("n3", -1.6), ("p3", -2.0), ("n4", -2.4), ("n6", -2.5)]}
    assert mined(Window(relative_margin=0.25), run=run)["neg_ids"] == ["n6"]


def test_a_margin_is_to_the_positives_of_the_row_that_were_found() -> None:
    assert mined(Window(absolute_margin=0.0), Choice(positives=1))["neg_ids"] == ["n2", "n3", "n4", "n6"]
    run = {"q": [("n1", 3.0), ("p1", 2.0), ("n3", 1.0)]}
    assert mined(Window(absolute_margin=0.0), run=run)["neg_ids"] == ["n3"]
    with pytest.raises(InputError, match="skipped 0 without a positive, 1 without a negative; "):
        mined(Window(absolute_margin=0.0), run={"q": [("n1", 3.0)]})


def test_fewer_negatives_than_wanted_are_kept() -> None:
    assert mined(Window(ranks=(1, 5)), Choice(negatives=9))["neg_ids"] == ["n1", "n2"]
    assert mined(Window(ranks=(1, 5)), Choice(negatives=9, sample="random"))["neg_ids"] == ["n1", "n2"]
    assert mined(choice=Choice(negatives=2))["neg_ids"] == ["n1", "n2"]


def test_a_random_sample_is_uniform_in_the_window_and_a_function_of_the_seed() -> None:
    counts = dict.fromkeys(["n1", "n2", "n3", "n4", "n6"], 0)
    for seed in range(400):
        ids = mined(choice=Choice(negatives=2, sample="random", seed=seed))["neg_ids"]
        assert ids == mined(choice=Choice(negatives=2, sample="random", seed=seed))["neg_ids"]
        assert ids == sorted(ids) and len(set(ids)) == 2
        for name in ids:
            counts[name] += 1
    # 160 each, with a standard deviation of 9.8.
    assert all(120 < count < 200 for count in counts.values()), counts


def test_queries_draw_apart() -> None:
    collection = replace(MADE, queries=dict.fromkeys("abcdef", "what?"), qrels=dict.fromkeys("abcdef", {"p1": 1}))
    rows = mine(collection, dict.fromkeys("abcdef", RANKING), Window(), Choice(2, sample="random")).rows
    assert len({tuple(row["neg_ids"]) for row in rows}) > 1


def test_skipped_queries_are_counted() -> None:
    qrels = {"q": {"p1": 1}, "no positive": {"n1": 0}, "not in the corpus": {"gone": 1}, "nothing found": {"p1": 1}}
    collection = replace(MADE, queries=dict.fromkeys(qrels, "what?"), qrels=qrels)
    found = mine(collection, {"q": RANKING, "no positive": RANKING}, Window(), Choice(negatives=3))
    assert found[1:] == (4, 2, 1)
    assert str(found) == "4 queries: 1 rows, 3 negatives; skipped 2 without a positive, 1 without a negative"


def test_nothing_left_is_one_line() -> None:
    with pytest.raises(InputError) as error:
        mined(Window(relevant_from=3))
    assert str(error.value) == (
        "made/train: 1 queries: 0 rows, 0 negatives; skipped 1 without a positive, 0 without a negative; "
        "lower --relevant-from, widen --ranks or lower the margin"
    )


def test_every_row_of_nfcorpus_is_by_the_definition(shared: Path) -> None:
    """Known positives, their copies and what is outside the window are looked up anew for every negative."""
    collection = read_beir(shared / "data" / "nfcorpus", "dev")
    run = bm25_run(collection, 60)
    window = Window(ranks=(5, 60), relative_margin=0.1)
    found = mine(collection, run, window, Choice(negatives=5, positives=3, sample="random"))
    assert found.queries == len(collection.queries) == 324
    assert found.queries - found.without_positive - found.without_negative == len(found.rows) > 150
    for row in found.rows:
        query_id, judgements = row["query_id"], collection.qrels[row["query_id"]]
        relevant = {collection.documents.get(name) for name, judgement in judgements.items() if judgement > 0}
        scores = dict(run[query_id])
        rank = {name: position for position, (name, _) in enumerate(run[query_id], 1)}
        lowest = min(scores[name] for name in row["pos_ids"] if name in scores)
        assert 1 <= len(row["neg"]) <= 5 and 1 <= len(row["pos"]) <= 3
        assert len(set(row["neg"])) == len(row["neg"])
        assert not relevant & set(row["neg"])
        assert all(judgements[name] > 0 for name in row["pos_ids"])
        assert all(5 <= rank[name] and scores[name] <= 0.9 * lowest + 1e-9 for name in row["neg_ids"])
        for part in ("pos", "neg"):
            assert row[part] == [collection.documents[name] for name in row[f"{part}_ids"]]


def scored_row(**fields: Any) -> dict[str, Any]:
    scores = {"pos_scores": [3.0, 1.0], "neg_scores": [2.0, 0.5, 1.5, -1.0]}
    texts = {"query": "q", "pos": ["x", "y"], "neg": ["a", "b", "c", "d"]}
    return {**texts, "neg_ids": ["1", "2", "3", "4"], **scores, "note": "kept", **fields}


def dropped(tmp_path: Path, doubt: Doubt, choice: Choice | None = None, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    source, out = tmp_path / "scored.jsonl", tmp_path / "out.jsonl.gz"
    with write_rows(source) as write:
        for row in rows or (scored_row(),):
            write(row)
    drop_false_negatives(source, out, doubt, choice or Choice())
    return [row for _, row in read_rows(out)]


@pytest.mark.parametrize(
    ("doubt", "left"),
    [
        (Doubt(max_score=1.5), ["b", "c", "d"]),
        (Doubt(max_score=1.49), ["b", "d"]),
        # Below the lowest positive, 1; the highest is 3 and would leave all.
        (Doubt(teacher_margin=0.0), ["b", "d"]),
        (Doubt(teacher_margin=0.5), ["b", "d"]),
        (Doubt(teacher_margin=0.6), ["d"]),
        (Doubt(max_score=0.0, teacher_margin=0.1), ["d"]),
        (Doubt(max_score=0.4, teacher_margin=2.0), ["d"]),
    ],
)
def test_what_a_teacher_leaves_by_hand(tmp_path: Path, doubt: Doubt, left: list[str]) -> None:
    (row,) = dropped(tmp_path, doubt)
    kept = ["abcd".index(name) for name in left]
    whole = scored_row()
    assert row == whole | {name: [whole[name][i] for i in kept] for name in ("neg", "neg_scores", "neg_ids")}


def test_the_choice_is_of_what_a_teacher_leaves(tmp_path: Path) -> None:
    (row,) = dropped(tmp_path, Doubt(max_score=1.5), Choice(negatives=2))
    assert (row["neg"], row["neg_scores"]) == (["b", "c"], [0.5, 1.5])
    # The one positive that is kept scores 3: nothing is in doubt.
    (row,) = dropped(tmp_path, Doubt(teacher_margin=0.0), Choice(positives=1))
    assert (row["pos"], row["pos_scores"], row["neg"]) == (["x"], [3.0], ["a", "b", "c", "d"])
    drawn = {
        tuple(dropped(tmp_path, Doubt(max_score=1.5), Choice(2, sample="random", seed=seed))[0]["neg"])
        for seed in range(20)
    }
    assert drawn == {("b", "c"), ("b", "d"), ("c", "d")}


def test_rows_that_a_teacher_leaves_nothing_of(tmp_path: Path) -> None:
    doubt = Doubt(max_score=0.0)
    rows = dropped(tmp_path, doubt, None, scored_row(neg_scores=[1, 1, 1, 1]), scored_row(query="second"))
    assert [row["query"] for row in rows] == ["second"]
    sure = drop_false_negatives(tmp_path / "scored.jsonl", tmp_path / "again.jsonl", doubt, Choice())
    assert str(sure) == "2 queries: 1 rows, 1 of 8 negatives; skipped 1 without a negative"
    with pytest.raises(InputError, match="2 queries: 0 rows, 0 of 8 negatives; skipped 2 .*; raise --max-score"):
        drop_false_negatives(tmp_path / "scored.jsonl", tmp_path / "none.jsonl", Doubt(max_score=-9.0), Choice())
    assert not (tmp_path / "none.jsonl").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_ranks_and_depth() -> None:
    assert parse_ranks("10:50") == (10, 50)
    assert [depth_of(None, None), depth_of((1, 30), None), depth_of((1, 300), None)] == [100, 100, 300]
    assert [depth_of(None, 7), depth_of((1, 5), 7)] == [7, 7]


def test_mine_writes_rows_and_prints_counts(prorank: Prorank, tiny_collection: Path, tmp_path: Path) -> None:
    data, out = tiny_collection / "train", tmp_path / "new" / "mined.jsonl"
    status, printed, _ = prorank("data", "mine", "--data", data, "--out", out, "--negatives", 4)
    collection = read_beir(data, "train")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (status, len(rows)) == (0, len(collection.queries))
    counts = f"{len(rows)} queries: {len(rows)} rows, {4 * len(rows)} negatives; "
    assert printed == f"{counts}skipped 0 without a positive, 0 without a negative: {out}\n"
    assert rows == mine(collection, bm25_run(collection, 100), Window(), Choice(negatives=4)).rows

    # A run of the user's own, its ranks and scores, compressed.
    write_run(tmp_path / "run.trec", {"q0": [("d1", 4.0), ("d2", 3.0), ("d3", 2.0), ("d4", 1.0)]}, tag="mine")
    relevant = {name for name, judgement in collection.qrels["q0"].items() if judgement > 0}
    options = ("--first-stage", tmp_path / "run.trec", "--ranks", "2:4", "--split", "train", "--depth", 4)
    status, printed, _ = prorank("data", "mine", "--data", data, "--out", f"{out}.gz", *options)
    assert status == 0
    (row,) = map(json.loads, gzip.decompress((tmp_path / "new" / "mined.jsonl.gz").read_bytes()).splitlines())
    assert row["neg_ids"] == [name for name in ("d2", "d3", "d4") if name not in relevant]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ranks", "5"], "--ranks='5': is not FIRST:LAST; write two ranks, such as 10:50"),
        (["--ranks", "5:2"], "--ranks=5:2: holds no rank; write the first and the last, such as 1:100"),
        (["--ranks", "0:2"], "--ranks=0:2: holds no rank; write the first and the last, such as 1:100"),
        (["--ranks", "1:50", "--depth", "20"], "--ranks=1:50: ends below --depth 20; use --depth 50 or more"),
        (["--relative-margin", "-0.1"], "--relative-margin=-0.1: is negative or not finite; write 0 or more"),
        (["--absolute-margin", "nan"], "--absolute-margin=nan: is negative or not finite; write 0 or more"),
        (["--absolute-margin", "900"], "train/train: 6 queries: 0 rows, 0 negatives; "),
        (["--relevant-from", "3"], "train/train: 6 queries: 0 rows, 0 negatives; skipped 6 without a positive, "),
        (["--relevant-from", "0"], "Invalid value for '--relevant-from'"),
        (["--negatives", "0"], "Invalid value for '--negatives'"),
        (["--positives", "0"], "Invalid value for '--positives'"),
        (["--depth", "0"], "Invalid value for '--depth'"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--sample", "best"], "--sample='best': not known; use top or random"),
        (["--split", "dev"], "no split 'dev'; the splits are train"),
        (["--first-stage", "run.trec"], "'run.trec': no such file; give the path of a TREC run, or bm25"),
        (["--max-score", "1"], "--max-score=1.0: has no meaning with --data; leave it out"),
        (["--teacher-margin", "1"], "--teacher-margin=1.0: has no meaning with --data; leave it out"),
        (["--scores", "x.jsonl"], "give either --data or --scores, not both and not neither"),
    ],
)
def test_wrong_options(
    refused: Callable[..., str], tiny_collection: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    out = tmp_path / "out.jsonl"
    # Progress is printed where candidates are retrieved first, which these are not.
    open_candidates(open_collection(tiny_collection / "train", "train"), "bm25", 100)
    assert told in refused("data", "mine", "--data", tiny_collection / "train", "--out", out, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--scores: nothing says which negatives to drop; give --max-score or --teacher-margin"),
        (["--max-score", "nan"], "--max-score=nan: is not a finite number; write a score of the teacher"),
        (["--teacher-margin", "-1"], "--teacher-margin=-1.0: is negative or not finite; write 0 or more"),
        (["--max-score", "1", "--depth", "9"], "--depth=9: has no meaning with --scores; leave it out"),
        (["--max-score", "1", "--split", "dev"], "--split=dev: has no meaning with --scores; leave it out"),
        (["--max-score", "-7"], "1 queries: 0 rows, 0 of 4 negatives; skipped 1 without a negative; raise --max-score"),
    ],
)
def test_wrong_options_with_scores(refused: Callable[..., str], tmp_path: Path, options: list[str], told: str) -> None:
    source, out = tmp_path / "scored.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(scored_row()) + "\n")
    assert told in refused("data", "mine", "--scores", source, "--out", out, *options)
    assert not out.exists()


def test_a_file_that_cannot_be_written(refused: Callable[..., str], tiny_collection: Path, tmp_path: Path) -> None:
    mine_to = ("data", "mine", "--data", tiny_collection / "train", "--out")
    assert "out.csv: is not named .jsonl or .jsonl.gz" in refused(*mine_to, tmp_path / "out.csv")
    (tmp_path / "folder.jsonl").mkdir()
    assert "folder.jsonl: is a folder; give the path of a file" in refused(*mine_to, tmp_path / "folder.jsonl")
    (tmp_path / "file").write_text("")
    assert "file: cannot be made (File exists); give another --out" in refused(*mine_to, tmp_path / "file" / "o.jsonl")
    assert refused("data", "mine", "--data", tiny_collection) == "Missing option '--out'; see prorank --help"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"query": "q"}', "2: no field 'document'; a row has query and document, query, pos and neg, or "),
        (b'{"query": "q", "document": "d", "pos": []}', "2: both document and pos; a row has query and document, "),
        (b'{"query": "q", "document": "d"}', "2: a row of query, document after rows of query, pos, neg ("),
        (b'{"query": "q", "pos": ["x"]}', "2: no field 'neg'; write pos and neg, an empty list where there are none"),
        (b'{"query": "q", "pos": [], "neg": []}', "2: pos and neg are both empty; give one document or more, "),
        (b'{"query": "q", "pos": ["x"], "neg": [1]}', "2: neg[0]=1 is not a string; write it in quotes"),
        (b'{"pos": ["x"], "neg": ["a"]}', "2: no field 'query'; a row has query and document, "),
        (b'{"query": 7, "pos": ["x"], "neg": ["a"]}', "2: query=7 is not a string; write it in quotes"),
        (b'{"query": "q", "pos": ["x"], "neg": ["a"], "instruction": 1}', "2: instruction=1 is not a string; "),
        (b'{"query": "q", "pos": ["x"], "neg": ["a"]}', "2: has no pos_scores; write a teacher's scores beside it"),
        (
            b'{"query": "q", "pos": ["x"], "neg": ["a", "b"], "pos_scores": [1], "neg_scores": [1]}',
            "2: 1 neg_scores for 2 neg; give one for each",
        ),
        (
            b'{"query": "q", "pos": ["x"], "neg": ["a"], "neg_scores": [1]}',
            "2: has no pos_scores; write a teacher's scores beside it",
        ),
        (
            b'{"query": "q", "pos": ["x"], "neg": ["a"], "pos_scores": [2], "neg_scores": [1], "neg_ids": ["a", "b"]}',
            "2: 2 neg_ids for 1 neg; give one for each",
        ),
        (
            b'{"query": "q", "pos": ["x"], "neg": ["a"], "pos_scores": [1], "neg_scores": [NaN]}',
            "2: neg_scores[0]=nan is not finite in 32 bits; mend it or leave the row out",
        ),
        (b'{"query": "q", ', "2: column 16: not valid JSON (Expecting property name"),
        (b'{"query": "\\ud800"}', "2: a \\u escape is half of a surrogate pair; write both halves or none"),
        (b"caf\xe9", "2: byte 4 of the line is not UTF-8; save the file as UTF-8"),
        (b"[1]", "2: [1] is not a JSON object; write "),
        (b"[" * 100_000, "2: not readable JSON (a number too long, or nested too deep); mend it"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_line(refused: Callable[..., str], tmp_path: Path, line: bytes, told: str, suffix: str) -> None:
    source, out = tmp_path / f"scored{suffix}", tmp_path / "out.jsonl"
    content = json.dumps(scored_row()).encode() + b"\n" + line + b"\n"
    source.write_bytes(gzip.compress(content) if suffix == ".jsonl.gz" else content)
    message = refused("data", "mine", "--scores", source, "--out", out, "--max-score", 1)
    assert message.startswith(f"{source}:{told}"), message
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_file_that_cannot_be_read(refused: Callable[..., str], tmp_path: Path) -> None:
    def message(name: str, content: bytes | None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return refused(
            *("data", "mine", "--scores", tmp_path / name, "--out", tmp_path / "out.jsonl", "--max-score", 1)
        )

    assert "no.jsonl': no such file; give files of rows (.jsonl, .jsonl.gz, .parquet)" in message("no.jsonl", None)
    told = "rows.csv: not a file of rows; its name ends in one of .jsonl, .jsonl.gz, .parquet"
    assert message("rows.csv", b"a,b\n").endswith(told)
    assert "empty.jsonl: holds no row; write rows of query and document, " in message("empty.jsonl", b"\n \n")
    whole = gzip.compress(json.dumps(scored_row()).encode() + b"\n")
    assert "half.jsonl.gz: not readable as gzip (" in message("half.jsonl.gz", whole[:-12])
    assert "plain.jsonl.gz: not readable as gzip (" in message("plain.jsonl.gz", b"{}\n")
