"""The curves of both stages: which metrics are shown under which names, and a picture of all of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from prorank_jax.errors import InputError
from prorank_jax.runtime.metrics import FILE_NAME, Row, read_metrics


class Panel(NamedTuple):
    """One plot: which metrics of a stage it shows, and under which names."""

    stage: str
    unit: str
    curves: Mapping[str, str]


PANELS = (
    Panel(
        "warmup",
        "reward",
        {"reward": "total", "rewards/format/mean": "format", "rewards/relevance/mean": "relevance"},
    ),
    Panel("warmup", "share of completions", {"format_rate": "right format", "accuracy": "right answer"}),
    Panel(
        "warmup",
        "share of held-out prompts",
        {"dev/format_rate": "right format", "dev/accuracy": "right answer", "dev/positive_rate": "answered 1"},
    ),
    Panel("warmup", "groups of equal rewards", {"frac_reward_zero_std": "share"}),
    Panel("warmup", "KL to the base model (nats)", {"kl": "KL"}),
    Panel("score", "loss", {"loss": "loss"}),
    Panel("score", "best document ranked first", {"top1_accuracy": "share"}),
    Panel("score", "margin: relevant less others", {"margin": "margin"}),
    Panel("score", "nDCG@10 of held-out queries", {"dev/ndcg@10": "nDCG@10"}),
    Panel("score", "KL to the warmed-up model (nats)", {"kl": "KL"}),
    Panel("score", "gradient norm", {"grad_norm": "gradient norm"}),
)

TITLES = {"warmup": "Prompt warmup", "score": "Score learning"}


def plot_curves(run_folder: Path, out_png: Path) -> None:
    """Draws the metrics of both stages, a row of plots each, into a PNG.

    A metric that no row has is left out, and so is a plot without metrics.

    Raises:
      InputError: no stage of `run_folder` has metrics yet.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = {stage: _read(run_folder / stage / FILE_NAME) for stage in TITLES}
    panels = {
        stage: [
            panel for panel in PANELS if panel.stage == stage and any(points_of(rows[stage], m) for m in panel.curves)
        ]
        for stage in TITLES
    }
    stages = [stage for stage in TITLES if panels[stage]]
    if not stages:
        raise InputError(f"{run_folder}: no metrics of a stage here; give the workdir of a run that has trained")

    columns = max(len(panels[stage]) for stage in stages)
    # A figure of its own, not pyplot's: nothing global, and no window system is looked for.
    figure = Figure(figsize=(1.0 + 3.6 * columns, 3.1 * len(stages)), dpi=150, layout="constrained")
    for band, stage in zip(figure.subfigures(len(stages), 1, squeeze=False)[:, 0], stages, strict=True):
        band.suptitle(TITLES[stage], fontweight="bold")
        for axes, panel in zip(band.subplots(1, len(panels[stage]), squeeze=False)[0], panels[stage], strict=True):
            for metric, label in panel.curves.items():
                if points := points_of(rows[stage], metric):
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, label=label, linewidth=1.4, marker="." if len(points) < 30 else None)
            axes.set_xlabel("step")
            axes.set_ylabel(panel.unit)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if len(panel.curves) > 1:
                axes.legend(frameon=False, fontsize="small")
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png)


def _read(path: Path) -> list[Row]:
    return read_metrics(path) if path.exists() else []


def points_of(rows: list[Row], metric: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of one metric, a gap where it was not finite."""
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    if all(value is None for _, value in points):
        return []
    return [(step, math.nan if value is None else value) for step, value in points]
