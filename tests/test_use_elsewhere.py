"""docs/use_elsewhere.md: its snippets run, and rank and score as the reranker itself does."""

import importlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prorank_jax.card import Record
from prorank_jax.config import PromptConfig
from prorank_jax.export import export_model
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import load_prompt
from prorank_jax.reranker import Reranker

PAGE = (Path(__file__).parents[1] / "docs" / "use_elsewhere.md").read_text(encoding="utf-8")
QUERY = "which place serves fish"
DOCUMENTS = ["It is quiet.", "It serves fish.", "It trades copper for salt."]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reranker, Path]:
    """The built-in model, exported as a run's result is; and the folder."""
    base = load_pretrained("builtin:tiny")
    prompt = load_prompt(base, PromptConfig(max_length=128, order="document_first"), "builtin:tiny")
    folder = tmp_path_factory.mktemp("elsewhere") / "export"
    export_model(folder, base, base.params, prompt, Record(base="builtin:tiny"))
    return Reranker.from_pretrained(folder), folder


def run(library: str, folder: Path) -> list[dict[str, Any]]:
    """The variables that each snippet of the library leaves behind."""
    snippets = re.findall(rf"^```python {library}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert snippets
    left = []
    for snippet in snippets:
        variables: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS, "__name__": "snippet"}
        if library == "langchain_community":
            # Its types are not at hand where it is not installed.
            document = importlib.import_module("langchain_core.documents").Document
            variables["found"] = [document(page_content=text) for text in DOCUMENTS]
        with warnings.catch_warnings():
            # What others deprecate among themselves is not ours to mend.
            warnings.simplefilter("ignore")
            exec(snippet.replace("runs/demo/export", str(folder)), variables)
        left.append(variables)
    return left


def needed(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; run pip install -e '.[test,elsewhere]'")


def test_every_snippet_has_its_test() -> None:
    named = {"sentence_transformers", "transformers", "langchain_core", "langchain_community", "llama_index"}
    assert set(re.findall(r"^```python (\S+)$", PAGE, re.MULTILINE)) == named


def test_sentence_transformers(reranker: tuple[Reranker, Path]) -> None:
    ours, folder = reranker
    [left] = run("sentence_transformers", folder)
    assert left["query"] == QUERY and left["documents"] == DOCUMENTS
    np.testing.assert_allclose(left["scores"], ours.predict([(QUERY, text) for text in DOCUMENTS]), atol=1e-4)
    expected = [hit.index for hit in ours.rank(QUERY, DOCUMENTS, top_k=2)]
    assert [hit["corpus_id"] for hit in left["hits"]] == expected


def test_transformers(reranker: tuple[Reranker, Path]) -> None:
    ours, folder = reranker
    [left] = run("transformers", folder)
    # Not the first document's: that differs by more than the tolerance.
    own = ours.predict([(QUERY, text) for text in DOCUMENTS])
    assert left["score"] == pytest.approx(own[1], abs=1e-4) and abs(own[0] - own[1]) > 1e-3


def test_langchain(reranker: tuple[Reranker, Path]) -> None:
    needed("langchain_core")
    ours, folder = reranker
    hits = ours.rank(QUERY, DOCUMENTS, top_k=2)
    [left] = run("langchain_core", folder)
    assert [document.page_content for document in left["kept"]] == [hit.document for hit in hits]
    assert [document.metadata["relevance_score"] for document in left["kept"]] == [hit.score for hit in hits]
    assert "relevance_score" not in left["found"][0].metadata


def test_langchain_over_sentence_transformers(reranker: tuple[Reranker, Path]) -> None:
    needed("langchain_classic", "langchain_community")
    ours, folder = reranker
    [left] = run("langchain_community", folder)
    assert [doc.page_content for doc in left["kept"]] == [hit.document for hit in ours.rank(QUERY, DOCUMENTS, top_k=2)]


def test_llama_index(reranker: tuple[Reranker, Path]) -> None:
    needed("llama_index")
    ours, folder = reranker
    hits = ours.rank(QUERY, DOCUMENTS, top_k=2)
    left = run("llama_index", folder)
    assert len(left) == 2
    for variables in left:
        assert [node.node.get_content() for node in variables["kept"]] == [hit.document for hit in hits]
        np.testing.assert_allclose([node.score for node in variables["kept"]], [hit.score for hit in hits], atol=1e-4)
