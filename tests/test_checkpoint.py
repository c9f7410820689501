import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prorank_jax.config import OptimizerConfig
from prorank_jax.errors import InputError
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.optimizer import make_optimizer


class _State(NamedTuple):
    params: dict[str, Any]
    optimizer: optax.OptState
    extra: jax.Array


def _state(seed: int) -> _State:
    """Parameters and an optimizer state after one update, so that no array is all zeros."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (16, 8)),
        "layers": {"up": {"kernel": jax.random.normal(keys[1], (2, 8, 8))}},
    }
    optimizer = make_optimizer(OptimizerConfig(), steps=10)
    updates, optimizer_state = optimizer.update(params, optimizer.init(params), params)
    half = jax.random.normal(keys[2], (8,)).astype(jnp.bfloat16)
    return _State(optax.apply_updates(params, updates), optimizer_state, half)


def _abstract(state: Any) -> Any:
    return jax.eval_shape(lambda: state)


def _assert_same(restored: Any, state: Any) -> None:
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(state))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = _state(0)
    # What decimal or float32 storage would lose: a NaN, a subnormal, a negative zero.
    state = state._replace(extra=jnp.array([np.nan, np.inf, -0.0, 1e-45], jnp.float32))
    Checkpoints(tmp_path / "checkpoints", keep=2).save(7, state)
    assert (tmp_path / "checkpoints" / "7").is_dir()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest() == 7
    _assert_same(checkpoints.restore(7, _abstract(state)), state)
    _assert_same(checkpoints.restore(None, _abstract(state)), state)


def test_a_restored_state_goes_on_training_like_the_saved_one(tmp_path: Path) -> None:
    state = _state(0)
    optimizer = make_optimizer(OptimizerConfig(), steps=10)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state)
    restored = checkpoints.restore(1, _abstract(state))
    after = [optimizer.update(s.params, s.optimizer, s.params) for s in (state, restored)]
    _assert_same(after[1], after[0])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == []
    assert checkpoints.latest() is None
    for step in (5, 10, 100):
        checkpoints.save(step, _state(step))
    assert checkpoints.steps() == [10, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "100"]
    _assert_same(checkpoints.restore(10, _abstract(_state(10))), _state(10))


def test_looking_for_checkpoints_makes_no_folder(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", keep=1).latest() is None
    assert not (tmp_path / "none").exists()


def test_a_step_is_not_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(10, _state(0))
    for step in (10, 9):
        with pytest.raises(ValueError, match=f"step {step} is not after the saved step 10"):
            checkpoints.save(step, _state(1))
    _assert_same(checkpoints.restore(None, _abstract(_state(0))), _state(0))


def test_an_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=3).save(1, _state(1))
    leftover = tmp_path / "2.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "manifest.ocdbt").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.steps() == [1]
    assert checkpoints.latest() == 1
    checkpoints.save(2, _state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    _assert_same(checkpoints.restore(None, _abstract(_state(2))), _state(2))


def test_killed_while_saving_the_steps_before_are_whole(tmp_path: Path) -> None:
    """The process dies by SIGKILL at the moment when the arrays are written and the step is not yet named."""
    program = """
        import os, signal, sys
        from pathlib import Path
        import jax.numpy as jnp
        from prorank_jax.runtime.checkpoint import Checkpoints

        checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
        checkpoints.save(1, {"x": jnp.arange(4)})
        rename = os.rename

        def die(source, target, *args, **kwargs):
            if str(target).endswith("/2"):
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target, *args, **kwargs)

        os.rename = os.replace = die
        checkpoints.save(2, {"x": jnp.arange(4) + 1})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], env=os.environ, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]
    checkpoints = Checkpoints(tmp_path, keep=2)
    restored = checkpoints.restore(None, {"x": jax.ShapeDtypeStruct((4,), jnp.int32)})
    np.testing.assert_array_equal(restored["x"], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": ((3, 5), jnp.float32)}, r"w is float32\[3,4\], expected float32\[3,5\]"),
        ({"w": ((3, 4), jnp.bfloat16)}, r"w is float32\[3,4\], expected bfloat16\[3,4\]"),
        ({"v": ((2,), jnp.float32)}, r"v is not there, expected float32\[2\]"),
        ({"b": None}, r"b is float32\[4\], expected not to be there"),
    ],
)
def test_another_state_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, {"w": jnp.ones((3, 4)), "b": jnp.ones(4)})
    wanted = {"w": ((3, 4), jnp.float32), "b": ((4,), jnp.float32)} | change
    abstract = {name: jax.ShapeDtypeStruct(*spec) for name, spec in wanted.items() if spec is not None}
    with pytest.raises(InputError, match=rf"/3: saved from another model or optimizer: {message}; restore it with"):
        checkpoints.restore(3, abstract)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"layers": [jnp.ones(1), jnp.ones(2), jnp.ones(3), jnp.ones(4)]})
    with pytest.raises(InputError) as caught:
        checkpoints.restore(None, {"x": jax.ShapeDtypeStruct((1,), jnp.float32)})
    assert str(caught.value) == (
        f"{tmp_path}/1: saved from another model or optimizer: layers/0 is float32[1], expected not to be there; "
        "layers/1 is float32[2], expected not to be there; layers/2 is float32[3], expected not to be there "
        "(and 2 more); restore it with the configuration that made it"
    )


def test_a_missing_step_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(InputError, match="no finished checkpoint here"):
        checkpoints.restore(None, {})
    checkpoints.save(1, _state(0))
    checkpoints.save(2, _state(0))
    with pytest.raises(InputError, match="no step 3; the saved steps are 1, 2"):
        checkpoints.restore(3, _abstract(_state(0)))


FLIPPED, CUT, EMPTIED, LOST = "flipped", "cut", "emptied", "lost"


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == LOST:
        path.unlink()
        return
    if how == FLIPPED:
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if how == CUT else b"" if how == EMPTIED else content)


def _saved(folder: Path, **measures: float) -> list[Path]:
    """Saves the steps 1 and 2; the files of the second."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"w": jnp.full((3, 4), step, jnp.float32)}, measures.get(f"step_{step}"))
    return sorted(path for path in (folder / "2").rglob("*") if path.is_file())


_WANTED = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}


@pytest.mark.parametrize("how", [FLIPPED, CUT, EMPTIED, LOST])
def test_whatever_file_is_damaged_the_step_is_refused_and_the_one_before_it_gone_on_from(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path.relative_to(tmp_path) for path in _saved(tmp_path, step_1=0.5, step_2=0.4)]
    assert len(files) > 8 and {"checksums.md5", "measure.json", "_METADATA"} <= {path.name for path in files}
    shutil.copytree(tmp_path, whole := tmp_path / "whole")
    for number, file in enumerate(files):
        shutil.copytree(whole, run := tmp_path / f"run-{number}")
        _damage(run / file, how)
        if file.name != "checksums.md5" or how != LOST:
            with pytest.raises(InputError, match=r"/2: damaged \(.*delete that folder to do without$"):
                Checkpoints(run, keep=2).restore(2, _WANTED)
        checkpoints = Checkpoints(run, keep=2)
        assert checkpoints.mend() == 1
        told = capsys.readouterr().err
        assert told.startswith(f"prorank: {run}/2: damaged (") and told.count("\n") == 1
        assert told.endswith("; set aside as 2.damaged; going on from step 1\n")
        np.testing.assert_array_equal(checkpoints.restore(None, _WANTED)["w"], 1.0)
        checkpoints.save(2, {"w": jnp.full((3, 4), 2.0)})
        assert sorted(path.name for path in run.iterdir()) == ["1", "2"]


def test_a_file_too_many_is_damage(tmp_path: Path) -> None:
    _saved(tmp_path)
    (tmp_path / "2" / "notes.txt").write_text("mine")
    assert Checkpoints(tmp_path, keep=2).mend() == 1


def test_without_a_whole_step_the_run_stops_and_nothing_is_moved(tmp_path: Path) -> None:
    for file in ("1", "2"):
        _saved(tmp_path) if file == "1" else None
        _damage(tmp_path / file / "manifest.ocdbt", FLIPPED)
    with pytest.raises(InputError) as caught:
        Checkpoints(tmp_path, keep=2).mend()
    assert str(caught.value) == (
        f"{tmp_path}: no step is whole (2: 'manifest.ocdbt' does not hold the bytes that were written); put back a "
        "copy of one, or delete the folder to begin the stage anew"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_steps_of_an_older_version_are_not_moved(tmp_path: Path) -> None:
    _saved(tmp_path)
    for step in ("1", "2"):
        (tmp_path / step / "checksums.md5").unlink()
    with pytest.raises(InputError, match="no checksums.md5: it was not finished, or an older version wrote it"):
        Checkpoints(tmp_path, keep=2).mend()


def test_a_first_step_that_was_not_sealed_is_made_again(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).save(1, {"w": jnp.ones(3)})
    (tmp_path / "1" / "checksums.md5").unlink()
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == []
    assert checkpoints.mend() is None
    checkpoints.save(1, {"w": jnp.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_damaged_best_step_stops_the_run_at_once(tmp_path: Path) -> None:
    _saved(tmp_path, step_1=0.5, step_2=0.4)
    _damage(tmp_path / "1" / "_METADATA", CUT)
    with pytest.raises(InputError, match=r"/1: damaged \('_METADATA' does not hold"):
        Checkpoints(tmp_path, keep=2).mend()


def test_the_checksums_are_those_of_md5sum(tmp_path: Path) -> None:
    _saved(tmp_path)
    checked = subprocess.run(["md5sum", "--check", "--quiet", "checksums.md5"], cwd=tmp_path / "2", check=False)
    assert checked.returncode == 0


def test_restored_on_another_mesh_shape(tmp_path: Path) -> None:
    def place(data: int, fsdp: int) -> NamedSharding:
        mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        return NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    values = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": jax.device_put(values, place(2, 4))})
    for shape in ((1, 8), (4, 2), (8, 1)):
        abstract = {"w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=place(*shape))}
        restored = checkpoints.restore(1, abstract)["w"]
        assert restored.sharding == place(*shape)
        np.testing.assert_array_equal(restored, values)
    # Without a sharding, for an export on one machine: the mesh that it was saved from may not exist here.
    alone = checkpoints.restore(1, {"w": jax.ShapeDtypeStruct(values.shape, values.dtype)})["w"]
    assert alone.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(alone, values)
