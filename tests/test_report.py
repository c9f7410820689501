import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from prorank_jax.errors import InputError
from prorank_jax.reporting.curves import plot_curves


def _metrics(run: Path, stage: str, rows: list[dict[str, Any]]) -> None:
    (run / stage).mkdir(parents=True)
    (run / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _drawn(figure: Figure) -> dict[str, dict[str, list[float]]]:
    """y label -> curve label -> its values."""
    return {
        axes.get_ylabel(): {
            str(line.get_label()): np.asarray(line.get_ydata(), float).tolist() for line in axes.get_lines()
        }
        for axes in figure.axes
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    saved: list[Figure] = []
    savefig = Figure.savefig

    def record(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def test_the_curves_of_both_stages(tmp_path: Path, figures: list[Figure]) -> None:
    _metrics(
        tmp_path,
        "warmup",
        [
            {"step": 10, "reward": 0.5, "rewards/format/mean": 0.3, "format_rate": 0.3, "accuracy": 0.2},
            {"step": 20, "reward": 1.5, "rewards/format/mean": 0.9, "format_rate": 0.9, "accuracy": 0.6},
        ],
    )
    _metrics(tmp_path, "score", [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0, "margin": 0.2}])
    plot_curves(tmp_path, tmp_path / "plots" / "curves.png")
    (figure,) = figures
    # No row has `kl`, `grad_norm` or `top1_accuracy`.
    assert _drawn(figure) == {
        "reward": {"total": [0.5, 1.5], "format": [0.3, 0.9]},
        "share of completions": {"right format": [0.3, 0.9], "right answer": [0.2, 0.6]},
        "loss": {"loss": [2.0, 1.0]},
        "margin: relevant less others": {"margin": [0.2]},
    }
    assert all(axes.get_xlabel() == "step" for axes in figure.axes)
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width >= 800


def test_one_stage_alone(tmp_path: Path, figures: list[Figure]) -> None:
    _metrics(tmp_path, "score", [{"step": 1, "loss": 2.0}])
    plot_curves(tmp_path, tmp_path / "curves.png")
    assert _drawn(figures[0]) == {"loss": {"loss": [2.0]}}


def test_a_value_that_was_not_finite_is_a_gap(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [{"step": s, "loss": v, "grad_norm": None} for s, v in [(1, 2.0), (2, None), (3, 1.0)]]
    _metrics(tmp_path, "score", rows)
    plot_curves(tmp_path, tmp_path / "curves.png")
    first, gap, last = _drawn(figures[0])["loss"]["loss"]
    assert (first, last) == (2.0, 1.0)
    assert gap != gap
    assert "gradient norm" not in _drawn(figures[0])


def test_no_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no metrics of a stage here"):
        plot_curves(tmp_path, tmp_path / "curves.png")
