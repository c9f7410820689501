"""Files in buckets: read through copies, and written so that what is there is whole."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_gcs import FakeGcs

from prorank_jax import buckets
from prorank_jax.cache import cache_folder
from prorank_jax.checksums import damage, seal
from prorank_jax.errors import InputError
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.storage import (
    Mirror,
    Place,
    copy_of,
    digests,
    exists,
    fetched,
    folders,
    holds_files,
    kept_here,
    local,
    place,
    read_bytes,
    remove,
    rename,
    replaced,
)
from prorank_jax.storage import write_text as write

pytestmark = pytest.mark.usefixtures("own_cache")


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def stored(cloud: FakeGcs, bucket: str, prefix: str = "") -> dict[str, str]:
    return {name: cloud.objects[bucket][prefix + name].content.decode() for name in cloud.names(bucket, prefix)}


def downloads(cloud: FakeGcs) -> list[str]:
    """The objects whose content was asked for."""
    return [request for request in cloud.requests if "alt=media" in request]


def test_a_path_stays_a_path_and_a_url_is_a_place_in_a_bucket(cloud: FakeGcs) -> None:
    assert place("runs/a") == Path("runs/a") and isinstance(place("runs/a"), Path)
    url = place("gs://lab/runs/a b")
    assert str(url / "config.yaml") == "gs://lab/runs/a b/config.yaml"
    assert str(url.parent) == "gs://lab/runs"
    assert fetched("beir/scifact") == "beir/scifact"
    assert fetched(Path("x")) == Path("x") == kept_here(Path("x")) == copy_of("x")
    assert kept_here(url / "data") == cache_folder() / "runs" / "lab" / "runs" / "a b" / "data"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://lab/run", "s3://lab/run: not known; give a path, or gs://BUCKET/FOLDER"),
        ("gs://lab", "gs://lab: is a whole bucket; give a folder in it, as gs://BUCKET/FOLDER"),
        ("gs://lab/", "gs://lab/: is a whole bucket; give a folder in it"),
    ],
)
def test_what_is_no_place_is_refused(url: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        place(url)
    assert str(refused.value).startswith(told)


def test_without_the_package_for_buckets_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    for call in (place, fetched):
        with pytest.raises(InputError, match=r"gs://lab/x: buckets take another package; pip install 'prorank_jax"):
            call("gs://lab/x")


def test_what_is_written_on_this_machine_only_is_not_given_a_bucket() -> None:
    assert local("out.jsonl", "--out") == Path("out.jsonl")
    with pytest.raises(InputError, match=r"^--out=gs://lab/out.jsonl: is written on this machine only"):
        local("gs://lab/out.jsonl", "--out")


def test_a_file_a_folder_and_a_pattern_are_copied_once(cloud: FakeGcs, bucket: str) -> None:
    for number in range(120):
        cloud.put(bucket, f"rows/part-{number:03d}.jsonl", f"{number}\n".encode())
    cloud.put(bucket, "rows/deep/er.jsonl", b"deep\n")
    cloud.put(bucket, "rows-of-another/part.jsonl", b"no\n")
    cloud.put(bucket, "rows/", b"")
    cloud.put(bucket, "rows/empty/", b"")
    folder = Path(fetched(f"gs://{bucket}/rows"))
    assert folder == cache_folder() / "buckets" / bucket / "rows"
    expected = {f"part-{number:03d}.jsonl": f"{number}\n" for number in range(120)}
    assert read(folder) == expected | {"deep/er.jsonl": "deep\n"}
    before = len(downloads(cloud))
    assert fetched(f"gs://{bucket}/rows/") == folder
    assert fetched(f"gs://{bucket}/rows/part-007.jsonl") == folder / "part-007.jsonl"
    pattern = Path(fetched(f"gs://{bucket}/rows/part-00*.jsonl"))
    assert len(list(pattern.parent.glob(pattern.name))) == 10
    assert len(downloads(cloud)) == before


def test_only_what_the_patterns_name_is_copied(cloud: FakeGcs, bucket: str) -> None:
    for name in ("config.json", "weights/model.bin", "model.safetensors"):
        cloud.put(bucket, f"m/{name}", b"x")
    folder = Path(fetched(f"gs://{bucket}/m", ["*.json", "model*.safetensors"]))
    assert sorted(read(folder)) == ["config.json", "model.safetensors"]


def test_what_changes_in_the_bucket_changes_in_the_copy(cloud: FakeGcs, bucket: str) -> None:
    for name in ("a", "b", "c"):
        cloud.put(bucket, f"data/{name}", b"old")
    fetched(f"gs://{bucket}/data")
    time.sleep(0.002)
    cloud.put(bucket, "data/a", b"new")
    del cloud.objects[bucket]["data/b"]
    before = len(downloads(cloud))
    assert read(Path(fetched(f"gs://{bucket}/data"))) == {"a": "new", "c": "old"}
    assert len(downloads(cloud)) == before + 1


def test_what_is_not_there_or_not_open_is_refused_in_one_line(cloud: FakeGcs, bucket: str) -> None:
    cloud.objects["closed"] = {}
    cloud.closed.add("closed")
    for url in (f"gs://{bucket}/nothing", f"gs://{bucket}/nothing/*.jsonl", "gs://no-such-bucket/x", "gs://closed/x"):
        with pytest.raises(InputError) as refused:
            fetched(url)
        assert str(refused.value).startswith(f"{url}: ") and "\n" not in str(refused.value)
        assert "gcloud auth application-default login" in str(refused.value)
    for url in ("gs://no-such-bucket/x", "gs://closed/x"):
        with pytest.raises(InputError, match=f"^{url}: the bucket refuses"):
            exists(place(url))
    assert not exists(place(f"gs://{bucket}/nothing"))


def test_an_object_cannot_leave_the_folder_of_copies(cloud: FakeGcs, bucket: str) -> None:
    cloud.put(bucket, "data/../../../evil", b"x")
    with pytest.raises(InputError, match="not the name of a file; rename the object"):
        fetched(f"gs://{bucket}/data")
    assert not list(cache_folder().parent.rglob("evil"))


def test_a_full_disk_leaves_no_half_copy(cloud: FakeGcs, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.put(bucket, "data/a", b"whole")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(InputError) as refused:
        patch.setattr(os, "replace", full)
        fetched(f"gs://{bucket}/data")
    assert str(refused.value) == (
        f"{cache_folder()}: cannot be written (No space left on device); free space, or name another folder in "
        "PRORANK_CACHE"
    )
    assert read(cache_folder() / "buckets" / bucket) == {}
    assert read(Path(fetched(f"gs://{bucket}/data"))) == {"a": "whole"}


def test_a_mirror_begins_with_what_is_there_and_gives_back_what_changes(cloud: FakeGcs, bucket: str) -> None:
    cloud.put(bucket, "run/warmup/rows.jsonl", b"1\n")
    cloud.put(bucket, "run/warmup/old", b"old")
    cloud.put(bucket, "run/warmup/", b"")
    cloud.put(bucket, "run/warmup/checkpoints/5/array", b"array")
    with Mirror(place(f"gs://{bucket}/run/warmup"), without=("checkpoints",)) as mirror:
        here = mirror.here
        assert read(here) == {"rows.jsonl": "1\n", "old": "old"}
        before = len(cloud.requests)
        mirror.publish()
        assert len(cloud.requests) == before
        with (here / "rows.jsonl").open("a") as rows:
            rows.write("2\n")
        (here / "old").unlink()
        mirror.publish(every=60)
        assert stored(cloud, bucket, "run/warmup/")["rows.jsonl"] == "1\n"
        mirror.publish()
        assert stored(cloud, bucket, "run/warmup/") == {
            "": "",
            "rows.jsonl": "1\n2\n",
            "checkpoints/5/array": "array",
        }
        (here / "sub").mkdir()
        (here / "sub" / "late").write_text("late")
    assert stored(cloud, bucket, "run/warmup/")["sub/late"] == "late"
    assert not here.exists()


def test_a_mirror_gives_back_what_there_is_when_its_block_fails(cloud: FakeGcs, bucket: str) -> None:
    with pytest.raises(ValueError, match="mine"), Mirror(place(f"gs://{bucket}/run")) as mirror:
        (mirror.here / "rows").write_text("1")
        raise ValueError("mine")
    assert stored(cloud, bucket) == {"run/rows": "1"}


def test_files_are_given_back_in_the_order_they_were_written(cloud: FakeGcs, bucket: str) -> None:
    with Mirror(place(f"gs://{bucket}/out")) as mirror:
        for number, name in enumerate(["run.trec", "per_query.tsv", "metrics.json"]):
            (mirror.here / name).write_text(name)
            os.utime(mirror.here / name, ns=(number, number))
    assert uploads(cloud, bucket) == ["out/run.trec", "out/per_query.tsv", "out/metrics.json"]


def uploads(cloud: FakeGcs, bucket: str) -> list[str]:
    found = cloud.objects[bucket]
    return sorted(found, key=lambda name: found[name].generation)


def test_a_bucket_that_takes_nothing_more_is_named(cloud: FakeGcs, bucket: str, full: None) -> None:
    with pytest.raises(InputError, match=rf"^gs://{bucket}/run: the bucket refuses \(.*quota"):
        with Mirror(place(f"gs://{bucket}/run")) as mirror:
            (mirror.here / "rows").write_text("1")
    with pytest.raises(InputError, match=rf"^gs://{bucket}/config.yaml: the bucket refuses \(.*quota"):
        write(place(f"gs://{bucket}/config.yaml"), "seed: 1\n")


@pytest.fixture
def full(cloud: FakeGcs) -> Iterator[None]:
    cloud.full = True
    yield
    cloud.full = False


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_takes_the_place_of_another(cloud: FakeGcs, bucket: str, tmp_path: Path, remote: bool) -> None:
    folder: Any = place(f"gs://{bucket}/export") if remote else tmp_path / "export"
    for content in ({"config.json": "old", "shard-1": "old"}, {"config.json": "new", "shard-2": "new", "x/y": "new"}):
        with replaced(folder, last="config.json") as made:
            for name, text in content.items():
                (made / name).parent.mkdir(exist_ok=True)
                (made / name).write_text(text)
        assert (stored(cloud, bucket, "export/") if remote else read(folder)) == content
    assert holds_files(folder) and exists(folder / "config.json")
    with pytest.raises(ValueError), replaced(folder, last="config.json"):
        raise ValueError
    assert (stored(cloud, bucket, "export/") if remote else read(folder)) == content


def test_an_empty_folder_holds_no_files(cloud: FakeGcs, bucket: str, tmp_path: Path) -> None:
    cloud.put(bucket, "export/", b"")
    assert not holds_files(place(f"gs://{bucket}/export"))
    assert not holds_files(tmp_path)
    cloud.put(bucket, "export/x", b"")
    (tmp_path / "x").touch()
    assert holds_files(place(f"gs://{bucket}/export"))
    assert holds_files(tmp_path) and holds_files(tmp_path / "x")


def test_a_folder_that_is_being_replaced_is_none(cloud: FakeGcs, bucket: str) -> None:
    for _ in range(2):
        before = len(cloud.requests)
        with replaced(place(f"gs://{bucket}/export"), last="config.json") as made:
            for name in ("config.json", "a", "z"):
                (made / name).write_text(name)
    changes = [request for request in cloud.requests[before:] if not request.startswith("GET")]
    assert changes[0].startswith("DELETE") and "config.json" in changes[0]
    assert uploads(cloud, bucket)[-1] == "export/config.json"


def test_of_a_link_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    # Left by somebody: what it leads to is not ours to empty.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").write_text("kept")
    (tmp_path / "there.unfinished").symlink_to(tmp_path / "other")
    with replaced(tmp_path / "link", last="config.json") as unfinished:
        (unfinished / "config.json").write_text("{}")
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "there")) == ["config.json"]
    assert sorted(os.listdir(tmp_path)) == ["link", "other", "there"]
    assert (tmp_path / "other" / "kept").read_text() == "kept"


def test_a_folder_that_could_not_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("old")
    with pytest.raises(OSError, match="full"), replaced(tmp_path / "export", last="config.json") as unfinished:
        (unfinished / "config.json").write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == ["export"]
    assert (tmp_path / "export" / "config.json").read_text() == "old"


@pytest.fixture(params=["here", "bucket"])
def somewhere(request: pytest.FixtureRequest, tmp_path: Path, cloud: FakeGcs, bucket: str) -> Place:
    return tmp_path / "run" if request.param == "here" else place(f"gs://{bucket}/run")


def test_folders_are_listed_renamed_and_removed(somewhere: Place) -> None:
    assert folders(somewhere) == []
    assert read_bytes(somewhere / "1" / "a") is None
    for name in ("1/a", "1/deep/b", "2/a", "c"):
        write(somewhere / name, f"of {name}")
    assert folders(somewhere) == ["1", "2"]
    assert read_bytes(somewhere / "1" / "deep" / "b") == b"of 1/deep/b"
    rename(somewhere / "1", "2", first="a")
    assert folders(somewhere) == ["2"]
    assert read_bytes(somewhere / "2" / "deep" / "b") == b"of 1/deep/b"
    remove(somewhere / "2", first="a")
    assert folders(somewhere) == [] and exists(somewhere / "c")
    remove(somewhere / "2", first="a")


def test_a_sealed_folder_knows_its_bytes(somewhere: Place) -> None:
    for name in ("a", "deep/b", "empty"):
        write(somewhere / name, "" if name == "empty" else f"of {name}")
    # By coreutils' md5sum.
    assert digests(somewhere)["empty"] == "d41d8cd98f00b204e9800998ecf8427e"
    assert damage(somewhere) == "no checksums.md5: it was not finished, or an older version wrote it"
    seal(somewhere)
    assert damage(somewhere) is None
    write(somewhere / "deep" / "b", "OF deep/b")
    assert damage(somewhere) == "'deep/b' does not hold the bytes that were written"
    write(somewhere / "deep" / "b", "of deep/b")
    write(somewhere / "more", "")
    assert damage(somewhere) == "'checksums.md5' does not hold the bytes that were written"


def test_a_damaged_step_in_a_bucket_is_set_aside(
    cloud: FakeGcs, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place(f"gs://{bucket}/run/checkpoints")
    state = {"params": {"w": jnp.arange(6.0)}}
    for step in (1, 2):
        Checkpoints(folder, keep=2).save(step, state, measure=step / 10)
    name = next(name for name in cloud.names(bucket, "run/checkpoints/2/") if name.endswith("_METADATA"))
    cloud.put(bucket, f"run/checkpoints/2/{name}", b"{}")
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.mend() == 1
    assert (
        "METADATA' does not hold the bytes that were written); set aside as 2.damaged; going on"
        in capsys.readouterr().err
    )
    assert folders(folder) == ["1", "2.damaged"]
    np.testing.assert_array_equal(checkpoints.restore(1, jax.eval_shape(lambda: state))["params"]["w"], np.arange(6.0))
    checkpoints.save(2, state)
    assert folders(folder) == ["1", "2"]
