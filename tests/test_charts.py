"""Curves and histograms as places on a drawing."""

import math

import numpy as np
import pytest

from prorank_jax.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, histograms, line_chart


def test_a_curve_goes_from_corner_to_corner_with_a_gap() -> None:
    chart = line_chart("loss", {"loss": [(0, 0.0), (5, 2.0), (10, math.nan), (20, 1.0), (40, 4.0)]})
    path = chart.curves[0].path
    assert path.startswith(f"M{LEFT} {HEIGHT - BOTTOM}L") and path.endswith(f"L{WIDTH - RIGHT} {TOP}")
    # The pen is lifted over what was not finite, and nowhere else.
    assert path.count("M") == 2 and path.count("L") == 2
    assert [tick.text for tick in chart.x_ticks] == ["0", "10", "20", "30", "40"]
    assert [tick.text for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert chart.description == "loss 0 at step 0, 4 at 40"


def test_a_single_point_is_a_dot_in_the_middle() -> None:
    chart = line_chart("loss", {"loss": [(3, 2.0)]})
    assert chart.curves[0].dot == ((LEFT + WIDTH - RIGHT) / 2, (HEIGHT - BOTTOM + TOP) / 2)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 5e8])
def test_a_value_that_never_changes_has_an_axis(value: float) -> None:
    chart = line_chart("kl", {"kl": [(1, value), (2, value)]})
    assert 2 <= len(chart.y_ticks) <= 12
    assert all(TOP <= tick.place <= HEIGHT - BOTTOM for tick in chart.y_ticks)


def test_histograms_are_shares_on_one_scale() -> None:
    values = {
        "before": {"relevant": np.array([1.0, 1.0]), "not relevant": np.array([-1.0, 1.0])},
        "after": {"relevant": np.array([9.0]), "not relevant": np.array([-9.0, -9.0, -9.0])},
    }
    before, after = histograms(values, "score")
    assert before.x_ticks == after.x_ticks
    # All of a label in one bar: the axis ends at it, however many they are.
    assert before.y_ticks[-1].text == after.y_ticks[-1].text == "100%"
    for curve in (before.curves[0], *after.curves):
        assert curve.path.count(f" {TOP}L") == 2
    assert f" {TOP}L" not in before.curves[1].path
    assert after.description == "relevant: half of 1 between 9 and 9; not relevant: half of 3 between −9 and −9"


def test_what_lies_far_out_is_drawn_at_the_edge() -> None:
    many = np.concatenate([np.linspace(-1, 1, 2000), [1e6]])
    (chart,) = histograms({"scores": {"relevant": many, "not relevant": many}}, "score")
    assert max(float(tick.text.replace("−", "-")) for tick in chart.x_ticks) <= 1.5
