"""`prorank serve` as a process: a real model behind a port, its end, and what it refuses to start with."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import eventually, metric

from prorank_jax.reranker import Reranker

PRORANK = Path(sys.executable).with_name("prorank")
WORDS = "fish crab eel oak yard keeper coast town quiet loud cheap".split()
# A process that shows no device but the CPU's one is as a user's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PRORANK_API_KEY"}


class Server:
    """A process, the address that it has told, and all that it has told so far."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [str(PRORANK), "serve", "builtin:tiny", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**ENVIRONMENT, **environment}
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        eventually(lambda: self._address() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.lines
        self.address = str(self._address())
        eventually(self._ready, 120)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.lines.extend(lines)

    def _address(self) -> str | None:
        told = [match[0] for line in self.lines if (match := re.search(r"http://[\d.]+:\d+", line))]
        return told[0] if told else None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.ConnectError:
            return False

    def stop(self, number: int) -> int:
        """The exit status after a signal."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join()
        return status


@contextmanager
def server(*arguments: object, **environment: str) -> Iterator[Server]:
    started = Server(*arguments, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()
            started._reader.join()


def documents(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 60))) for _ in range(count)]


def test_a_model_is_served_to_64_clients_as_to_one_and_stops_when_all_have_their_answers() -> None:
    texts = documents(128)
    pairs = [("Which place serves fish?", text) for text in texts]
    reranker = Reranker.from_pretrained("builtin:tiny")
    expected = reranker.predict(pairs)
    prompts = reranker.prompt.encode_batch(pairs)
    assert expected.std() > 0.05

    with server("--name", "tiny") as one:
        url = f"{one.address}/v1/rerank"

        def ask(batch: slice) -> list[float]:
            asked = {"query": pairs[0][0], "documents": texts[batch], "raw_scores": True}
            answer = httpx.post(url, json=asked, timeout=120).json()
            results = answer["results"]
            assert answer["usage"]["total_tokens"] == sum(map(len, prompts[batch]))
            return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]

        whole = ask(slice(None))
        np.testing.assert_allclose(whole, expected, atol=1e-5)
        with ThreadPoolExecutor(64) as pool:
            in_twos = list(pool.map(ask, (slice(start, start + 2) for start in range(0, 128, 2))))
        np.testing.assert_array_equal(np.concatenate(in_twos), whole)

        # Much work is queued when the process is told to stop.
        asked = {"query": "fish", "documents": texts * 2}
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(httpx.post, url, json=asked, timeout=120) for _ in range(4)]
            eventually(lambda: metric(one.address, "prorank_waiting_pairs") > 500)
            assert one.stop(signal.SIGTERM) == 0
            assert [len(answer.result().json()["results"]) for answer in waiting] == [256] * 4
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{one.address}/health")
        assert one.lines == [f"prorank: serving tiny at {one.address}, pages in /docs\n"]


def test_the_key_is_of_the_environment_and_ctrl_c_stops() -> None:
    with server(PRORANK_API_KEY="secret") as one:
        assert httpx.get(f"{one.address}/metrics").status_code == 401
        answer = httpx.get(f"{one.address}/metrics", headers={"Authorization": "Bearer secret"})
        assert "prorank_pairs_total 0.0" in answer.text
        # Clients look up the model before they send a key.
        assert httpx.get(f"{one.address}/v1/models").json()["data"][0]["id"] == "builtin:tiny"
        info = httpx.get(f"{one.address}/info").json()
        assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("builtin:tiny", "float32", 512)
        assert one.stop(signal.SIGINT) == 0
        assert not any("secret" in line for line in one.lines)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_header_holds(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("PRORANK_API_KEY", key)
    told = "PRORANK_API_KEY: the key is empty or not of printable ASCII without spaces; set another"
    assert refused("serve", "builtin:tiny") == told


def test_an_address_that_cannot_be_had(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Before the model is loaded, which here there is not.
        told = f"--host=127.0.0.1 --port={port}: cannot be listened on (Address already in use); give others"
        assert refused("serve", "./nowhere", "--port", port) == told
    told = refused("serve", "./nowhere", "--host", "999.0.0.1")
    assert told.startswith("--host=999.0.0.1: no address of this machine (")
    assert refused("serve", "./nowhere", "--port", 0).startswith("./nowhere: no such model folder")
    assert refused("serve", "./nowhere", "--max-queue", 10).startswith("--max-queue=10: a request may have 1000")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("prorank_jax.serving.", missing))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    told = f"prorank serve: needs {missing}, which is not installed; run: pip install 'prorank_jax[serve]'"
    assert refused("serve", "builtin:tiny") == told
