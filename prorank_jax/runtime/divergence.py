"""Ends a run that has gone astray while its numbers are still finite.

It judges rows of `metrics.jsonl` alone, those before a restart included: so a run that was killed ends at the same
step as one that was not.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from prorank_jax.errors import InputError

ROWS = 10
"""Rows whose median is looked at: a few may be far off."""

Row = Mapping[str, Any]


class Divergence:
    """Watches the loss and the KL divergence of a stage.

    Args:
      stage: `warmup` or `score`.
      rows: the rows of earlier steps.
      growth: how many times the largest loss of the first rows the median of the last ones may be; None: any.
      kl: what the median of `kl` over the last rows may be, in nats; None: anything.
    """

    def __init__(self, stage: str, rows: Sequence[Row], *, growth: float | None = None, kl: float | None = None):
        self._stage, self._growth, self._most_kl = stage, growth, kl
        self._loss: list[float] = []
        self._kl: list[float] = []
        for row in rows:
            self._take(row)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes what the row of a step says.

        Raises:
          InputError: the stage has gone astray; says by what.
        """
        self._take(metrics)
        if self._growth is not None and len(self._loss) >= 2 * ROWS:
            first, last = max(self._loss[:ROWS]), median(self._loss[-ROWS:])
            if last > self._growth * first:
                self._stop(
                    step, f"loss {last:.4g}", f"{self._growth:g} times the {first:.4g} it began with", "loss_growth"
                )
        if self._most_kl is not None and len(self._kl) >= ROWS:
            last = median(self._kl[-ROWS:])
            if last > self._most_kl:
                self._stop(step, f"kl {last:.4g}", f"{self._most_kl:g} nats", "kl")

    def _take(self, row: Row) -> None:
        for values, name in ((self._loss, "loss"), (self._kl, "kl")):
            if row.get(name) is not None:
                values.append(float(row[name]))

    def _stop(self, step: int, what: str, bound: str, field: str) -> None:
        raise InputError(
            f"{self._stage}: {what} over the last {ROWS} rows, more than {bound}, at step {step}: it diverges; lower "
            f"{self._stage}.optimizer.learning_rate and begin in another --workdir, or raise {self._stage}.max_{field}"
        )
