"""Rows of training data from files: the three shapes, compressed and in Parquet, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prorank_jax.data.files import Row, read_rows
from prorank_jax.errors import InputError

POINTWISE = [
    {"query": "q", "document": "a", "label": 1},
    {"query": "q", "document": "b", "label": 0, "instruction": "Judge.", "id": 7},
]
TRIPLES = [
    {"query": "q", "pos": "a", "neg": ["b", "c"]},
    {"query": "r", "pos": ["d", "e"], "neg": []},
]
LISTWISE = [{"query": "q", "documents": ["a", "b", "c"], "scores": [2.5, 0, -1]}]
SHAPES = "a row has query and document, query, pos and neg, or query and documents"

NAME_THEM = "name its fields in data.fields"
SCORED = "data.fields, or get scores with prorank data score"
DOCUMENT = "write a string, or an object with the strings `text` and, if it has one, `title`"


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as the file's name says; a string stands as a line of its own."""
    if path.name.endswith(".parquet"):
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            POINTWISE,
            [
                Row("q", ("a",), (1.0,), None, None, "query, document, label"),
                Row("q", ("b",), (0.0,), None, "Judge.", "query, document, label"),
            ],
        ),
        # A difference of logits is relevant above 0, and 0 itself is not.
        (
            [{"query": "q", "document": "a", "score": score} for score in (0.5, 0.0, -2.0)],
            [
                Row("q", ("a",), (label,), (score,), None, "query, document, score")
                for score, label in ((0.5, 1.0), (0.0, 0.0), (-2.0, 0.0))
            ],
        ),
        (
            [{"query": "q", "document": "a", "label": 0, "score": 3.5}],
            [Row("q", ("a",), (0.0,), (3.5,), None, "query, document, label, score")],
        ),
        (
            [{"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [4.0], "neg_scores": [1.0, -1.5]}],
            [
                Row(
                    *("q", ("a", "b", "c"), (1.0, 0.0, 0.0), (4.0, 1.0, -1.5), None),
                    "query, pos, neg, pos_scores, neg_scores",
                )
            ],
        ),
        (
            LISTWISE,
            [Row("q", ("a", "b", "c"), (1.0, 0.0, 0.0), (2.5, 0.0, -1.0), None, "query, documents, scores")],
        ),
        (
            [{"query": "q", "documents": ["a", "b"], "labels": [2, 0]}],
            [Row("q", ("a", "b"), (2.0, 0.0), None, None, "query, documents, labels")],
        ),
    ],
)
def test_the_shapes(tmp_path: Path, name: str, rows: list[Any], expected: list[Row]):
    assert list(read_rows(write(tmp_path / name, rows))) == expected


def test_a_text_may_stand_for_a_list_of_one(tmp_path: Path):
    first, second = read_rows(write(tmp_path / "rows.jsonl", TRIPLES))
    assert (first.documents, first.labels) == (("a", "b", "c"), (1.0, 0.0, 0.0))
    assert (second.documents, second.labels) == (("d", "e"), (1.0, 1.0))
    scored = {"query": "q", "pos": "a", "neg": "b", "pos_scores": 2, "neg_scores": -1}
    assert next(read_rows(write(tmp_path / "rows.jsonl", [scored]))).scores == (2.0, -1.0)


def test_a_positive_among_the_negatives_is_dropped_from_them(shared: Path, caplog: pytest.LogCaptureFixture):
    file = shared / "trials" / "09-positive-among-negatives" / "rows.jsonl"
    [row] = read_rows(file)
    assert (row.documents, row.labels) == (("Crabs eat algae.", "Crabs walk sideways."), (1.0, 0.0))
    assert caplog.messages == [
        f"{file}: 1 of 1 rows have a document as relevant and as not relevant, 0 have one twice; it is kept once, "
        "by its highest label"
    ]


@pytest.mark.parametrize(
    ("row", "documents", "labels", "scores", "counts"),
    [
        # Whitespace around a text makes no other text; what is kept stays as it is.
        ({"pos": ["a "], "neg": ["\na", "b", "b"]}, ("a ", "b"), (1.0, 0.0), None, (1, 0)),
        ({"pos": ["a", "a"], "neg": ["b", "c", "b"]}, ("a", "b", "c"), (1.0, 0.0, 0.0), None, (0, 1)),
        # Votes for the answers alone, as collections of questions have them, are no teacher's scores.
        ({"pos": ["a"], "neg": ["b", "b"], "pos_scores": [7]}, ("a", "b"), (1.0, 0.0), None, (0, 1)),
        # The score of the label that is kept, and not that of the first.
        (
            {"pos": ["a"], "neg": ["b", "a"], "pos_scores": [3], "neg_scores": [-1, -2]},
            *(("a", "b"), (1.0, 0.0), (3.0, -1.0), (1, 0)),
        ),
        (
            {"documents": ["a", "b", "a"], "labels": [0, 1, 2], "scores": [5, 6, 7]},
            *(("b", "a"), (1.0, 2.0), (6.0, 7.0), (1, 0)),
        ),
        ({"documents": ["a", "a"], "scores": [0.5, -0.5]}, ("a",), (1.0,), (0.5,), (1, 0)),
        # Two grades of a relevant document are no contradiction of the kind that is counted first.
        ({"documents": ["a", "b", "a"], "labels": [1, 0, 2]}, ("b", "a"), (0.0, 2.0), None, (0, 1)),
    ],
)
def test_a_document_that_is_repeated_in_a_row_is_kept_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: Any, documents: Any, labels: Any, scores: Any, counts: Any
):
    file = write(tmp_path / "rows.jsonl", [{"query": "q"} | row, {"query": "q"} | row])
    for found in read_rows(file):
        assert (found.documents, found.labels, found.scores) == (documents, labels, scores)
    contradicting, repeating = (2 * count for count in counts)
    assert [message.partition(": ")[2].partition(";")[0] for message in caplog.messages] == [
        f"{contradicting} of 2 rows have a document as relevant and as not relevant, {repeating} have one twice"
    ]


def test_rows_without_repeated_documents_warn_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert len(list(read_rows(write(tmp_path / "rows.jsonl", [*TRIPLES, TRIPLES[0]])))) == 3
    assert caplog.messages == []


def test_a_folder_and_a_pattern_are_their_files_by_name(tmp_path: Path):
    write(tmp_path / "b.jsonl", [POINTWISE[1]])
    write(tmp_path / "a.parquet", [POINTWISE[0]])
    (tmp_path / "README.md").write_text("not rows")
    assert [row.documents for row in read_rows(tmp_path)] == [("a",), ("b",)]
    assert [row.documents for row in read_rows(str(tmp_path / "*.jsonl"))] == [("b",)]


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path: Path):
    text = "\ufeff" + json.dumps(POINTWISE[0]) + "\r\n\n" + json.dumps(POINTWISE[1])
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 2


def test_rows_are_read_one_at_a_time(tmp_path: Path):
    # The second line is no JSON: who reads the file whole falls over it first.
    rows = read_rows(write(tmp_path / "rows.jsonl", [POINTWISE[0], "{"]))
    assert next(rows).documents == ("a",)
    with pytest.raises(InputError, match="rows.jsonl:2: column 2: not valid JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", f"[1] is not a JSON object; write rows of {SHAPES.removeprefix('a row has ')}"),
        ({"document": "a", "label": 1}, f"no field 'query'; {SHAPES}, and this one has document, label; {NAME_THEM}"),
        ({"query": "q", "text": "a"}, f"no field 'document'; {SHAPES}, and this one has query, text; {NAME_THEM}"),
        (
            {"query": "q", "document": None, "label": 1},
            f"no field 'document'; {SHAPES}, and this one has query, document, label; {NAME_THEM}",
        ),
        (
            {"query": "q", "document": "a"},
            f"no field 'label'; a query and a document need a label or a score: name one in {SCORED}",
        ),
        (
            {"query": "q", "documents": ["a"]},
            "no field 'labels'; a query and its documents need labels or scores: name them in data.fields (where "
            "rank_llm's are a teacher's, scores: candidates.score), or get scores with prorank data score",
        ),
        ({"query": "q", "pos": "a"}, "no field 'neg'; write pos and neg, an empty list where there are none"),
        ({"query": "q", "neg": "a"}, "no field 'pos'; write pos and neg, an empty list where there are none"),
        ({"query": "q", "document": "a", "documents": ["b"]}, f"both document and documents; {SHAPES}"),
        ({"query": 5, "document": "a", "label": 1}, "query=5 is not a string; write it in quotes"),
        (
            {"query": "q", "document": "a", "label": 1, "instruction": ["x"]},
            "instruction=['x'] is not a string; write it in quotes",
        ),
        ({"query": "q", "document": "a", "score": True}, "score=True is not a number; write one, as 1, 0 or -2.5"),
        ({"query": "q", "document": "a", "score": "high"}, "score='high' is not a number; write one, as 1, 0 or -2.5"),
        (
            '{"query": "q", "document": "a", "score": NaN}',
            "score=nan is not finite in 32 bits; mend it or leave the row out",
        ),
        (
            {"query": "q", "document": "a", "label": 1e39},
            "label=1e+39 is not finite in 32 bits; mend it or leave the row out",
        ),
        (
            f'{{"query": "q", "document": "a", "label": 1{"0" * 400}}}',
            f"label=1{'0' * 59}... is not finite in 32 bits; mend it or leave the row out",
        ),
        (
            '{"query": "q", "documents": ["a", "b"], "scores": [1, -Infinity]}',
            "scores[1]=-inf is not finite in 32 bits; mend it or leave the row out",
        ),
        ({"query": "q", "documents": ["a", "b"], "scores": [1]}, "1 scores for 2 documents; give one for each"),
        (
            {"query": "q", "pos": "a", "neg": ["b"], "pos_scores": [1], "neg_scores": [1, 2]},
            "2 neg_scores for 1 neg; give one for each",
        ),
        (
            {"query": "q", "documents": [], "labels": []},
            "documents=[] is empty; give one document or more, or leave the row out",
        ),
        (
            {"query": "q", "pos": [], "neg": []},
            "pos and neg are both empty; give one document or more, or leave the row out",
        ),
        ({"query": "q", "documents": ["a", 2], "labels": [1, 0]}, "documents[1]=2 is not a string; write it in quotes"),
        ({"query": "q", "pos": {"a": 1}, "neg": []}, f"pos={{'a': 1}} is no document; {DOCUMENT}"),
        (
            '{"query": "\\ud800", "document": "a", "label": 1}',
            "a \\u escape is half of a surrogate pair; write both halves or none",
        ),
        (
            LISTWISE[0],
            "a row of query, documents, scores after rows of query, document, label ({file}:1); "
            "keep one shape in a file, and mix files in data.mix",
        ),
        (
            {"query": "q", "document": "a", "score": 1},
            "a row of query, document, score after rows of query, document, label ({file}:1); "
            "keep one shape in a file, and mix files in data.mix",
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: Any, message: str):
    file = write(tmp_path / "rows.jsonl", [POINTWISE[0], row])
    with pytest.raises(InputError) as caught:
        list(read_rows(file))
    assert str(caught.value) == f"{file}:2: " + message.replace("{file}", str(file))


def test_a_bad_row_of_parquet_is_refused_with_its_number(tmp_path: Path):
    rows = [{"query": "q", "document": "a", "score": score} for score in (1.0, float("nan"))]
    file = write(tmp_path / "rows.parquet", rows)
    with pytest.raises(InputError) as caught:
        list(read_rows(file))
    assert str(caught.value) == f"{file}:2: score=nan is not finite in 32 bits; mend it or leave the row out"


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_files_are_refused(tmp_path: Path):
    empty = write(tmp_path / "empty.jsonl", [])
    assert refusal(empty) == f"{empty}: holds no row; write rows of {SHAPES.removeprefix('a row has ')}"
    for name in ("cut.jsonl.gz", "none.jsonl.gz", "none.parquet"):
        (tmp_path / name).write_bytes(gzip.compress(b"x" * 99)[:-9] if name.startswith("cut") else b"no such format")
        kind = "gzip" if name.endswith(".gz") else "Parquet"
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: not readable as {kind} (")
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "\xe9"}\n')
    assert refusal(tmp_path / "latin.jsonl").startswith(
        f"{tmp_path / 'latin.jsonl'}:1: byte 12 of the line is not UTF-8"
    )
    (tmp_path / "rows.csv").write_text("q,d\n")
    assert "rows.csv: not a file of rows; its name ends in one of .jsonl, .jsonl.gz, .parquet" in refusal(
        tmp_path / "rows.csv"
    )
    assert "no such file; give files of rows" in refusal(tmp_path / "absent.jsonl")
    assert "no such folder; give files of rows" in refusal(tmp_path / "absent")
    assert "absent/*.jsonl: matches no file of rows" in refusal(tmp_path / "absent" / "*.jsonl")
    (tmp_path / "folder").mkdir()
    assert "a folder without corpus.jsonl and without files of rows" in refusal(tmp_path / "folder")


def test_files_of_the_hub_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "datasets--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder, document in (("one", "a"), ("two", "b"), ("two/deeper", "c")):
        (snapshot / folder).mkdir(parents=True)
        write(snapshot / folder / "train.parquet", [{"query": "q", "document": document, "score": 1.0}])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # A star stands for no slash.
    assert [row.documents for row in read_rows("hf://datasets/owner/name/*/*.parquet")] == [("a",), ("b",)]
    assert [row.documents for row in read_rows("hf://datasets/owner/name/two/train.parquet")] == [("b",)]
    assert len(list(read_rows("hf://datasets/owner/name"))) == 3
    assert "matches no file of rows" in refusal("hf://datasets/owner/name/three/*.parquet")
    assert refusal("hf://datasets/owner").startswith("hf://datasets/owner: names no data set; write ")
    assert refusal("hf://datasets/owner/other/*.parquet").startswith(
        "hf://datasets/owner/other/*.parquet: the hub did not give it ("
    )
