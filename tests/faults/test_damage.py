"""Whatever file of the newest checkpoint is damaged, a run goes on from an older one to the same end, or stops.

That each damage is found is in test_checkpoint.py; here is what becomes of the run.
"""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from prorank_jax.config_file import load_config
from prorank_jax.errors import InputError
from prorank_jax.train import train

from .scene import LONG, Scene

STEP = 8


def outcome(run: Path) -> dict[str, bytes]:
    """The exported files, but for those that an evaluation of them adds its figures to."""
    paths = [path for path in (run / "export").rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in paths if path.name not in ("README.md", "prorank.json")}


@pytest.fixture(scope="module")
def half_way(undisturbed: tuple[Scene, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last step is saved, and not yet exported."""
    scene, _ = undisturbed
    run = tmp_path_factory.mktemp("half") / "run"
    ignored = shutil.ignore_patterns("export", "evaluation", "lock")
    shutil.copytree(scene.run, run, ignore=ignored)
    newest = sorted((run / "score" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert len(newest) == 2
    return run


@pytest.fixture(scope="module")
def whole(
    undisturbed: tuple[Scene, dict[str, Any]], half_way: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What the run comes to from the step before, here: on eight devices sums are others than on one."""
    run = Path(shutil.copytree(half_way, tmp_path_factory.mktemp("whole") / "run"))
    shutil.rmtree(run / "score" / "checkpoints" / "40")
    train(load_config(undisturbed[0].config), run)
    return outcome(run)


def damaged(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
        return
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("files", [2, pytest.param(None, marks=LONG)], ids=["two files", "every file"])
def test_a_run_with_a_damaged_newest_step_ends_as_if_nothing_had_been(
    undisturbed: tuple[Scene, dict[str, Any]],
    half_way: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    how: str,
    files: int | None,
    fault_seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(whole) > 6
    config = load_config(undisturbed[0].config)
    rng = random.Random(fault_seed)
    newest = max((half_way / "score" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    names = sorted(str(path.relative_to(half_way)) for path in newest.rglob("*") if path.is_file())
    assert len(names) > 8
    for name in rng.sample(names, files or len(names)):
        run = tmp_path / "run"
        shutil.copytree(half_way, run)
        before = (run / name).read_bytes()
        damaged(run / name, how, rng)
        if (run / name).read_bytes() != before:
            train(config, run)
            told = capsys.readouterr().err
            assert f"/{newest.name}: damaged (" in told and f"; going on from step {int(newest.name) - STEP}" in told
            assert outcome(run) == whole, name
        shutil.rmtree(run)


def test_a_run_without_a_whole_step_stops_with_one_line(
    undisturbed: tuple[Scene, dict[str, Any]], half_way: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_way, tmp_path / "run"))
    for step in (run / "score" / "checkpoints").iterdir():
        damaged(step / "_METADATA", "cut", random.Random(0))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(InputError, match=r"score/checkpoints: no step is whole \(40: '_METADATA' does not hold"):
        train(load_config(undisturbed[0].config), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"} == before
