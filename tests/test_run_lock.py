import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_gcs import FakeGcs

from prorank_jax import run_lock
from prorank_jax.errors import InputError
from prorank_jax.run_lock import holder, locked
from prorank_jax.storage import place

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
            assert holder(tmp_path) == run_lock._ourselves().strip()
    assert holder(tmp_path) is None
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_folder_without_a_lock_is_held_by_nobody(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert not (tmp_path / "lock").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEWED_SECONDS", 0.1), ("GONE_SECONDS", 0.8), ("SETTLED_SECONDS", 0.1)):
        monkeypatch.setattr(run_lock, name, seconds)


def test_a_lease_in_a_bucket_is_renewed_and_refused_to_others(cloud: FakeGcs, bucket: str, quick: None) -> None:
    run = place(f"gs://{bucket}/run")
    with locked(run):
        first = cloud.objects[bucket]["run/lock"].content
        with pytest.raises(InputError, match=rf"{run}: in use by process {os.getpid()} on .*; wait until"), locked(run):
            raise AssertionError("two runs are in one folder")
        assert cloud.objects[bucket]["run/lock"].content != first
    assert cloud.names(bucket, "run/") == []


def test_a_lease_that_nobody_renews_is_taken_over(
    cloud: FakeGcs, bucket: str, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.put(bucket, "run/lock", b"process 7 on gone\n")
    run = place(f"gs://{bucket}/run")
    assert holder(run) == "process 7 on gone"
    with locked(run):
        assert (holder(run) or "").startswith(f"process {os.getpid()} on ")
    assert "process 7 on gone was in it; waiting" in capsys.readouterr().err


def test_of_two_that_begin_at_once_one_goes_on(
    cloud: FakeGcs, bucket: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "SETTLED_SECONDS", 0.6)
    run = place(f"gs://{bucket}/run")
    begun = threading.Timer(0.2, lambda: cloud.put(bucket, "run/lock", b"process 8 on other\n"))
    begun.start()
    with pytest.raises(InputError, match="in use by process 8 on other"), locked(run):
        raise AssertionError("two runs are in one folder")
    begun.join()
