"""Packed files of others: nothing leaves its folder, and nothing small fills memory or a disk."""

import gzip
import json
import os
import stat
import zipfile
from pathlib import Path

import cbor2
import lz4.frame
import pytest

from prorank_jax.data import lines
from prorank_jax.data.beir_files import ZipFiles
from prorank_jax.data.files import read_rows
from prorank_jax.data.runs import read_run
from prorank_jax.errors import InputError

ROW = '{"query": "q", "document": "d", "label": 1}\n'
CORPUS = '{"_id": "d1", "text": "A drink."}\n'


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may unpack to a megabyte, or two hundred times their size."""
    monkeypatch.setattr(lines, "_ANY_FILE", 1 << 20)


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return path


def test_a_gzip_bomb_is_refused_while_it_is_read(tmp_path: Path, small: None) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(ROW.encode() * 100_000))
    assert path.stat().st_size * 200 < len(ROW) * 100_000
    with pytest.raises(
        InputError, match=r"rows.jsonl.gz:\d+: the file unpacks to more than 200 times its size; unpack"
    ):
        list(read_rows(path))


def test_text_that_packs_well_is_no_bomb(tmp_path: Path, small: None) -> None:
    path = tmp_path / "rows.jsonl.gz"
    text = "".join(
        json.dumps({"query": f"q{i}", "document": f"{i:x}" * 9, "label": i % 2}) + "\n" for i in range(30_000)
    )
    path.write_bytes(gzip.compress(text.encode()))
    assert len(text) > 1 << 20
    assert len(list(read_rows(path))) == 30_000


def test_a_zip_bomb_is_refused_while_it_is_read(tmp_path: Path, small: None) -> None:
    path = zipped(tmp_path / "set.zip", **{"corpus.jsonl": CORPUS * 100_000, "queries.jsonl": ""})
    with pytest.raises(
        InputError, match=r"set.zip!/corpus.jsonl:\d+: the file unpacks to more than 200 times its size"
    ):
        list(ZipFiles(path).corpus())


_ZEROS = {"q": {"d": [0] * 5_000_000}}


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("run.json.gz", gzip.compress(json.dumps({"q": " " * 5_000_000}).encode())),
        ("run.lz4", lz4.frame.compress(lz4.frame.compress(cbor2.dumps(_ZEROS)))),
    ],
)
def test_a_run_that_is_a_bomb_is_refused(tmp_path: Path, small: None, name: str, packed: bytes) -> None:
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(InputError, match=r"unpacks to more than 1048576 bytes\); make or download it again"):
        read_run(tmp_path / name)


def test_members_that_climb_are_never_written(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", **{"..__corpus.jsonl": CORPUS, "__tmp__corpus.jsonl": CORPUS})
    with pytest.raises(InputError, match=r"holds 2 collections"):
        ZipFiles(path)
    alone = zipped(tmp_path / "one.zip", **{"..__..__corpus.jsonl": CORPUS, "..__..__queries.jsonl": CORPUS})
    # Read as a stream, under the name that it has.
    assert [entry.id for entry in ZipFiles(alone).corpus()] == ["d1"]
    assert sorted(os.listdir(tmp_path)) == ["one.zip", "set.zip"]
    assert not (tmp_path.parent.parent / "corpus.jsonl").exists()


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text(CORPUS)
    link = zipfile.ZipInfo("corpus.jsonl")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(link, str(secret))
    with pytest.raises(InputError, match=r"set.zip!/corpus.jsonl:1: column 1: not valid JSON"):
        list(ZipFiles(tmp_path / "set.zip").corpus())


def test_cbor_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.lz4"
    path.write_bytes(lz4.frame.compress(lz4.frame.compress(b"\x81" * 100_000 + b"\x00")))
    with pytest.raises(InputError, match="not readable as a run of ranx"):
        read_run(path)
