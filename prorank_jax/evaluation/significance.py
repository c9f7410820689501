"""Whether one run is better than another, or only by the chance of which queries were asked.

Both tests are two-sided and paired by query: Fisher's randomisation test, which assumes only that the two runs' values
of a query could as well be swapped if neither is better, and Student's t-test; see the comparison of tests in
https://doi.org/10.1145/1321440.1321528. Where several pairs are compared, Holm's correction keeps the chance of any
false claim at the level of a single test, https://www.jstor.org/stable/4615733.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from prorank_jax.errors import InputError

_EXACT_UP_TO = 16
_BITS_AT_ONCE = 1 << 22


class Comparison(NamedTuple):
    """A run against another over the same queries; differences are the run's values less the baseline's."""

    run: str
    baseline: str
    difference: float
    """Mean over the queries."""
    interval: tuple[float, float] | None
    """95% confidence interval of the mean difference by Student's t; None for a single query."""
    wins: int
    """Queries of which the run's value is the higher one."""
    losses: int
    ties: int
    randomisation: float
    """p-value of the randomisation test, corrected for the number of comparisons."""
    t_test: float
    """The same of the t-test."""
    raw_randomisation: float
    """Before the correction."""
    raw_t_test: float


def compare(
    values: Mapping[str, np.ndarray], baseline: str | None = None, *, permutations: int = 100_000, seed: int = 0
) -> list[Comparison]:
    """Compares every two runs, the later with the earlier, or each run with `baseline`.

    The correction is over all comparisons of one call: call it with one measure of one collection.

    Args:
      values: run -> `[queries]`, of the same queries in the same order.
      permutations: random sign flips, where more than 16 queries differ; up to 16 all are enumerated. The same flips
        serve all pairs.

    Raises:
      InputError: `baseline` is not among the runs.
      ValueError: values are not finite, or not of the same number of queries.
    """
    _check(values)
    if baseline is not None and baseline not in values:
        raise InputError(f"baseline {baseline!r}: no such run; give one of {', '.join(values)}")
    pairs = (
        [(later, earlier) for earlier, later in combinations(values, 2)]
        if baseline is None
        else [(name, baseline) for name in values if name != baseline]
    )
    if not pairs:
        return []
    differences = [np.asarray(values[run], np.float64) - np.asarray(values[other], np.float64) for run, other in pairs]
    randomised = randomisation_test(differences, permutations, seed)
    t_tested = [_t_test(difference) for difference in differences]
    return [
        Comparison(
            run,
            other,
            float(difference.mean()),
            interval,
            int((difference > 0).sum()),
            int((difference < 0).sum()),
            int((difference == 0).sum()),
            *corrected,
            raw,
            raw_t,
        )
        for (run, other), difference, raw, (raw_t, interval), corrected in zip(
            pairs,
            differences,
            randomised,
            t_tested,
            zip(holm(randomised), holm([p for p, _ in t_tested]), strict=True),
            strict=True,
        )
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over a family of p-values, which keep their order.

    `[0.01, 0.04, 0.03]` -> `[0.03, 0.06, 0.06]`: the smallest times 3, the next times 2, the largest times 1, but none
    below a smaller one's.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = least
    return corrected


def randomisation_test(differences: Sequence[np.ndarray], permutations: int, seed: int) -> list[float]:
    """Two-sided p-values: the share of sign flips whose mean lies as far from 0 as the observed one, or farther.

    Of all flips where up to 16 differences are not 0; else, of random ones, (count + 1) / (permutations + 1).

    Args:
      differences: `[queries]` of each comparison.
    """
    # What is 0 stays 0 under any flip.
    changed = [difference[difference != 0] for difference in differences]
    p_values = [1.0] * len(differences)
    sampled = [i for i, moved in enumerate(changed) if len(moved) > _EXACT_UP_TO]
    for i, moved in enumerate(changed):
        if 0 < len(moved) <= _EXACT_UP_TO:
            flips = np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1
            p_values[i] = float((np.abs((1 - 2 * flips) @ moved) >= _as_far(moved)).mean())
    if sampled:
        matrix = np.stack([differences[i] for i in sampled], axis=1)
        as_far = np.array([_as_far(column) for column in matrix.T])
        total = matrix.sum(axis=0)
        count = np.zeros(len(sampled), np.int64)
        for kept in _random_bits(len(matrix), permutations, seed):
            # The sum of what keeps its sign, less the sum of all others.
            count += (np.abs(2 * (kept @ matrix) - total) >= as_far).sum(axis=0)
        for i, hits in zip(sampled, count, strict=True):
            p_values[i] = (int(hits) + 1) / (permutations + 1)
    return p_values


def _as_far(differences: np.ndarray) -> float:
    """The observed sum, less what the order of an addition may change in it."""
    return float(np.abs(differences.sum()) - 1e-12 * np.abs(differences).sum())


def _random_bits(queries: int, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """`permutations` rows of 0 and 1, `[some, queries]` at a time."""
    rng = np.random.default_rng(seed)
    row_bytes = -(-queries // 8)
    at_once = max(_BITS_AT_ONCE // queries, 1)
    for start in range(0, permutations, at_once):
        rows = min(at_once, permutations - start)
        packed = np.frombuffer(rng.bytes(rows * row_bytes), np.uint8).reshape(rows, row_bytes)
        yield np.unpackbits(packed, axis=1, count=queries).astype(np.float64)


def _t_test(differences: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """Two-sided p-value, and the 95% confidence interval of the mean."""
    # scipy.stats takes a second to import.
    from scipy import stats

    if len(differences) == 1:
        return 1.0, None
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return (1.0 if mean == 0 else 0.0), (mean, mean)
    result = stats.ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    return float(result.pvalue), (float(interval.low), float(interval.high))


def _check(values: Mapping[str, np.ndarray]) -> None:
    lengths = {name: np.shape(of_run) for name, of_run in values.items()}
    if any(len(shape) != 1 or shape[0] == 0 for shape in lengths.values()) or len(set(lengths.values())) > 1:
        raise ValueError(f"values of the same queries are needed, one a query, and not of shapes {lengths}")
    for name, of_run in values.items():
        if not np.isfinite(of_run).all():
            raise ValueError(f"{name}: not all values are finite")
