"""How far long work is, on a terminal and elsewhere."""

import io
import sys

import pytest

from prorank_jax import progress as progress_module
from prorank_jax.progress import SECONDS_BETWEEN_LINES, progress


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("prorank_jax.progress.time.monotonic", lambda: now)
    with progress("indexing", 50, True, done=10) as advance:
        advance(10)  # at once: no line
        now += SECONDS_BETWEEN_LINES
        advance(10)
        advance(10)
        advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "indexing 30/50\nindexing 50/50\n"


def test_nothing_is_printed_where_nothing_shall_be(capsys: pytest.CaptureFixture[str]):
    with progress("indexing", 1, False) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("indexing", 4, True) as advance:
        advance(3)
    shown = terminal.getvalue()
    assert "indexing" in shown and "75%" in shown and "3/4" not in shown


def test_notes_of_work_whose_end_is_not_known(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_NOTES", -1.0)
    assert list(progress_module.noted(range(2500), "mine", "documents")) == list(range(2500))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == ["mine: 1,000 documents", "mine: 2,000 documents"]
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_NOTES", 60.0)
    assert len(list(progress_module.noted(range(2500), "mine", "documents"))) == 2500
    assert capsys.readouterr().err == ""
