import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from prorank_jax.errors import InputError
from prorank_jax.runtime.metrics import TIME_FIELDS, MetricsWriter, RowFile, read_metrics


def _write(folder: Path, steps: range, resume_from: int = 0, scale: float = 1.0) -> None:
    with MetricsWriter(folder, "warmup", 50, resume_from, headline=("reward",)) as writer:
        for step in steps:
            writer.write(step, {"tokens_per_second": 1e6 / step, "reward": scale * step, "kl": 0.5})


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIME_FIELDS}


def _events(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value as TensorBoard reads them, by the framing of TFRecord: length, crc, bytes, crc."""
    from tensorboardX.proto.event_pb2 import Event

    values: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log"):
                values = {key: value for key, value in values.items() if key[1] < event.step}
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    return values


def test_rows_hold_the_metrics_and_the_time_last(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "score", "score", 20, resume_from=0) as writer:
        writer.write(10, {"seconds_per_step": 2, "tokens_per_second": 5.0, "loss": 0.5, "n": 3})
        # Readable while the run goes on.
        (line,) = (tmp_path / "score" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert list(row) == ["step", "seconds_per_step", "loss", "n", "tokens_per_second", "seconds"]
    assert row.pop("seconds") >= 0
    assert row == {"step": 10, "seconds_per_step": 2, "loss": 0.5, "n": 3, "tokens_per_second": 5.0}
    assert isinstance(row["n"], int)


def test_equal_runs_write_equal_rows_up_to_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / name, range(10, 60, 10))
    a, b = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("a", "b"))
    assert [_without_time(row) for row in a] == [_without_time(row) for row in b]
    assert [row["step"] for row in a] == [10, 20, 30, 40, 50]


def test_resume_replaces_the_rows_after_the_restored_step(tmp_path: Path) -> None:
    _write(tmp_path, range(10, 60, 10))
    _write(tmp_path, range(30, 50, 10), resume_from=20, scale=-1.0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    # Step 50 is not reached again yet: neither file may show its value of before.
    assert {row["step"]: row["reward"] for row in rows} == {10: 10, 20: 20, 30: -30, 40: -40}
    events = {step: value for (tag, step), value in _events(tmp_path).items() if tag == "reward"}
    assert events == {10: 10, 20: 20, 30: -30, 40: -40}
    # The clock goes on from where the kept rows end.
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_resume_before_the_first_row_drops_all(tmp_path: Path) -> None:
    _write(tmp_path, range(10, 40, 10))
    _write(tmp_path, range(10, 20, 10), resume_from=0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10]
    assert sorted(_events(tmp_path)) == [("kl", 10), ("reward", 10), ("seconds", 10), ("tokens_per_second", 10)]


def test_a_row_that_a_killed_run_left_half_written_is_dropped(tmp_path: Path) -> None:
    _write(tmp_path, range(10, 30, 10))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 30, "rew')
    assert [row["step"] for row in read_metrics(path)] == [10, 20]
    _write(tmp_path, range(30, 40, 10), resume_from=20)
    assert path.read_text().startswith(whole)
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]


@pytest.mark.parametrize("line", ['{"step": 10, "rew', "[10]", '{"reward": 1}', ""])
def test_another_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 5}}\n{line}\n{{"step": 20}}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not a row of metrics"):
        read_metrics(path)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, "score", 10, resume_from=0, headline=("loss",)) as writer:
        writer.write(10, {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.1})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["loss"], row["grad_norm"], row["learning_rate"]) == (None, None, 0.1)
    assert ("loss", 10) not in _events(tmp_path)


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsWriter(tmp_path, "warmup", 50, resume_from=0, headline=("reward", "kl", "absent")) as writer:
        writer.write(10, {"other": 1.0, "kl": float("nan"), "reward": 1.23456, "tokens_per_second": 12345.6})
        writer.write(20, {"reward": 2})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "warmup 10/50  reward 1.235  kl nan  12,346 tokens/s",
        "warmup 20/50  reward 2",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 120 columns in the place of standard error."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return terminal


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    _write(tmp_path, range(30, 50, 10), resume_from=20)
    shown = terminal.getvalue()
    assert "40/50" in shown
    assert "reward 40" in shown
    assert "warmup 40/50" not in shown


NOTE = "label 1: '[bold]1[/bold]' 2 (x6), 'Yes' 0"
"""Rich would take the brackets for markup, and swallow them."""


def test_a_note_is_a_plain_line_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsWriter(tmp_path, "warmup", 50, resume_from=0, headline=("reward",)) as writer:
        writer.write(10, {"reward": 2})
        writer.note(NOTE + " wide" * 40)
        writer.write(20, {"reward": 3})
    captured = capsys.readouterr()
    assert captured.out == ""
    # Not broken to a width, which a log has none of.
    assert captured.err.splitlines() == ["warmup 10/50  reward 2", NOTE + " wide" * 40, "warmup 20/50  reward 3"]
    # Notes are for the eye: the rows are metrics only.
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]


def test_a_note_stands_above_the_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _terminal(monkeypatch)
    with MetricsWriter(tmp_path, "warmup", 50, resume_from=0) as writer:
        writer.note(NOTE)
    lines = terminal.getvalue().split("\n")
    (told,) = (line for line in lines if "label 1" in line)
    # Behind what moves the cursor and clears the bar the text is as it was given, without colours.
    assert told.endswith(NOTE)
    assert "0/50" in terminal.getvalue().split(NOTE)[1]


def _texts(path: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["text"]) for row in read_metrics(path)]


def test_a_row_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "completions.jsonl"
    with RowFile(path, resume_from=0) as rows:
        assert rows.kept == []
        assert path.read_text() == ""
        for step in (5, 5, 10):
            rows.write({"step": step, "text": f"of {step}"})
            assert _texts(path)[-1] == (step, f"of {step}")
    # Several rows of one step are kept, as two prompts have.
    assert _texts(path) == [(5, "of 5"), (5, "of 5"), (10, "of 10")]
    assert [entry.name for entry in path.parent.iterdir()] == ["completions.jsonl"]


def test_a_resumed_row_file_drops_the_rows_after_the_restored_step(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with RowFile(path, resume_from=0) as rows:
        for step in (5, 10, 10, 15, 20):
            rows.write({"step": step, "text": "before"})
    with RowFile(path, resume_from=10) as rows:
        assert rows.kept == [{"step": step, "text": "before"} for step in (5, 10, 10)]
        # Dropped at once, and not when the next row is written.
        assert _texts(path) == [(step, "before") for step in (5, 10, 10)]
        rows.write({"step": 15, "text": "after"})
    assert _texts(path) == [(5, "before"), (10, "before"), (10, "before"), (15, "after")]
    with RowFile(path, resume_from=0) as rows:
        assert rows.kept == []
    assert _texts(path) == []


def test_a_row_file_goes_on_behind_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text('{"step": 5, "text": "whole"}\n{"step": 5, "te')
    with RowFile(path, resume_from=5) as rows:
        rows.write({"step": 10, "text": "next"})
    assert path.read_text() == '{"step": 5, "text": "whole"}\n{"step": 10, "text": "next"}\n'


def test_a_row_of_any_text_is_one_line(tmp_path: Path) -> None:
    # Python takes each of these for the end of a line, and a model may say any of them.
    text = "a\nb\rc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i \ud83d 文書"
    path = tmp_path / "completions.jsonl"
    with RowFile(path, resume_from=0) as rows:
        rows.write({"step": 5, "text": text})
        rows.write({"step": 10, "text": ""})
    with RowFile(path, resume_from=10):
        assert _texts(path) == [(5, text), (10, "")]


def test_rows_are_closed_where_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RowFile(tmp_path / "rows.jsonl", resume_from=0) as rows:
        rows.write({"step": 5, "text": "kept"})
        raise RuntimeError
    with pytest.raises(ValueError, match="closed"):
        rows.write({"step": 10, "text": "late"})
    assert _texts(tmp_path / "rows.jsonl") == [(5, "kept")]


def test_only_the_first_process_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with RowFile(tmp_path / "rows" / "rows.jsonl", resume_from=0) as rows:
        rows.write({"step": 5, "text": "of another host"})
    with MetricsWriter(tmp_path / "stage", "warmup", 50, resume_from=0) as writer:
        writer.write(10, {"reward": 1.0})
        writer.note("of another host")
    assert list(tmp_path.iterdir()) == []
