"""docs/own_data.md does what it says: its files are written and its commands run, in the order of the page."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Prorank

from prorank_jax.reranker import Reranker
from prorank_jax.runtime.metrics import read_metrics

PAGE = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """The name behind the language, or nothing, and the text of each block of code."""
    return re.findall(rf"^```{language}(?: (\S+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, with less data and fewer steps."""
    folder = tmp_path_factory.mktemp("own_data")
    smaller = {
        "count=300": "count=24",
        "steps: 60": "steps: 2",
        "steps: 90": "steps: 2",
        "every: 20": "every: 2",
        "every: 30": "every: 2",
        "_every: 5": "_every: 1",
        "group_size: 8": "group_size: 2",
        "prompts_per_step: 32": "prompts_per_step: 8",
        "queries_per_step: 16": "queries_per_step: 8",
        "documents_per_query: 6": "documents_per_query: 3",
    }
    for name, text in [*blocks("python"), *blocks("yaml")]:
        for large, small in smaller.items():
            text = text.replace(large, small)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_page_has_its_files() -> None:
    names = [name for name, _ in [*blocks("python"), *blocks("yaml")]]
    assert names == ["make.py", "hold_out.py", "clicks.py", "rows.yaml", "collection.yaml"]


def test_every_command_of_the_page(folder: Path, prorank: Prorank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    commands = [shlex.split(line) for _, block in blocks("bash") for line in block.splitlines()]
    assert [command[0] for command in commands].count("prorank") == 7
    for program, *arguments in commands:
        if program == "python":
            runpy.run_path(arguments[0])
        else:
            assert program == "prorank"
            status, _, err = prorank(*arguments)
            assert status == 0, err

    for name in ("rows", "collection"):
        last = list(read_metrics(folder / "runs" / name / "score" / "metrics.jsonl"))[-1]
        assert last["step"] == 2 and "dev/ndcg@10" in last and "top1_accuracy" in last
        first = next(iter(read_metrics(folder / "runs" / name / "warmup" / "metrics.jsonl")))
        assert {"format_rate", "accuracy", "frac_reward_zero_std"} <= first.keys()
        assert (folder / "runs" / name / "evaluation" / "mine-test" / "metrics.json").is_file()
    assert (folder / "runs" / "rows" / "report.html").is_file()
    assert Reranker.from_pretrained("runs/rows/export").max_length == 128


def test_clicks_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_text(
        '{"query": "q", "shown": ["a", "b", "c", "d"], "clicked": [1, 2]}\n'
        '{"query": "q", "shown": ["e", "a"], "clicked": [1]}\n'
        '{"query": "nothing clicked", "shown": ["a"], "clicked": []}\n'
        '{"query": "nothing passed", "shown": ["a", "b"], "clicked": [0]}\n'
    )
    runpy.run_path(str(folder / "clicks.py"))
    # "a" was passed once and clicked once: it is no negative. "d" was below the last click.
    assert Path("rows.jsonl").read_text() == '{"query": "q", "pos": ["b", "c", "a"], "neg": ["e"]}\n'


def test_held_out_queries_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"query": "query {i}", "pos": ["p{i}"], "neg": ["n{i}", "p0"]}}\n' for i in range(1000))
    Path("rows.jsonl").write_text(rows)
    runpy.run_path(str(folder / "hold_out.py"))
    trained = Path("train.jsonl").read_text()
    judged = {
        split: {line.split("\t")[0] for line in Path(f"mine/qrels/{split}.tsv").read_text().splitlines()[1:]}
        for split in ("train", "dev", "test")
    }
    assert sum(map(len, judged.values())) == 1000 == len(set.union(*judged.values()))
    assert 60 < len(judged["dev"]) < 140 and 60 < len(judged["test"]) < 140
    names = {
        row["_id"]: row["text"] for row in map(yaml.safe_load, Path("mine/queries.jsonl").read_text().splitlines())
    }
    assert {query for query, text in names.items() if f'"{text}"' in trained} == judged["train"]
