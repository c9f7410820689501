"""Prepared rows: which groups there are, when they are prepared again, and what is drawn from them."""

import json
import logging
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prorank_jax.atomic import alone
from prorank_jax.config import DataConfig
from prorank_jax.data import prepare as preparing
from prorank_jax.data.examples import Example, Group, JudgedSource
from prorank_jax.data.mixture import open_mixture
from prorank_jax.data.prepare import prepare
from prorank_jax.data.prepared import ABOUT, PreparedFolder, RowSource, Target, open_prepared
from prorank_jax.data.stream import pairs
from prorank_jax.errors import InputError

RNG = np.random.default_rng


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def pointwise(*rows: tuple[str, str, float]) -> list[dict[str, Any]]:
    return [{"query": query, "document": document, "label": label} for query, document, label in rows]


def made(file: Path, single: bool = False, positives_only: bool = True) -> PreparedFolder:
    return prepare(file, file.parent / "out", single=single, positives_only=positives_only)


def all_groups(folder: PreparedFolder) -> list[Group]:
    source = RowSource(folder, "label", "rows")
    return [source.draw(index, RNG(0), 100) for index in range(len(source))]


ROWS = pointwise(("q", "a", 1), ("q", "b", 0), ("r", "c", 1), ("q", "d", 2), ("q", "e", 0))


def test_rows_of_a_query_are_a_group_wherever_they_are(tmp_path: Path):
    folder = made(write(tmp_path / "rows.jsonl", ROWS))
    assert (folder.rows, folder.groups, folder.skipped, folder.scored) == (5, 2, 0, False)
    # In the order of first appearance; a group per run of rows would be a third one, of "d" and "e".
    assert [(group.query, group.documents, group.labels) for group in all_groups(folder)] == [
        ("q", ("a", "b", "d", "e"), (1.0, 0.0, 2.0, 0.0)),
        ("r", ("c",), (1.0,)),
    ]
    assert sorted(path.name for path in folder.folder.iterdir()) == ["groups-00000.array_record", "lock", ABOUT]


def test_groups_do_not_depend_on_the_order_of_queries(tmp_path: Path):
    rows = pointwise(*((f"q{i % 1500}", f"d{i}", int(i // 1500 == 1)) for i in range(6000)))
    # By query, as they would be without any sorting, and by the first row of a query.
    consecutive = made(write(tmp_path / "rows.jsonl", sorted(rows, key=lambda row: int(row["query"][1:]))))
    expected = (tmp_path / "out" / consecutive.shards[0].file).read_bytes()
    scattered = made(write(tmp_path / "rows.jsonl", rows))
    assert scattered.groups == 1500 and scattered.shards == consecutive.shards
    assert (tmp_path / "out" / scattered.shards[0].file).read_bytes() == expected


@pytest.mark.parametrize("single", [False, True])
def test_the_warmup_finds_both_kinds_in_shuffled_rows(shared: Path, tmp_path: Path, single: bool):
    file = shared / "trials" / "08-pointwise-rows-shuffled" / "rows.jsonl"
    folder = prepare(file, tmp_path / "out", single=single, positives_only=not single)
    assert folder.groups == (80 if single else 40)
    source = RowSource(folder, "label", "rows")
    for relevant, irrelevant in pairs([source], [1.0], seed=0).both[:40]:
        assert (relevant.document[-6:], irrelevant.document[-6:]) == ("quiet.", " loud.")
        assert single or relevant.query == irrelevant.query


def test_whitespace_around_a_query_is_no_other_query(tmp_path: Path):
    rows = pointwise(("q", "a", 1), ("r", "b", 1), (" q\n", "c", 0), ("q", "d", 0))
    assert [(group.query, group.documents) for group in all_groups(made(write(tmp_path / "rows.jsonl", rows)))] == [
        ("q", ("a", "c", "d")),
        ("r", ("b",)),
    ]


@pytest.mark.parametrize("single", [False, True])
def test_a_pair_with_two_labels_has_the_higher_one(tmp_path: Path, caplog: pytest.LogCaptureFixture, single: bool):
    rows = pointwise(("q", "a", 0), ("r", "a", 0), ("r", "c", 1), ("q", "b", 0), ("q", "a", 2), ("r", "c", 1))
    folder = made(write(tmp_path / "rows.jsonl", rows), single=single, positives_only=not single)
    assert [(group.query, *pair) for group in all_groups(folder) for pair in zip(*group[1:3], strict=True)] == [
        ("q", "b", 0),
        ("q", "a", 2),
        ("r", "a", 0),
        ("r", "c", 1),
    ]
    assert caplog.messages == [
        f"{tmp_path / 'rows.jsonl'}: 1 of 2 queries have a document as relevant and as not relevant, 1 have one twice; "
        "it is kept once, by its highest label"
    ]


def test_another_instruction_is_another_group(tmp_path: Path):
    rows = pointwise(("q", "a", 1), ("q", "b", 1))
    rows[1]["instruction"] = "Judge."
    folder = made(write(tmp_path / "rows.jsonl", rows))
    assert [(group.documents, group.instruction) for group in all_groups(folder)] == [
        (("a",), None),
        (("b",), "Judge."),
    ]
    assert folder.longest_instruction == "Judge."


def test_single_makes_a_group_of_each_document(tmp_path: Path):
    listwise = [
        {"query": "q", "documents": ["a", "b"], "scores": [2, -3]},
        {"query": "q", "documents": ["c"], "scores": [1]},
    ]
    folder = made(write(tmp_path / "rows.jsonl", listwise), single=True, positives_only=False)
    assert [(group.documents, group.labels) for group in all_groups(folder)] == [
        (("a",), (1.0,)),
        (("b",), (0.0,)),
        (("c",), (1.0,)),
    ]
    assert RowSource(folder, "score", "rows").draw(1, RNG(0), 1).targets == (-3.0,)


def test_rows_of_other_shapes_are_groups_as_they_are(tmp_path: Path):
    triple = {"query": "q", "pos": "a", "neg": ["b"]}
    folder = made(write(tmp_path / "rows.jsonl", [triple, triple]))
    assert [group.documents for group in all_groups(folder)] == [("a", "b")] * 2


def test_groups_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, "SHARD_GROUPS", 4)
    folder = made(write(tmp_path / "rows.jsonl", pointwise(*((f"q{i}", f"d{i}", 1) for i in range(10)))))
    assert [shard.groups for shard in folder.shards] == [4, 4, 2]
    assert [group.query for group in all_groups(folder)] == [f"q{i}" for i in range(10)]


def test_a_query_with_too_many_rows_becomes_several_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, "MOST_DOCUMENTS", 3)
    folder = made(write(tmp_path / "rows.jsonl", pointwise(*(("q", f"d{i}", 1) for i in range(7)))))
    assert [len(group.documents) for group in all_groups(folder)] == [3, 3, 1]


def test_groups_without_a_positive_are_counted_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = write(tmp_path / "rows.jsonl", pointwise(("q", "a", 0), ("r", "b", 1), ("s", "c", -1)))
    with caplog.at_level(logging.WARNING):
        folder = made(file)
    assert caplog.messages == [f"{file}: 2 of 3 groups have no relevant document and are skipped"]
    assert (folder.groups, folder.skipped) == (1, 2)
    kept = prepare(file, tmp_path / "kept", single=False, positives_only=False)
    assert (kept.groups, kept.skipped, kept.without_positive) == (3, 0, 2)
    nothing = write(tmp_path / "none.jsonl", pointwise(("q", "a", 0), ("r", "b", 0)))
    with pytest.raises(InputError) as caught:
        made(nothing)
    assert str(caught.value) == (
        f"{nothing}: none of its 2 groups has a relevant document (a label above 0); give each query one, "
        "or learn from scores (data.target; in `prorank data prepare`, --for-scores)"
    )


@pytest.mark.parametrize("single", [False, True])
def test_rows_without_an_irrelevant_document_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture, single: bool):
    file = write(tmp_path / "rows.jsonl", [{"anchor": "q", "positive": "a"}, {"anchor": "r", "positive": "b"}])
    assert made(file, single=single).groups == 2
    assert caplog.messages == [
        f"{file}: none of its 2 rows has a document that is not relevant (a label of 0 or less): the warmup needs both "
        "kinds, and losses that compare documents learn nothing from equal labels; add some (`prorank data mine`)"
    ]


def fail(*_: object) -> Any:
    raise AssertionError("prepared again")


def test_a_finished_preparation_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "rows.jsonl", ROWS)
    folder = made(file)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_write", fail)
        assert made(file) == folder == open_prepared(tmp_path / "out")
        # What it was made of, or how, has changed.
        with pytest.raises(AssertionError, match="prepared again"):
            made(file, single=True)
    made(file)
    write(file, [*ROWS[:4], *pointwise(("q", "f", 0))])
    os.utime(file, ns=(1, 1))
    assert all_groups(made(file))[0].documents == ("a", "b", "d", "f")


def test_an_interrupted_preparation_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "rows.jsonl", pointwise(*((f"q{i}", "d", 1) for i in range(10))))
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "SHARD_GROUPS", 2)
        patch.setattr(preparing, "write_atomically", fail)
        with pytest.raises(AssertionError):
            made(file)
    assert len(list((tmp_path / "out").glob("groups-*"))) == 5
    with pytest.raises(InputError, match="holds no prepared.json of this version; remove the folder"):
        open_prepared(tmp_path / "out")
    assert made(file).groups == 10
    # Nothing is left of the five files.
    assert [path.name for path in (tmp_path / "out").glob("groups-*")] == ["groups-00000.array_record"]


def test_a_damaged_file_is_refused(tmp_path: Path):
    folder = made(write(tmp_path / "rows.jsonl", ROWS))
    file = tmp_path / "out" / folder.shards[0].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not the file that prepared.json lists; remove the folder"):
        open_prepared(tmp_path / "out")


def test_one_process_prepares_while_another_waits(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out"):
        waiting = multiprocessing.get_context("spawn").Process(target=made, args=(file,))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive() and not (tmp_path / "out" / "prepared.json").exists()
    waiting.join(60)
    assert waiting.exitcode == 0 and (tmp_path / "out" / "prepared.json").exists()


# What is drawn.

SCORES = (3.0, 1.0, 0.5, -2.0, -4.0)


@pytest.fixture
def scored(tmp_path: Path) -> PreparedFolder:
    row = {"query": "q", "documents": list("abcde"), "labels": [0, 1, 0, 2, 0], "scores": SCORES}
    return made(write(tmp_path / "rows.jsonl", [row]))


def test_labels_draw_a_relevant_and_an_irrelevant_document_first(scored: PreparedFolder):
    source, rng, seen = RowSource(scored, "label", "rows"), RNG(0), Counter[str]()
    for _ in range(200):
        group = source.draw(0, rng, 3)
        assert group.labels == group.targets and len(set(group.documents)) == 3
        assert group.labels[0] > 0 and group.labels[1] == 0
        seen.update(group.documents)
        assert source.draw(0, rng, 1).documents[0] in "bd"
    assert set(seen) == set("abcde")
    assert source.draw(0, rng, 5).documents == tuple("abcde")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("score", SCORES),
        # 1 / (1 + exp(-s))
        ("sigmoid", (0.9525741, 0.7310586, 0.6224593, 0.1192029, 0.0179862)),
        # exp(s) over the sum of all five, which is 20.08554 + 2.71828 + 1.64872 + 0.13534 + 0.01832 = 24.60619
        ("softmax", (0.8162798, 0.1104715, 0.0670043, 0.0055001, 0.0007444)),
    ],
)
def test_targets_of_a_teacher(scored: PreparedFolder, target: Target, expected: tuple[float, ...]):
    source = RowSource(scored, target, "rows")
    assert source.draw(0, RNG(0), 5).targets == pytest.approx(expected, abs=1e-6)
    drawn = set()
    for seed in range(60):
        group = source.draw(0, RNG(seed), 2)
        places = ["abcde".index(document) for document in group.documents]
        drawn.add(tuple(sorted(places)))
        assert group.labels == tuple([0.0, 1.0, 0.0, 2.0, 0.0][place] for place in places)
        if target == "softmax":
            # Among the two that were drawn, and not the five: the sum is 1.
            gap = SCORES[places[0]] - SCORES[places[1]]
            assert group.targets == pytest.approx((1 / (1 + np.exp(-gap)), 1 / (1 + np.exp(gap))))
        else:
            assert group.targets == pytest.approx([expected[place] for place in places], abs=1e-6)
    # Any two, two irrelevant ones included.
    assert len(drawn) == 10


def test_large_scores_do_not_overflow(tmp_path: Path):
    row = {"query": "q", "documents": ["a", "b"], "scores": [3e38, -3e38]}
    folder = made(write(tmp_path / "rows.jsonl", [row]))
    targets: tuple[Target, ...] = ("sigmoid", "softmax")
    for target in targets:
        assert RowSource(folder, target, "rows").draw(0, RNG(0), 2).targets == (1.0, 0.0)


def test_pairs_have_what_the_group_has(scored: PreparedFolder, tmp_path: Path):
    source = RowSource(scored, "score", "rows")
    seen = {source.pair(0, RNG(seed)) for seed in range(60)}
    assert seen == {(Example("q", left, 1), Example("q", right, 0)) for left in "bd" for right in "ace"}
    lone = prepare(
        write(tmp_path / "lone.jsonl", pointwise(("q", "a", 1))), tmp_path / "lone", single=False, positives_only=True
    )
    assert RowSource(lone, "label", "rows").pair(0, RNG(0)) == (Example("q", "a", 1), None)


def test_a_target_without_scores_is_refused(tmp_path: Path):
    folder = made(write(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(InputError) as caught:
        RowSource(folder, "softmax", "rows.jsonl")
    assert str(caught.value) == (
        "rows.jsonl: target=softmax: its rows have no scores (query, document, label); "
        "score them with `prorank data score`, or use target=label"
    )


# Sources of a configuration.


def opened(tmp_path: Path, single: bool = False, losses: Any = (), **fields: Any) -> Any:
    return open_mixture(DataConfig.model_validate(fields), tmp_path / "cache", single=single, losses=losses)


def test_a_mixture_opens_each_source_for_what_it_is(tmp_path: Path, tiny_collection: Path):
    file = write(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "instruction": "Judge."}])
    made(file)
    beir = str(tiny_collection / "train")
    mixture = opened(
        tmp_path, path=beir, weight=3, mix=[{"path": str(file)}, {"path": str(tmp_path / "out"), "weight": 0.5}]
    )
    assert [type(source) for source in mixture.sources] == [JudgedSource, RowSource, RowSource]
    assert mixture.weights == (3.0, 1.0, 0.5)
    assert mixture.instructions == ("Judge.", "Judge.")
    [cached] = (tmp_path / "cache").iterdir()
    assert (cached / "prepared.json").is_file()
    elsewhere = opened(tmp_path, path=str(file), cache=str(tmp_path / "elsewhere"))
    assert elsewhere.sources[0].prepared.folder.parent == tmp_path / "elsewhere"


def test_each_source_has_its_own_fields(tmp_path: Path):
    file = str(write(tmp_path / "rows.jsonl", [{"q": "q", "best": "a", "good": "b", "bad": "c"}]))
    fields = [{"query": "q", "pos": pos, "neg": "bad"} for pos in ("best", "good")]
    mixture = opened(tmp_path, path=file, fields=fields[0], mix=[{"path": file, "fields": fields[1]}])
    assert [source.draw(0, RNG(0), 9).documents for source in mixture.sources] == [("a", "c"), ("b", "c")]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_sources_that_are_set_up_for_other_data_are_refused(tmp_path: Path, tiny_collection: Path):
    def refusal(single: bool = False, **fields: Any) -> str:
        with pytest.raises(InputError) as caught:
            opened(tmp_path, single, **fields)
        return str(caught.value)

    beir, file = str(tiny_collection / "train"), str(write(tmp_path / "rows.jsonl", ROWS))
    assert refusal(path=beir, target="score") == (
        f"config: data.target=score: {beir} is a collection, which has judgements and no scores; use target=label"
    )
    assert refusal(path=beir, mix=[{"path": file, "found_only": True}]) == (
        f"config: data.mix.0.found_only=True: is for collections, and {file} is none; leave it out"
    )
    made(Path(file), positives_only=False)
    out = str(tmp_path / "out")
    assert refusal(path=out, single=True) == (
        f"config: data.path={out}: was prepared for score.documents_per_query of 2 or more, "
        "and the stage asks for 1; give the files that it was prepared from"
    )
    made(write(Path(file), pointwise(("q", "a", 1), ("r", "b", 0))), positives_only=False)
    assert refusal(path=out) == (
        f"config: data.target=label: 1 groups of {out} have no relevant document, as it was prepared for scores; "
        "give the files that it was prepared from"
    )
    assert "no such file; give files of rows" in refusal(path=str(tmp_path / "absent.jsonl"))
    fields = {"query": "question"}
    assert refusal(path=beir, fields=fields) == (
        f"config: data.fields: is for files of rows, and {beir} is a collection; leave it out"
    )
    assert refusal(path=file, mix=[{"path": out, "fields": fields}]) == (
        f"config: data.mix.0.fields: is for files of rows, and {out} is prepared already; leave it out"
    )


def test_labels_below_0_are_refused_where_a_loss_learns_gains(tmp_path: Path):
    file = str(write(tmp_path / "rows.jsonl", pointwise(("q", "a", 2), ("q", "b", -1.5), ("r", "c", 1))))
    for losses in ((), ("mse", "ranknet")):
        assert opened(tmp_path, losses=losses, path=file).sources[0].prepared.lowest_label == -1.5
    with pytest.raises(InputError) as caught:
        opened(tmp_path, losses=("mse", "listwise_softmax"), path=file)
    assert str(caught.value) == (
        f"config: data.path={file}: has labels below 0 (the lowest is -1.5), and score.loss.listwise_softmax learns "
        "labels of 0 or more; use mse, margin_mse, ranknet or list_mle"
    )


def mined(count: int) -> list[dict[str, Any]]:
    return [{"query": f"q{i}", "pos": [f"p{i}"], "neg": [f"n{i}-{j}" for j in range(4)]} for i in range(count)]


def test_random_negatives_come_from_other_rows(tmp_path: Path) -> None:
    folder = made(write(tmp_path / "rows.jsonl", mined(50)))
    source = RowSource(folder, "label", "rows", random_negatives=2 / 3)
    foreign = Counter[str]()
    for index in range(50):
        group = source.draw(index, RNG(index), 4)
        number = group.query.removeprefix("q")
        assert group.documents[0] == f"p{number}" and group.labels == group.targets == (1.0, 0.0, 0.0, 0.0)
        assert group.documents[1].startswith(f"n{number}-")
        others = {document[1:].partition("-")[0] for document in group.documents[2:]}
        assert number not in others and len(set(group.documents)) == 4
        foreign.update(others)
        assert source.draw(index, RNG(index), 4) == group
    assert len(foreign) > 30
    kinds = [(source.pair(index, RNG(index)), f"n{index}-") for index in range(50)]
    own = sum(irrelevant is not None and irrelevant.document.startswith(name) for (_, irrelevant), name in kinds)
    assert 8 <= own <= 26
    assert all(relevant is not None and relevant.label == 1 for (relevant, _), _ in kinds)


def test_random_negatives_fill_up_what_a_row_lacks(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "pos": [f"p{i}"], "neg": []} for i in range(3)]
    source = RowSource(made(write(tmp_path / "rows.jsonl", rows)), "label", "rows", random_negatives=0.5)
    # Of three rows there are two other documents.
    assert [len(source.draw(0, RNG(seed), 4).documents) for seed in range(3)] == [3, 3, 3]
    assert source.pair(0, RNG(0))[1] in [None, Example("q0", "p1", 0), Example("q0", "p2", 0)]


def test_random_negatives_have_no_scores(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"query": "q", "documents": ["a", "b"], "scores": [1, 0]}])
    folder = made(file, positives_only=False)
    with pytest.raises(InputError, match="^rows: random_negatives=0.5: are for groups that learn labels, and not for "):
        RowSource(folder, "softmax", "rows", random_negatives=0.5)
    single = prepare(file, tmp_path / "single", single=True, positives_only=False)
    with pytest.raises(InputError, match="not for single pairs; leave it out$"):
        RowSource(single, "label", "rows", random_negatives=0.5)
