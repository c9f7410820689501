"""The lock in a bucket: one holder at a time, however late a request is carried out or answered."""

import io
import itertools
import os
import re
import threading
import time
from collections.abc import Callable

import pytest
from fake_gcs import FakeGcs

from prorank_jax import lease
from prorank_jax.errors import InputError, Preempted
from prorank_jax.lease import Lease
from prorank_jax.run_lock import LOCK_FILE, holder, locked
from prorank_jax.storage import Mirror, place, write_text

MINE = rf"process {os.getpid()} on .*"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEWED_SECONDS", 0.1), ("HELD_SECONDS", 0.4), ("GONE_SECONDS", 1.2)):
        monkeypatch.setattr(lease, name, seconds)


def is_write(method: str, path: str) -> bool:
    return method == "POST" and "/upload/" in path


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def stored(cloud: FakeGcs, bucket: str) -> bytes:
    return cloud.objects[bucket]["run/lock"].content


def test_a_lease_is_renewed_and_refused_to_others(cloud: FakeGcs, bucket: str) -> None:
    run = place(f"gs://{bucket}/run")
    with locked(run):
        first = stored(cloud, bucket)
        with pytest.raises(InputError, match=rf"{run}: in use by {MINE}; wait until"), locked(run):
            raise AssertionError("two runs are in one folder")
        assert stored(cloud, bucket) != first
        write_text(run / "config.yaml", "seed: 0")
    assert cloud.names(bucket, "run/") == ["config.yaml"]


def test_a_lease_that_nobody_renews_is_taken_over(
    cloud: FakeGcs, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.put(bucket, "run/lock", b"process 7 on gone\n")
    run = place(f"gs://{bucket}/run")
    assert holder(run) == "process 7 on gone"
    with locked(run):
        assert re.match(MINE, holder(run) or "")
    assert "process 7 on gone was in it; waiting" in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, b"process 7 on gone\n"], ids=["free", "left"])
@pytest.mark.parametrize("late", [1, 2, 3])
def test_of_two_starters_one_holds_however_late_a_write_is(
    cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch, before: bytes | None, late: int
) -> None:
    """The first write of all, the second one, or both reach the store later than a lock takes to be gone."""
    if before is not None:
        cloud.put(bucket, "run/lock", before)
    run, ended, writes = place(f"gs://{bucket}/run"), threading.Event(), list[str]()
    over: dict[str, Exception] = {}

    def delay(method: str, path: str) -> None:
        if is_write(method, path) and "written" not in path:
            writes.append(path)
            if len(writes) & late and len(writes) < 3:
                time.sleep(lease.GONE_SECONDS + 0.3)

    def start(name: str) -> None:
        mine = Lease(run, LOCK_FILE, name)
        try:
            mine.take()
            while not ended.wait(0.02):
                mine.check()
                write_text(run / "written" / f"{name}{len(cloud.names(bucket))}", "")
            mine.release()
        except (InputError, Preempted) as error:
            over[name] = error

    monkeypatch.setattr(cloud, "before", delay)
    starters = [threading.Thread(target=start, args=(name,)) for name in "AB"]
    for starter in starters:
        starter.start()
    wait_until(lambda: len(over) == 1)
    ended.set()
    for starter in starters:
        starter.join()
    [[loser, error]] = over.items()
    assert "in use by" in str(error) or "its lock was lost" in str(error)
    # Whoever wrote first has written nothing since the other began.
    stored = cloud.objects[bucket]
    written = sorted(cloud.names(bucket, "run/written/"), key=lambda name: stored[f"run/written/{name}"].generation)
    assert len([name for name, _ in itertools.groupby(written, key=lambda name: name[0])]) <= 2
    assert not written or written[-1][0] != loser


def test_a_renewal_that_comes_late_does_not_take_the_lease_back(
    cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, caught = place(f"gs://{bucket}/run"), threading.Event()

    def delay(method: str, path: str) -> None:
        # The first renewal waits in the network until another has taken over.
        if is_write(method, path) and "run/lock" in cloud.objects[bucket] and not caught.is_set():
            caught.set()
            wait_until(lambda: stored(cloud, bucket).startswith(b"process 8"))

    with pytest.raises(Preempted, match=r"its lock was lost \(process 8 on other took it over\); nothing more is"):
        with locked(run):
            monkeypatch.setattr(cloud, "before", delay)
            assert caught.wait(20)
            time.sleep(lease.GONE_SECONDS)
            cloud.put(bucket, "run/lock", b"process 8 on other\n")
            write_text(run / "config.yaml", "seed: 0")
    assert cloud.names(bucket, "run/") == ["lock"]
    assert stored(cloud, bucket) == b"process 8 on other\n"


def test_a_holder_out_of_reach_stops_before_another_takes_over(
    cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place(f"gs://{bucket}/run")
    monkeypatch.setattr("prorank_jax.buckets._ANSWER_SECONDS", 1.0)

    def cut_off(method: str, path: str) -> None:
        if is_write(method, path) and "config" not in path:
            raise ConnectionError

    with pytest.raises(Preempted, match="its lock could not be renewed .*; start the same command again"), locked(run):
        write_text(run / "config.yaml", "seed: 0")
        monkeypatch.setattr(cloud, "before", cut_off)
        time.sleep(lease.HELD_SECONDS + 0.1)
        write_text(run / "config.yaml", "seed: 1")
    assert cloud.objects[bucket]["run/config.yaml"].content == b"seed: 0"


def test_a_holder_that_was_asleep_holds_again_where_nobody_took_over(
    cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 60.0)
    run = place(f"gs://{bucket}/run")
    with locked(run):
        first = stored(cloud, bucket)
        time.sleep(lease.HELD_SECONDS + 0.1)
        write_text(run / "config.yaml", "seed: 0")
        assert stored(cloud, bucket) != first
    assert cloud.names(bucket, "run/") == ["config.yaml"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_answer_that_is_lost_does_not_lose_the_lease(
    cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of the first write, or of a renewal: the client asks again, and is refused by its own write."""
    run, writes = place(f"gs://{bucket}/run"), []

    def lose(method: str, path: str) -> None:
        if is_write(method, path) and "config" not in path:
            writes.append(path)
            if len(writes) == number:
                raise ConnectionError

    monkeypatch.setattr(cloud, "after", lose)
    with locked(run):
        wait_until(lambda: len(writes) > number + 1)
        write_text(run / "config.yaml", "seed: 0")
    assert cloud.names(bucket, "run/") == ["config.yaml"]


def test_a_lease_that_was_removed_by_hand_is_lost(cloud: FakeGcs, bucket: str) -> None:
    run = place(f"gs://{bucket}/run")
    with pytest.raises(Preempted, match=r"its lock was lost \(it was removed\)"), locked(run):
        del cloud.objects[bucket]["run/lock"]
        time.sleep(0.5)
        write_text(run / "config.yaml", "seed: 0")
    assert cloud.names(bucket, "run/") == []


def test_a_copy_is_not_published_once_the_lease_is_lost(cloud: FakeGcs, bucket: str) -> None:
    run = place(f"gs://{bucket}/run")
    with pytest.raises(Preempted, match="its lock was lost"), locked(run), Mirror(run / "score") as mirror:
        (mirror.here / "metrics.jsonl").write_text("{}\n")
        cloud.put(bucket, "run/lock", b"process 8 on other\n")
        time.sleep(0.5)
    assert cloud.names(bucket, "run/") == ["lock"]
    # Another folder is not this lock's.
    write_text(place(f"gs://{bucket}/run2/config.yaml"), "seed: 0")


def test_a_condition_holds_for_every_way_to_write(cloud: FakeGcs, bucket: str) -> None:
    """The stand-in refuses as the JSON API does: small and large objects, copies and deletions."""
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud import storage

    there = storage.Client(project=None).bucket(bucket)
    blob, large = there.blob("a"), there.blob("large", chunk_size=1 << 18)
    blob.upload_from_string("one", if_generation_match=0)
    large.upload_from_file(io.BytesIO(bytes(1 << 19)), size=1 << 19, if_generation_match=0)
    for refused in (
        lambda: there.blob("a").upload_from_string("two", if_generation_match=0),
        lambda: large.upload_from_file(io.BytesIO(bytes(1 << 19)), size=1 << 19, if_generation_match=0),
        lambda: there.blob("a").upload_from_string("two", if_generation_match=blob.generation + 7),
        lambda: there.blob("a").delete(if_generation_match=blob.generation + 7),
        lambda: there.blob("a").rewrite(large, if_generation_match=0),
    ):
        with pytest.raises(PreconditionFailed):
            refused()
    assert cloud.objects[bucket]["a"].content == b"one"
    there.blob("a").upload_from_string("two", if_generation_match=blob.generation)
    assert cloud.objects[bucket]["a"].content == b"two"
