"""prorank rerank: what goes in, what comes out, and streams whose requests come one by one."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Prorank
from made_run import COLLECTION, RUN, FakeReranker

from prorank_jax.data.beir import read_beir
from prorank_jax.data.bm25 import bm25_run
from prorank_jax.data.runs import read_run, write_run
from prorank_jax.errors import InputError
from prorank_jax.evaluation.rerank import rerank
from prorank_jax.reranker import Hit, Reranker
from prorank_jax.reranking import stream
from prorank_jax.reranking.requests import Request
from prorank_jax.reranking.run import rankings
from prorank_jax.reranking.stream import Ranking, ranked, scored

PRORANK = Path(sys.executable).with_name("prorank")
QUERY = "Where is fish?"
TEXTS = ["It serves fish.", "It is full of peace.", "It cooks eels and crabs.", "صغير", "It serves fish."]
REQUESTS: list[dict[str, Any]] = [
    {"_id": "q1", "query": QUERY, "documents": TEXTS, "labels": [1, 0, 1, 0, 1]},
    {"id": 2, "query": QUERY, "documents": [{"_id": "d1", "title": "The Eel", "text": TEXTS[0]}, TEXTS[1]], "top_k": 1},
    {"query": "Where is peace?", "document": {"text": TEXTS[1]}, "label": 1},
    {"query": QUERY, "documents": TEXTS, "instruction": "Find noise.", "document": None},
    {"query": QUERY, "documents": []},
    {"query": QUERY, "document": TEXTS[0], "instruction": None},
]


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker.from_pretrained(tiny_model)


def lines_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text(lines_of(REQUESTS), encoding="utf-8")
    return path


def shown(hits: list[Hit]) -> list[dict[str, Any]]:
    """As JSON lines have them; the digits of a score are as few as give back the same 32 bits."""
    return [{"index": hit.index, "score": float(str(np.float32(hit.score)))} for hit in hits]


def test_documents_as_arguments(prorank: Prorank, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "documents.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = [part for text in TEXTS for part in ("--document", text)]
    status, out, err = prorank("rerank", tiny_model, "--query", QUERY, *arguments)
    assert (status, err, out.count("\n")) == (0, "", len(TEXTS))
    assert out == prorank("rerank", tiny_model, tmp_path / "documents.txt", "--query", QUERY)[1]
    broken = prorank("rerank", tiny_model, "--query", QUERY, "--document", "one\nline\r")[1]
    assert broken.endswith("\t1\tone\\nline\\r\n") and broken.count("\n") == 1


def test_json_lines_of_requests(
    prorank: Prorank, reranker: Reranker, tiny_model: Path, requests: Path, tmp_path: Path
) -> None:
    status, out, err = prorank("rerank", tiny_model, requests)
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.removesuffix("\n").split("\n")]
    hits = shown(reranker.rank(QUERY, TEXTS))
    # Equal texts have equal scores and keep their order: 0 before 4.
    assert [hit["index"] for hit in hits].index(0) + 1 == [hit["index"] for hit in hits].index(4)
    assert answers[0] == {"_id": "q1", "query": QUERY, "labels": [1, 0, 1, 0, 1], "hits": hits}
    [best] = reranker.rank(QUERY, [f"The Eel {TEXTS[0]}", TEXTS[1]], top_k=1)
    identifier = {"_id": "d1"} if best.index == 0 else {}
    assert answers[1] == {"id": 2, "query": QUERY, "top_k": 1, "hits": [shown([best])[0] | identifier]}
    [peace] = reranker.predict([("Where is peace?", TEXTS[1])])
    assert answers[2] == REQUESTS[2] | {"score": float(str(peace))}
    told = shown(reranker.rank(QUERY, TEXTS, instruction="Find noise."))
    assert answers[3]["hits"] == told != hits
    assert answers[4] == {"query": QUERY, "hits": []}
    assert answers[5]["score"] == next(hit["score"] for hit in hits if hit["index"] == 0)

    packed, written = tmp_path / "packed.jsonl.gz", tmp_path / "made" / "answers.jsonl.gz"
    packed.write_bytes(gzip.compress(requests.read_bytes()))
    assert prorank("rerank", tiny_model, packed, "--out", written) == (0, "", "")
    assert gzip.decompress(written.read_bytes()).decode() == out
    assert [path.name for path in written.parent.iterdir()] == [written.name]

    told_by_option = prorank("rerank", tiny_model, requests, "--instruction", "Find noise.", "--top-k", 2)[1]
    answers = [json.loads(line) for line in told_by_option.splitlines()]
    assert answers[0]["hits"] == answers[3]["hits"] == told[:2]
    assert len(answers[1]["hits"]) == 1


def test_json_lines_of_documents(prorank: Prorank, reranker: Reranker, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"_id": f"d{number}", "title": "", "text": text, "metadata": {}} for number, text in enumerate(TEXTS)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n" + lines_of(rows), encoding="utf-8")
    arguments = ("rerank", tiny_model, path, "--query", QUERY, "--top-k", 3, "--with-documents")
    [line] = prorank(*arguments)[1].splitlines()
    # The first line is blank, and counted.
    wanted = [
        {"index": hit.index + 1, "_id": f"d{hit.index}", "score": shown([hit])[0]["score"], "document": rows[hit.index]}
        for hit in reranker.rank(QUERY, TEXTS, 3)
    ]
    assert json.loads(line) == {"query": QUERY, "hits": wanted}
    as_text = prorank("rerank", tiny_model, path, "--query", QUERY, "--format", "text")[1]
    assert [int(row.split("\t")[1]) - 2 for row in as_text.splitlines()] == [
        h.index for h in reranker.rank(QUERY, TEXTS)
    ]


def test_a_run_of_requests(
    prorank: Prorank, refused: Callable[..., str], reranker: Reranker, tiny_model: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "requests.jsonl", tmp_path / "run.trec"
    documents = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    path.write_text(lines_of([{"_id": 7, "query": QUERY, "documents": documents}]), encoding="utf-8")
    assert prorank("rerank", tiny_model, path, "--out", out, "--tag", "mine") == (0, "", "")
    hits = reranker.rank(QUERY, TEXTS)
    assert [name for name, _ in read_run(out)["7"]] == [f"d{hit.index}" for hit in hits]
    write_run(tmp_path / "by_hand.trec", {"7": [(f"d{hit.index}", hit.score) for hit in hits]}, "mine")
    assert out.read_bytes() == (tmp_path / "by_hand.trec").read_bytes()


def test_a_run_of_a_collection(
    prorank: Prorank,
    reranker: Reranker,
    tiny_model: Path,
    tiny_collection: Path,
    tmp_path: Path,
    own_scores: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tiny_collection / "test"
    first = bm25_run(read_beir(data, "test"), 8)
    write_run(tmp_path / "first.trec", first, "bm25")
    depth = ("--data", data, "--depth", 5)
    collection, candidates = read_beir(data, "test"), {name: ranking[:5] for name, ranking in first.items()}
    write_run(tmp_path / "evaluated.trec", rerank(reranker, collection, candidates), "prorank")
    expected = (tmp_path / "evaluated.trec").read_bytes()

    arguments = ("rerank", tiny_model, tmp_path / "first.trec", *depth)
    out = tmp_path / "made" / "reranked.trec"
    status, printed, err = prorank(*arguments, "--out", out)
    assert (status, printed, err) == (0, "", "reranking 4/4\n")
    assert out.read_bytes() == expected
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert prorank(*arguments)[1].encode() == expected

    status, printed, _ = prorank(*arguments, "--format", "jsonl", "--with-documents", "--top-k", 2)
    answers = [json.loads(line) for line in printed.splitlines()]
    reranked = read_run(out)
    assert {answer["_id"]: answer["query"] for answer in answers} == collection.queries
    for answer in answers:
        names = [name for name, _ in first[answer["_id"]]]
        assert [hit["_id"] for hit in answer["hits"]] == [name for name, _ in reranked[answer["_id"]][:2]]
        assert all(names[hit["index"]] == hit["_id"] for hit in answer["hits"])
        assert all(hit["document"]["text"] == collection.documents[hit["_id"]] for hit in answer["hits"])

    # What is interrupted is not scored again, and with another instruction it is.
    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(own_scores)
    with monkeypatch.context() as patch:
        patch.setattr("prorank_jax.reranking.run.write_run", cut)
        assert prorank(*arguments, "--out", out)[0] == 130
    assert prorank(*arguments, "--out", out, "--instruction", "Find noise.")[2] == "reranking 4/4\n"
    assert out.read_bytes() != expected
    assert prorank(*arguments, "--out", out, "--top-k", 1) == (0, "", "")
    assert out.read_text().splitlines() == [line for line in expected.decode().splitlines() if line.split()[3] == "1"]


def test_equal_scores_of_a_run_keep_the_order_of_the_first_stage() -> None:
    found = list(rankings(FakeReranker({"b": 2.0}), COLLECTION, RUN, top_k=2))
    assert [(one.fields["_id"], [hit.index for hit in one.hits]) for one in found] == [
        ("p", [2, 0]),
        ("q", [0, 1]),
        ("none", []),
    ]
    assert found[0].hits[0] == Hit(2, 2.0, {"_id": "b", "text": "text of b"})


class Process:
    """`prorank rerank` with pipes; killed where it hangs."""

    def __init__(self, *arguments: object) -> None:
        command = [str(PRORANK), "rerank", *map(str, arguments)]
        self.pipes = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.pipes.stdin and self.pipes.stdout and self.pipes.stderr
        self.stdin, self.stdout, self.stderr = self.pipes.stdin, self.pipes.stdout, self.pipes.stderr

    def __enter__(self) -> "Process":
        self._watch = threading.Timer(60, self.pipes.kill)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self.pipes.kill()
        self.pipes.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()

    def tell(self, line: str) -> None:
        self.stdin.write(line + "\n")
        self.stdin.flush()


def test_an_answer_does_not_wait_for_the_next_request(tiny_model: Path) -> None:
    with Process(tiny_model, "-") as process:
        for number in range(3):
            process.tell(json.dumps({"_id": number, "query": QUERY, "documents": TEXTS}))
            assert json.loads(process.stdout.readline())["_id"] == number
        process.tell(json.dumps({"_id": 3, "query": QUERY, "document": TEXTS[0]}) + '\n{"query": 5, "document": "a"}')
        assert json.loads(process.stdout.readline())["_id"] == 3
        # The input is still open.
        assert process.pipes.wait() == 2
        assert process.stderr.read() == "prorank: -:5: query=5 is not a string; write it in quotes\n"


def test_nobody_reads_the_answers(tiny_model: Path) -> None:
    with Process(tiny_model, "-") as process:
        process.tell(lines_of(REQUESTS[:1]).rstrip())
        assert process.stdout.readline()
        process.stdout.close()
        process.tell(lines_of(REQUESTS[:1]).rstrip())
        assert process.pipes.wait() == 141
        assert process.stderr.read() == ""


def test_a_run_through_a_pipe(prorank: Prorank, tiny_collection: Path, tiny_model: Path) -> None:
    collection = read_beir(tiny_collection / "test", "test")
    query_id, document_id = next(iter(collection.queries)), next(iter(collection.documents))
    before, (read, write) = os.dup(0), os.pipe()
    os.write(write, f"{query_id} Q0 {document_id} 1 3.5 x\n".encode())
    os.close(write)
    try:
        os.dup2(read, 0)
        out = prorank("rerank", tiny_model, "-", "--data", tiny_collection / "test")[1]
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read)
    assert out.startswith(f"{query_id} Q0 {document_id} 1 ") and out.count("\n") == 1


def made(count: int, instruction: str | None = None) -> Iterator[Request]:
    for number in range(count):
        texts = [f"text of {letter}" for letter in "ab"]
        yield Request(f"made:{number + 1}", {"number": number}, "query", texts, texts, instruction)


class Chunked(FakeReranker):
    """Keeps the sizes of chunks."""

    def __init__(self, scores: dict[str, float]) -> None:
        super().__init__(scores)
        self.chunks: list[int] = []

    def predict_chunks(self, chunks: Any, *, instruction: str | None = None) -> Iterator[np.ndarray]:
        if instruction == "refused":
            raise InputError("no place for it")

        def counted() -> Iterator[Any]:
            for pairs in chunks:
                self.chunks.append(len(pairs))
                yield pairs

        yield from super().predict_chunks(counted(), instruction=instruction)


@pytest.mark.parametrize("live", [False, True])
def test_small_requests_are_scored_together(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PATIENCE", 5.0)
    reranker = Chunked({"b": 1.0})
    answers = list(ranked(reranker, made(700), live=live))
    assert reranker.chunks == [1024, 376]
    assert [answer.fields["number"] for answer in answers] == list(range(700))
    assert answers[-1] == Ranking("made:700", {"number": 699}, [Hit(1, 1.0, "text of b"), Hit(0, 0.0, "text of a")])


def test_an_instruction_is_that_of_its_requests_alone() -> None:
    reranker = Chunked({})

    def requests() -> Iterator[Request]:
        yield from made(2)
        yield from made(3, "own")
        yield from made(1, "refused")

    answers = scored(reranker, requests(), "of all")
    assert [len(next(answers)[1]) for _ in range(5)] == [2] * 5
    with pytest.raises(InputError, match="^made:1: no place for it$"):
        next(answers)
    assert (reranker.chunks, reranker.instructions) == ([4, 6], {"of all", "own"})
    with pytest.raises(InputError, match="^no place for it$"):
        next(scored(reranker, made(1), "refused"))


@pytest.mark.parametrize("live", [False, True])
def test_what_reading_raises_comes_behind_the_answers_before_it(live: bool) -> None:
    def requests() -> Iterator[Request]:
        yield from made(3)
        raise InputError("made:4: malformed")

    answers = scored(FakeReranker({}), requests(), live=live)
    assert [next(answers)[0].place for _ in range(3)] == ["made:1", "made:2", "made:3"]
    with pytest.raises(InputError, match="made:4: malformed"):
        next(answers)


def test_what_is_read_ahead_is_bounded_and_ends_with_who_takes_it() -> None:
    read = 0

    def requests() -> Iterator[Request]:
        nonlocal read
        for request in made(10_000):
            read += 1
            yield request

    answers = scored(FakeReranker({}), requests())
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "requests":
            thread.join(10)
            assert not thread.is_alive()
    # A chunk of 512, the next where it was begun, and what waits.
    assert read <= 2 * 512 + 16 + 2


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_not_finite(score: float) -> None:
    with pytest.raises(InputError, match=f"made:1: the model's score of document 1 is {score}, not a finite number"):
        list(scored(FakeReranker({"b": score}), made(1)))


@pytest.mark.parametrize(
    ("line", "options", "told"),
    [
        ('{"query": "q"}', [], 'no field \'documents\'; write {"query": ..., "documents": [...]}'),
        ('{"text": "a"}', [], "no field 'query'; write "),
        ('{"query": "q", "documents": ["a"], "document": "b"}', [], "both documents and document"),
        ('{"query": "q", "documents": "a"}', [], "documents='a' is not a list"),
        ('{"query": "q", "documents": ["a", {"title": "t"}]}', [], "documents[1]={'title': 't'} is no document"),
        (
            '{"query": "q", "documents": [{"title": 3, "text": "a"}]}',
            [],
            "documents[0]={'title': 3, 'text': 'a'} is no",
        ),
        ('{"query": "q", "document": 5}', [], "document=5 is no document; write a string, or an object with"),
        ('{"query": "q", "documents": [], "instruction": 1}', [], "instruction=1 is not a string"),
        ('{"query": "q", "documents": [], "top_k": 0}', [], "top_k=0 is not a count; write 1 or more"),
        ('{"query": "q", "documents": [], "top_k": true}', [], "top_k=True is not a count"),
        ('{"query": "q", "documents": [], "_id": 1.5}', [], "_id=1.5 is neither a string nor a whole number"),
        ('{"query": "q", "documents": [{"text": "a", "id": []}]}', [], "documents[0]: id=[] is neither"),
        ('["a"]', [], "['a'] is not a JSON object; write "),
        ('{"query": "q", ', [], "column 16: not valid JSON"),
        ('{"query": "p", "text": "a"}', ["--query", "q"], "query='p': the line has its own; leave --query out"),
        ('{"title": "a"}', ["--query", "q"], "the line={'title': 'a'} is no document"),
        ('{"query": "q", "documents": ["a"]}', ["--format", "trec"], "the query has no `_id`, which a TREC run needs"),
        ('{"_id": 1, "query": "q", "documents": ["a"]}', ["--format", "trec"], "documents[0] has no `_id`"),
        (
            '{"_id": "a b", "query": "q", "documents": []}',
            ["--format", "trec"],
            "_id='a b' is empty or has white space",
        ),
        (
            '{"_id": 1, "query": "q", "document": "a"}',
            ["--format", "trec"],
            "is a pair, and a run has all documents of",
        ),
        (
            '{"_id": 1, "query": "q", "documents": [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]}',
            ["--format", "trec"],
            "_id='1' of documents[",
        ),
    ],
)
def test_lines_that_are_refused(
    refused: Callable[..., str], tmp_path: Path, tiny_model: Path, line: str, options: list[str], told: str
) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    assert refused("rerank", tiny_model, path, *options).startswith(f"{path}:2: {told}")


def test_a_query_that_was_given_before(prorank: Prorank, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"_id": "q", "query": "q", "documents": [{"_id": "d", "text": "a"}]}\n' * 2)
    status, _, err = prorank("rerank", tiny_model, path, "--out", tmp_path / "run.trec")
    assert (status, err) == (2, f"prorank: {path}:2: _id='q' of the query was given before; ids must differ\n")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["docs.txt", "--query", "q", "--document", "a"], "give either DOCUMENTS or --document, not both"),
        (["--document", "a"], "--document: text has no query; give --query"),
        (["-", "--input-format", "text"], "-: text has no query; give --query"),
        (["--document", "a", "--query", "q", "--input-format", "jsonl"], "--input-format=jsonl: has no meaning with"),
        (["run.trec", "--depth", "5"], "--depth: has no meaning without --data"),
        (["run.trec", "--data", "beir/scifact", "--query", "q"], "--query: has no meaning with --data"),
        (["a.jsonl", "--input-format", "csv"], "--input-format=csv: not known; use text or jsonl"),
        (["a.jsonl", "--format", "csv"], "--format=csv: not known; use text, jsonl, trec"),
        (["a.jsonl", "--format", "text"], "--format=text: is for the documents of one --query"),
        (["a.txt", "--query", "q", "--format", "trec"], "--format=trec: a run names its queries"),
        (["a.txt", "--query", "q", "--out", "a.trec"], "--format=trec: a run names its queries"),
        (["a.jsonl", "--format", "jsonl", "--out", "a.trec"], "--format=jsonl: a.trec is named as trec"),
        (["a.txt", "--query", "q", "--with-documents"], "--with-documents: has no meaning where text is written"),
        (["a.jsonl", "--tag", "x"], "--tag: has no meaning where jsonl is written"),
        (["a.jsonl", "--format", "trec", "--tag", "x y"], "--tag='x y': is not one word"),
        (["a.jsonl", "--format", "trec", "--tag", ""], "--tag='': is not one word"),
        (["a.jsonl", "--out", "gs://bucket/a.jsonl"], "--out=gs://bucket/a.jsonl: is written on this machine only"),
        (["run.trec", "--data", "no/such"], "'no/such': no such folder, zip or collection"),
    ],
)
def test_options_that_are_refused(refused: Callable[..., str], options: list[str], told: str) -> None:
    assert told in refused("rerank", "builtin:tiny", *options)


def test_files_that_are_refused(
    refused: Callable[..., str], tiny_model: Path, tiny_collection: Path, requests: Path, tmp_path: Path
) -> None:
    assert refused("rerank", tiny_model, requests, "--out", requests) == (
        f"{requests}: is the input as well; give another --out"
    )
    assert refused("rerank", tiny_model, requests, "--out", tmp_path) == (
        f"{tmp_path}: is a folder; give the path of a file"
    )
    (tmp_path / "file").write_text("")
    message = refused("rerank", tiny_model, requests, "--out", tmp_path / "file" / "a.jsonl")
    assert message.startswith(f"{tmp_path / 'file' / 'a.jsonl'}: cannot be written (") and "--out" in message
    (tmp_path / "run.trec").write_text("q Q0 d 1 2.0\n")
    message = refused("rerank", tiny_model, tmp_path / "run.trec", "--data", tiny_collection / "test")
    assert message.startswith(f"{tmp_path / 'run.trec'}:1: ") and "has 5 columns" in message


def test_json_lines_do_not_steer_a_terminal(
    prorank: Prorank, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(lines_of([{"query": "a\x1b[2J\u202eb", "documents": []}]), encoding="utf-8")
    assert prorank("rerank", tiny_model, path)[1] == '{"query": "a\\u001b[2J\u202eb", "hits": []}\n'
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert prorank("rerank", tiny_model, path)[1] == '{"query": "a\\u001b[2J\\u202eb", "hits": []}\n'
