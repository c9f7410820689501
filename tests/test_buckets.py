"""A run whose model, data, configuration and folder lie in a bucket: the same result as on this machine."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Prorank
from fake_gcs import FakeGcs
from test_processes import EndsAfter, farthest
from test_train import content, rows

from prorank_jax import lease
from prorank_jax.config_file import parse_config
from prorank_jax.errors import Preempted
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.storage import Mirror, fetched, place
from prorank_jax.train import train

pytestmark = pytest.mark.usefixtures("own_cache", "fast_compilation")


def settings(model: str, data: str, steps: int = 4) -> dict[str, Any]:
    often = {"steps": steps, "log_every": 1, "checkpoint_every": 2, "optimizer": {"learning_rate": 1e-3}}
    return {
        "seed": 3,
        "model": {"base": model},
        "prompt": {"max_length": 112},
        "data": {"path": data, "depth": 12},
        "mesh": {"fsdp": 2},
        "warmup": often | {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 3, "show_completions_every": 3},
        "score": often | {"queries_per_step": 8, "documents_per_query": 3},
    }


@pytest.fixture
def away(cloud: FakeGcs, bucket: str, tiny_model: Path, tiny_collection: Path) -> dict[str, Any]:
    """The settings with model and data in the bucket."""
    return settings(
        cloud.put_folder(bucket, f"models/{tiny_model.name}", tiny_model),
        cloud.put_folder(bucket, "data/train", tiny_collection / "train"),
    )


@pytest.fixture(scope="module")
def here(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same run on this machine."""
    workdir = tmp_path_factory.mktemp("here") / "run"
    train(parse_config(settings(str(tiny_model), str(tiny_collection / "train"))), workdir)
    return workdir


def exported(cloud: FakeGcs, bucket: str, name: str) -> dict[str, bytes]:
    return {path: cloud.objects[bucket][name + path].content for path in cloud.names(bucket, name)}


def test_the_verbs_on_buckets_do_what_they_do_on_this_machine(
    cloud: FakeGcs,
    bucket: str,
    away: dict[str, Any],
    here: Path,
    tiny_collection: Path,
    tmp_path: Path,
    prorank: Prorank,
) -> None:
    run = f"gs://{bucket}/runs/a"
    cloud.put(bucket, "run.yaml", yaml.safe_dump(away).encode())
    status, out, err = prorank("train", f"gs://{bucket}/run.yaml", "--workdir", run)
    assert status == 0, err
    assert out == f"model: {run}/export\n"
    assert exported(cloud, bucket, "runs/a/export/") == content(here / "export")
    for stage in ("warmup", "score"):
        assert rows(place(run), stage) == rows(here, stage)
        names = cloud.names(bucket, f"runs/a/{stage}/")
        assert len([name for name in names if name.startswith("events.out.tfevents.")]) == 1
    for file in ("warmup/completions.jsonl", "warmup/scores.jsonl", "score/scores.jsonl"):
        assert exported(cloud, bucket, f"runs/a/{file}") == {"": (here / file).read_bytes()}
    assert not [name for name in cloud.names(bucket, "runs/a/") if name.startswith("data")]

    status, out, err = prorank("export", f"{run}/score/checkpoints/4", f"gs://{bucket}/models/out")
    assert (status, out) == (0, f"model: gs://{bucket}/models/out   step 4 of score, causal, float32\n"), err
    assert exported(cloud, bucket, "models/out/") == content(here / "export")

    test = cloud.put_folder(bucket, "data/test", tiny_collection / "test")
    status, out, err = prorank("evaluate", f"{run}/export", "--data", test, "--depth", 5)
    assert status == 0, err
    assert out.endswith(f"figures, runs and tables: {run}/evaluation/test-test\n")
    there = Path(fetched(f"{run}/evaluation/test-test"))
    own = Path(shutil.copytree(here, tmp_path / "run"))
    assert prorank("evaluate", own / "export", "--data", tiny_collection / "test", "--depth", 5)[0] == 0
    assert (there / "run.trec").read_bytes() == (own / "evaluation" / "test-test" / "run.trec").read_bytes()
    # The card has the figures.
    assert exported(cloud, bucket, "runs/a/export/") == content(own / "export") != content(here / "export")
    # What is measured is not measured again.
    before = len(cloud.requests)
    assert prorank("evaluate", f"{run}/export", "--data", test, "--depth", 5)[0] == 0
    assert not [request for request in cloud.requests[before:] if "run.trec" in request and "POST" in request]
    # The scores are there, too: for another machine, and another depth.
    assert len(cloud.names(bucket, "runs/a/evaluation/test-test/scores/")) == 1
    assert "nothing is left to rerank\n" in prorank("evaluate", f"{run}/export", "--data", test, "--depth", 3)[2]

    cloud.put(bucket, "lines.txt", b"one\ntwo\n")
    ranked = prorank("rerank", f"{run}/export", f"gs://{bucket}/lines.txt", "--query", "two")
    assert ranked[0] == 0 and ranked[1].count("\n") == 2


@pytest.mark.parametrize("step", [3, 4 + 3])
def test_a_run_goes_on_from_its_bucket_on_another_machine_and_another_mesh(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], here: Path, tmp_path: Path, monkeypatch: Any, step: int
) -> None:
    workdir = place(f"gs://{bucket}/run")
    with pytest.raises(Preempted):
        train(parse_config(away), workdir, EndsAfter(step))
    assert "export/config.json" not in cloud.names(bucket, "run/")
    # Another machine has no copies.
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path / "cache"))
    train(parse_config(away | {"mesh": {"data": 2, "fsdp": 4}}), workdir)
    assert farthest(workdir, here) < 1e-5
    for stage in ("warmup", "score"):
        assert [row["step"] for row in rows(workdir, stage)] == [1, 2, 3, 4]


def test_a_machine_that_is_gone_takes_no_row_along_that_its_checkpoint_has(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Preemption):
        def reached(self, step: int) -> bool:
            if step == 3:
                raise KeyboardInterrupt
            return False

    workdir = place(f"gs://{bucket}/run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Mirror, "__exit__", lambda mirror, *_: mirror._copy.cleanup())
        train(parse_config(away), workdir, Gone())
    assert [row["step"] for row in rows(workdir, "warmup")] == [1, 2]
    train(parse_config(away), workdir)
    assert exported(cloud, bucket, "run/export/") == content(here / "export")
    assert rows(workdir, "warmup") == rows(here, "warmup")


def test_rows_are_read_from_a_bucket(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    row = '{"query": "where", "pos": ["here it is"], "neg": ["not here"]}\n'
    cloud.put(bucket, "rows/a.jsonl", (row * 8).encode())
    data = {"path": f"gs://{bucket}/rows/*.jsonl"}
    config = parse_config(away | {"data": data, "warmup": None})
    trained = train(config, place(f"gs://{bucket}/run"))
    assert str(trained.export) == f"gs://{bucket}/run/export"
    cloud.put(bucket, "rows/b.jsonl", b'{"query": "where"}\n')
    told = refused("data", "prepare", f"gs://{bucket}/rows", "--out", tmp_path / "rows")
    assert told.endswith(
        "b.jsonl:1: no field 'document'; a row has query and document, query, pos and neg, or query and documents, and "
        "this one has query; name its fields in data.fields"
    )


def test_what_a_bucket_refuses_is_told_before_any_training(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], tmp_path: Path, refused: Callable[..., str], monkeypatch: Any
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(away))
    cloud.objects["secret"] = {}
    cloud.closed.add("secret")
    for url in ("gs://secret/run", "gs://no-such/run"):
        assert refused("train", config, "--workdir", url).startswith(f"{url}/config.yaml: the bucket refuses (")
    monkeypatch.setattr(cloud, "full", True)
    told = refused("train", config, "--workdir", f"gs://{bucket}/run")
    assert told.startswith(f"gs://{bucket}/run/lock: the bucket refuses (") and "quota" in told
    monkeypatch.undo()
    told = refused("train", config, "--workdir", f"gs://{bucket}/run", f"model.base=gs://{bucket}/models/none")
    assert told.startswith(f"gs://{bucket}/models/none: no such file or folder in the bucket; ")
    told = refused("train", config, "--workdir", f"gs://{bucket}/run", f"data.path=gs://{bucket}/none")
    assert told.startswith(f"gs://{bucket}/none: no such file or folder in the bucket; ")
    assert not cloud.names(bucket, "run/")


def test_a_run_whose_lock_is_taken_over_writes_nothing_more(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], tmp_path: Path, prorank: Prorank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("RENEWED_SECONDS", 0.1), ("HELD_SECONDS", 0.5)):
        monkeypatch.setattr(lease, name, seconds)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(away | {"score": None}))
    taken, answered, seen = threading.Event(), threading.Event(), list[str]()

    def take_over(method: str, path: str) -> None:
        # While the first row of metrics is copied, another process finds that the lock has not been renewed for long.
        copied = "uploadType=multipart" in path and "ifGenerationMatch" not in path
        if copied and "run/run.json" in cloud.names(bucket) and not taken.is_set():
            taken.set()
            cloud.put(bucket, "run/lock", b"process 8 on other\n")
            seen.extend(cloud.names(bucket))
            time.sleep(1)
            answered.set()

    monkeypatch.setattr(cloud, "before", take_over)
    status, out, err = prorank("train", config, "--workdir", f"gs://{bucket}/run")
    assert (status, out) == (75, "")
    assert "its lock was lost (process 8 on other took it over); nothing more is written to it; start" in err
    # The request that was under way is carried out, and none after it.
    assert answered.wait(10)
    time.sleep(0.5)
    assert len(set(cloud.names(bucket)) - set(seen)) <= 1
    assert cloud.objects[bucket]["run/lock"].content == b"process 8 on other\n"
    assert not cloud.names(bucket, "run/export/")


def test_a_folder_in_a_bucket_that_is_something_else_is_not_replaced(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(away))
    cloud.put(bucket, "run/export/thesis.tex", b"years of work")
    told = refused("train", config, "--workdir", f"gs://{bucket}/run")
    assert told == f"gs://{bucket}/run/export: there already, and not an exported model; give another folder"
    assert cloud.names(bucket, "run/") == ["export/thesis.tex"]


def test_a_run_folder_of_another_configuration_is_refused(
    cloud: FakeGcs, bucket: str, away: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    cloud.put(bucket, "run/config.yaml", yaml.safe_dump(away | {"seed": 4}).encode())
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(away))
    told = refused("train", config, "--workdir", f"gs://{bucket}/run")
    assert told.startswith(f"gs://{bucket}/run: made with another configuration (seed: 4 -> 3)")


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--workdir", "gs://lab/demo"),
        ("data", "prepare", "rows", "--out", "gs://lab/rows"),
        ("data", "score", "rows.jsonl", "--teacher", "builtin:tiny", "--out", "gs://lab/rows.jsonl"),
        ("data", "mine", "--data", "folder", "--out", "gs://lab/rows.jsonl"),
    ],
)
def test_what_is_written_on_this_machine_only_says_so(arguments: tuple[str, ...], refused: Callable[..., str]) -> None:
    told = refused(*arguments)
    assert told.endswith("is written on this machine only; give a path, and copy it then")
    assert not Path("gs:").exists()
