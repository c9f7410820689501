"""The BEIR reader: what it reads, and each way in which a folder is refused."""

import json
import logging
from pathlib import Path

import pytest

from prorank_jax.data import lines
from prorank_jax.data.beir import read_beir
from prorank_jax.errors import InputError

CORPUS = '{"_id": "d1", "title": "Tea", "text": "A drink."}\n{"_id": "d2", "title": "", "text": "Water"}\n'
QUERIES = '{"_id": "q1", "text": "what is tea"}\n{"_id": "q2", "text": "what is water"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n"


def write(folder: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    # Without newline="" the text layer would hide what the reader does with carriage returns.
    for name, text in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def refusal(folder: Path, split: str = "test") -> str:
    with pytest.raises(InputError) as caught:
        read_beir(folder, split)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_reads_a_folder(tmp_path):
    collection = read_beir(write(tmp_path / "drinks"), "test")
    assert collection.name == "drinks"
    assert collection.split == "test"
    # Title and text in one field, without a leading space where there is no title.
    assert collection.documents == {"d1": "Tea A drink.", "d2": "Water"}
    assert list(collection.queries.items()) == [("q2", "what is water"), ("q1", "what is tea")]
    assert collection.qrels == {"q2": {"d2": 2, "d1": 0}, "q1": {"d1": 1}}


def test_the_header_is_optional(tmp_path):
    assert read_beir(write(tmp_path, qrels="q1\td1\t1\n"), "test").qrels == {"q1": {"d1": 1}}


def test_only_judged_queries_are_kept(tmp_path):
    assert list(read_beir(write(tmp_path, qrels="q2\td2\t1\n"), "test").queries) == ["q2"]


def test_carriage_returns_blank_lines_and_byte_order_marks_are_dropped(tmp_path):
    plain = read_beir(write(tmp_path / "a"), "test")
    windows = [("\ufeff" + text).replace("\n", "\r\n") + "\r\n" for text in (CORPUS, QUERIES, QRELS)]
    saved = read_beir(write(tmp_path / "b", *windows), "test")
    assert (saved.documents, saved.queries, saved.qrels) == (plain.documents, plain.queries, plain.qrels)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    line = json.dumps({"_id": "d1", "text": "a\u2028b\x85c\\n"}, ensure_ascii=False) + "\n"
    assert read_beir(write(tmp_path, corpus=line, qrels="q1\td1\t1\n"), "test").documents["d1"] == "a\u2028b\x85c\\n"


def test_judgements_of_unknown_queries_are_skipped_and_counted(tmp_path, caplog):
    folder = write(tmp_path, qrels=QRELS + "q8\td1\t1\nq9\td1\t1\nq9\td2\t1\n")
    with caplog.at_level(logging.WARNING):
        collection = read_beir(folder, "test")
    assert list(collection.qrels) == ["q2", "q1"]
    (record,) = caplog.records
    assert "3 judgements of 2 queries" in record.getMessage()
    assert "'q8'" in record.getMessage()


def test_judgements_of_unknown_documents_stay_for_measures_and_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        collection = read_beir(write(tmp_path, qrels=QRELS + "q1\td8\t1\nq2\td9\t2\n"), "test")
    assert collection.qrels["q1"] == {"d1": 1, "d8": 1}
    (record,) = caplog.records
    assert "2 judgements of documents" in record.getMessage()
    assert "'d9'" in record.getMessage()


def test_a_clean_folder_is_read_without_a_warning(tmp_path, caplog):
    read_beir(write(tmp_path), "test")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"_id": "d3", "text": "x"', "not valid JSON"),
        ("\x00", "not valid JSON"),
        ('{"_id": "d3", "text": "a\x00b"}', "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"_id": "d3", "text": "x", "n": ' + "9" * 5000 + "}", "a number too long"),
        ('{"_id": "d3", "text": "\\ud800"}', "surrogate"),
        ('["d3", "x"]', "not a JSON object"),
        ("3", "not a JSON object"),
        ('{"text": "x"}', "no field '_id'"),
        ('{"_id": "d3", "title": "x"}', "no field 'text'"),
        ('{"id": "d3", "contents": "x"}', "no field '_id', but 'id', 'contents'; every line has `_id` and `text`"),
        ('{"_id": 3.5, "text": "x"}', "_id=3.5 is not a string"),
        ('{"_id": true, "text": "x"}', "_id=True is not a string"),
        ('{"_id": null, "text": "x"}', "_id=null is not a string"),
        ('{"_id": "d3", "text": null}', 'text=null is not a string; write "" where there is none'),
        ('{"_id": "d3", "text": "x", "title": ["y"]}', "title=['y'] is not a string"),
        ('{"_id": "d3", "text": "x", "title": 1984}', "title=1984 is not a string"),
        ('{"_id": "", "text": "x"}', "_id='' is empty"),
        ('{"_id": "d 3", "text": "x"}', "_id='d 3' is empty or has white space"),
        ('{"_id": "d1", "text": "x"}', "_id='d1' was given on a line before"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    message = refusal(write(tmp_path, corpus=CORPUS + line + "\n"))
    assert message.startswith(f"{tmp_path / 'corpus.jsonl'}:3: ")
    assert told in message
    assert len(message) < 400 + len(str(tmp_path))


def test_a_bad_query_line_is_named(tmp_path):
    message = refusal(write(tmp_path, queries=QUERIES + '{"_id": "q1", "text": "again"}\n'))
    assert message.startswith(f"{tmp_path / 'queries.jsonl'}:3: _id='q1'")


def test_escaped_text_and_a_huge_line_are_read(tmp_path):
    # A whole surrogate pair and an escaped NUL are text; ten megabytes are only long.
    line = '{"_id": "d3", "text": "\\ud83d\\ude00 \\u0000' + "x" * 10_000_000 + '"}\n'
    text = read_beir(write(tmp_path, corpus=CORPUS + line), "test").documents["d3"]
    assert text[:4] == "\N{GRINNING FACE} \x00x"
    assert len(text) == 10_000_003


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_bytes_that_are_not_utf8_are_named(tmp_path, name):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + b"caf\xe9\n")
    line = path.read_bytes().count(b"\n")
    assert f"{path}:{line}: byte 4 of the line is not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_or_empty_file_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).write_text("\n")
    assert f"{tmp_path / name}: is empty" in refusal(tmp_path)
    (tmp_path / name).unlink()
    assert f"{tmp_path / name}: cannot be read (No such file or directory)" in refusal(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    assert "no such folder" in refusal(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "no such folder" in refusal(tmp_path / "file")


def test_a_missing_split_lists_the_others(tmp_path):
    write(tmp_path)
    (tmp_path / "qrels" / "dev.tsv").write_text(QRELS)
    assert refusal(tmp_path, "train").endswith("no split 'train'; the splits are dev, test")
    # The split is a name, not a path.
    (tmp_path / "other.tsv").write_text(QRELS)
    assert "no split '../other'" in refusal(tmp_path, "../other")


def test_a_folder_without_qrels_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "qrels" / "test.tsv").unlink()
    assert "holds no .tsv file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("q1\td2", "has 2 columns, and the first line 3"),
        ("q1,d2,1", "has 1 columns, and the first line 3"),
        ("q1\t0\td2\t1", "has 4 columns, and the first line 3"),
        ("q1\td2\t1.5", "judgement '1.5' is not an integer"),
        ("q1\td2\tnan", "judgement 'nan' is not an integer"),
        ("q1\td2\t", "judgement '' is not an integer"),
        ("q1\td2\t1_0", "judgement '1_0' is not an integer"),
        ("q1\td2\t\u0661", "is not an integer"),
        ("q1\td2\t" + "9" * 5000, "is not an integer"),
        ("q1\td1\t2", "document 'd1' is judged 1 and 2 for query 'q1'"),
        # Only the first line can be a header.
        ("query-id\tcorpus-id\tscore", "judgement 'score' is not an integer"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path, row, told):
    message = refusal(write(tmp_path, qrels=QRELS + row + "\n"))
    assert message.startswith(f"{tmp_path / 'qrels' / 'test.tsv'}:5: ")
    assert told in message
    assert len(message) < 300 + len(str(tmp_path))


JUDGED = {"q2": {"d2": 2, "d1": 0}, "q1": {"d1": 1}}


@pytest.mark.parametrize(
    "qrels",
    [
        # TREC's four columns, by blanks and tabs; the iteration of TREC-COVID; anserini's Q0.
        "q2 0 d2 2\nq2 0 d1 0\nq1 0 d1 1\n",
        "q2\tQ0\td2\t2\nq2\tQ0\td1\t0\nq1\tQ0\td1\t1\n",
        "q2 4.5 d2 2\r\nq2 4  d1   0 \r\n\r\nq1 Q0 d1 1\r\n\r\n",
        "q2 d2 2\nq2 d1 0\nq1 d1 1\n",
        # pandas: whole numbers as floats; other names and orders of columns, and columns that are not read.
        "query-id\tcorpus-id\tscore\nq2\td2\t2.0\nq2\td1\t0.0\nq1\td1\t1.0\n",
        "\ufeffqid\tdocid\trel\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n",
        "query_id doc_id relevance iteration\nq2 d2 2 0\nq2 d1 0 0\nq1 d1 1 0\n",
        "query_id\tQ0\tdoc_id\tlabel\nq2\t0\td2\t2\nq2\t0\td1\t0\nq1\t0\td1\t1\n",
        "\tdocno\tqid\tlabel\tquery\n0\td2\tq2\t2\twhat is water\n1\td1\tq2\t0\twater\n2\td1\tq1\t1\tx\n",
        # A tab at the end, of some lines or all; quotes; commas, with blanks; scores of a model next to labels.
        "q2\t0\td2\t2\t\nq2\t0\td1\t0\nq1\t0\td1\t1\t\t\n",
        "q2\td2\t2\t\nq2\td1\t0\t\nq1\td1\t1\t\n",
        "query-id\tcorpus-id\tscore\t\nq2\td2\t2\t\nq2\td1\t0\t\nq1\td1\t1\t\n",
        "query-id\tcorpus-id\tscore\nq2\td2\t2\t\nq2\td1\t0\t\nq1\td1\t1\n",
        '"query-id"\t"corpus-id"\t"score"\r\n"q2"\t"d2"\t"2"\r\n"q2"\t"d1"\t"0"\r\n"q1"\t"d1"\t"1"\r\n',
        '""\t"qid"\t"docno"\t"label"\n"0"\t"q2"\t"d2"\t2\n"1"\t"q2"\t"d1"\t0\n"2"\t"q1"\t"d1"\t1\n',
        "query-id,corpus-id,score\nq2,d2,2\nq2,d1,0\nq1,d1,1\n",
        'qid, docid, rel, query\n"q2", d2, 2, "what, is"\nq2 , d1 , 0, x\nq1, d1, 1, y\n',
        "qid\tdocid\tscore\tlabel\nq2\td2\t0.5\t2\nq2\td1\t7\t0\nq1\td1\t0.1\t1\n",
        "a\tb\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n",
    ],
)
def test_judgements_of_other_tools_are_read(tmp_path, qrels):
    assert read_beir(write(tmp_path, qrels=qrels), "test").qrels == JUDGED


@pytest.mark.parametrize("name", ["trec-blanks", "float-grades", "other-header", "trec-covid"])
def test_the_judgements_of_trials_are_read(shared, tmp_path, name):
    trial = shared / "trials" / "03-trec-qrels-in-the-folder"
    queries = "".join(f'{{"_id": "{query}", "text": "x"}}\n' for query in ("q1", "q2", "1"))
    corpus = (trial / "collection" / "corpus.jsonl").read_text()
    folder = write(tmp_path, corpus, queries, (trial / f"{name}.tsv").read_text())
    assert (
        read_beir(folder, "test").qrels
        == {
            "trec-blanks": {"q1": {"d1": 1}, "q2": {"d3": 2}},
            "float-grades": {"q1": {"d1": 1}, "q2": {"d3": 2}},
            "other-header": {"q1": {"d1": 1}},
            "trec-covid": {"1": {"d1": 2, "d2": 0}},
        }[name]
    )


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("q1 d1", "'q1 d1' has 2 columns; write query id, document id and judgement, or TREC's four: query id, 0,"),
        ("q1 0 d1 1 x", "'q1 0 d1 1 x' has 5 columns; write"),
        ("topic\tpassage\tlevel", "judgement 'level' is not an integer; write 0, 1, 2, ..."),
        ("q1,d1,1", "'q1,d1,1' has 1 columns; separate them by tabs,"),
    ],
)
def test_a_first_line_that_is_neither_judgement_nor_header_is_named(tmp_path, first, told):
    assert f"test.tsv:1: {told}" in refusal(write(tmp_path, qrels=first + "\nq1\td1\t1\n"))


@pytest.mark.parametrize(
    ("qrels", "told"),
    [
        ("q1,d1,1\n", ":1: 'q1,d1,1' has 1 columns; separate them by tabs, or by commas after a first line of names"),
        ("q1, d1, 1\n", ":1: 'q1, d1, 1' has 3 columns; separate them by tabs, or by commas after a first line of"),
        ("query-id,corpus-id,score\nq1,d1\n", ":2: 'q1, d1' has 2 columns, and the first line 3; write"),
        ("query-id,corpus-id,score\nq1,d1,0.5\n", ":2: judgement '0.5' is not an integer"),
        ('"query-id"\t"corpus-id"\t"score"\n"q1\td1\t1\n', ":2: not readable as CSV (unexpected end of data); write"),
        ("q1\t0\td1\t1\tx\n", ":1: 'q1\\t0\\td1\\t1\\tx' has 5 columns; write"),
        ("q1\t0\td1\t1\nq1\t0\td2\t\t\n", ":2: judgement '' is not an integer"),
    ],
)
def test_bad_tables_of_judgements_are_named(tmp_path, qrels, told):
    assert f"test.tsv{told}" in refusal(write(tmp_path, qrels=qrels))


def test_judgements_under_another_name_are_pointed_at(tmp_path):
    (write(tmp_path) / "qrels" / "test.tsv").rename(tmp_path / "qrels" / "qrels.txt")
    assert refusal(tmp_path) == (
        f"{tmp_path / 'qrels'}: holds no .tsv file, but qrels.txt; name judgements by their split, as test.tsv"
    )


def test_a_null_title_is_none(shared):
    # As `datasets` and pandas write a document without one.
    collection = read_beir(shared / "trials" / "04-title-null", "test")
    assert collection.documents == {"d0": "a dog", "d1": "Cats a cat"}


def test_values_as_pandas_writes_them_are_read(tmp_path):
    corpus = '{"_id": 1, "title": NaN, "text": "one", "metadata": null}\n{"_id": 20, "title": "Two", "text": ""}\n'
    queries = '{"_id": 7, "text": "what", "title": null, "metadata": {"a": [1]}}\n'
    collection = read_beir(write(tmp_path, corpus, queries, "7\t1\t1\n7\t20\t0\n"), "test")
    assert (collection.documents, collection.queries) == ({"1": "one", "20": "Two"}, {"7": "what"})
    corpus += '{"_id": "20", "text": "x"}\n'
    assert "corpus.jsonl:3: _id='20' was given on a line before" in refusal(write(tmp_path, corpus, queries, "7 1 1\n"))


def test_a_malformed_split_does_not_block_another(tmp_path):
    write(tmp_path)
    (tmp_path / "qrels" / "train.tsv").write_text("q1\td1\n")
    assert read_beir(tmp_path, "test").qrels == JUDGED
    assert "train.tsv:1: 'q1\\td1' has 2 columns" in refusal(tmp_path, "train")


def test_a_judgement_given_twice_alike_is_one(tmp_path):
    assert read_beir(write(tmp_path, qrels=QRELS + "q1\td1\t1\n"), "test").qrels["q1"] == {"d1": 1}


def test_negative_judgements_are_kept(tmp_path):
    assert read_beir(write(tmp_path, qrels=QRELS + "q1\td2\t-2\n"), "test").qrels["q1"] == {"d1": 1, "d2": -2}


def test_qrels_without_a_row_are_refused(tmp_path):
    assert "holds no judgement" in refusal(write(tmp_path, qrels="query-id\tcorpus-id\tscore\n"))


def test_qrels_of_another_collection_are_refused(tmp_path):
    assert "none of its 2 queries" in refusal(write(tmp_path, qrels="x\td1\t1\ny\td1\t1\n"))
    assert "names no document of corpus.jsonl (first: 'x')" in refusal(write(tmp_path, qrels="q1\tx\t1\n"))


@pytest.mark.parametrize(
    ("name", "split", "documents", "queries", "judgements"),
    [
        # The counts of shared/data/README.md.
        ("scifact", "test", 5183, 300, 339),
        ("scifact", "train", 5183, 809, 919),
        ("nfcorpus", "test", 3633, 323, 12334),
        ("nfcorpus", "train", 3633, 2590, 110575),
        ("trec-dl19", "test", 7055, 43, 9260),
    ],
)
def test_real_collections_have_their_published_sizes(shared, name, split, documents, queries, judgements):
    collection = read_beir(shared / "data" / name, split)
    assert len(collection.documents) == documents
    assert len(collection.queries) == queries
    assert sum(len(row) for row in collection.qrels.values()) == judgements


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 20)
    folder = write(tmp_path, corpus=CORPUS + '{"_id": "d3", "text": "' + "a" * (1 << 20) + '"}\n')
    assert refusal(folder) == (f"{folder / 'corpus.jsonl'}:3: is longer than 1 MiB; write one object or entry a line")


def test_a_line_just_short_enough_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 10)
    row = '{"_id": "d3", "text": ""}\n'
    corpus = CORPUS + row.replace('""', '"' + "a" * ((1 << 10) - len(row)) + '"')
    assert len(read_beir(write(tmp_path, corpus=corpus), "test").documents) == 3
