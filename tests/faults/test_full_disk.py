"""A disk that is full: a run waits for room, a command says so in one line, and nothing half-written is trusted.

The disk is a file system in memory of some megabytes; who may not mount one cannot run these.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prorank_jax.errors import PREEMPTED
from prorank_jax.run_folder import checkpoints
from prorank_jax.runtime.room import GO_ON

from .scene import LONG, Scene

_SECONDS = 300.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, free: int = 0) -> Path:
    """Leaves so many bytes free; the file that takes the rest."""
    path = disk / "others' files"
    with path.open("wb", buffering=0) as file:
        # What the run takes meanwhile is not there to be taken.
        file.write(bytes(max(shutil.disk_usage(disk).free - free, 0)))
    return path


@contextmanager
def started(command: list[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.005)


def begun(scene: Scene, stage: str, row: int) -> Callable[[], bool]:
    metrics = scene.run / stage / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= row


def copied(calm: Scene, disk: Path, what: str) -> Scene:
    """A scene on the disk, with a part of what the calm one has made."""
    scene = Scene(calm.config, calm.collection, disk / "scene")
    scene.folder.mkdir()
    shutil.copytree(calm.run, scene.run, ignore=shutil.ignore_patterns(what))
    return scene


@pytest.mark.parametrize(
    ("stage", "free"),
    [
        ("score", 0),
        # Room for rows, and not for a step.
        *(pytest.param(*case, marks=LONG) for case in (("score", 100_000), ("warmup", 0), ("warmup", 100_000))),
    ],
)
def test_a_run_waits_for_room_and_loses_nothing(
    undisturbed: tuple[Scene, dict[str, Any]], disk: Path, tmp_path: Path, stage: str, free: int
) -> None:
    calm, outcome = undisturbed
    scene, log = Scene(calm.config, calm.collection, disk / "scene"), tmp_path / "log"
    scene.folder.mkdir()
    with started(scene.commands["train"], log) as process:
        wait_until(begun(scene, stage, 13), process, log)
        others = fill(disk, free)
        wait_until(lambda: b"the run waits" in log.read_bytes(), process, log)
        rows = (scene.run / stage / "metrics.jsonl").read_bytes()
        assert rows.endswith(b"\n")
        # Nothing is half-written while it waits, and what was saved stays whole.
        saved = checkpoints(scene.run, stage)
        assert saved.steps() and all(saved.damage(step) is None for step in saved.steps())
        time.sleep(1.0)
        assert process.poll() is None
        others.unlink()
        assert process.wait(timeout=_SECONDS) == 0, log.read_text()
    told = [line for line in log.read_text().splitlines() if line.startswith("prorank: ")]
    assert len(told) % 2 == 0 and "cannot be written (No space left on device" in told[0]
    assert told[0].endswith("; the run waits, and goes on once there is room")
    assert told[-1].endswith(": there is room again; the run goes on")
    assert "Traceback" not in log.read_text()
    for command in ("export", "evaluate"):
        subprocess.run(scene.commands[command], check=True, capture_output=True)
    found = scene.outcome()
    assert [name for name in outcome if found.get(name) != outcome[name]] == []


@LONG
def test_a_waiting_run_that_is_asked_to_end_goes_on_from_its_last_checkpoint(
    undisturbed: tuple[Scene, dict[str, Any]], disk: Path, tmp_path: Path
) -> None:
    calm, outcome = undisturbed
    scene, log = Scene(calm.config, calm.collection, disk / "scene"), tmp_path / "log"
    scene.folder.mkdir()
    with started(scene.commands["train"], log) as process:
        wait_until(begun(scene, "score", 13), process, log)
        others = fill(disk)
        wait_until(lambda: b"the run waits" in log.read_bytes(), process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=_SECONDS) == PREEMPTED, log.read_text()
    assert log.read_text().splitlines()[-1].endswith(f": ended while it waited for room; {GO_ON}")
    others.unlink()
    scene_outcome = scene.undisturbed()
    assert [name for name in outcome if scene_outcome.get(name) != outcome[name]] == []


@pytest.mark.parametrize("free", [20_000, *(pytest.param(free, marks=LONG) for free in (0, 150_000))])
def test_an_export_that_finds_no_room(undisturbed: tuple[Scene, dict[str, Any]], disk: Path, free: int) -> None:
    calm, outcome = undisturbed
    scene = copied(calm, disk, "export")
    others = fill(disk, free)
    done = subprocess.run(scene.commands["export"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"prorank: {scene.folder / 'exported'}: cannot be written (")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not (scene.folder / "exported").exists()
    others.unlink()
    subprocess.run(scene.commands["export"], check=True, capture_output=True)
    assert sorted(os.listdir(scene.folder)) == ["exported", "run"]
    for name, content in outcome.items():
        if name.startswith("exported/"):
            assert (scene.folder / name).read_bytes() == content, name


@pytest.mark.parametrize("free", [100_000, pytest.param(0, marks=LONG)])
def test_the_export_at_the_end_of_a_run_that_finds_no_room(
    undisturbed: tuple[Scene, dict[str, Any]], disk: Path, free: int
) -> None:
    calm, outcome = undisturbed
    scene = copied(calm, disk, "export")
    others = fill(disk, free)
    done = subprocess.run(scene.commands["train"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("prorank: ") and "Traceback" not in done.stderr
    assert not (scene.run / "export").exists()
    others.unlink()
    subprocess.run(scene.commands["train"], check=True, capture_output=True)
    for name, content in outcome.items():
        if name.startswith("run/export/") and "README" not in name and "prorank.json" not in name:
            assert (scene.folder / name).read_bytes() == content, name


@pytest.mark.parametrize("free", [12288, *(pytest.param(free, marks=LONG) for free in (0, 4096))])
def test_an_evaluation_that_finds_no_room(undisturbed: tuple[Scene, dict[str, Any]], disk: Path, free: int) -> None:
    calm, outcome = undisturbed
    scene = copied(calm, disk, "evaluation")
    others = fill(disk, free)
    done = subprocess.run(scene.commands["evaluate"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("prorank: ") and "Traceback" not in done.stderr
    assert not list(scene.run.glob("evaluation/*/metrics.json"))
    others.unlink()
    subprocess.run(scene.commands["evaluate"], check=True, capture_output=True)
    found = {name for name in outcome if name.startswith("run/evaluation/")}
    assert found and all((scene.folder / name).read_bytes() == outcome[name] for name in found)
