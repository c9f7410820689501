"""Rows as other trainers write them: what is read by their field names, what by `data.fields`, and what is refused."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prorank_jax.config_file import parse_config
from prorank_jax.data import jsonl
from prorank_jax.data.files import Row, read_rows
from prorank_jax.data.prepare import prepare
from prorank_jax.errors import InputError

QUERY, POSITIVE, NEGATIVE = "what do crabs eat?", "Crabs eat algae.", "Crabs walk sideways."
TITLED = "Crabs Crabs eat algae."
Read = tuple[str, tuple[str, ...], tuple[float, ...]]


def short(row: Row) -> Read:
    return row.query, row.documents, row.labels


def lines(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def refusal(path: Path, **fields: str) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path, fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bool_label.jsonl", [(QUERY, (POSITIVE,), (1.0,)), (QUERY, (NEGATIVE,), (0.0,))]),
        ("object_document.jsonl", [(QUERY, (TITLED,), (1.0,))]),
        ("objects_in_pos.jsonl", [(QUERY, (TITLED, NEGATIVE), (1.0, 0.0))]),
        ("openmatch_doc.jsonl", [("a", ("x",), (1.0,))]),
        ("openmatch_rank.jsonl", [("a", ("x", "y"), (1.0, 0.0))]),
        ("pq_bool.parquet", [("a", ("x",), (1.0,)), ("b", ("y",), (0.0,))]),
        ("pq_struct.parquet", [("a", ("T x", "T y"), (1.0, 0.0)), ("b", ("T x",), (1.0,))]),
        ("pq_tevatron.parquet", [("a", (TITLED, NEGATIVE), (1.0, 0.0))]),
        ("qwen3_rr.jsonl", [(QUERY, (POSITIVE, NEGATIVE), (1.0, 0.0))]),
        ("st_list.jsonl", [(QUERY, (POSITIVE, NEGATIVE), (1.0, 0.0))]),
        ("st_ntuple.jsonl", [(QUERY, (POSITIVE, NEGATIVE, "Algae are green."), (1.0, 0.0, 0.0))]),
        ("st_query_triplet.jsonl", [(QUERY, (POSITIVE, NEGATIVE), (1.0, 0.0))]),
        ("st_triplet.jsonl", [(QUERY, (POSITIVE, NEGATIVE), (1.0, 0.0))]),
        ("swift.jsonl", [(QUERY, (POSITIVE, NEGATIVE), (1.0, 0.0))]),
        ("tevatron.jsonl", [(QUERY, (TITLED, NEGATIVE), (1.0, 0.0))]),
    ],
)
def test_rows_of_other_trainers_are_read(shared: Path, name: str, expected: list[Read]):
    assert [short(row) for row in read_rows(shared / "trials" / "10-rows-of-other-trainers" / name)] == expected


def test_candidates_without_labels_are_read_where_scores_are_asked_for(shared: Path):
    file = shared / "trials" / "10-rows-of-other-trainers" / "rankllm_req.jsonl"
    # The scores of a first stage are no judgements, which they would be as labels.
    assert refusal(file) == (
        f"{file}:1: no field 'labels'; a query and its documents need labels or scores: name them in data.fields "
        "(where rank_llm's are a teacher's, scores: candidates.score), or get scores with prorank data score"
    )
    [row] = read_rows(file, {"scores": "candidates.score"})
    assert (short(row), row.scores) == ((QUERY, (POSITIVE,), (1.0,)), (1.0,))
    [(_, unscored)] = jsonl.read_rows(file)
    assert unscored == {"query": QUERY, "documents": [POSITIVE]}


MESSAGES = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "q"}]


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "documents", "labels", "scores"),
    [
        # Tevatron without titles, with negatives that are texts, and as its newer rows name the query.
        ({"query_id": 1, "query": "q", "positive_passages": [{"docid": "1", "text": "a"}]}, "a", [1], None),
        (
            {"query_text": "q", "positive_passages": ["a"], "negative_passages": ["b"], "answer": "c"},
            "ab",
            [1, 0],
            None,
        ),
        # ms-swift: with several positives, labelled pairs, pairs, and rows as they were before 3.9.
        (
            {
                "messages": MESSAGES[1:],
                "positive_messages": [message("a"), message("b")],
                "negative_messages": [message("c"), message("d")],
            },
            *("abcd", [1, 1, 0, 0], None),
        ),
        ({"messages": MESSAGES[1:], "positive_messages": [message("a")], "label": 0.5}, "a", [0.5], None),
        ({"messages": MESSAGES[1:], "positive_messages": [message("a")], "images": []}, "a", [1], None),
        ({"query": "q", "response": "a", "rejected_response": ["b", "c"]}, "abc", [1, 0, 0], None),
        # sentence-transformers: what `mine_hard_negatives` writes, in its four formats, with scores and without.
        ({"anchor": "q", "positive": "a", "negative": "b", "scores": [2.5, -1]}, "ab", [1, 0], (2.5, -1.0)),
        ({"anchor": "q", "positive": "a", "negative_2": "c", "negative_1": "b"}, "abc", [1, 0, 0], None),
        (
            {"query": "q", "answer": "a", **{f"negative_{i}": f"{i}" for i in range(1, 12)}},
            *(["a", *map(str, range(1, 12))], [1] + [0] * 11, None),
        ),
        ({"question": "q", "answer": "a", "label": 0}, "a", [0], None),
        ({"anchor": "q", "positive": "a", "score": -0.5}, "a", [0], (-0.5,)),
        ({"query": "q", "answer": ["a", "b"], "labels": [0, 1]}, "ab", [0, 1], None),
        ({"query": "q", "positive": ["a", "b"], "scores": [0.5, -2]}, "ab", [1, 0], (0.5, -2.0)),
        # A single score of a triplet is a margin, which is a score of neither document.
        ({"query": "q", "positive": "a", "negative": "b", "score": 3.25}, "ab", [1, 0], None),
        ({"sentence1": "q", "sentence2": "a", "label": 1}, "a", [1], None),
        # A file that has scores from 0 to 1 only has probabilities.
        ({"sentence_A": "q", "sentence_B": "a", "score": 0.25}, "a", [0], (0.25,)),
        ({"query": "q", "content": "a", "score": "1.5"}, "a", [1], (1.5,)),
        ({"query": "q", "content": "a", "score": "-1e-3"}, "a", [0], (-0.001,)),
        ({"query": "q", "content": "a", "label": "1e-3"}, "a", [0.001], None),
        ({"anchor": "q", "positive": "a"}, "a", [1], None),
        # Padding and null.
        ({"anchor": "q", "positive": "a", "negative": None}, "a", [1], None),
        ({"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": None}, "ab", [1, 0], None),
        ({"query": "q", "positive": ["a"], "negatives": []}, "a", [1], None),
        ({"query": "q", "pos": ["a"], "neg": None}, "a", [1], None),
        ({"query": "q", "pos": None, "neg": ["b"]}, "b", [0], None),
        # FlagEmbedding with all that its scripts add, RAG-Retrieval, Cohere, pyserini's and MS MARCO's documents.
        (
            {
                **{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1], "neg_scores": [-0.5]},
                **{"pos_id": ["1"], "neg_id": ["2"], "prompt": "Yes or No?", "type": "normal"},
            },
            *("ab", [1, 0], (1.0, -0.5)),
        ),
        ({"query": "q", "content": "a", "score": 0.75}, "a", [1], (0.75,)),
        ({"query": "q", "relevant_passages": ["a"], "hard_negatives": ["b"]}, "ab", [1, 0], None),
        (
            {"query": "q", "pos": [{"id": "1", "contents": "a"}], "neg": {"title": None, "segment": "b"}},
            "ab",
            [1, 0],
            None,
        ),
        ({"query": "q", "pos": ["a"], "negatives": ["b"]}, "ab", [1, 0], None),
        # All negatives of a row, under whatever names, and all positives.
        (
            {"query": "q", "positives": ["a"], "negatives": ["b"], "hard_negatives": ["c", "d"]},
            *("abcd", [1, 0, 0, 0], None),
        ),
        ({"query": "q", "pos": "a", "neg": "b", "negatives": ["c"]}, "abc", [1, 0, 0], None),
        ({"query": "q", "positive": "a", "neg": ["b"]}, "ab", [1, 0], None),
        ({"query": "q", "positive": "a", "positives": ["b"], "negative_1": "c"}, "abc", [1, 1, 0], None),
        ({"query": "q", "positive": "a", "hard_negative_2": "c", "negative_1": "b"}, "abc", [1, 0, 0], None),
        # A title next to the text of a document is its title.
        ({"query": "q", "title": "T", "text": "a", "label": 1}, ["T a"], [1], None),
        ({"query": "q", "title": "T", "document": "a", "label": 1}, ["T a"], [1], None),
        ({"query": "q", "title": "", "document": "a", "label": 1}, "a", [1], None),
        ({"query": "q", "title": None, "passage": "a", "score": 2}, "a", [1], (2.0,)),
        ({"query": "q", "title": "of the question", "answer": "a", "label": 1}, "a", [1], None),
        # A teacher's scores next to a triplet, whatever they are called.
        (
            {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c", "label": [9, 3, 1]},
            *("abc", [1, 0, 0], (9.0, 3.0, 1.0)),
        ),
        ({"query": "q", "pos": ["a"], "neg": ["b"], "scores": [9, 3]}, "ab", [1, 0], (9.0, 3.0)),
        # Empty lists and NaN are none.
        ({"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [], "neg_scores": []}, "ab", [1, 0], None),
        ({"query": "q", "pos": [{"title": float("nan"), "text": "a"}], "neg": []}, "a", [1], None),
        # ms-swift before 3.9, without rejected responses.
        ({"query": "q", "response": "a", "label": 0}, "a", [0], None),
        ({"query": "q", "response": "a", "score": -1}, "a", [0], (-1.0,)),
        ({"query": "q", "response": "a"}, "a", [1], None),
        ({"query": "q", "passage": "a", "response": "b", "label": 0}, "a", [0], None),
        # What an answer is next to counts where it is empty or no text of a document.
        ({"question": "q", "answer": "a", "context": "", "source": "nq"}, "a", [1], None),
        # Our own names count first, whatever else there is, and labels in quotes or of truth are numbers.
        ({"query": "q", "pos": ["a"], "neg": ["b"], "answer": "c", "label": 7}, "ab", [1, 0], None),
        ({"query": "q", "documents": ["a", "b", "c"], "labels": [True, "0", "2.5"]}, "abc", [1, 0, 2.5], None),
        ({"question": "q", "document": "a", "label": "1"}, "a", [1], None),
        ({"query": {"qid": "7", "text": "q"}, "document": "a", "label": 1}, "a", [1], None),
    ],
)
def test_layouts_of_other_trainers(tmp_path: Path, row: Any, documents: Any, labels: list[float], scores: Any):
    [found] = read_rows(lines(tmp_path / "rows.jsonl.gz", row))
    assert (*short(found), found.scores) == ("q", tuple(documents), tuple(map(float, labels)), scores)
    table = pyarrow.Table.from_pylist([{name: value for name, value in row.items() if name != "labels"}])
    if "labels" not in row and "images" not in row:  # of one type in a column
        pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
        assert list(read_rows(tmp_path / "rows.parquet")) == [found]


def test_the_system_message_is_the_instruction(tmp_path: Path):
    row = {"messages": MESSAGES, "positive_messages": [message("a")], "negative_messages": []}
    [found] = read_rows(lines(tmp_path / "rows.jsonl", row))
    assert (*short(found), found.instruction) == ("q", ("a",), (1.0,), "Judge.")


def test_rows_of_one_layout_may_differ_in_what_is_optional(tmp_path: Path):
    file = lines(
        tmp_path / "rows.jsonl",
        {"anchor": "q", "positive": "a"},
        {"anchor": "q", "positive": ["b", "c"], "negative": "d"},
        {"anchor": "q", "positive": {"text": "e"}, "negative": ["f", {"title": "T", "text": "g"}]},
    )
    assert [row.documents for row in read_rows(file)] == [("a",), ("b", "c", "d"), ("e", "f", "T g")]


def test_instructions_of_pairs_are_read(tmp_path: Path):
    row = {"query": ["Answer.", "q"], "pos": [["", "a"]], "neg": [["Represent.", "b"]]}
    [found] = read_rows(lines(tmp_path / "rows.jsonl", row))
    assert (*short(found), found.instruction) == ("q", ("a", "b"), (1.0, 0.0), "Answer.")


def test_an_answer_next_to_a_null_column_is_read(tmp_path: Path):
    table = pyarrow.table({"question": ["q"], "context": pyarrow.array([None], pyarrow.string()), "answer": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert [short(row) for row in read_rows(tmp_path / "rows.parquet")] == [("q", ("a",), (1.0,))]


def test_the_system_of_a_response_is_the_instruction(tmp_path: Path):
    [found] = read_rows(lines(tmp_path / "rows.jsonl", {"system": "Judge.", "query": "q", "response": "a"}))
    assert found.instruction == "Judge."


def test_probabilities_are_relevant_above_a_half(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [{"query": "q", "content": text, "score": score} for text, score in (("a", 0.98), ("b", 4.5e-05), ("c", 1))]
    assert [row.labels for row in read_rows(lines(tmp_path / "rows.jsonl", *rows))] == [(1.0,), (0.0,), (1.0,)]
    [warning] = caplog.messages
    assert "all scores are from 0 to 1, as probabilities are: documents above 0.5 are taken as relevant" in warning
    caplog.clear()
    # One score that is none, and all are logits; zeros and ones are judgements.
    logits = [*rows, {"query": "q", "content": "d", "score": -0.1}]
    assert [row.labels for row in read_rows(lines(tmp_path / "rows.jsonl", *logits))] == [(1.0,)] * 3 + [(0.0,)]
    judged = [{"query": "q", "document": "a", "score": 1}, {"query": "q", "document": "b", "score": 0}]
    assert [row.labels for row in read_rows(lines(tmp_path / "rows.jsonl", *judged))] == [(1.0,), (0.0,)]
    assert not caplog.messages


def test_probabilities_of_scattered_queries_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [
        {"query": query, "content": query + end, "score": s} for end, s in (("1", 0.9), ("2", 0.1)) for query in "ab"
    ]
    prepared = prepare(lines(tmp_path / "rows.jsonl", *rows), tmp_path / "out", single=False, positives_only=True)
    assert (prepared.groups, prepared.lowest_label) == (2, 0)
    assert len([message for message in caplog.messages if "probabilities" in message]) == 1


def test_decimals_and_bytes_of_parquet_are_numbers_and_texts(tmp_path: Path):
    table = pyarrow.table(
        {
            "query": pyarrow.array(["é".encode()], pyarrow.binary()),
            "document": pyarrow.array([{"text": b"a"}], pyarrow.struct({"text": pyarrow.binary()})),
            "label": pyarrow.array([Decimal("2.5")], pyarrow.decimal128(5, 2)),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert [short(row) for row in read_rows(tmp_path / "rows.parquet")] == [("é", ("a",), (2.5,))]
    table = table.set_column(0, "query", pyarrow.array([b"\xff"], pyarrow.binary()))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert refusal(tmp_path / "rows.parquet").endswith(":1: query=b'\\xff' is not a string; write it in quotes")


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"q": "q", "good": ["a"], "bad": "b"}, {"query": "q", "pos": "good", "neg": "bad"}, ("q", ("a", "b"), (1, 0))),
        ({"q": "q", "good": ["a"]}, {"query": "q", "pos": "good"}, ("q", ("a",), (1,))),
        # The rest is as our names or a known layout has it.
        ({"topic": "q", "pos": ["a"], "neg": ["b"]}, {"query": "topic"}, ("q", ("a", "b"), (1, 0))),
        ({"topic": "q", "positive_passages": ["a"]}, {"query": "topic"}, ("q", ("a",), (1,))),
        (
            {"query": "x", "topic": "q", "document": "a", "grade": "2"},
            {"query": "topic", "label": "grade"},
            ("q", ("a",), (2,)),
        ),
        ({"query": "q", "positive": "a", "bad": "b"}, {"neg": "bad"}, ("q", ("a", "b"), (1, 0))),
        ({"query": "q", "good": "a", "negative": "b"}, {"pos": "good"}, ("q", ("a", "b"), (1, 0))),
        ({"question": "q", "good": "a", "bad": "b"}, {"pos": "good", "neg": "bad"}, ("q", ("a", "b"), (1, 0))),
        ({"question": "q", "answer": "a", "grade": 2}, {"label": "grade"}, ("q", ("a",), (2,))),
        # Into objects, and into each object of a list.
        (
            {"query": "q", "hits": [{"content": "a", "label": 1}, {"content": "b", "label": 0}]},
            {"documents": "hits.content", "labels": "hits.label"},
            ("q", ("a", "b"), (1, 0)),
        ),
        ({"x": {"y": {"q": "q"}}, "docs": ["a"], "labels": [1]}, {"query": "x.y.q"}, ("q", ("a",), (1,))),
        ({"query.text": "q", "docs": ["a"], "labels": [1]}, {"query": "query.text"}, ("q", ("a",), (1,))),
        # RAG-Retrieval's distillation: documents of both kinds are in `pos`.
        (
            {"query": "q", "pos": ["a", "b"], "pos_scores": [0.9, 0]},
            {"documents": "pos", "labels": "pos_scores"},
            ("q", ("a", "b"), (0.9, 0)),
        ),
        (
            {"query": "q", "pos": ["a", "b"], "pos_scores": [0.9, 0.2], "neg": []},
            {"documents": "pos", "scores": "pos_scores"},
            ("q", ("a", "b"), (1, 0)),
        ),
        (
            {"query": "q", "pos": ["a", "b"], "pos_scores": [0.9, 0], "neg": []},
            {"documents": "pos", "labels": "pos_scores"},
            ("q", ("a", "b"), (0.9, 0)),
        ),
        # Where an answer may be the document or not, the configuration says it.
        ({"question": "q", "context": "a", "answer": "x"}, {"pos": "context"}, ("q", ("a",), (1,))),
        ({"question": "q", "context": "x", "answer": "a"}, {"pos": "answer"}, ("q", ("a",), (1,))),
        (
            {"question": "q", "context": "a", "answer": "x", "label": 0},
            {"document": "context"},
            ("q", ("a",), (0,)),
        ),
        (
            {"query": "q", "pos": "a", "bad": "b", "worse": ["c"]},
            {"neg": "bad+worse"},
            ("q", ("a", "b", "c"), (1, 0, 0)),
        ),
        ({"query": "q", "pos": "a", "bad+worse": "b"}, {"neg": "bad+worse"}, ("q", ("a", "b"), (1, 0))),
        ({"query": "q", "pos": "a", "bad_2": "c", "bad_1": "b"}, {"neg": "bad"}, ("q", ("a", "b", "c"), (1, 0, 0))),
    ],
)
def test_fields_are_read_as_the_configuration_names_them(tmp_path: Path, row: Any, fields: Any, expected: Any):
    [found] = read_rows(lines(tmp_path / "rows.jsonl", row), fields)
    assert short(found) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "rows.parquet", fields)) == [found]


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        (
            {"prompt": "q", "completion": "a"},
            {},
            "no field 'query'; a row has query and document, query, pos and neg, or query and documents, and "
            "this one has prompt, completion; name its fields in data.fields",
        ),
        # An answer of a question is no positive where there are such.
        (
            {"query": "q", "pos": ["a"], "answer": "b"},
            {},
            "no field 'neg'; write pos and neg, an empty list where there are none",
        ),
        (
            {"query": "q", "pos": "a"},
            {"neg": "bad"},
            "no field 'bad' to be read as neg; this row has query, pos: name one in data.fields",
        ),
        (
            {"query": "q", "hits": [{"text": "a"}]},
            {"documents": "hits.content"},
            "no field 'hits.content' to be read as documents; this row has query, hits: name one in data.fields",
        ),
        (
            {"query_id": "1", "query_text": "q", "positive_document_ids": ["1"], "negative_document_ids": ["2"]},
            {},
            "positive_document_ids: names documents by ids of another file; write their texts, as pos and neg",
        ),
        (
            {
                **{"query_id": "1", "query_text": "q", "query_image": None, "positive_document_ids": ["1"]},
                **{"negative_document_ids": ["2"], "answer": "algae", "source": "nq"},
            },
            {},
            "positive_document_ids: names documents by ids of another file; write their texts, as pos and neg",
        ),
        (
            {"question": "q", "context": "a", "answer": "x"},
            {},
            "both answer and context, and either may be the document; name one in data.fields, as pos: context",
        ),
        (
            {"question": "q", "context": "a", "answer": "x", "label": 1},
            {},
            "both answer and context, and either may be the document; name one in data.fields, as document: context",
        ),
        (
            {"query": "q", "response": "x", "passage": "a"},
            {},
            "both response and passage, and either may be the document; name one in data.fields, as pos: passage",
        ),
        (
            {"query": "q", "pos": ["a"], "pos_scores": [0.9]},
            {},
            "no field 'neg'; write an empty list where there are none, or, where pos has documents of both kinds, "
            "name documents: pos and scores: pos_scores in data.fields",
        ),
        (
            {"query": "q", "positive": "a", "negative": ["b", "c"], "label": [9, 3]},
            {},
            "2 label for 3 documents; give one for each",
        ),
        (
            {"query-id": "1", "corpus-id": "2", "score": 1},
            {},
            "corpus-id: is a line of judgements; give the BEIR folder that they belong to",
        ),
        (
            {"query": "q", "passage": "a", "label": "maybe"},
            {},
            "label='maybe' is not a number; write one, as 1, 0 or -2.5",
        ),
        (
            {"query": "q", "positive": {"url": "x"}, "negative": "b"},
            {},
            "pos={'url': 'x'} is no document; write a string, or an object with the strings `text` and, if it has one, "
            "`title`",
        ),
        (
            {"anchor": "q", "positive": "a", "negative": "b", "scores": [1]},
            {},
            "1 scores for 2 documents; give one for each",  # the row has no neg_scores
        ),
        (
            {"messages": [*MESSAGES, MESSAGES[1]], "positive_messages": [message("a")]},
            {},
            "query=['q', 'q'] is not a string; write it in quotes",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(tmp_path: Path, row: Any, fields: Any, message: str):
    file = lines(tmp_path / "rows.jsonl", row)
    assert refusal(file, **fields) == f"{file}:1: {message}"
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), table)
    assert refusal(table, **fields) == f"{table}:1: {message}"


def test_an_unknown_layout_of_parquet_is_refused_with_its_columns(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["q"], "completion": ["a"]}), tmp_path / "rows.parquet")
    assert "rows.parquet:1: no field 'query'; " in (told := refusal(tmp_path / "rows.parquet"))
    assert told.endswith("this one has prompt, completion; name its fields in data.fields")


def test_fields_of_a_configuration_are_checked():
    def parsed(fields: Any) -> Any:
        data = {"path": "rows.jsonl", "mix": [{"path": "more.jsonl", "fields": fields}]}
        return parse_config({"model": {"base": "builtin:tiny"}, "data": data, "score": {"steps": 1}})

    assert parsed({"query": "query.text", "pos": "good"}).data.mix[0].fields == {"query": "query.text", "pos": "good"}
    for fields, told in (
        ({"qeury": "q"}, "fields.qeury: unknown field of a row; did you mean 'query'?"),
        ({"zzz": "q"}, "fields.zzz: unknown field of a row; use one of query, instruction, document, label, score, "),
        ({"query": ""}, "fields.query='': string should have at least 1 character"),
        ({"query": 3}, "fields.query=3: input should be a valid string; put it in quotes"),
    ):
        with pytest.raises(InputError) as caught:
            parsed(fields)
        assert str(caught.value).startswith(f"config: data.mix.0.{told}")
