"""Curves and histograms as places on a drawing, from which the page's template makes SVG.

A drawing is `WIDTH` x `HEIGHT` units; a unit is a pixel where the page is not narrower.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 204
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
"""What is left free of the plot, for the axes."""
_POINTS = 400
"""Of a curve at most: a page must not grow with the steps of a run."""
_BINS = 28

Points = Sequence[tuple[float, float]]


class Tick(NamedTuple):
    """A mark on an axis, its place in units, and what stands there."""

    place: float
    text: str


class Curve(NamedTuple):
    """A line or an outline: an SVG path, and what a legend says."""

    label: str
    path: str
    dot: tuple[float, float] | None = None
    """Where a curve of a single point is."""


class Chart(NamedTuple):
    """All that is drawn, and the same in a sentence for those who do not see it."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]
    description: str


def line_chart(title: str, curves: Mapping[str, Points], x_label: str = "step") -> Chart:
    """Curves over steps; a value that is not finite is a gap. Each curve has a finite value."""
    finite = [(x, y) for points in curves.values() for x, y in points if math.isfinite(y)]
    x_of = _Axis.around([x for x, _ in finite], LEFT, WIDTH - RIGHT, tight=True)
    y_of = _Axis.around([y for _, y in finite], HEIGHT - BOTTOM, TOP)
    drawn, told = [], []
    for label, points in curves.items():
        thinned = _thinned(points)
        places = [(x_of(x), y_of(y)) if math.isfinite(y) else None for x, y in thinned]
        whole = [place for place in places if place]
        drawn.append(Curve(label, _path(places), whole[0] if len(whole) == 1 else None))
        first, last = ([(x, y) for x, y in points if math.isfinite(y)][end] for end in (0, -1))
        told.append(f"{label} {_number(first[1])} at {x_label} {first[0]:g}, {_number(last[1])} at {last[0]:g}")
    return Chart(title, x_label, x_of.ticks(6, whole=True), y_of.ticks(5), drawn, "; ".join(told))


def histograms(values: Mapping[str, Mapping[str, np.ndarray]], x_label: str) -> list[Chart]:
    """Histograms, one for each title, on one scale of values so that they can be compared.

    Args:
      values: title -> label -> the values, at least one and all finite. Heights are shares of the label.
    """
    every = np.concatenate([of_label for labels in values.values() for of_label in labels.values()])
    # A few that lie far out must not press all others together: they are drawn at the edge.
    low, high = np.quantile(every, [0.002, 0.998]).tolist()
    x_of = _Axis.around([low, high], LEFT, WIDTH - RIGHT)
    edges = np.linspace(x_of.low, x_of.high, _BINS + 1)
    shares = {
        title: {
            label: np.histogram(np.clip(of_label, x_of.low, x_of.high), edges)[0] / len(of_label)
            for label, of_label in labels.items()
        }
        for title, labels in values.items()
    }
    charts = []
    for title, labels in shares.items():
        # A scale of its own: beside the narrow peak of an untrained model all others would be flat.
        y_of = _Axis.around([0.0, max(float(share.max()) for share in labels.values())], HEIGHT - BOTTOM, TOP)
        curves = [Curve(label, _steps(share, edges, x_of, y_of)) for label, share in labels.items()]
        told = "; ".join(
            f"{label}: half of {len(of)} between {_number(np.quantile(of, 0.25))} and {_number(np.quantile(of, 0.75))}"
            for label, of in values[title].items()
        )
        y_ticks = [tick._replace(text=_percent(tick.text)) for tick in y_of.ticks(4)]
        charts.append(Chart(title, x_label, x_of.ticks(6), y_ticks, curves, told))
    return charts


class _Axis(NamedTuple):
    """A scale: values from `low` to `high` lie at places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, *, tight: bool = False) -> "_Axis":
        """A scale that all values are on; it ends at round numbers unless it is tight."""
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            around = abs(low) * 0.1 or 0.5
            low, high = low - around, high + around
        if not tight:
            step = _round_step((high - low) / 8)
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int, *, whole: bool = False) -> list[Tick]:
        """At round numbers, about so many."""
        step = _round_step((self.high - self.low) / count)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self(number * step), _number(number * step)) for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _number(value: float) -> str:
    """Three digits; `1e+04` and the like only where a number has more than six places."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:.0f}" if 1000 <= abs(rounded) < 1e6 else f"{rounded:g}".replace("-", "−")


def _percent(share: str) -> str:
    return f"{100 * float(share.replace('−', '-')):g}%"


def _thinned(points: Points) -> list[tuple[float, float]]:
    """Every so many points, and the last."""
    stride = -(-len(points) // _POINTS)
    return [*points[:-1:stride], points[-1]]


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines from place to place, with gaps where there is None."""

    def parts() -> Iterator[str]:
        pen_is_down = False
        for place in places:
            if place is not None:
                yield f"{'L' if pen_is_down else 'M'}{place[0]:g} {place[1]:g}"
            pen_is_down = place is not None

    return "".join(parts())


def _steps(shares: np.ndarray, edges: np.ndarray, x_of: _Axis, y_of: _Axis) -> str:
    """The outline of bars that stand side by side on the axis."""
    corners = [(x_of(edges[0]), y_of(0.0))]
    for share, left, right in zip(shares.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        corners += [(x_of(left), y_of(share)), (x_of(right), y_of(share))]
    return _path([*corners, (x_of(edges[-1]), y_of(0.0))]) + "Z"
