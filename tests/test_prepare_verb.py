"""`prorank data prepare`: what it writes and prints, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Prorank

from prorank_jax.data.examples import Group
from prorank_jax.data.prepared import RowSource, open_prepared

ROWS = [
    {"query": "q", "documents": ["a", "b"], "scores": [2.0, -1.0]},
    {"query": "r", "documents": ["c", "d", "e"], "scores": [-3.0, -2.0, -4.0]},
    {"query": "s", "documents": ["f"], "scores": [0.5]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def groups(folder: Path, target: Any = "label") -> list[Group]:
    source = RowSource(open_prepared(folder), target)
    return [source.draw(index, np.random.default_rng(0), 9) for index in range(len(source))]


def test_queries_without_a_relevant_document_are_skipped(prorank: Prorank, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    status, printed, _ = prorank("data", "prepare", file, "--out", out)
    assert (status, printed) == (0, f"3 rows, 2 groups, 1 without a positive skipped: {out}\n")
    assert [(group.query, group.documents, group.labels) for group in groups(out)] == [
        ("q", ("a", "b"), (1.0, 0.0)),
        ("s", ("f",), (1.0,)),
    ]


def test_for_scores_keeps_them(prorank: Prorank, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, _ = prorank("data", "prepare", file, "--out", out, "--for-scores")
    assert (status, printed) == (0, f"3 rows, 3 groups, 0 without a positive skipped: {out}\n")
    assert [group.targets for group in groups(out, "score")] == [tuple(row["scores"]) for row in ROWS]


def test_single_makes_a_group_of_each_document(prorank: Prorank, tmp_path: Path, file: Path) -> None:
    out = tmp_path / "out"
    # A pattern is the command's own to expand: the shell's quotes keep it whole.
    status, printed, _ = prorank("data", "prepare", tmp_path / "*.jsonl", "--out", out, "--single")
    assert (status, printed) == (0, f"3 rows, 6 groups, 0 without a positive skipped: {out}\n")
    assert [group.documents[0] for group in groups(out)] == list("abcdef")
    assert open_prepared(out).single


def test_fields_name_those_of_the_rows(
    prorank: Prorank, refused: Callable[..., str], tmp_path: Path, file: Path
) -> None:
    rows, out = tmp_path / "mine.jsonl", tmp_path / "out"
    rows.write_text('{"q": {"text": "q"}, "good": ["a"], "bad_1": "b", "bad_2": "c"}\n')
    named = ("--fields", "query=q.text", "--fields", "pos=good", "--fields")
    status, printed, _ = prorank("data", "prepare", rows, "--out", out, *named, "neg=bad")
    assert (status, printed) == (0, f"1 rows, 1 groups, 0 without a positive skipped: {out}\n")
    assert [group[:3] for group in groups(out)] == [("q", ("a", "b", "c"), (1.0, 0.0, 0.0))]
    # Other fields are another preparation.
    assert prorank("data", "prepare", rows, "--out", out, *named, "neg=bad_2")[0] == 0
    assert [group.documents for group in groups(out)] == [("a", "c")]

    def message(value: str, source: Path | str = rows) -> str:
        return refused("data", "prepare", source, "--out", out, "--fields", value)

    assert message("query") == "--fields=query: names no field; write OURS=THEIRS, as query=question"
    assert message("qeury=q") == "--fields: fields.qeury: unknown field of a row; did you mean 'query'?"
    assert message("pos=best").startswith(f"{rows}:1: no field 'best' to be read as pos; this row has q, good, bad_1")
    assert "is for rows, and beir/scifact is a collection" in refused(
        *("data", "prepare", "beir/scifact", "--fields", "query=q")
    )


def test_what_prepare_refuses(refused: Callable[..., str], file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def message(files: Path = file, to: Path = out) -> str:
        return refused("data", "prepare", files, "--out", to)

    assert "absent.jsonl': no such file; give files of rows" in message(tmp_path / "absent.jsonl")
    assert not out.exists()
    # The remedy is an option of the command, not a field of a configuration.
    assert message(to=file / "out") == f"{file / 'out'}: cannot be written (Not a directory); give another --out"
    with file.open("a") as rows:
        rows.write('{"query": "t", "documents": ["g", "h"], "scores": [1]}\n')
    assert message() == f"{file}:4: 1 scores for 2 documents; give one for each"
    assert not (out / "prepared.json").exists()
    file.write_text(json.dumps(ROWS[1]) + "\n")
    assert message().endswith("or learn from scores (data.target; in `prorank data prepare`, --for-scores)")
    assert refused("data", "prepare", file) == (
        f"prorank data prepare: {file} is no collection; name a folder for its rows in --out"
    )
