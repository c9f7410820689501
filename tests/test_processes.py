"""Runs of several processes: the same result, and an orderly end whatever happens to one of them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from fake_gcs import FakeGcs
from test_train import content, rows

from prorank_jax.config import RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.errors import InputError, Preempted
from prorank_jax.model.hf import load_pretrained
from prorank_jax.runtime import distributed
from prorank_jax.runtime.distributed import Group, check_agreement, join, on_cloud_tpu, read_group
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.scoring.record import SCORES, read_scores
from prorank_jax.storage import Place
from prorank_jax.train import train

pytestmark = pytest.mark.usefixtures("fast_compilation")

PRORANK = Path(sys.executable).with_name("prorank")


@pytest.fixture(scope="module")
def config(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, tiny_collection)))
    return path


def settings(model: Path, collection: Path) -> dict[str, Any]:
    optimizer = {"learning_rate": 1e-4}
    often = {"steps": 5, "optimizer": optimizer, "log_every": 1, "checkpoint_every": 3}
    return {
        "seed": 3,
        "model": {"base": str(model)},
        "prompt": {"max_length": 96},
        "data": {"path": str(collection / "train"), "depth": 20},
        "mesh": {"fsdp": 4},
        "warmup": often | {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 3},
        "score": often | {"queries_per_step": 8, "documents_per_query": 3},
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start(config: Path, workdir: Path | str, log: Path, *options: str, devices: int = 4) -> "subprocess.Popen[bytes]":
    """A training process; what it prints goes to files beside `log`."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        command: list[str | Path] = [PRORANK, "train", config, "--workdir", workdir, *options]
        return subprocess.Popen(command, stdout=out, stderr=err, env=environment)


def start_two(config: Path, workdir: Path | str, logs: Path, *options: str) -> "list[subprocess.Popen[bytes]]":
    logs.mkdir(exist_ok=True)
    group = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    return [
        start(config, workdir, logs / str(number), *group, "--process", str(number), *options) for number in range(2)
    ]


def ends(processes: "Sequence[subprocess.Popen[bytes]]") -> list[int]:
    try:
        return [process.wait(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()


def errors(logs: Path, number: int) -> list[str]:
    """What a process said on standard error in its own name."""
    return [line for line in (logs / f"{number}.err").read_text().splitlines() if line.startswith("prorank: ")]


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 150
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


def steps_of(workdir: Path, stage: str) -> int:
    path = workdir / stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ends(start_two(config, folder / "run", folder / "logs")) == [0, 0]
    assert (folder / "logs" / "1.out").read_text().count("model: ") == 0
    assert (folder / "logs" / "0.out").read_text().endswith(f"model: {folder / 'run' / 'export'}\n")
    return folder / "run"


def on_mesh(config: Path, data: int, fsdp: int) -> RunConfig:
    return parse_config(yaml.safe_load(config.read_text()) | {"mesh": {"data": data, "fsdp": fsdp}})


def farthest(one: Place, other: Place) -> float:
    """The largest difference between the parameters that two runs end with."""
    ours, theirs = (load_pretrained(str(run / "export")).params for run in (one, other))
    # The gradient of the keys' bias is nothing but rounding, which Adam takes for a direction.
    for params in (ours, theirs):
        del params["layers"]["attention"]["key"]["bias"]
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ours, theirs)))


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), (8, 1), (1, 8)])
def test_two_processes_give_what_one_gives(
    undisturbed: Path, config: Path, tmp_path: Path, data: int, fsdp: int
) -> None:
    train(on_mesh(config, data, fsdp), tmp_path / "run")
    assert farthest(undisturbed, tmp_path / "run") < 1e-5
    for stage in ("warmup", "score"):
        for here, there in zip(rows(undisturbed, stage), rows(tmp_path / "run", stage), strict=True):
            assert here == pytest.approx(there, abs=1e-5)
        ours, theirs = (read_scores(run / stage / SCORES) for run in (undisturbed, tmp_path / "run"))
        assert len(ours) == 12
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-3)


def test_two_processes_share_a_bucket(
    cloud: FakeGcs, bucket: str, undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    run = f"gs://{bucket}/run"
    # One is asked to end in the first stage; both go on.
    processes = start_two(config, run, tmp_path / "first")
    wait_until(lambda: "config.yaml" in cloud.names(bucket, "run/"))
    processes[0].send_signal(signal.SIGTERM)
    assert ends(processes) == [75, 75], (tmp_path / "first" / "1.err").read_text()
    assert ends(start_two(config, run, tmp_path / "second")) == [0, 0], (tmp_path / "second" / "1.err").read_text()
    names = cloud.names(bucket, "run/export/")
    assert {name: cloud.objects[bucket][f"run/export/{name}"].content for name in names} == content(
        undisturbed / "export"
    )


class EndsAfter(Preemption):
    """Asks a run to end after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def reached(self, step: int) -> bool:
        return step == self.step


@pytest.mark.parametrize("step", [2, 5 + 2])
def test_a_run_goes_on_on_other_devices(undisturbed: Path, config: Path, tmp_path: Path, step: int) -> None:
    begun = tmp_path / "begun"
    with pytest.raises(Preempted):
        train(on_mesh(config, 2, 4), begun, EndsAfter(step))
    for name in ("eight", "one"):
        shutil.copytree(begun, tmp_path / name)
    assert ends([start(config, tmp_path / "one", tmp_path / "log", "mesh.fsdp=1", devices=1)]) == [0]
    train(on_mesh(config, 8, 1), tmp_path / "eight")
    for name in ("eight", "one"):
        assert farthest(undisturbed, tmp_path / name) < 1e-5


def test_each_is_asked_to_end_and_a_later_run_ends_bit_for_bit_as_one_that_was_not(
    undisturbed: Path, config: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # What there is once a stage has begun, the step of which is then compiled.
    begun = {"warmup": workdir / "config.yaml", "score": workdir / "warmup" / "checkpoints" / "5"}
    for stage, sign in begun.items():
        processes = start_two(config, workdir, tmp_path / stage)
        wait_until(sign.exists)
        # To one of the two.
        processes[1].send_signal(signal.SIGTERM)
        assert ends(processes) == [75, 75]
        for number in range(2):
            (line,) = errors(tmp_path / stage, number)
            assert line.startswith("prorank: preempted at step ") and line.endswith(
                "start the same command again to go on"
            )
        assert not (workdir / "export").exists()
    assert ends(start_two(config, workdir, tmp_path / "last")) == [0, 0]
    assert content(workdir / "export") == content(undisturbed / "export")
    for stage in ("warmup", "score"):
        assert rows(workdir, stage) == rows(undisturbed, stage)


def test_a_single_process_that_is_asked_to_end_saves_and_goes_on(config: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    logs = [tmp_path / name for name in ("whole", "first", "second")]
    assert ends([start(config, whole, logs[0])]) == [0]
    process = start(config, run, logs[1])
    wait_until(lambda: steps_of(run, "warmup") > 0)
    process.send_signal(signal.SIGTERM)
    assert ends([process]) == [75]
    assert "preempted at step" in logs[1].with_suffix(".err").read_text()
    assert ends([start(config, run, logs[2])]) == [0], logs[2].with_suffix(".err").read_text()
    assert content(run / "export") == content(whole / "export")


@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_dies_the_other_ends_with_one_line(config: Path, tmp_path: Path, victim: int) -> None:
    processes = start_two(config, tmp_path / "run", tmp_path / "logs", "warmup.steps=5000", "warmup.log_every=1")
    wait_until(lambda: steps_of(tmp_path / "run", "warmup") > 1)
    # With its child, as a machine that is gone.
    children = Path(f"/proc/{processes[victim].pid}/task/{processes[victim].pid}/children").read_text().split()
    processes[victim].kill()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    began = time.monotonic()
    assert ends(processes)[1 - victim] == distributed.LOST
    assert time.monotonic() - began < 3 * distributed.HEARTBEAT_SECONDS
    (line,) = errors(tmp_path / "logs", 1 - victim)
    assert line.startswith("prorank: another process of the run ended or cannot be reached; start the same command")
    assert "stack trace" not in (tmp_path / "logs" / f"{1 - victim}.err").read_text()


def test_what_all_refuse_is_refused_by_each(config: Path, tmp_path: Path) -> None:
    processes = start_two(config, tmp_path / "run", tmp_path / "logs", "warmup.prompts_per_step=12")
    assert ends(processes) == [2, 2]
    for number in range(2):
        (line,) = errors(tmp_path / "logs", number)
        assert "warmup.prompts_per_step=12 does not divide over 8 devices" in line


def test_processes_of_different_configurations_are_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    group = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    processes = [
        start(config, tmp_path / "run", tmp_path / "logs" / str(number), *group, str(number), f"seed={number}")
        for number in range(2)
    ]
    assert ends(processes) == [2, 2]
    assert errors(tmp_path / "logs", 0) == [
        "prorank: config: process 1 has another than process 0; start all with the same"
    ]
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer_is_named(config: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = ["--coordinator", address, "--processes", "2", "--join-timeout", "2", "--process"]
    began = time.monotonic()
    assert ends([start(config, tmp_path / "run", tmp_path / "1", *options, "1")]) == [2]
    assert time.monotonic() - began < 30
    assert (tmp_path / "1.err").read_text() == (
        f"prorank: --coordinator={address}: no answer within 2 s (Connection refused); give the address of process 0, "
        "and start that too\n"
    )


def test_processes_that_do_not_come_are_not_waited_for(config: Path, tmp_path: Path) -> None:
    options = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--join-timeout", "2", "--process"]
    assert ends([start(config, tmp_path / "run", tmp_path / "0", *options, "0")]) == [distributed.LOST]
    assert (tmp_path / "0.err").read_text().startswith("prorank: another process of the run ended or cannot be reached")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("a:1", None, None), "--processes: left out; a run of several processes takes --coordinator, --processes, "),
        ((None, 2, 0), "--coordinator: left out"),
        (("a", 2, 0), "--coordinator=a: not HOST:PORT, as 10.0.0.1:8476"),
        (("a:70000", 2, 0), "--coordinator=a:70000: not HOST:PORT"),
        (("a:1", 2, 2), "--process=2: with --processes=2 use 0 to 1"),
        (("a:1", 0, 0), "--process=0: with --processes=0 use 0 to 0"),
    ],
)
def test_options_that_name_no_group_are_refused(given: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        read_group(*given)
    assert str(caught.value).startswith(told)


def test_options_that_name_a_group() -> None:
    assert read_group(None, None, None) is None
    assert read_group("[::1]:8476", 2, 1) == Group("[::1]:8476", 2, 1)


def test_a_cloud_tpu_is_known_by_its_vendor_and_joined_without_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "0000:00:04.0"
    device.mkdir()
    (device / "vendor").write_text("0x1ae0\n")
    monkeypatch.setattr(distributed, "find_spec", lambda name: name == "libtpu")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not on_cloud_tpu(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert on_cloud_tpu(tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert on_cloud_tpu(tmp_path)
    (device / "vendor").write_text("0x8086\n")
    assert not on_cloud_tpu(tmp_path)

    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *group, **waits: given.append((group, waits)))
    join(None, 20)
    assert given == [
        ((), {"initialization_timeout": 20, "heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 20})
    ]


def test_one_process_agrees_with_itself() -> None:
    check_agreement({"config": "seed: 1"})
