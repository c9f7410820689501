"""The command line: what each verb prints and writes, and one line with exit status 2 for what it cannot take."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
import yaml
from conftest import Prorank

from prorank_jax.config import RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import read_beir
from prorank_jax.data.bm25 import bm25_run
from prorank_jax.data.runs import read_run
from prorank_jax.demo import run as demo_run
from prorank_jax.demo import world
from prorank_jax.model import hf
from prorank_jax.reranker import Reranker

PRORANK = Path(sys.executable).with_name("prorank")


def write_config(path: Path, model: Path, collection: Path, **sections: Any) -> Path:
    tree = {"model": {"base": str(model)}, "data": {"path": str(collection)}, "score": {"steps": 1}, **sections}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, tiny_collection: Path) -> Path:
    return write_config(tmp_path / "run.yaml", tiny_model, tiny_collection / "train")


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


# In a process of its own: nothing else may reach standard error, and nothing a traceback.
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rate"], "prorank: No such command 'rate'; see prorank --help\n"),
        (
            ["rerank", "./nowhere", __file__, "--query", "q"],
            "prorank: ./nowhere: no such model folder; give a folder with config.json, a GGUF file, or a hub id "
            "owner/name\n",
        ),
    ],
)
def test_a_refusal_is_one_line_and_status_2(arguments: list[str], told: str) -> None:
    done = subprocess.run([PRORANK, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_hub_id_that_cannot_be_had_is_told(refused: Callable[..., str]) -> None:
    assert refused("rerank", "nobody/nothing", __file__, "--query", "q").startswith("nobody/nothing: not a folder here")


def test_no_verb_prints_the_help(prorank: Prorank) -> None:
    status, out, err = prorank()
    assert (status, err) == (0, "")
    assert out.startswith("Usage: prorank") and "evaluate" in out
    assert prorank("--help")[:2] == (0, out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "Missing argument 'config'; see prorank --help"),
        (["train", "run.yaml"], "Missing option '--workdir'; see prorank --help"),
        (["evaluate", "--first-stage-only"], "give either --data or --suite, not both and not neither"),
        (["evaluate", "--first-stage-only", "--data", "x", "--suite", "beir"], "give either --data or --suite"),
        (["rerank", "model"], "prorank rerank: give either DOCUMENTS or --document, not both and not neither"),
        (["rerank", "model", "docs.txt"], "docs.txt: text has no query; give --query"),
        (["doctor", "--all"], "No such option: --all; see prorank --help"),
        (["train", "run.yaml", "--workdi", "x"], "No such option: --workdi (Possible options: --workdir)"),
        (["evaluate", "--data", "x", "--depth", "0"], "Invalid value for '--depth'"),
        (["evaluate", "--data", "x", "--depth", "many"], "Invalid value for '--depth'"),
        (["demo", "--seed", "-1"], "Invalid value for '--seed'"),
        (["evaluate", "--data", "x"], "give either a MODEL or --first-stage-only"),
        (["evaluate", "model", "--data", "x", "--first-stage-only"], "give either a MODEL or --first-stage-only"),
    ],
)
def test_wrong_arguments(refused: Callable[..., str], arguments: list[str], told: str) -> None:
    assert told in refused(*arguments)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("warmup.step=50", "warmup.step: unknown key; did you mean 'steps'?"),
        ("scores.steps=50", "scores: unknown key; did you mean 'score'?"),
        ("score.steps", "'score.steps': an override is written key=value"),
        ("score.steps=[", "'score.steps=[': the value is not valid YAML"),
        ("score.steps=0", "score.steps=0: "),
        ("warmup={steps: 1, group_size: 1}", "group_size=1: a group of one has no advantage; use 2 or more"),
        ("prompt.max_length=16", "prompt.max_length=16: the template takes"),
        ("prompt.answers=['10', '0']", "of the answer '10', not one token behind the prompt"),
        ("prompt.template=no.jinja", "no.jinja: cannot be read (No such file or directory)"),
        ("data.path=no/such", "'no/such': no such folder; give files of rows"),
        ("data.split=dev", "no split 'dev'; the splits are train"),
        ("data.candidates=run.trec", "'run.trec': no such file"),
        ("model.base=./no/model", "./no/model: no such model folder"),
    ],
)
def test_a_bad_setting_is_named(
    refused: Callable[..., str], config: Path, tmp_path: Path, override: str, told: str
) -> None:
    assert told in refused("train", config, override, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_missing_or_has_a_bad_key(
    refused: Callable[..., str], config: Path, tmp_path: Path
) -> None:
    message = refused("train", tmp_path / "no.yaml", "--workdir", tmp_path / "run")
    assert (
        message == f"{tmp_path / 'no.yaml'}: cannot be read (No such file or directory); give the path of a YAML file"
    )
    config.write_text(config.read_text() + "prompts: {}\n")
    message = refused("train", config, "--workdir", tmp_path / "run")
    assert message == f"{config}: prompts: unknown key; did you mean 'prompt'?"


def test_a_workdir_of_another_configuration(refused: Callable[..., str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run" / "config.yaml", Path("other"), Path("elsewhere"))
    message = refused("train", config, "--workdir", tmp_path / "run")
    assert message.startswith(f"{tmp_path / 'run'}: made with another configuration (model.base: other -> ")
    assert "; data.path: elsewhere -> " in message


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: holds no JSON object"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "config.json: model_type='bert' is not supported; use a model of one of: qwen2",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors; a model folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "not readable as safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    ],
)
def test_a_damaged_model_folder(
    refused: Callable[..., str], tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = copied(tiny_model, tmp_path / "model")
    damage(folder)
    message = refused("rerank", folder, __file__, "--query", "q")
    assert message.startswith(str(folder))
    assert told in message


def test_a_tokenizer_without_a_token_for_an_answer(
    refused: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_model, tmp_path / "model")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["no zero"] = tokenizer["model"]["vocab"].pop("0")
    path.write_text(json.dumps(tokenizer))
    message = refused("rerank", folder, __file__, "--query", "q")
    assert message.startswith(f"{folder}: prompt.answers: ")
    assert "of the answer '0', not one token behind the prompt" in message


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("corpus.jsonl", None, "corpus.jsonl: cannot be read (No such file or directory)"),
        ("corpus.jsonl", "", "corpus.jsonl: is empty"),
        (
            "corpus.jsonl",
            '{"_id": "d0", "text": "a"}\n{"_id": "d1", "text"\n',
            "corpus.jsonl:2: column 21: not valid JSON",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d0", "text": "a"}\n\n{"_id": "d0", "text": "b"}\n',
            "corpus.jsonl:3: _id='d0' was given",
        ),
        ("queries.jsonl", '{"_id": "q0", "text": 5}\n', "queries.jsonl:1: text=5 is not a string"),
        ("qrels/test.tsv", "q0\td0\tyes\n", "test.tsv:1: judgement 'yes' is not an integer"),
    ],
)
def test_a_damaged_collection(
    refused: Callable[..., str], tiny_collection: Path, tmp_path: Path, file: str, text: str | None, told: str
) -> None:
    folder = copied(tiny_collection / "test", tmp_path / "collection")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    message = refused("evaluate", "--first-stage-only", "--data", folder)
    assert message.startswith(str(folder))
    assert told in message


def test_other_things_that_evaluate_refuses(
    refused: Callable[..., str], tiny_model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    data = tiny_collection / "test"
    assert "no split 'dev'; the splits are test" in refused("evaluate", tiny_model, "--data", data, "--split", "dev")
    assert "dtype='half': not known" in refused("evaluate", tiny_model, "--data", data, "--dtype", "half")
    assert "max_length=20: the template takes" in refused("evaluate", tiny_model, "--data", data, "--max-length", 20)
    run = tmp_path / "run.trec"
    run.write_text("q0 Q0 d0 1 2.0 x\nq0 Q0 d0 2 1.0 x\n")
    message = refused("evaluate", tiny_model, "--data", data, "--first-stage", run)
    assert message.startswith(f"{run}:2: document 'd0' stands twice")


def ndcg_by_trec_eval(run: Path, qrels: dict[str, dict[str, int]]) -> float:
    scored = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(
        {query_id: dict(ranking) for query_id, ranking in read_run(run).items()}
    )
    assert scored.keys() == qrels.keys()
    return float(sum(row["ndcg_cut_10"] for row in scored.values()) / len(scored))


def test_evaluate_measures_the_first_stage_and_the_reranked_run(
    prorank: Prorank, tiny_model: Path, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_collection / "test"
    collection = read_beir(data, "test")

    options = ("--data", data, "--depth", 20)
    status, out, _ = prorank("evaluate", "--first-stage-only", *options, "--out", tmp_path / "bm25")
    assert status == 0
    written = json.loads((tmp_path / "bm25" / "metrics.json").read_text())
    found = written["metrics"]["ndcg@10"]
    assert found == pytest.approx(ndcg_by_trec_eval(tmp_path / "bm25" / "run.trec", collection.qrels), abs=1e-9)
    assert "| test-test  |" in out and f"{found:.4f}" in out
    assert "first stage: BM25 (k1 0.9, b 0.4, title and text); depth: 20; queries: test-test 4. Ties are broken" in out
    assert out.endswith(f"figures, runs and tables: {tmp_path / 'bm25'}\n")
    first = bm25_run(collection, 20)
    ranked = read_run(tmp_path / "bm25" / "run.trec")
    assert {q: [d for d, _ in r] for q, r in ranked.items()} == {q: [d for d, _ in r] for q, r in first.items()}

    # Beside config.yaml of a run, its figures go into the run folder; elsewhere into the current one.
    model = copied(tiny_model, tmp_path / "run" / "export")
    (tmp_path / "run" / "config.yaml").write_text("")
    status, out, err = prorank("evaluate", model, *options, "--max-length", 120, "--dtype", "bfloat16")
    folder = tmp_path / "run" / "evaluation" / "test-test"
    assert status == 0
    assert "depth: 20; tokens of a prompt: 120; dtype: bfloat16" in out
    assert out.endswith(f"figures, runs and tables: {folder}\n")
    assert "run, test-test: 80 pairs, " in err
    assert "reranking 4/4\n" in err
    written = json.loads((folder / "metrics.json").read_text())
    assert written["protocol"]["max_length"] == 120
    assert written["first_stage"]["ndcg@10"] == found
    assert written["metrics"]["ndcg@10"] == pytest.approx(ndcg_by_trec_eval(folder / "run.trec", collection.qrels))
    reranker = Reranker.from_pretrained(model, max_length=120, dtype="bfloat16")
    for query_id, query in collection.queries.items():
        names = [name for name, _ in first[query_id]]
        hits = reranker.rank(query, [collection.documents[name] for name in names])
        best = [name for name, _ in read_run(folder / "run.trec")[query_id]]
        assert best[0] == names[hits[0].index]
        assert sorted(best) == sorted(names)
    monkeypatch.chdir(tmp_path)
    assert prorank("evaluate", tiny_model, *options, "--first-stage", tmp_path / "bm25" / "run.trec")[0] == 0
    assert (tmp_path / "evaluation" / tiny_model.resolve().name / "test-test" / "run.trec").is_file()
    assert prorank("evaluate", "--first-stage-only", *options)[0] == 0
    assert (tmp_path / "evaluation" / "first-stage" / "test-test" / "run.trec").is_file()


def test_rerank_prints_scores_best_first(
    prorank: Prorank, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["It serves fish.", "", "It is full of peace.", "صغير", "  ", "🐟 and crabs\u2028on one line"]
    (tmp_path / "documents.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    arguments = ("rerank", tiny_model, tmp_path / "documents.txt", "--query", "Where is fish?")
    status, out, err = prorank(*arguments)
    assert (status, err) == (0, "")
    rows = [line.split("\t") for line in out.removesuffix("\n").split("\n")]
    assert sorted((int(number), text) for _, number, text in rows) == [(n, texts[n - 1]) for n in (1, 3, 4, 6)]
    scores = [float(score) for score, _, _ in rows]
    assert scores == sorted(scores, reverse=True)
    pairs = [("Where is fish?", text) for _, _, text in rows]
    assert scores == pytest.approx(Reranker.from_pretrained(tiny_model).predict(pairs), abs=1e-4)

    assert prorank(*arguments, "--top-k", 1)[1] == out.partition("\n")[0] + "\n"
    with (tmp_path / "documents.txt").open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert prorank("rerank", tiny_model, "-", "--query", "Where is fish?")[1] == out


def test_what_documents_say_does_not_steer_a_terminal(
    prorank: Prorank, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "documents.txt", "a\x1b[2Jb\u202ec\td é😀"
    path.write_text(text, encoding="utf-8", newline="")
    arguments = ("rerank", tiny_model, path, "--query", "q")
    assert prorank(*arguments)[1].endswith(f"\t1\t{text}\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert prorank(*arguments)[1].endswith("\t1\ta\\x1b[2Jb\\u202ec\td é😀\n")


def test_a_message_is_one_line_whatever_it_names(refused: Callable[..., str]) -> None:
    told = refused("rerank", "builtin:tiny", "no\nsuch\x1b[2J\u202efile", "--query", "q")
    assert told.startswith("no\\nsuch\\x1b[2J\\u202efile: cannot be read (No such file or directory)")


@pytest.mark.parametrize("option", ["--query", "--instruction"])
def test_an_argument_that_is_not_utf_8(refused: Callable[..., str], option: str) -> None:
    assert refused("rerank", "builtin:tiny", "-", "--query", "q", option, "\udcff") == (
        "argument 7, '\\udcff': is not UTF-8; write it so, or rename the file"
    )


def test_rerank_without_documents(refused: Callable[..., str], tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "documents.txt"
    assert refused("rerank", tiny_model, path, "--query", "q").startswith(f"{path}: cannot be read (No such file")
    path.write_text("\n \n")
    assert refused("rerank", tiny_model, path, "--query", "q") == f"{path}: holds no document; write one a line"
    path.write_bytes(b"tea\ncaf\xe9\n")
    assert refused("rerank", tiny_model, path, "--query", "q").startswith(f"{path}:2: byte 4 of the line is not UTF-8")


def test_the_command_line_sets_up_its_process(
    prorank: Prorank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orbax's warnings are not the user's, and what ranx's compiler makes lies in the cache folder."""
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path))
    for name in ("NUMBA_CACHE_DIR", "IR_DATASETS_HOME"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(logging.root, "handlers", [])
    assert prorank("--help")[0] == 0
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "numba")
    assert os.environ["IR_DATASETS_HOME"] == str(tmp_path / "ir_datasets")
    for name in ("absl", "ours"):
        logging.getLogger(name).warning("from %s", name)
    assert capsys.readouterr().err == "prorank: from ours\n"


def test_doctor(prorank: Prorank) -> None:
    status, out, err = prorank("doctor")
    assert (status, err) == (0, "")
    assert "jax devices" in out


@pytest.fixture
def short_demo(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with the tests' tiny model, a smaller world and two steps a stage."""
    whole = demo_run.demo_config

    def short(folder: Path, seed: int) -> RunConfig:
        tree = whole(folder, seed).model_dump(mode="json")
        tree["warmup"] |= {"steps": 2, "prompts_per_step": 8}
        tree["score"] |= {"steps": 2, "queries_per_step": 8}
        return parse_config(tree)

    monkeypatch.setattr(demo_run, "demo_config", short)
    monkeypatch.setattr(demo_run, "PROBED_PAIRS", 16)
    monkeypatch.setattr(world, "SPLITS", {"train": 3, "dev": 1, "test": 2})
    monkeypatch.setitem(hf.BUILTIN, "builtin:tiny", tiny_model)


@pytest.mark.usefixtures("short_demo")
def test_demo_prints_a_table_and_writes_its_cells(
    prorank: Prorank, refused: Callable[..., str], tmp_path: Path
) -> None:
    workdir = tmp_path / "demo"
    status, out, _ = prorank("demo", "--workdir", workdir, "--seed", 1)
    assert status == 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() == {"seed", "seconds", "queries", "rows"}
    assert (summary["seed"], summary["queries"]) == (1, 4)
    cells = {name: sorted(row) for name, row in summary["rows"].items()}
    answers = ["accuracy", "format_rate", "ndcg@10"]
    assert cells == {"bm25": ["ndcg@10"], "base": answers, "warmup": answers, "score": ["ndcg@10"]}
    for name, row in summary["rows"].items():
        assert all(0 <= value <= 1 for value in row.values())
        written = json.loads((workdir / "evaluation" / name / "metrics.json").read_text())
        assert row["ndcg@10"] == written["metrics"]["ndcg@10"]
        assert f"{row['ndcg@10']:.4f}" in out
    names = ["BM25", "base model", "after prompt warmup", "after score learning"]
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")][1:] == names
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert out.endswith(f"report: {workdir / 'report.html'}\n")
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert all(f"{row['ndcg@10']:.4f}" in page for row in summary["rows"].values())
    # The texts of the generated collection are at hand.
    assert "not at hand" not in page and "Which place in " in page
    assert (workdir / "export" / "model.safetensors").is_file()

    before = (workdir / "world" / "train" / "corpus.jsonl").read_bytes()
    assert "made with another configuration (seed: 1 -> 0)" in refused("demo", "--workdir", workdir)
    assert (workdir / "world" / "train" / "corpus.jsonl").read_bytes() == before


def test_an_adapter_alone_is_named_by_every_verb(
    shared: Path, tiny_collection: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    adapter, data, out = shared / "trials" / "13-adapter-folder", tiny_collection / "train", tmp_path / "out"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{base: {adapter}}}\ndata: {{path: {data}}}\nwarmup: {{steps: 1}}\n")
    for command in (
        ("rerank", adapter, __file__, "--query", "q"),
        ("evaluate", adapter, "--data", tiny_collection / "test", "--out", out),
        ("serve", adapter, "--port", 0),
        ("train", config, "--workdir", out),
        ("export", adapter, out),
    ):
        assert refused(*command).startswith(
            f"{adapter}: an adapter without its base model Qwen/Qwen2.5-0.5B-Instruct; "
        )
    assert not out.exists()
