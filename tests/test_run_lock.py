import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prorank_jax import run_lock
from prorank_jax.errors import InputError
from prorank_jax.run_lock import check_free, holder, locked

HOLD = "import sys, time; from pathlib import Path; from prorank_jax.run_lock import locked\n" + (
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        with pytest.raises(InputError) as caught, locked(tmp_path):
            raise AssertionError("two runs are in one folder")
        assert str(caught.value).startswith(f"{tmp_path}: in use by process {process.pid} on ")
        assert str(caught.value).endswith("; wait until it ends, or give another --workdir")
        assert (holder(tmp_path) or "").startswith(f"process {process.pid} on ")


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(tmp_path) is None
        with locked(tmp_path):
            assert holder(tmp_path) == run_lock._ourselves()
    assert holder(tmp_path) is None
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_folder_without_a_lock_is_held_by_nobody(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert not (tmp_path / "lock").exists()


def test_a_folder_is_free_where_nobody_holds_it_and_something_can_be_written(tmp_path: Path) -> None:
    check_free(tmp_path / "later" / "run")
    check_free(tmp_path)
    assert not list(tmp_path.iterdir())
    with held_elsewhere(tmp_path) as process, pytest.raises(InputError, match=f"in use by process {process.pid} on "):
        check_free(tmp_path)
    check_free(tmp_path)
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "run"):
        with pytest.raises(NotADirectoryError):
            check_free(place)


def test_a_folder_without_permission_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError):
        check_free(tmp_path / "run")
