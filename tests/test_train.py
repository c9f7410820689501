"""A whole run: what its folder holds, that it survives being killed bit for bit, and what it refuses to begin."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from prorank_jax.config import RunConfig
from prorank_jax.config_file import dump_config, load_config, parse_config
from prorank_jax.data.examples import Selection
from prorank_jax.errors import InputError
from prorank_jax.export import saved_parameters
from prorank_jax.model.hf import load_pretrained
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import SavedStep
from prorank_jax.runtime.metrics import TIME_FIELDS, read_metrics
from prorank_jax.storage import Place
from prorank_jax.train import Trained, train

pytestmark = pytest.mark.usefixtures("fast_compilation")

PRORANK = Path(sys.executable).with_name("prorank")
STEPS = 60
STAGES = ("warmup", "score")


def settings(model: Path, collection: Path, steps: int = STEPS) -> dict[str, Any]:
    often = {"steps": steps, "log_every": 1, "checkpoint_every": 10, "optimizer": {"learning_rate": 1e-3}}
    return {
        "seed": 3,
        "model": {"base": str(model)},
        "prompt": {"max_length": 112},
        "data": {"path": str(collection / "train"), "depth": 12},
        # The KL term needs the base model again after a restart.
        "warmup": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 3, "beta": 0.1, **often},
        "score": {"queries_per_step": 8, "documents_per_query": 3, **often},
    }


def command(config: Path, workdir: Path) -> list[str | Path]:
    return [PRORANK, "train", config, "--workdir", workdir]


def kill_in(stage: str, config: Path, workdir: Path) -> None:
    """Starts the run and kills it in the middle of a stage, between two checkpoints or while one is written."""
    metrics = workdir / stage / "metrics.jsonl"
    process = subprocess.Popen(command(config, workdir), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 15):
        assert process.poll() is None and time.monotonic() < deadline, f"the run ended before it was in {stage}"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished = [int(step.name) for step in (workdir / stage / "checkpoints").iterdir() if step.name.isdigit()]
    assert finished and max(finished) < STEPS, "the stage was over before the kill"


def rows(workdir: Place, stage: str) -> list[dict[str, Any]]:
    """The metrics without what a clock decides."""
    found = read_metrics(workdir / stage / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIME_FIELDS} for row in found]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(one: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def distance(one: Any, other: Any) -> float:
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def config(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, tiny_collection)))
    return path


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(command(config, workdir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"model: {workdir / 'export'}\n"
    # Off a terminal, progress is plain lines on standard error.
    assert f"score {STEPS}/{STEPS}  loss" in done.stderr
    return workdir


def test_the_run_folder(undisturbed: Path, config: Path) -> None:
    names = ["config.yaml", "export", "lock", "run.json", "score", "warmup"]
    assert sorted(path.name for path in undisturbed.iterdir()) == names
    assert load_config(undisturbed / "config.yaml") == load_config(config)
    # Resolved: defaults are written out.
    assert "relevant_from: 1" in (undisturbed / "config.yaml").read_text()
    for stage in STAGES:
        folder = undisturbed / stage
        (events,) = folder.glob("events.out.tfevents.*")
        own = ["completions.jsonl"] if stage == "warmup" else []
        expected = sorted(["checkpoints", "metrics.jsonl", "scores.jsonl", events.name, *own])
        assert sorted(path.name for path in folder.iterdir()) == expected
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["50", "60"]
        assert [row["step"] for row in rows(undisturbed, stage)] == list(range(1, STEPS + 1))
    assert Reranker.from_pretrained(undisturbed / "export").max_length == 112


def test_both_stages_learn_something_to_compare(undisturbed: Path, tiny_model: Path) -> None:
    # Without rewards that differ, or with a gradient of zero, equal parameters below would show nothing.
    warmup, score = (rows(undisturbed, stage) for stage in STAGES)
    assert np.mean([row["reward_std"] for row in warmup]) > 0.05
    assert all(row["kl"] > 0 for row in warmup[5:])
    assert np.mean([row["loss"] for row in score[-6:]]) < np.mean([row["loss"] for row in score[:6]])
    trained = Reranker.from_pretrained(undisturbed / "export")
    assert distance(trained.params, load_pretrained(tiny_model).params) > 0.01


def test_a_run_killed_in_either_stage_ends_bit_for_bit_as_one_that_was_not(
    undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    for stage in STAGES:
        kill_in(stage, config, workdir)
        assert not (workdir / "export").exists()
    subprocess.run(command(config, workdir), check=True, stderr=subprocess.DEVNULL)
    assert content(workdir / "export") == content(undisturbed / "export")
    for stage in STAGES:
        assert rows(workdir, stage) == rows(undisturbed, stage)
        scores = undisturbed / stage / "scores.jsonl"
        assert (workdir / stage / "scores.jsonl").read_bytes() == scores.read_bytes()


def test_a_finished_run_started_again_changes_nothing(undisturbed: Path) -> None:
    before = content(undisturbed)
    again = train(load_config(undisturbed / "config.yaml"), undisturbed)
    assert content(undisturbed) == before
    assert_equal(again.final, load_pretrained(again.export).params)
    base, warmed_up = base_of(undisturbed), warmed_up_of(undisturbed)
    assert distance(base, warmed_up) > 0.001
    assert distance(warmed_up, again.final) > 0.001


def test_a_workdir_of_another_configuration_is_refused(undisturbed: Path) -> None:
    before = content(undisturbed)
    tree = yaml.safe_load((undisturbed / "config.yaml").read_text())
    tree["seed"] = 4
    tree["score"]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(InputError) as caught:
        train(parse_config(tree), undisturbed)
    assert str(caught.value) == (
        f"{undisturbed}: made with another configuration (seed: 3 -> 4; score.optimizer.learning_rate: 0.001 -> 0.5); "
        "use that configuration to go on, or another --workdir"
    )
    assert content(undisturbed) == before


def base_of(workdir: Path) -> Any:
    return load_pretrained(load_config(workdir / "config.yaml").model.base).params


def warmed_up_of(workdir: Path) -> Any:
    config = load_config(workdir / "config.yaml")
    assert config.warmup is not None
    decoder = load_pretrained(config.model.base).config
    return saved_parameters(workdir, config, SavedStep("warmup", config.warmup.steps), decoder)


def run_stages(model: Path, collection: Path, workdir: Path, **changes: Any) -> tuple[RunConfig, Trained]:
    config = parse_config(settings(model, collection, steps=2) | changes)
    return config, train(config, workdir)


def test_without_warmup(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    config, trained = run_stages(tiny_model, tiny_collection, tmp_path / "run", warmup=None)
    names = ["config.yaml", "export", "lock", "run.json", "score"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert (tmp_path / "run" / "config.yaml").read_text() == dump_config(config)
    assert distance(trained.final, base_of(tmp_path / "run")) > 0
    assert_equal(load_pretrained(trained.export).params, trained.final)


def test_without_score_learning(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    _, trained = run_stages(tiny_model, tiny_collection, tmp_path / "run", score=None)
    names = ["config.yaml", "export", "lock", "run.json", "warmup"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert_equal(trained.final, warmed_up_of(tmp_path / "run"))
    assert distance(trained.final, base_of(tmp_path / "run")) > 0
    assert_equal(load_pretrained(trained.export).params, trained.final)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("warmup", {"prompts_per_step": 4}, "warmup.prompts_per_step=4 does not divide over 8 devices"),
        # Told before the warmup, not after it.
        ("score", {"queries_per_step": 9}, "score.queries_per_step=9 does not divide over 8 devices"),
        ("data", {"relevant_from": 3}, "no document of the corpus is judged 3 or higher; lower data.relevant_from"),
        ("data", {"relevant_from": 3, "found_only": True}, "set data.found_only=false"),
        ("data", {"split": "dev"}, "no split 'dev'; the splits are train"),
        ("data", {"candidates": "no-such.trec"}, "candidates='no-such.trec': no such file"),
        ("prompt", {"max_length": 30}, "leaves no room"),
        ("mesh", {"data": 3}, "there are 8 devices"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, section: str, changes: dict[str, Any], told: str
) -> None:
    tree = settings(tiny_model, tiny_collection)
    tree[section] = tree.get(section, {}) | changes
    with pytest.raises(InputError) as caught:
        train(parse_config(tree), tmp_path / "run")
    assert told in str(caught.value)
    # A folder that the refused run had claimed would refuse the mended configuration.
    assert not (tmp_path / "run").exists()


def test_the_selection_of_examples_reaches_both_stages(
    tiny_model: Path, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    seen: dict[str, Any] = {}

    def pairs(sources: Any, *rest: Any, matched: bool) -> None:
        assert matched
        seen["warmup"] = sources

    def groups(sources: Any, *rest: Any) -> None:
        seen["score"] = sources
        raise Seen

    monkeypatch.setattr("prorank_jax.train.pairs", pairs)
    monkeypatch.setattr("prorank_jax.train.groups", groups)
    tree = settings(tiny_model, tiny_collection)
    tree["data"] |= {"relevant_from": 2, "found_only": True, "random_negatives": 0.5}
    with pytest.raises(Seen):
        train(parse_config(tree), tmp_path / "run")
    for name in STAGES:
        [source] = seen[name]
        assert source.selection == Selection(relevant_from=2, found_only=True, random_negatives=0.5)
        assert set(source.judgements.values.tolist()) == {2}


def test_a_workdir_that_cannot_be_made_is_refused(tiny_model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file: cannot be written .*; give another --workdir"):
        train(parse_config(settings(tiny_model, tiny_collection)), tmp_path / "file")
