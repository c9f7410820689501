from collections.abc import Iterable

import pytest

from prorank_jax.errors import InputError
from prorank_jax.runtime.divergence import Divergence, Row


def rows(losses: Iterable[float], name: str = "loss") -> list[Row]:
    return [{"step": step, name: value} for step, value in enumerate(losses, start=1)]


def stopped(watch: Divergence, values: Iterable[float], name: str = "loss") -> tuple[int, str] | None:
    """The number of the value that ends the run, and what is told."""
    for number, value in enumerate(values, start=1):
        try:
            watch.add(number, {name: value})
        except InputError as error:
            return number, str(error)
    return None


def test_a_loss_that_grows_ends_the_run_once_ten_rows_are_that_high() -> None:
    # The largest of the first ten is 2. From row 21 on the loss is 30: the median of 5 rows of 30 and 5 of 1 is
    # 15.5, which is not over 10 x 2; of 6 and 4 it is 30. (The mean would pass 20 a row later.)
    found = stopped(Divergence("score", [], growth=10.0), [2.0, *[1.0] * 19, *[30.0] * 20])
    assert found == (
        26,
        "score: loss 30 over the last 10 rows, more than 10 times the 2 it began with, at step 26: it diverges; "
        "lower score.optimizer.learning_rate and begin in another --workdir, or raise score.max_loss_growth",
    )


def test_a_single_row_may_be_far_off() -> None:
    assert stopped(Divergence("score", [], growth=10.0), [1.0] * 25 + [99.0] + [1.0] * 25) is None


def test_rows_from_before_a_restart_count() -> None:
    losses = [2.0, *[1.0] * 19, *[30.0] * 20]
    for cut in (3, 15, 24):
        found = stopped(Divergence("score", rows(losses[:cut]), growth=10.0), losses[cut:])
        assert found is not None and found[0] + cut == 26


def test_a_policy_far_from_its_reference_ends_the_run() -> None:
    found = stopped(Divergence("warmup", [], kl=30.0), [1.0] * 5 + [100.0] * 9, "kl")
    assert found is not None and found[0] == 10
    assert found[1].startswith("warmup: kl 50.5 over the last 10 rows, more than 30 nats, at step 10: it diverges;")
    assert found[1].endswith("or raise warmup.max_kl")


@pytest.mark.parametrize("name", ["loss", "kl"])
def test_without_bounds_nothing_ends(name: str) -> None:
    assert stopped(Divergence("score", []), [1.0] * 20 + [1e9] * 20, name) is None


def test_a_row_without_a_finite_value_is_passed_over() -> None:
    # What is not finite is null in metrics.jsonl, and is the other watch's to stop.
    assert stopped(Divergence("score", [{"step": 1, "loss": None}], growth=2.0), [1.0] * 30) is None
