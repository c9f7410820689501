"""Processes are killed or asked to end at random moments, and started again: the outcome is that of an undisturbed run.

Moments are drawn over rows of metrics, and not over seconds: most of a short command is its start.
"""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prorank_jax.errors import PREEMPTED
from prorank_jax.run_folder import checkpoints

from .scene import STAGES, STEPS, Scene

_SECONDS = 300.0


class Moment(NamedTuple):
    """When a command is disturbed: once it has made `anew` and `ready` holds, and a little later."""

    command: str
    what: str
    ready: Callable[[], bool]
    later: float
    signal: signal.Signals
    anew: Path | None = None


def rows(scene: Scene, stage: str) -> int:
    path = scene.run / stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def inode(path: Path | None) -> int | None:
    return path.stat().st_ino if path is not None and path.exists() else None


def draw(scene: Scene, rng: random.Random, kills: int, terms: int, saves: int) -> Iterator[Moment]:
    """Moments in the order in which a life comes to them: each in a later row than the one before.

    Args:
      kills: SIGKILLs in each stage, of which `saves` while a checkpoint is written.
      terms: SIGTERMs in each stage.
    """
    for stage in STAGES:
        path, saving = scene.run / stage / "metrics.jsonl", scene.run / stage / "checkpoints"
        kinds = ["save"] * saves + ["kill"] * (kills - saves) + ["term"] * terms
        rng.shuffle(kinds)
        for row, kind in zip(sorted(rng.sample(range(2, STEPS - 2), len(kinds))), kinds, strict=True):

            def reached(row: int = row, stage: str = stage) -> bool:
                return rows(scene, stage) >= row

            def written(row: int = row, stage: str = stage, saving: Path = saving) -> bool:
                return rows(scene, stage) >= row and any(saving.glob("*-tmp"))

            number = signal.SIGTERM if kind == "term" else signal.SIGKILL
            ready = written if kind == "save" else reached
            yield Moment("train", f"{stage}, {kind} from row {row}", ready, rng.uniform(0, 0.03), number, path)
    exporting = scene.run / "export.unfinished"
    yield Moment("train", "the run's export", exporting.exists, rng.uniform(0, 0.02), signal.SIGKILL)
    unfinished = scene.folder / "exported.unfinished"
    yield Moment("export", "an export", unfinished.exists, rng.uniform(0, 0.02), signal.SIGKILL)
    scores = scene.cache / "scores"
    for _ in range(2):
        later = rng.uniform(0, 0.4)
        yield Moment("evaluate", "evaluation", lambda: any(scores.glob("*.sqlite")), later, signal.SIGKILL)


def disturb(scene: Scene, moment: Moment) -> bool:
    """Starts the command and sends the signal at the moment; False where the command was over before."""
    before = inode(moment.anew)
    # A run that has made no step since its checkpoint has none to save.
    stage = moment.what.partition(",")[0]
    saved = (checkpoints(scene.run, stage).latest() or 0) if moment.anew else -1
    process = subprocess.Popen(scene.commands[moment.command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        end = time.monotonic() + _SECONDS
        while not (
            moment.ready() and (moment.anew is None or inode(moment.anew) != before) and rows(scene, stage) > saved
        ):
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read().decode()
                return False
            assert time.monotonic() < end, f"{moment.what}: the moment does not come"
            time.sleep(0.001)
        time.sleep(moment.later)
        process.send_signal(moment.signal)
        told = process.stderr.read().decode()
        status = process.wait(timeout=_SECONDS)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    if status == 0:
        return False
    if moment.signal == signal.SIGKILL:
        assert status == -signal.SIGKILL, told
        return True
    assert status == PREEMPTED, told
    last = told.splitlines()[-1]
    step = checkpoints(scene.run, stage).latest()
    assert last == (
        f"prorank: preempted at step {step} of {stage}, which is saved; start the same command again to go on"
    )
    assert checkpoints(scene.run, stage).damage(step or 0) is None
    return True


def live(scene: Scene, moments: Iterator[Moment]) -> dict[str, int]:
    """Runs all commands, disturbed at the moments; how many signals of each kind came in time."""
    sent = {"SIGKILL": 0, "SIGTERM": 0}
    todo = dict(scene.commands)
    for moment in moments:
        while next(iter(todo)) != moment.command:
            # The commands before have had their moments.
            subprocess.run(todo.pop(next(iter(todo))), check=True, capture_output=True)
        came = disturb(scene, moment)
        sent[moment.signal.name] += came
        print(f"{moment.signal.name} in {moment.what}: {'sent' if came else 'the command was over'}", flush=True)
    for command in todo.values():
        subprocess.run(command, check=True, capture_output=True)
    return sent


def test_a_disturbed_life_ends_like_an_undisturbed_one(
    undisturbed: tuple[Scene, dict[str, Any]], tmp_path: Path, minutes: float, fault_seed: int
) -> None:
    calm, outcome = undisturbed
    # Otherwise equal bytes would show little.
    assert len(outcome) > 15 and any("run.trec" in name for name in outcome)
    counts = {"kills": 14, "terms": 5, "saves": 5} if minutes else {"kills": 2, "terms": 1, "saves": 1}
    end = time.monotonic() + 60 * minutes * 0.5
    for life in range(1000):
        folder = tmp_path / f"life-{life}"
        folder.mkdir()
        scene = Scene(calm.config, calm.collection, folder)
        sent = live(scene, draw(scene, random.Random(fault_seed + life), **counts))
        print(f"life {life}: {sent}", flush=True)
        assert sent["SIGKILL"] >= (30 if minutes else 5) and sent["SIGTERM"] >= 2 * counts["terms"] - 1
        found = scene.outcome()
        assert sorted(found) == sorted(outcome)
        assert [name for name in outcome if found[name] != outcome[name]] == []
        shutil.rmtree(folder)
        if time.monotonic() > end:
            break
