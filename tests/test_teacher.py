"""A teacher's scores beside the documents of a file: the scores, work cut at any moment, answers, and refusals."""

import dataclasses
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import Prorank
from test_other_rerankers import LABELLED, SPACED, TASK_LAST, reranker_folder
from transformers import PreTrainedTokenizerFast

from prorank_jax import teacher
from prorank_jax.config import PromptConfig
from prorank_jax.data import part as part_module
from prorank_jax.data.beir import read_beir
from prorank_jax.data.jsonl import write_rows
from prorank_jax.errors import InputError
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.reranker import Document, Reranker
from prorank_jax.teacher import check_answers, score_file

Rows = list[dict[str, Any]]

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker.from_pretrained(tiny_model, max_length=160)


@pytest.fixture(scope="module")
def pairs(tiny_collection: Path) -> list[tuple[str, str]]:
    collection = read_beir(tiny_collection / "train", "train")
    return [(query, text) for query in collection.queries.values() for text in collection.documents.values()]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_CHUNK", 10)


def write(path: Path, rows: Rows) -> Path:
    with write_rows(path) as add:
        for row in rows:
            add(row)
    return path


def read(path: Path) -> Rows:
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.name.endswith(".gz") else content
    return [json.loads(line) for line in lines.splitlines()]


def triples(pairs: list[tuple[str, str]], count: int) -> Rows:
    """Rows of one positive and two negatives, and a fourth document every third row."""
    rows = []
    for number in range(count):
        texts = [text for _, text in pairs[4 * number : 4 * number + 4]]
        neg = texts[1:] if number % 3 == 0 else texts[1:3]
        rows.append({"query": pairs[4 * number][0], "pos": texts[:1], "neg": neg, "neg_ids": ["x"] * len(neg)})
    return rows


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.usefixtures("small_chunks")
def test_scores_are_those_of_predict_in_every_shape(
    reranker: Reranker, pairs: list[tuple[str, str]], tmp_path: Path, suffix: str
) -> None:
    pairs = pairs[:27]
    expected = reranker.predict(pairs)
    out = tmp_path / f"out{suffix}"

    pointwise = [{"query": query, "document": text, "label": 1, "score": 99} for query, text in pairs]
    assert score_file(reranker, write(tmp_path / "rows.jsonl", pointwise), out) == (27, 27, 0)
    found = read(out)
    np.testing.assert_allclose([row.pop("score") for row in found], expected, atol=1e-5)
    assert found == [{"query": query, "document": text, "label": 1} for query, text in pairs]

    documents = [text for _, text in pairs]
    listwise = [{"query": pairs[0][0], "documents": documents[:20], "labels": [1] * 20, "id": 7}]
    listwise.append({"query": pairs[0][0], "documents": documents[20:]})
    score_file(reranker, write(tmp_path / "rows.jsonl", listwise), out)
    found = read(out)
    scores = [score for row in found for score in row.pop("scores")]
    np.testing.assert_allclose(scores, reranker.predict([(pairs[0][0], text) for text in documents]), atol=1e-5)
    assert found == listwise

    rows = triples(pairs, 6)
    score_file(reranker, write(tmp_path / "rows.jsonl", rows), out)
    found = read(out)
    parts = [(row.pop("pos_scores"), row.pop("neg_scores")) for row in found]
    assert [(len(pos), len(neg)) for pos, neg in parts] == [(len(row["pos"]), len(row["neg"])) for row in rows]
    asked = [(row["query"], text) for row in rows for text in (*row["pos"], *row["neg"])]
    np.testing.assert_allclose([x for pos, neg in parts for x in pos + neg], reranker.predict(asked), atol=1e-5)
    assert found == rows
    assert names(tmp_path) == [out.name, "rows.jsonl"]


@pytest.mark.usefixtures("small_chunks")
def test_a_folder_is_scored_as_its_files_by_name(quick: "Quick", pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    """Fields that no shape has stay beside JSON; Parquet gives those of the shapes, without nulls."""
    rows, folder = triples(pairs, 8), tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.jsonl", rows[:3])
    columns = {name: [row[name] for row in rows[3:6]] for name in ("query", "pos", "neg", "neg_ids")}
    columns["instruction"] = [None, None, "Judge."]
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "b.parquet")
    write(folder / "c.jsonl.gz", rows[6:])
    score_file(quick, write(tmp_path / "whole.jsonl", rows), tmp_path / "expected.jsonl")
    expected = read(tmp_path / "expected.jsonl")
    for row in expected[3:6]:
        del row["neg_ids"]
    expected[5]["instruction"] = "Judge."
    documents = sum(len(row["pos"]) + len(row["neg"]) for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        # The instruction is scored as any, by a checksum of the texts; the template of this model takes none.
        patch.setattr(Prompt, "with_instruction", lambda prompt, _: prompt)
        assert score_file(quick, folder, tmp_path / "out.jsonl") == (8, documents, 0)
        assert read(tmp_path / "out.jsonl") == expected
        assert score_file(quick, f"{folder}/[ac].*", tmp_path / "out.jsonl")[0] == 5
        assert read(tmp_path / "out.jsonl") == expected[:3] + expected[6:]
        # Again, where the output lies among the input.
        score_file(quick, folder, folder / "z.jsonl")
        with pytest.raises(InputError, match=r"z.jsonl: is the input as well; give another --out"):
            score_file(quick, folder, folder / "z.jsonl")


def test_numbers_and_nulls_of_json_stay_as_they_are(quick: "Quick", tmp_path: Path) -> None:
    line = '{"id": 7, "query": "q", "document": "d", "label": 1, "instruction": null, "neg": null, "score": 3'
    (tmp_path / "rows.jsonl").write_text(line + "}\n")
    score_file(quick, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text().startswith(line.removesuffix("3"))


def test_rows_of_another_trainer_get_our_names(quick: "Quick", tmp_path: Path) -> None:
    passages = {"positive_passages": [{"docid": "1", "title": "T", "text": "a"}], "negative_passages": ["b"]}
    rows = [{"query_id": 7, "question": "q", **passages}]
    assert score_file(quick, write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", fields={"query": "question"})
    positive, negative = quick.predict([("q", "T a"), ("q", "b")]).tolist()
    [row] = read(tmp_path / "out.jsonl")
    scores = [*row.pop("pos_scores"), *row.pop("neg_scores")]
    np.testing.assert_array_equal(np.array(scores, np.float32), np.array([positive, negative], np.float32))
    assert row == {"query_id": 7, "query": "q", "pos": ["T a"], "neg": ["b"]}


def test_a_score_is_written_with_all_its_32_bits(
    reranker: Reranker, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"query": query, "document": text} for query, text in pairs[:40]])
    score_file(reranker, rows, tmp_path / "out.jsonl")
    written = np.array([row["score"] for row in read(tmp_path / "out.jsonl")], np.float32)
    assert (written == reranker.predict(pairs[:40])).all()


def test_an_instruction_is_of_its_row(tiny_model: Path, pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    template = LABELLED.replace("Say yes or no.", "Judge.")
    reranker = Reranker.from_pretrained(reranker_folder(tiny_model, tmp_path / "teacher", template, (301, 302)))
    rows: Rows = [{"query": query, "document": text} for query, text in pairs[:6]]
    told = [None, "Find the rude.", "", "Find the cheap.", "Find the rude.", None]
    for row, instruction in zip(rows, told, strict=True):
        row["instruction"] = instruction
    score_file(reranker, write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    found = [row["score"] for row in read(tmp_path / "out.jsonl")]
    expected = [
        reranker.predict([pair], instruction=instruction or None)[0]
        for pair, instruction in zip(pairs, told, strict=False)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found[1] - reranker.predict(pairs[1:2])[0]) > 1e-3


class Killed(BaseException):
    """Stands for the end of the process."""


class Quick(Reranker):
    """Scores by a checksum of the texts, a function of nothing else."""

    def predict(self, pairs: Sequence[tuple[str, Document]], **_: Any) -> np.ndarray:
        return np.array([zlib.crc32(repr(pair).encode()) / 1e6 for pair in pairs], np.float32)


@pytest.fixture
def quick(reranker: Reranker) -> Quick:
    return Quick(reranker.decoder, reranker.params, reranker.prompt)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.usefixtures("small_chunks")
def test_work_cut_at_any_moment_gives_the_same_file(
    quick: Quick, pairs: list[tuple[str, str]], tmp_path: Path, suffix: str
) -> None:
    """Before and behind each thing that is done to a file: rows, chunks and their record, and the last name."""
    source = write(tmp_path / "rows.jsonl", triples(pairs, 12))
    whole = tmp_path / f"whole{suffix}"
    assert score_file(quick, source, whole) == (12, 40, 0)

    calls, limit = 0, 10**9

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            for now in (True, False):
                calls += 1
                if calls > limit:
                    raise Killed
                if now:
                    done = function(*args, **kwargs)
            return done

        return call

    found_before = set()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "truncate")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        for module, name in ((part_module, "write_atomically"), (teacher, "encode_rows")):
            patch.setattr(module, name, counted(getattr(module, name)))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        out = tmp_path / f"out{suffix}"
        part = out.with_name(f"{out.name}.part")
        for stop in range(1000):
            calls, limit = 0, stop
            try:
                score_file(quick, source, out)
            except Killed:
                limit = 10**9
            else:
                break
            # Nothing is written before what it is of has been noted.
            if part.exists() and part.with_name(f"{part.name}.json").exists():
                with part.open("ab") as file:
                    file.write(b"cut in the mid")
            # As another process leaves it that was killed while it noted a chunk.
            part.with_name(f"{part.name}.json.1.tmp").touch()
            found_before.add(score_file(quick, source, out).found)
            assert out.read_bytes() == whole.read_bytes()
            assert names(tmp_path) == sorted([out.name, "rows.jsonl", whole.name])
            out.unlink()
    assert stop > 20
    # Chunks of 10 documents or just above end behind rows 3, 6, 9 and 12.
    assert found_before == {0, 3, 6, 9, 12}


def test_a_killed_process_goes_on(tiny_model: Path, pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = [{"query": query, "document": text} for query, text in pairs]
    source, out, whole = tmp_path / "rows.jsonl", tmp_path / "out.jsonl.gz", tmp_path / "whole.jsonl.gz"
    write(source, rows)
    program = "from prorank_jax import teacher; from prorank_jax.cli import main; teacher._CHUNK = 8; main()"

    def start(to: Path) -> subprocess.Popen[str]:
        arguments = [
            "data",
            "score",
            str(source),
            "--teacher",
            str(tiny_model),
            "--out",
            str(to),
            "--max-length",
            "160",
        ]
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    cut = start(out)
    record = tmp_path / "out.jsonl.gz.part.json"
    deadline = time.monotonic() + 60
    while not (record.exists() and json.loads(record.read_text())["rows"] >= 16):
        assert cut.poll() is None and time.monotonic() < deadline, cut.communicate()
        time.sleep(0.005)
    cut.send_signal(signal.SIGKILL)
    cut.communicate()
    assert cut.returncode == -signal.SIGKILL and not out.exists()
    found = json.loads(record.read_text())["rows"]

    again, other = start(out), start(whole)
    printed = [process.communicate()[0] for process in (again, other)]
    counts = f"{len(rows)} rows, {len(rows)} documents"
    assert printed == [f"{counts}, {found} of them scored before: {out}\n", f"{counts}: {whole}\n"]
    assert out.read_bytes() == whole.read_bytes()
    assert len(read(out)) == len(rows)


@pytest.fixture
def begun(quick: Quick, pairs: list[tuple[str, str]], tmp_path: Path, small_chunks: None) -> Callable[..., str]:
    """Work that was stopped in its second chunk; the function goes on with it, and returns how it is refused."""
    source, out = write(tmp_path / "rows.jsonl", triples(pairs, 12)), tmp_path / "out.jsonl"

    class Stopped(Quick):
        def predict(self, pairs: Sequence[tuple[str, Document]], **options: Any) -> np.ndarray:
            if (tmp_path / "out.jsonl.part").stat().st_size:
                raise Killed
            return super().predict(pairs, **options)

    with pytest.raises(Killed):
        score_file(Stopped(quick.decoder, quick.params, quick.prompt), source, out, batch_size=4)

    def go_on(by: Reranker, batch_size: int | None = 4) -> str:
        before = (tmp_path / "out.jsonl.part").read_bytes()
        with pytest.raises(InputError) as error:
            score_file(by, source, out, batch_size=batch_size)
        assert (tmp_path / "out.jsonl.part").read_bytes() == before
        assert str(error.value).endswith(f"delete {out}.part to start again, or give another --out")
        return str(error.value).removeprefix(f"{out}.part").partition("; delete")[0]

    return go_on


def test_other_work_is_not_gone_on_with(begun: Callable[..., str], quick: Quick, tmp_path: Path) -> None:
    told = ": was begun with other settings: {} changed{}"
    assert begun(quick, batch_size=8) == told.format("--batch", " (4 -> 8)")
    assert begun(quick, batch_size=None) == told.format("--batch", " (4 -> None)")
    shorter = dataclasses.replace(quick, prompt=dataclasses.replace(quick.prompt, max_length=150))
    assert begun(shorter) == told.format("--max-length", " (160 -> 150)")
    other = {**quick.params, "embedding": quick.params["embedding"].at[3, 3].add(1e-6)}
    assert begun(dataclasses.replace(quick, params=other)) == told.format("the teacher", "")
    reworded = dataclasses.replace(quick.prompt, template=quick.prompt.template + " ")
    assert begun(dataclasses.replace(quick, prompt=reworded)) == told.format("the teacher", "")
    source = tmp_path / "rows.jsonl"
    lines = source.read_text()
    source.write_text(lines.replace("river", "brook", 1) + lines[: lines.index("\n") + 1])
    assert begun(quick) == told.format("the input", "")
    source.write_text(lines)
    assert score_file(quick, source, tmp_path / "out.jsonl", batch_size=4) == (12, 40, 3)


def test_damaged_work_is_not_gone_on_with(begun: Callable[..., str], quick: Quick, tmp_path: Path) -> None:
    record, part = tmp_path / "out.jsonl.part.json", tmp_path / "out.jsonl.part"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    assert begun(quick) == f": is shorter than the {len(whole)} bytes written"
    for content in ("", "[]", "{}", '{"rows": 3, "bytes": 4, "made_of": {}}'):
        record.write_text(content)
        assert begun(quick).endswith(f".json: does not say what {part} was made of"), content
    record.unlink()
    assert begun(quick).endswith(f".json: does not say what {part} was made of")
    part.unlink()
    assert score_file(quick, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", batch_size=4).found == 0


def test_a_file_that_is_being_written_is_left_alone(quick: Quick, pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", triples(pairs, 3)), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    with part.open("ab") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        with pytest.raises(InputError) as error:
            score_file(quick, source, out)
        told = f"{part}: another process is writing it; wait until it ends, or give another --out"
        assert str(error.value) == told
        assert not out.exists()
    assert score_file(quick, source, out).found == 0


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_line(quick: Quick, tmp_path: Path, bad: float) -> None:
    class Broken(Quick):
        def predict(self, pairs: Sequence[tuple[str, Document]], **_: Any) -> np.ndarray:
            return np.array([bad if document == "bad" else 1.0 for _, document in pairs], np.float32)

    rows = [{"query": "q", "pos": ["a", "b"], "neg": ["c"]}, {"query": "q", "pos": ["a"], "neg": ["b", "bad"]}]
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError) as error:
        score_file(Broken(quick.decoder, quick.params, quick.prompt), source, tmp_path / "out.jsonl")
    assert str(error.value) == (
        f"{source}:2: the teacher's score of document 3 of the line is {bad}, not a finite number: "
        "values in the model overflow; use --dtype float32, or another teacher"
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_the_line_of_a_score_that_a_reranker_refuses(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its pairs are of one line after the other, and of chunks of its own."""

    def chunks(self: Reranker, chunks: Any, **_: Any) -> Any:
        for pairs in chunks:
            yield np.array([np.inf if document == "bad" else 1.0 for _, document in pairs], np.float32)

    monkeypatch.setattr(Reranker, "predict_chunks", chunks)
    monkeypatch.setattr("prorank_jax.reranker._CHUNK", 2)
    rows = [{"query": "q", "pos": ["a", "b"], "neg": ["c"]}, {"query": "r", "pos": ["a"], "neg": ["b", "bad"]}]
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=f"{source}:2: the teacher's score of document 3 of the line is inf, not a"):
        score_file(reranker, source, tmp_path / "out.jsonl")


NO_YES, ZERO_ONE, CAT_DOG = (2152, 9693), (15, 16), (4616, 18457)  # of Qwen2.5's tokenizer


@pytest.fixture(scope="module")
def own_qwen(qwen_folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer whose template these tests may change."""
    return load_tokenizer(qwen_folder)


def qwen_prompt(own_qwen: PreTrainedTokenizerFast, template: str, answer_ids: tuple[int, int]) -> Prompt:
    own_qwen.chat_template = template
    return build_prompt(own_qwen, PromptConfig(max_length=512), place="teacher", answer_ids=answer_ids)


@pytest.mark.parametrize(
    ("template", "answer_ids"),
    [
        (LABELLED, NO_YES),
        (LABELLED.replace("yes or no", '"Yes" or "NO"'), NO_YES),
        (TASK_LAST, ZERO_ONE),
        # It names no pair of answers.
        (SPACED, NO_YES),
        (SPACED, ZERO_ONE),
        (SPACED, CAT_DOG),
        # "No" is an English word, and 10 is not the word 1.
        (LABELLED.replace("Say yes or no", "No comment, from 10 to 0"), ZERO_ONE),
        (LABELLED.replace("Say yes or no", "No comment, from 10 to 0"), CAT_DOG),
        # It names both pairs.
        (LABELLED.replace("Say yes or no", "Say 1 for yes and 0 for no"), ZERO_ONE),
        (LABELLED.replace("Say yes or no", "Say 1 for yes and 0 for no"), NO_YES),
        (LABELLED.replace("Say yes or no", "Say cat, not yes or no"), CAT_DOG),
    ],
)
def test_answers_that_fit_their_template(
    own_qwen: PreTrainedTokenizerFast, template: str, answer_ids: tuple[int, int]
) -> None:
    check_answers(qwen_prompt(own_qwen, template, answer_ids), "teacher")


@pytest.mark.parametrize(
    ("template", "answer_ids", "told"),
    [
        (TASK_LAST, NO_YES, "tokens 2152 and 9693 are 'no' and 'yes', and the template asks for '0' or '1'"),
        (LABELLED, ZERO_ONE, "tokens 15 and 16 are '0' and '1', and the template asks for 'no' or 'yes'"),
        (LABELLED, CAT_DOG, "tokens 4616 and 18457 are 'cat' and 'dog', and the template asks for 'no' or 'yes'"),
        (LABELLED.replace("yes or no", "TRUE or False"), ZERO_ONE, "the template asks for 'false' or 'true'"),
    ],
)
def test_answers_that_do_not(
    own_qwen: PreTrainedTokenizerFast, template: str, answer_ids: tuple[int, int], told: str
) -> None:
    with pytest.raises(InputError) as error:
        check_answers(qwen_prompt(own_qwen, template, answer_ids), "teacher")
    assert str(error.value).startswith("teacher: the answer tokens ") and told in str(error.value)
    assert str(error.value).endswith("; name the tokens of these, or mend chat_template.jinja")


def test_texts_are_no_part_of_the_template(own_qwen: PreTrainedTokenizerFast) -> None:
    """The sentinels that stand for query and document are left out of its words."""
    prompt = qwen_prompt(own_qwen, TASK_LAST, (own_qwen.get_vocab()["slot"],) * 2)
    with pytest.raises(InputError, match="are 'slot' and 'slot', and the template asks for '0' or '1'"):
        check_answers(prompt, "teacher")


def test_mine_score_mine(prorank: Prorank, tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    mined, scored, kept = (tmp_path / f"{name}.jsonl.gz" for name in ("mined", "scored", "kept"))
    mine = ("data", "mine", "--data", tiny_collection / "train", "--negatives", 20, "--out", mined)
    assert prorank(*mine)[0] == 0
    score = ("data", "score", mined, "--teacher", tiny_model, "--out", scored, "--max-length", 160, "--batch", 16)
    status, out, err = prorank(*score)
    rows = read(mined)
    documents = sum(len(row["pos"]) + len(row["neg"]) for row in rows)
    assert (status, out) == (0, f"6 rows, {documents} documents: {scored}\n")
    assert err == "scoring 6/6\n"
    # A second time is from the start, and the same.
    before = scored.read_bytes()
    assert prorank(*score)[1] == out and scored.read_bytes() == before

    drop = ("data", "mine", "--scores", scored, "--teacher-margin", 0, "--negatives", 5, "--out", kept)
    status, out, _ = prorank(*drop)
    assert status == 0 and out.endswith(f": {kept}\n")
    left = {row["query_id"]: row for row in read(kept)}
    assert left
    for row in read(scored):
        sure = [i for i, score in enumerate(row["neg_scores"]) if score <= min(row["pos_scores"])][:5]
        if not sure:
            assert row["query_id"] not in left
            continue
        parts = {name: [row[name][i] for i in sure] for name in ("neg", "neg_ids", "neg_scores")}
        assert left[row["query_id"]] == row | parts


def test_what_score_refuses(
    refused: Callable[..., str], tiny_model: Path, tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"query": "q", "document": "d"}])
    vocabulary = load_tokenizer(tiny_model).get_vocab()
    wrong = reranker_folder(tiny_model, tmp_path / "wrong", TASK_LAST, (301, 302))
    right = reranker_folder(tiny_model, tmp_path / "right", TASK_LAST, (vocabulary["0"], vocabulary["1"]))
    files = names(tmp_path)

    def message(file: Path = rows, teacher: Path = right, out: str = "out.jsonl", *options: object) -> str:
        told = refused("data", "score", file, "--teacher", teacher, "--out", tmp_path / out, *options)
        assert names(tmp_path) == files
        return told

    told = message(teacher=wrong)
    assert told.startswith(f"{wrong / '1_LogitScore' / 'config.json'}: the answer tokens 301 and 302 are ")
    assert told.endswith("asks for '0' or '1'; name the tokens of these, or mend chat_template.jinja")
    assert "nowhere.jsonl': no such file; give files of rows" in message(tmp_path / "nowhere.jsonl")
    assert message(out="rows.jsonl") == f"{rows}: is the input as well; give another --out"
    assert "out.txt: is not named .jsonl or .jsonl.gz" in message(out="out.txt")
    assert "no such model folder" in message(teacher=tmp_path / "nowhere")
    assert "Invalid value for '--batch'" in message(rows, right, "out.jsonl", "--batch", 0)
    assert "dtype='half': not known" in message(rows, right, "out.jsonl", "--dtype", "half")
    assert "max_length=20: the template takes" in message(rows, right, "out.jsonl", "--max-length", 20)
    with rows.open("a") as file:
        file.write('{"query": "q", "document": "d", "instruction": "Find."}\n')
    told = message()
    assert told.startswith(f"{rows}:2: ")
    assert "instruction='Find.': the template prints the `system` message 0 times" in told
    rows.write_text('{"query": "q", "document": "d"}\n{"query": "q", "documents": ["d"]}\n')
    assert message() == (
        f"{rows}:2: a row of query, documents after rows of query, document ({rows}:1); "
        "keep one shape in a file, and mix files in data.mix"
    )
