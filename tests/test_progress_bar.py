"""How far long work is, on a terminal and elsewhere."""

import io
import sys

import pytest

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
