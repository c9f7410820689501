"""The OpenAPI page against the server: schemathesis sends what the page allows, and what it forbids."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import FakeReranker, running

from prorank_jax.serving.app import make_app
from prorank_jax.serving.limits import Limits

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(make_app(FakeReranker(), "fake", Limits(), "key")) as found:
        yield found


def test_the_page_tells_limits_errors_and_the_key(address: str) -> None:
    page = httpx.get(f"{address}/openapi.json", headers={"Authorization": "Bearer key"}).json()
    assert set(page["paths"]) == {
        *("/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score"),
        *("/health", "/info", "/v1/models", "/metrics"),
    }
    asked = page["paths"]["/rerank"]["post"]
    assert set(asked["responses"]) == {"200", "401", "408", "413", "422", "429", "500", "503"}
    assert asked["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert asked["security"] == page["paths"]["/metrics"]["get"]["security"] == [{"key": []}]
    for path in ("/health", "/info", "/v1/models"):
        found = page["paths"][path]["get"]
        assert "security" not in found and "401" not in found["responses"], path
    assert page["components"]["schemas"]["RerankRequest"]["properties"]["documents"]["maxItems"] == 1000
    [several] = [
        one for one in page["components"]["schemas"]["ScoreRequest"]["properties"]["text_2"]["oneOf"] if "items" in one
    ]
    assert several["maxItems"] == 1000


@pytest.mark.parametrize("seed", [1, 2])
def test_schemathesis_finds_nothing(address: str, tmp_path: Path, seed: int) -> None:
    options = ["--max-examples", "30", "--seed", str(seed), "--header", "Authorization: Bearer key", "--no-color"]
    done = subprocess.run(
        [SCHEMATHESIS, "run", f"{address}/openapi.json", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "Tested: 9" in done.stdout and "Selected: 9/9" in done.stdout
