"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from prorank_jax.atomic import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path):
    write_atomically(tmp_path / "file", "old\n")
    write_atomically(tmp_path / "file", "new ü\n")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new ü\n"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomically(tmp_path / "file", "old\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new\n")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old\n"
