"""What stages kept of single pairs: completions with their rewards, and scores of a sample by label."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prorank_jax.progress import visible
from prorank_jax.reporting.charts import Chart, histograms
from prorank_jax.reporting.folder import Stage
from prorank_jax.runtime.metrics import Row

_STEPS = 6
_ANSWERS = 6
_ANSWER = 160
_PROMPT = 2400
"""Steps, answers to a prompt, and characters of an answer and a prompt, that a page shows at most."""
_MOMENTS = {
    ("warmup", "begin"): "Before prompt warmup",
    ("warmup", "end"): "After prompt warmup",
    ("score", "begin"): "Before score learning",
    ("score", "end"): "After score learning",
}
LABELS = {1: "relevant", 0: "not relevant"}


class Answer(NamedTuple):
    """Equal completions of one prompt."""

    text: str
    reward: float
    times: int


class Asked(NamedTuple):
    """A prompt, the right answer, and what was answered, the best rewarded first."""

    prompt: str
    label: int
    answers: list[Answer]
    left_out: int
    """Completions of answers that are not shown."""


class Scores(NamedTuple):
    """Histograms of the scores of one sample over time; `right` says of each moment how well the labels part.

    That is the share of pairs of a relevant and an irrelevant prompt of which the relevant one has the higher score.
    """

    of: str
    size: int
    charts: list[Chart]
    right: list[float]


def asked(rows: Sequence[Row]) -> dict[int, list[Asked]]:
    """The prompts of the first, the last and some steps between, by step."""
    steps = sorted({row["step"] for row in rows if {"prompt", "completions", "reward"} <= row.keys()})
    places = np.linspace(0, max(len(steps) - 1, 0), min(_STEPS, len(steps))).round().astype(int).tolist()
    return {steps[place]: [_asked(row) for row in rows if row["step"] == steps[place]] for place in places}


def _asked(row: Mapping[str, Any]) -> Asked:
    counts = Counter(zip(row["completions"], row["reward"], strict=False))
    order = sorted(counts.items(), key=lambda item: (-(item[0][1] or 0), -item[1]))
    answers = [Answer(visible(_cut(text, _ANSWER)), reward or 0.0, count) for (text, reward), count in order]
    left_out = sum(answer.times for answer in answers[_ANSWERS:])
    return Asked(_cut(row["prompt"], _PROMPT), int(row.get("label", 0)), answers[:_ANSWERS], left_out)


def scores(stages: Mapping[str, Stage]) -> Scores | None:
    """Histograms by label, before and after each stage; None where no stage has kept scores."""
    found: dict[str, dict[str, np.ndarray]] = {}
    of, count = "", 0
    for (name, at), title in _MOMENTS.items():
        rows = [row for row in stages[name].scores if row["at"] == at] if name in stages else []
        # Where both stages were run, the second begins with what the first ends with.
        if not rows or ((name, at) == ("score", "begin") and "After prompt warmup" in found):
            continue
        values = {label: _finite(rows, number) for number, label in LABELS.items()}
        if all(len(of_label) for of_label in values.values()):
            found[title] = values
            of, count = str(rows[0].get("of", "pairs")), len(rows)
    if not found:
        return None
    charts = histograms(found, "score, z(1) − z(0)")
    return Scores(of, count, charts, [_right(*values.values()) for values in found.values()])


def _finite(rows: Sequence[Row], label: int) -> np.ndarray:
    values = [row.get("score") for row in rows if row["label"] == label]
    return np.array([value for value in values if isinstance(value, int | float) and math.isfinite(value)])


def _right(relevant: np.ndarray, others: np.ndarray) -> float:
    """The area under the ROC curve; equal scores count half."""
    below = np.searchsorted(np.sort(others), relevant, side="left")
    not_above = np.searchsorted(np.sort(others), relevant, side="right")
    return float((below + not_above).mean() / (2 * len(others)))


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + " …"
