"""The tests of differences against scipy, worked examples and what p-values must be under the null hypothesis."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from prorank_jax.errors import InputError
from prorank_jax.evaluation.significance import Comparison, compare, holm, randomisation_test


def runs(queries: int, seed: int = 0, gain: float = 0.05) -> dict[str, np.ndarray]:
    """Values in [0, 1] of a run, a better one and one that often equals the first."""
    rng = np.random.default_rng(seed)
    first = rng.random(queries)
    return {
        "bm25": first,
        "better": np.clip(first + rng.normal(gain, 0.2, queries), 0, 1),
        "alike": np.where(rng.random(queries) < 0.5, first, rng.random(queries)),
    }


def by_pair(comparisons: list[Comparison]) -> dict[tuple[str, str], Comparison]:
    return {(comparison.run, comparison.baseline): comparison for comparison in comparisons}


@pytest.mark.parametrize("queries", [2, 12, 300])
def test_the_t_test_is_scipys(queries: int) -> None:
    values = runs(queries)
    for comparison in compare(values, permutations=10):
        reference = stats.ttest_rel(values[comparison.run], values[comparison.baseline])
        assert comparison.raw_t_test == pytest.approx(reference.pvalue, rel=1e-12)
        assert comparison.interval == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-9)
        assert comparison.interval and comparison.interval[0] < comparison.difference < comparison.interval[1]


def exhaustive(differences: np.ndarray) -> float:
    """The share of all sign flips as far from 0, one flip after another."""
    observed = abs(math.fsum(differences))
    sums = [
        abs(math.fsum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize("queries", [1, 2, 7, 12])
def test_few_queries_are_enumerated(queries: int) -> None:
    # Tenths, so that many flips are exactly as far as the observed one.
    differences = np.random.default_rng(queries).integers(-3, 5, queries) / 10
    (p,) = randomisation_test([differences], permutations=10, seed=0)
    assert p == pytest.approx(exhaustive(differences), rel=1e-12)
    if queries > 1:
        scipys = stats.permutation_test(
            (differences, np.zeros(queries)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert p == pytest.approx(min(scipys.pvalue, 1.0), rel=1e-12)


def test_queries_without_a_difference_do_not_count_towards_the_sixteen() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.4, -0.05] + [0.0] * 200)
    # Of 32 flips the observed one, that with the last sign turned, and their mirror images.
    assert randomisation_test([differences], permutations=10, seed=0) == [4 / 32]


def test_many_queries_are_sampled() -> None:
    # Seventeen differences: enumerated by hand, sampled by the test.
    rng = np.random.default_rng(3)
    close, far = rng.normal(0.0, 0.3, 17), rng.normal(0.1, 0.3, 17)
    permutations = 40_000
    estimates = randomisation_test([close, far], permutations, seed=0)
    flips = 1 - 2.0 * (np.arange(1 << 17)[:, None] >> np.arange(17) & 1)
    for differences, estimate in zip([close, far], estimates, strict=True):
        exact = float((np.abs(flips @ differences) >= abs(differences.sum()) - 1e-12).mean())
        assert 0.001 < exact < 0.9
        assert abs(estimate - exact) < 4 * math.sqrt(exact * (1 - exact) / permutations)
        assert (estimate * (permutations + 1)) % 1 == pytest.approx(0, abs=1e-6)


def test_no_flip_as_far_is_not_a_probability_of_0() -> None:
    assert randomisation_test([np.linspace(1, 2, 100)], permutations=99, seed=0) == [1 / 100]


def test_flips_come_in_blocks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(0.05, 0.3, 60)
    exact = randomisation_test([differences], 20_000, seed=1)[0]
    monkeypatch.setattr("prorank_jax.evaluation.significance._BITS_AT_ONCE", 60 * 7)
    blocks = randomisation_test([differences], 20_000, seed=1)[0]
    assert blocks == pytest.approx(exact, abs=0.02)
    assert blocks != 1 / 20_001


def test_the_seed_decides() -> None:
    values = runs(300)
    assert compare(values, permutations=500, seed=1) == compare(values, permutations=500, seed=1)
    p = {compare(values, permutations=500, seed=seed)[1].raw_randomisation for seed in range(5)}
    assert len(p) > 1


def test_both_tests_are_uniform_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(0)
    trials = [rng.normal(0, 0.2, 30) for _ in range(2000)]
    randomised = np.array(randomisation_test(trials, 2000, seed=0))
    t_tested = np.array([compare({"a": np.zeros(30), "b": t}, permutations=1)[0].raw_t_test for t in trials[:500]])
    for p_values in (randomised, t_tested):
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
        expected = 0.05 * len(p_values)
        assert abs((p_values <= 0.05).sum() - expected) < 3 * math.sqrt(expected)


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 not below the one before. Bonferroni would make 0.12 of 0.03.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_its_steps_reject() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        p_values = rng.random(rng.integers(1, 8)) ** 3
        rejected, remaining = set(), list(np.argsort(p_values))
        while remaining and p_values[remaining[0]] <= 0.05 / len(remaining):
            rejected.add(remaining.pop(0))
        assert {i for i, p in enumerate(holm(list(p_values))) if p <= 0.05} == rejected


def test_every_pair() -> None:
    values = runs(300)
    comparisons = compare(values, permutations=500)
    assert list(by_pair(comparisons)) == [("better", "bm25"), ("alike", "bm25"), ("alike", "better")]
    assert [c.randomisation for c in comparisons] == holm([c.raw_randomisation for c in comparisons])
    assert [c.t_test for c in comparisons] == holm([c.raw_t_test for c in comparisons])
    for comparison in comparisons:
        difference = values[comparison.run] - values[comparison.baseline]
        assert comparison.difference == pytest.approx(difference.mean(), abs=1e-15)
        assert comparison.wins == sum(difference > 0) and comparison.losses == sum(difference < 0)
        assert comparison.wins + comparison.losses + comparison.ties == 300
    assert comparisons[1].ties > 100


def test_each_against_a_baseline() -> None:
    values = runs(300)
    comparisons = compare(values, "better", permutations=500)
    assert list(by_pair(comparisons)) == [("bm25", "better"), ("alike", "better")]
    # A family of two, not of three.
    small, large = sorted(comparisons, key=lambda comparison: comparison.raw_t_test)
    assert small.t_test == 2 * small.raw_t_test
    assert large.t_test == max(small.t_test, large.raw_t_test)
    assert compare({"one": np.ones(3)}) == []


@pytest.mark.parametrize("queries", [10, 100])
def test_the_order_of_the_runs_changes_no_p_value(queries: int) -> None:
    values = runs(queries)
    forth = by_pair(compare(values, permutations=999))
    back = by_pair(compare(dict(reversed(values.items())), permutations=999))
    for (run, baseline), comparison in forth.items():
        mirrored = back[baseline, run]
        assert mirrored.difference == -comparison.difference
        assert (mirrored.wins, mirrored.losses) == (comparison.losses, comparison.wins)
        assert mirrored.randomisation == comparison.randomisation
        assert mirrored.t_test == pytest.approx(comparison.t_test, rel=1e-12)


def test_runs_that_are_equal() -> None:
    same = np.random.default_rng(0).random(40)
    (comparison,) = compare({"a": same, "b": same.copy()})
    assert comparison == Comparison("b", "a", 0.0, (0.0, 0.0), 0, 0, 40, 1.0, 1.0, 1.0, 1.0)


def test_a_difference_that_never_varies() -> None:
    (comparison,) = compare({"a": np.linspace(0, 0.5, 8), "b": np.linspace(0, 0.5, 8) + 0.1})
    assert comparison.raw_t_test == 0.0
    assert comparison.raw_randomisation == 2 / 256
    assert comparison.interval == pytest.approx((0.1, 0.1))


def test_a_single_query() -> None:
    (comparison,) = compare({"a": np.array([0.1]), "b": np.array([0.7])})
    assert comparison.interval is None
    assert (comparison.raw_t_test, comparison.raw_randomisation) == (1.0, 1.0)


@pytest.mark.parametrize(
    "other", [np.zeros(4), np.array([0.0, math.nan, 0.0]), np.zeros((3, 1)), np.array([0.0, math.inf, 0.0])]
)
def test_values_of_other_queries_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same queries|not all values are finite"):
        compare({"a": np.zeros(3), "b": other})


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(InputError, match="baseline 'bm52': no such run; give one of bm25, better, alike"):
        compare(runs(5), "bm52")
