"""The pages of `prorank serve`: what each form of client sends and gets, and what each bad request is told."""

import json
import math
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import FakeReranker, eventually, known_score, known_tokens, metric, running

import prorank_jax
from prorank_jax.serving.app import make_app, search_units
from prorank_jax.serving.limits import MIB, Limits

LIMITS = Limits(documents=20, body_bytes=MIB, held_bytes=5 * MIB // 2, queue=40, batch=8, body_seconds=1)


@pytest.fixture(scope="module")
def reranker() -> FakeReranker:
    return FakeReranker()


@pytest.fixture(scope="module")
def address(reranker: FakeReranker) -> Iterator[str]:
    # One thread takes work in an order that is known.
    with running(make_app(reranker, "fake", LIMITS, threads=1)) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as one:
        yield one


def sigmoid(score: Any) -> float:
    return 1 / (1 + math.exp(-float(score)))


def refused(response: httpx.Response, status: int, kind: str = "invalid_request_error") -> str:
    """The one line of a refusal."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    assert set(response.json()) == {"error"} and set(response.json()["error"]) == {"message", "type"}
    assert response.json()["error"]["type"] == kind
    message = str(response.json()["error"]["message"])
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_ranked_in_the_form_of_cohere(client: httpx.Client, path: str) -> None:
    documents = ["a", {"text": "b"}, {"text": "c", "title": "Title"}, {"text": "d", "title": None, "source": 7}]
    asked = {"model": "rerank-v3.5", "query": "q", "documents": documents, "user": "me"}
    response = client.post(path, json=asked)
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"] and answer["model"] == "fake"
    scores = [known_score("q", text) for text in ("a", "b", "Title c", "d")]
    order = sorted(range(4), key=lambda index: -scores[index])
    # A float64 goes through JSON and back bit for bit.
    assert answer["results"] == [{"index": index, "relevance_score": sigmoid(scores[index])} for index in order]
    assert answer["meta"]["api_version"]["version"] == ("2" if path == "/v2/rerank" else "1")

    best = client.post(path, json={**asked, "top_n": 2, "return_documents": True, "raw_scores": True}).json()
    texts = ["a", "b", "Title c", "d"]
    assert best["results"] == [
        {"index": index, "relevance_score": float(scores[index]), "document": {"text": texts[index]}}
        for index in order[:2]
    ]
    # JSON has one kind of number, and clients send null for what they leave out.
    # vLLM's clients send its default, 0, which means all.
    for top_n, count in ((99, 4), (2.0, 2), (None, 4), (10**30, 4), (0, 4), ("0", 4)):
        answer = client.post(path, json={**asked, "top_n": top_n, "return_documents": None, "instruction": None})
        assert len(answer.json()["results"]) == count


def ranked_texts(client: httpx.Client, asked: dict[str, Any]) -> list[str]:
    """The texts that were scored, in the order sent."""
    response = client.post("/v1/rerank", json={**asked, "return_documents": True, "raw_scores": True})
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda one: int(one["index"]))
    texts = [str(one["document"]["text"]) for one in results]
    assert [one["relevance_score"] for one in results] == [float(known_score(asked["query"], text)) for text in texts]
    return texts


def test_fields_that_rank_fields_names_are_joined_in_its_order(client: httpx.Client, shared: Path) -> None:
    asked = json.loads((shared / "trials/14-cohere-rank-fields/body.json").read_text())
    assert ranked_texts(client, asked) == ["a fish", "b tea"]
    assert ranked_texts(client, {**asked, "rank_fields": ["snippet", "title"]}) == ["fish a", "tea b"]
    assert ranked_texts(client, {**asked, "rank_fields": ["snippet"]}) == ["fish", "tea"]
    # With the two that are read without it, the same text is scored; an empty field adds no space.
    documents = [
        *({"title": "T", "text": "x", "year": 7}, {"title": "", "text": "y"}, {"text": " z", "title": "T"}, "plain"),
        {"text": "a\ud800", "title": "T"},
    ]
    for fields in (None, [], ["title", "text"]):
        texts = ranked_texts(client, {"query": "q", "documents": documents[:4], "rank_fields": fields})
        assert texts == ["T x", "y", "T  z", "plain"]
    # A body of 1 MiB cannot ask for 50 GB.
    asked = {"query": "q", "documents": [{"a": "b" * 500_000}], "rank_fields": ["a"] * 100_000}
    assert ranked_texts(client, asked) == ["b" * 500_000]


@pytest.mark.parametrize("lacking", [{"title": "b"}, {"title": "b", "snippet": 5}])
def test_a_document_without_a_field_that_rank_fields_names(client: httpx.Client, lacking: dict[str, Any]) -> None:
    documents = [{"title": "a", "snippet": "fish"}, lacking]
    asked = {"query": "q", "documents": documents, "rank_fields": ["title", "snippet"]}
    message = refused(client.post("/v1/rerank", json=asked), 422)
    expected = "documents.1: no text in 'snippet', a field of rank_fields; add it, or name other fields (an object of "
    assert message == f"{expected}{len(lacking)})"
    response = client.post("/v1/rerank", json={**asked, "rank_fields": ["x\n" * 10_000]})
    assert len(refused(response, 422)) < 250


def test_a_field_that_is_null_is_left_out(client: httpx.Client) -> None:
    documents = [{"title": None, "snippet": "fish"}, {"title": "b", "snippet": "tea"}]
    asked = {"query": "q", "documents": documents, "rank_fields": ["title", "snippet"]}
    assert sorted(ranked_texts(client, asked)) == ["b tea", "fish"]
    message = refused(client.post("/v1/rerank", json={**asked, "documents": [{"title": None, "snippet": None}]}), 422)
    assert message.startswith("documents.0: no text in the fields that rank_fields names; add it")


def test_a_document_without_text_is_refused_with_what_is_read(client: httpx.Client) -> None:
    message = refused(client.post("/v1/rerank", json={"query": "q", "documents": ["a", {"snippet": "fish"}]}), 422)
    assert message == "documents.1.text: Field required; text and title are read, or the fields that rank_fields names"
    for fields in ("title", [5], [["title"]]):
        asked = {"query": "q", "documents": [{"title": "a"}], "rank_fields": fields}
        assert refused(client.post("/v1/rerank", json=asked), 422).startswith("rank_fields"), fields


def test_an_instruction_is_passed_on(client: httpx.Client) -> None:
    asked = {"query": "q", "documents": ["a"], "raw_scores": True, "instruction": "find it"}
    [result] = client.post("/v1/rerank", json=asked).json()["results"]
    assert result["relevance_score"] == float(known_score("q", "a", "find it"))
    response = client.post("/v1/rerank", json={**asked, "instruction": "none"})
    assert "the template has no place for it; leave it out" in refused(response, 422)


def test_equal_scores_keep_the_order_sent(client: httpx.Client) -> None:
    # A sort that is not stable, or reversed, gives another order of the nine.
    results = client.post("/rerank", json={"query": "q", "documents": ["a"] * 9}).json()["results"]
    assert [result["index"] for result in results] == list(range(9))


def test_texts_are_ranked_in_the_form_of_tei(client: httpx.Client) -> None:
    asked = {"query": "q", "texts": ["a", "b", "c"], "truncate": True, "truncation_direction": "Right"}
    scores = [known_score("q", text) for text in "abc"]
    order = sorted(range(3), key=lambda index: -scores[index])
    assert client.post("/rerank", json=asked).json() == [
        {"index": index, "score": sigmoid(scores[index])} for index in order
    ]
    assert client.post("/rerank", json={**asked, "raw_scores": True, "return_text": True}).json() == [
        {"index": index, "score": float(scores[index]), "text": "abc"[index]} for index in order
    ]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_texts_are_scored_in_the_form_of_vllm(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"text_1": "q", "text_2": ["a", "b"], "model": "any"}).json()
    assert answer["data"] == [
        {"index": index, "object": "score", "score": sigmoid(known_score("q", text))} for index, text in enumerate("ab")
    ]
    assert (answer["object"], answer["model"]) == ("list", "fake") and answer["created"] > 1.7e9
    [one] = client.post(path, json={"text_1": "q", "text_2": "a", "raw_scores": True}).json()["data"]
    assert one["score"] == float(known_score("q", "a"))


@pytest.mark.parametrize(
    ("name", "path"), [("ragflow-xinference", "/v1/rerank"), ("nulls", "/v1/rerank"), ("tei-nulls", "/rerank")]
)
def test_values_as_clients_write_them(client: httpx.Client, shared: Path, name: str, path: str) -> None:
    asked = json.loads((shared / f"trials/05-server-strict-values/{name}.json").read_text())
    response = client.post(path, json=asked)
    assert response.status_code == 200, response.text
    texts = asked.get("documents") or asked["texts"]
    results = response.json() if "texts" in asked else response.json()["results"]
    score = "score" if "texts" in asked else "relevance_score"
    assert {one["index"]: one[score] for one in results} == {
        index: sigmoid(known_score(asked["query"], text)) for index, text in enumerate(texts)
    }
    given = [one["document"]["text"] for one in results if "document" in one]
    assert given == ([texts[one["index"]] for one in results] if name == "ragflow-xinference" else [])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize(("yes", "no"), [("true", "false"), ("True", "False"), (" TRUE ", "FALSE"), (True, None)])
def test_booleans_and_whole_numbers_in_text(client: httpx.Client, path: str, yes: Any, no: Any) -> None:
    asked: dict[str, Any] = {"query": "q", "documents": ["a", "b", "c"]}
    scores = [known_score("q", text) for text in "abc"]
    first = max(range(3), key=lambda index: scores[index])
    for top_n in ("1", "01", " 1\n", 1.0):
        whole = {**asked, "raw_scores": yes, "return_documents": yes, "top_n": top_n}
        [result] = client.post(path, json=whole).json()["results"]
        expected = {"index": first, "relevance_score": float(scores[first]), "document": {"text": "abc"[first]}}
        assert result == expected
    other = {**asked, "raw_scores": no, "return_documents": no, "top_n": "3", "instruction": None, "model": None}
    results = client.post(path, json=other).json()["results"]
    assert len(results) == 3 and results[0] == {"index": first, "relevance_score": sigmoid(scores[first])}


def test_booleans_in_text_in_the_forms_of_tei_and_vllm(client: httpx.Client) -> None:
    asked = {"query": "q", "texts": ["a"], "documents": None, "raw_scores": "true", "return_text": "True"}
    for truncate in ("true", True, None):
        answer = client.post("/rerank", json={**asked, "truncate": truncate, "truncation_direction": None}).json()
        assert answer == [{"index": 0, "score": float(known_score("q", "a")), "text": "a"}]
    both = {"query": "q", "texts": None, "documents": ["a"], "raw_scores": "true"}
    [result] = client.post("/rerank", json=both).json()["results"]
    assert result["relevance_score"] == float(known_score("q", "a"))
    for raw, score in (("true", float), ("false", sigmoid), (None, sigmoid)):
        [one] = client.post("/score", json={"text_1": "q", "text_2": "a", "raw_scores": raw}).json()["data"]
        assert one["score"] == score(known_score("q", "a"))


@pytest.mark.parametrize(
    ("path", "field", "value", "shown"),
    [
        *(("/v1/rerank", "return_documents", value, shown) for value, shown in [("maybe", "'maybe'"), ("", "''")]),
        *(("/v1/rerank", "raw_scores", value, shown) for value, shown in [(1, "1"), ("yes", "'yes'"), (0.0, "0.0")]),
        ("/rerank", "raw_scores", ["true"], "a list of 1"),
        ("/rerank", "raw_scores", {"a": 1}, "an object of 1"),
        ("/score", "raw_scores", "1", "'1'"),
        *(("/v2/rerank", "top_n", value, f"{value!r}") for value in [2.5, "2.5", "two", True, "true", "", "1e3", "٣"]),
        *(("/v2/rerank", "top_n", value, shown) for value, shown in [(-1, "-1"), ("-1", "-1")]),
        ("/v2/rerank", "top_n", "9" * 5000, "'" + "9" * 59 + "..."),
        ("/v2/rerank", "top_n", [3], "a list of 1"),
    ],
)
def test_values_that_are_mistakes_are_named(
    client: httpx.Client, path: str, field: str, value: Any, shown: str
) -> None:
    asked = {"text_1": "q", "text_2": "a"} if path == "/score" else {"query": "q", "documents": ["a"]}
    message = refused(client.post(path, json={**asked, field: value}), 422)
    what = "Input should be " + ("a valid boolean" if field != "top_n" else "")
    assert message.startswith(f"{field}: {what}") and message.endswith(
        f"({ascii(value) if shown == repr(value) else shown})"
    )


@pytest.mark.parametrize(("field", "value"), [("return_text", "maybe"), ("raw_scores", "no"), ("truncate", "false")])
def test_values_of_tei_that_are_mistakes_are_named(client: httpx.Client, field: str, value: str) -> None:
    message = refused(client.post("/rerank", json={"query": "q", "texts": ["a"], field: value}), 422)
    assert message.startswith(f"{field}: ") and message.endswith(f" ({value!r})")


def test_texts_that_are_no_utf_8_and_control_characters_are_scored(client: httpx.Client) -> None:
    # httpx cannot write half of a character; a client in JavaScript can.
    body = rb'{"query": "\udc00\u0000", "documents": ["a\ud800b", "\ud83d\udc1f", ""], "return_documents": true}'
    response = client.post("/v1/rerank", content=body, headers={"Content-Type": "application/json"})
    results = {one["index"]: one for one in response.json()["results"]}
    assert [results[index]["document"]["text"] for index in range(3)] == ["a\ufffdb", "🐟", ""]
    assert results[0]["relevance_score"] == sigmoid(known_score("\ufffd\0", "a\ufffdb"))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "body: not valid JSON (Expecting property name enclosed in double quotes at character 1); send a JSON"),
        (b"", "body: not a JSON object; send one, with the header Content-Type: application/json"),
        (b"[]", "body: not a JSON object"),
        (b"null", "body: not a JSON object"),
        (b'{"query": "\xff"}', "body: it cannot be read as JSON; send a JSON object in UTF-8"),
        (b"[" * 100_000, "body: it cannot be read as JSON"),
        (b'{"query": ' + b"1" * 10_000 + b"}", "body: it cannot be read as JSON"),
        (b"{}", "query: Field required; and 1 more"),
        (b'{"documents": ["a"]}', "query: Field required"),
        (b'{"query": "q"}', "documents: Field required"),
        (b'{"query": 5, "documents": ["a"]}', "query: Input should be a valid string (5)"),
        (b'{"query": "q", "documents": []}', "documents: List should have at least 1 item after validation, not 0"),
        (b'{"query": "q", "documents": "a"}', "documents: Input should be a valid list ('a')"),
        (b'{"query": "q", "documents": ["a", 5]}', "documents.1: Input should be a valid string (5)"),
        (b'{"query": "q", "documents": [{"title": "a"}]}', "documents.0.text: Field required"),
        (b'{"query": "q", "documents": ["a"], "top_n": -1}', "top_n: Input should be greater than or equal to 0 (-1)"),
        (b'{"query": "q", "documents": ["a"], "top_n": true}', "top_n: Input should be a valid integer (True)"),
        (b'{"query": "q", "documents": ["a"], "top_n": NaN}', "top_n: Input should be a valid integer (nan)"),
        (b'{"query": "q", "texts": ["a", null]}', "texts.1: Input should be a valid string (None)"),
        (b'{"query": "q", "texts": ["a"], "truncate": false}', "truncate: texts are always cut to the model's length"),
    ],
)
def test_a_malformed_body_is_told_in_one_line(client: httpx.Client, body: bytes, told: str) -> None:
    response = client.post("/rerank", content=body, headers={"Content-Type": "application/json"})
    assert refused(response, 422).startswith(told)


@pytest.mark.parametrize(
    ("path", "asked", "message"),
    [
        (
            "/v1/rerank",
            {"query": ["q", "r"]},
            "query: Input should be one text; send one request a query (a list of 2)",
        ),
        (
            "/rerank",
            {"query": ["q"], "documents": None, "texts": ["a"]},
            "query: Input should be one text; send one request a query (a list of 1)",
        ),
        ("/v1/rerank", {"queries": ["q", "r"]}, "query: Field required; queries is not read, send one request a query"),
        (
            "/v1/score",
            {"text_1": ["q", "r"], "text_2": ["a", "b"]},
            "text_1: Input should be one text; send one request a query (a list of 2)",
        ),
        (
            "/score",
            {"queries": "q"},
            "text_1: Field required; queries is not read, send one request a query; and 1 more",
        ),
        (
            "/score",
            {"data_1": "q", "data_2": ["a"]},
            "text_1: Field required; data_1 is not read, send one request a q",
        ),
        ("/rerank", {"inputs": [["q", "a"]]}, "query: Field required; inputs is not read, send one request a query"),
        ("/rerank", {"query": {"text": "q"}}, "query: Input should be a valid string (an object of 1)"),
    ],
)
def test_several_queries_are_refused_by_name(
    client: httpx.Client, path: str, asked: dict[str, Any], message: str
) -> None:
    response = client.post(path, json={"documents": ["a"], **asked})
    assert refused(response, 422).startswith(message)


def test_fields_of_other_servers_change_nothing(client: httpx.Client) -> None:
    asked = {"query": "q", "documents": ["a", "b", "c"]}
    others = {
        **{"model": "no such model", "user": "me", "priority": 3, "return_len": "true", "input_type": "query"},
        **{"max_chunks_per_doc": 10, "max_tokens_per_doc": 1, "truncate_prompt_tokens": 1, "truncation": False},
        **{"encoding_format": "float", "top_k": 1, "use_activation": False, "return_embeddings": ["x"]},
    }
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answers = [client.post(path, json=body).json() for body in (asked, {**asked, **others})]
        assert answers[0]["results"] == answers[1]["results"] and len(answers[1]["results"]) == 3
        assert answers[0]["usage"] == answers[1]["usage"] and answers[1]["model"] == "fake"


def test_a_body_that_is_not_called_json_is_refused(client: httpx.Client) -> None:
    # Pages of other sites can make browsers send these.
    body = json.dumps({"query": "q", "documents": ["a"]})
    assert "Content-Type: application/json" in refused(client.post("/rerank", content=body), 422)


def test_lists_of_junk_cost_one_message(client: httpx.Client) -> None:
    started = time.monotonic()
    message = refused(client.post("/v1/rerank", json={"query": "q", "documents": [0] * 300_000}), 422)
    assert message == "documents.0: Input should be a valid string (0)"
    assert time.monotonic() - started < 5  # an error for each takes half a minute


@pytest.mark.parametrize(("path", "field"), [("/v1/rerank", "documents"), ("/rerank", "texts"), ("/score", "text_2")])
def test_too_many_documents(client: httpx.Client, path: str, field: str) -> None:
    asked: dict[str, Any] = {"text_1" if path == "/score" else "query": "q"}
    message = refused(client.post(path, json={**asked, field: ["a"] * 21}), 422)
    assert message == f"{field}: 21 are more than 20; send fewer at a time"
    assert client.post(path, json={**asked, field: ["a"] * 20}).status_code == 200
    assert refused(client.post(path, json={**asked, field: ["a"] * 100_001}), 422).startswith(f"{field}: List should")


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    told = "the body has more than 1 MiB; send fewer documents, or shorter ones"
    documents = ["a" * (MIB - 100)]
    assert client.post("/v1/rerank", json={"query": "q", "documents": documents}).status_code == 200
    documents.append("a" * 100)
    assert refused(client.post("/v1/rerank", json={"query": "q", "documents": documents}), 413) == told
    # In chunks, nothing says beforehand how large it is.
    assert refused(client.post("/v1/rerank", content=(b"a" * 1000 for _ in range(2000))), 413) == told


def test_the_answer_reaches_who_still_sends(address: str) -> None:
    # A client that knows no better sends all of its body before it reads.
    connection = HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/rerank", b"a" * 64 * MIB)
    assert connection.getresponse().status == 413
    connection.close()


def test_who_asks_before_it_sends_is_told_at_once(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = b"POST /rerank HTTP/1.1\r\nHost: here\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ") and b"the body has not arrived within 1 s; send it again" in answer


def test_pages_that_there_are_not(client: httpx.Client) -> None:
    assert refused(client.get("/nothing"), 404, "not_found_error").startswith("/nothing: there is no such page")
    response = client.get("/rerank")
    assert refused(response, 405) == "GET /rerank: not allowed; see /openapi.json for what is"
    assert response.headers["allow"] == "POST"


def test_a_request_that_cannot_be_scored_fails_alone(client: httpx.Client, reranker: FakeReranker) -> None:
    def ask(document: str) -> httpx.Response:
        return client.post("/v1/rerank", json={"query": "q", "documents": [document]})

    with ThreadPoolExecutor(4) as pool:
        with reranker.paused():
            first = pool.submit(ask, "a")
            assert reranker.begun.wait(30)
            others = [pool.submit(ask, document) for document in ("fail", "nan", "b")]
            eventually(lambda: metric(str(client.base_url).rstrip("/"), "prorank_waiting_pairs") == 4)
        assert first.result().status_code == 200
        fail, nan, good = (other.result() for other in others)
    # The three together, then each alone.
    assert [len(call) for call in reranker.calls[-4:]] == [3, 1, 1, 1]
    told = "the server failed; its log says why"
    assert refused(fail, 500, "server_error") == refused(nan, 500, "server_error") == told
    assert good.json()["results"][0]["relevance_score"] == sigmoid(known_score("q", "b"))


def test_a_full_queue(client: httpx.Client, reranker: FakeReranker) -> None:
    asked = {"query": "q", "documents": ["a"] * 20}
    address = str(client.base_url).rstrip("/")
    with ThreadPoolExecutor(2) as pool:
        with reranker.paused():
            waiting = [pool.submit(client.post, "/v1/rerank", json=asked) for _ in range(2)]
            eventually(lambda: metric(address, "prorank_waiting_pairs") == 40)
            full = client.post("/v1/rerank", json={**asked, "documents": ["a"]})
            assert client.get("/health").json() == {"status": "ok"}
        assert refused(full, 429, "rate_limit_error").startswith("40 pairs wait already, of 40 that may; try again in ")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert client.post("/v1/rerank", json=asked).status_code == 200
    assert metric(address, 'prorank_requests_total{path="/v1/rerank",status="429"}') == 1


def test_too_many_bytes_at_once(client: httpx.Client, reranker: FakeReranker) -> None:
    asked = {"query": "q", "documents": ["a" * (MIB - 100)]}
    address = str(client.base_url).rstrip("/")
    with ThreadPoolExecutor(2) as pool:
        with reranker.paused():
            waiting = [pool.submit(client.post, "/v1/rerank", json=asked) for _ in range(2)]
            eventually(lambda: metric(address, "prorank_held_bytes") > 1.9 * MIB)
            # What is refused for itself is held no longer than that takes.
            assert client.post("/v1/rerank", content=b"a" * (MIB // 4)).status_code == 422
            third = client.post("/v1/rerank", json=asked)
            told = "the server holds as many requests as it may; try again"
            assert (refused(third, 429, "rate_limit_error"), third.headers["retry-after"]) == (told, "1")
        assert [one.result().status_code for one in waiting] == [200, 200]
    eventually(lambda: metric(address, "prorank_held_bytes") == 0)
    assert client.post("/v1/rerank", json=asked).status_code == 200


def test_the_work_of_a_client_that_leaves_is_dropped(address: str, reranker: FakeReranker) -> None:
    asked = {"query": "gone", "documents": ["a"] * 20}
    left = metric(address, 'prorank_requests_total{path="/v1/rerank",status="499"}')
    with reranker.paused():
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/rerank", json=asked, timeout=0.3)
        eventually(lambda: metric(address, 'prorank_requests_total{path="/v1/rerank",status="499"}') == left + 2)
        # The eight that are being computed count still.
        assert metric(address, "prorank_waiting_pairs") == 8
        assert metric(address, "prorank_held_bytes") == 0
        before = len(reranker.calls)
    assert httpx.post(f"{address}/v1/rerank", json=asked, timeout=30).status_code == 200
    # 8, 8 and 4 of the last request; nothing of the 32 that were dropped.
    assert [len(call) for call in reranker.calls[before:]] == [8, 8, 4]


def test_models_health_and_metrics(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()
    [card] = models["data"]
    assert models["object"] == "list" and card["created"] > 1.7e9 and card["owned_by"] == "prorank_jax"
    assert (card["id"], card["object"], card["max_model_len"]) == ("fake", "model", 64)
    assert client.get("/health").json() == {"status": "ok"}
    for path in ("/a", "/b", "/c"):
        client.get(path)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for name in ("requests_total", "request_seconds_bucket", "pairs_total", "batch_pairs_sum", "batch_seconds_sum"):
        assert f"\nprorank_{name}" in response.text
    # Clients cannot make series of their own.
    assert '"/a"' not in response.text and 'path="other",status="404"' in response.text


def test_tokens_are_counted_in_the_forms_of_clients(client: httpx.Client) -> None:
    documents = [f"document {number}" for number in range(11)]
    tokens = sum(known_tokens("q", document) for document in documents)
    asked = {"query": "q", "documents": documents, "top_n": 1}
    for path, version in (("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", "1")):
        answer = client.post(path, json=asked).json()
        # All were computed, whatever is given back.
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert answer["meta"] == {
            "api_version": {"version": version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        }
    scored = client.post("/v1/score", json={"text_1": "q", "text_2": documents}).json()
    assert scored["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    one = client.post("/score", json={"text_1": "q", "text_2": "a"}).json()
    assert one["usage"]["total_tokens"] == known_tokens("q", "a")


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2), (250, 3)])
def test_search_units_are_of_100_documents(documents: int, units: int) -> None:
    assert search_units(documents) == units


def test_the_info_of_tei_is_of_this_server(client: httpx.Client, shared: Path) -> None:
    info = client.get("/info").json()
    assert info == {
        "model_id": "fake",
        "model_sha": None,
        "model_dtype": "float32",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": 40,
        "max_input_length": 64,
        "max_batch_tokens": 8 * 64,
        "max_batch_requests": 8,
        "max_client_batch_size": 20,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": prorank_jax.__version__,
        "sha": None,
        "docker_label": None,
    }
    # Dify saves a model once it has seen both.
    asked = json.loads((shared / "trials/06-tei-info/request.json").read_text())
    score = sigmoid(known_score("ping", "pong"))
    assert client.post("/rerank", json=asked).json() == [{"index": 0, "score": score, "text": "pong"}]


def test_a_key_is_asked_for_everywhere_but_where_clients_look_first() -> None:
    with running(make_app(FakeReranker(), "fake", LIMITS, "key")) as address, httpx.Client(base_url=address) as client:
        asked = {"query": "q", "documents": ["a"]}
        for headers in ({}, {"Authorization": "Bearer kex"}, {"Authorization": "key"}, {"Authorization": "Basic key"}):
            response = client.post("/v1/rerank", json=asked, headers=headers)
            told = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
            assert refused(response, 401, "authentication_error") == told
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/openapi.json", "/docs", "/nothing", "//health", "/health/", "/v1/models/", "/INFO"):
            assert client.get(path).status_code == 401, path
        for path in ("/health", "/info", "/v1/models"):
            assert client.get(path).status_code == 200, path
        # Nothing of a body is held before the key is seen, and the answer reaches who sends a large one.
        assert client.post("/v1/rerank", content=b"a" * 8 * MIB).status_code == 401
        for key in ("Bearer key", "bearer key"):
            assert client.post("/v1/rerank", json=asked, headers={"Authorization": key}).status_code == 200


def test_health_waits_for_the_warm_up() -> None:
    reranker = FakeReranker()
    with reranker.paused(), running(make_app(reranker, "fake", LIMITS, warm=True)) as address:
        response = httpx.get(f"{address}/health")
        assert refused(response, 503, "unavailable_error") == "the server is warming up or stopping; ask again"
        reranker.go_on.set()
        eventually(lambda: httpx.get(f"{address}/health").status_code == 200)
    assert reranker.calls == [[("warm", "up")] * LIMITS.batch]


def test_64_clients_get_the_scores_of_one() -> None:
    bodies = [
        {"query": f"q{number}", "documents": [f"d{number} {place}" for place in range(number % 5 + 1)]}
        for number in range(320)
    ]

    def ask(part: list[dict[str, Any]]) -> list[Any]:
        with httpx.Client(base_url=here, timeout=30) as own:
            answers = []
            for body in part:
                while (response := own.post("/v1/rerank", json=body)).status_code == 429:
                    time.sleep(0.05)
                answers.append(response.json()["results"])
            return answers

    reranker = FakeReranker()
    reranker.seconds = 0.01
    with running(make_app(reranker, "fake", LIMITS)) as here:
        with ThreadPoolExecutor(64) as pool:
            together = list(pool.map(ask, (bodies[start::64] for start in range(64))))
        reranker.seconds = 0
        for start in range(64):
            assert ask(bodies[start::64]) == together[start]
        refusals = metric(here, 'prorank_requests_total{path="/v1/rerank",status="429"}')
    assert together[0][0][0]["relevance_score"] == sigmoid(known_score("q0", "d0 0"))
    assert refusals > 0  # 64 clients with three documents each are more than the 40 that may wait
