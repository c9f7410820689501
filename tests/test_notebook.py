"""docs/demo.ipynb and README's Python run: their code is executed, without Jupyter, on a small run folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from prorank_jax.card import Record
from prorank_jax.config import PromptConfig
from prorank_jax.export import export_model
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import load_prompt

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "demo.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def demo(tmp_path: Path, tiny_collection: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a demo whose model has learnt nothing, below the working directory."""
    base = load_pretrained("builtin:tiny")
    prompt = load_prompt(base, PromptConfig(max_length=108, order="document_first"), "builtin:tiny")
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    export_model(run / "export", base, base.params, prompt, Record(base="builtin:tiny"))
    shutil.copytree(tiny_collection, run / "world")
    monkeypatch.chdir(tmp_path)
    return run


def test_the_notebook_is_well_formed_and_has_no_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert [cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"] == [[]] * len(CODE)


def test_the_cells_run_in_order(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plt.switch_backend("agg")
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    variables: dict[str, Any] = {"__name__": "notebook"}
    for source in CODE:
        exec(source, variables)
    plt.close("all")
    assert shown == [2]
    assert set(np.unique(variables["labels"])) == {0, 1, 2}
    # Nothing was learnt in between.
    np.testing.assert_array_equal(variables["scores"]["base"], variables["scores"]["trained"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-4:]] == ["BM25", "base", "trained", "oracle"]
    values = [float(line.split()[1]) for line in printed[-4:]]
    assert values[1] == values[2] and 0 < max(values[:3]) < values[3]


def test_without_a_run_folder_the_demo_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr("prorank_jax.demo.run.run_demo", lambda workdir, seed: asked.append((workdir, seed)))
    exec(CODE[0], {})
    assert asked == [(Path("runs/demo"), 0)]


def test_the_readme_ranks(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [source] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    variables: dict[str, Any] = {}
    exec(source, variables)
    order = np.argsort(-variables["scores"], kind="stable")[:2]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [str(place) for place in order]
