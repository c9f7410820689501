"""`prorank doctor RUN` finds what is wrong with a run folder, and calls a sound one sound."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Prorank

from prorank_jax.config_file import parse_config
from prorank_jax.run_lock import locked
from prorank_jax.train import train


@pytest.fixture(scope="module")
def run(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    stage = {"steps": 4, "checkpoint_every": 2, "log_every": 1}
    config = {
        "model": {"base": str(tiny_model)},
        "prompt": {"max_length": 112},
        "data": {"path": str(tiny_collection / "train"), "depth": 12},
        "warmup": {**stage, "prompts_per_step": 8, "group_size": 2, "max_new_tokens": 2, "show_completions_every": 2},
        "score": {**stage, "queries_per_step": 8, "documents_per_query": 3, "optimizer": {"learning_rate": 0.01}},
    }
    train(parse_config(config), workdir)
    return workdir


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def findings(prorank: Prorank) -> Callable[[Path], tuple[int, dict[str, str]]]:
    """The exit status of the command, and mark and text of each line that is not `ok`, by its name."""

    def of(run: Path) -> tuple[int, dict[str, str]]:
        status, out, err = prorank("doctor", run)
        assert err == ""
        lines = [line.split(maxsplit=2) for line in out.splitlines()]
        return status, {name: f"{mark} {text}" for mark, name, text in lines if mark != "ok"}

    return of


Findings = Callable[[Path], tuple[int, dict[str, str]]]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_sound(run: Path, prorank: Prorank) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status, out, _ = prorank("doctor", run)
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", name]
        for name in (
            *("config.yaml", "run.json"),
            *("warmup", "warmup/metrics.jsonl", "warmup/completions.jsonl", "warmup/scores.jsonl"),
            *("score", "score/metrics.jsonl", "score/scores.jsonl", "export"),
        )
    ]
    assert "warmup steps             2, 4 of 4, whole" in out
    assert "step 4 of score, bit for bit" in out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_damaged_newest_step(copied: Path, findings: Findings) -> None:
    flip(copied / "score" / "checkpoints" / "4" / "_METADATA")
    status, found = findings(copied)
    assert status == 1
    assert found.pop("score/checkpoints/4") == (
        "DAMAGED damaged: '_METADATA' does not hold the bytes that were written; the run sets it aside and goes on "
        "from step 2"
    )
    assert found.pop("score").endswith("2 of 4, whole; start the same command again to go on")
    # The export cannot be compared with it; that is no damage of the export.
    assert found.pop("export").startswith("note step 4 of score; it cannot be compared with it (")


def test_every_step_damaged(copied: Path, findings: Findings) -> None:
    for step in (2, 4):
        flip(copied / "warmup" / "checkpoints" / str(step) / "manifest.ocdbt")
    status, found = findings(copied)
    assert status == 1
    assert all(found[f"warmup/checkpoints/{step}"].endswith("; put back a copy of it") for step in (2, 4))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.yaml", "seed: -1", "DAMAGED"),
        ("score/metrics.jsonl", '{"step": 1}\nnonsense\n{"step": 3}\n', "not a row of metrics: 'nonsense'"),
        ("score/metrics.jsonl", '{"step": 1}\n{"step": 2}\n{"step": 4}\n', "1 rows are missing, the first of step 3"),
        ("score/metrics.jsonl", '{"step": 2}\n{"step": 1}\n{"step": 3}\n{"step": 4}\n', "its steps do not ascend"),
        ("run.json", "[]", "is not a JSON object"),
        ("score/scores.jsonl", '{"at": "begin"', "is not what a stage writes"),
        ("export/config.json", "{", "not valid JSON"),
        ("export/prorank.json", "{}", "not what prorank export writes"),
        ("export/model.safetensors", "half", "not readable as safetensors"),
    ],
)
def test_a_damaged_file(copied: Path, findings: Findings, file: str, content: str, told: str) -> None:
    (copied / file).write_text(content)
    status, found = findings(copied)
    assert status == 1
    name = "export" if file.startswith("export") else file
    assert found[name].startswith("DAMAGED ") and told in found[name]
    assert len(found) == 1


def test_an_export_of_other_weights(copied: Path, findings: Findings) -> None:
    weights = bytearray((copied / "export" / "model.safetensors").read_bytes())
    weights[-4] ^= 1
    (copied / "export" / "model.safetensors").write_bytes(weights)
    status, found = findings(copied)
    assert status == 1
    assert found == {"export": f"DAMAGED other weights than step 4 of score; prorank export {copied} writes it again"}


def test_what_a_run_makes_good_or_may_be_deleted_is_a_note(copied: Path, findings: Findings) -> None:
    shutil.rmtree(copied / "export")
    (copied / "export.unfinished").mkdir()
    steps = copied / "score" / "checkpoints"
    (steps / "4" / "checksums.md5").unlink()
    (steps / "3.damaged").mkdir()
    (steps / "4.orbax-checkpoint-tmp").mkdir()
    (copied / "evaluation" / "places").mkdir(parents=True)
    with locked(copied):
        status, found = findings(copied)
    assert status == 0
    assert {name: text.rpartition("; ")[2] for name, text in found.items()} == {
        "lock": "what it is just writing looks unfinished here",
        "score": "start the same command again to go on",
        "score/checkpoints/4": "the run makes it again",
        "score/checkpoints/3.damaged": "may be deleted",
        "score/checkpoints/4.orbax-checkpoint-tmp": "may be deleted",
        "export.unfinished": "may be deleted",
        "export": "start the same command again, or use prorank export",
        "evaluation/places": "the same prorank evaluate goes on with it",
    }


def test_an_evaluation(copied: Path, tiny_collection: Path, prorank: Prorank, findings: Findings) -> None:
    status, _, err = prorank("evaluate", copied / "export", "--data", tiny_collection / "test", "--depth", 5)
    assert status == 0, err
    assert findings(copied) == (0, {})
    (folder,) = (copied / "evaluation").iterdir()
    (folder / "run.trec").write_text("one two\n")
    status, found = findings(copied)
    assert status == 1
    assert "has 2 columns" in found[f"evaluation/{folder.name}"]


def test_no_run_folder(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert refused("doctor", tmp_path) == (
        f"{tmp_path}: no run folder; give one with config.yaml, as prorank train makes it"
    )
