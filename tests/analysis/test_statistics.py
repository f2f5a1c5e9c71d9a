"""Differences, spreads and numbers of seeds: against SciPy, least squares on dummies, and simulation."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from analysis_runs import RAGGED, drawn
from scipy import stats

from mobilenet_jax.analysis.statistics import Spread, difference, paired_sd, pooled_sd, seeds_needed

COMPLETE = {"a": range(4), "b": range(4), "c": range(4), "d": range(4), "e": range(4)}
APART = {"a": (0, 1), "b": (0, 1), "c": (7, 8, 9), "d": (7, 9), "e": (20, 21)}  # no seed links c, d or e to a, b


def least_squares(series: dict, a: str, b: str) -> tuple[float, float, float, int]:
    """Return b - a, its standard error, the residual variance and its degrees of freedom, by the pseudo-inverse."""
    runs = [(name, seed, y) for name, row in series.items() for seed, y in row.items()]
    names, seeds = list(series), sorted({seed for _, seed, _ in runs})
    design = np.array([[*(n == name for n in names), *(s == seed for s in seeds)] for name, seed, _ in runs], float)
    y = np.array([accuracy for _, _, accuracy in runs])
    inverse = np.linalg.pinv(design, rcond=1e-9)
    df = len(runs) - int(np.linalg.matrix_rank(design))
    variance = float(np.sum((y - design @ inverse @ y) ** 2)) / df
    contrast = np.array([(n == b) - (n == a) for n in names] + [0] * len(seeds), float)
    return float(contrast @ inverse @ y), math.sqrt(variance * np.sum((contrast @ inverse) ** 2)), variance, df


def assert_spread(found: Spread | None, sd: float, df: int) -> None:
    assert found is not None
    assert (found.sd, found.df) == (pytest.approx(sd), df)


def test_pooled_sd_by_hand():
    groups = [{0: 0.80, 1: 0.82}, {0: 0.70, 1: 0.72, 2: 0.74}, {0: 0.5}, {}]
    assert_spread(pooled_sd(groups), math.sqrt(0.001 / 3), 3)  # squares: 2 × 0.01² and 2 × 0.02²


def test_pooled_sd_is_the_variance_within_of_scipys_anova():
    series = drawn(RAGGED)
    groups: list[Any] = [list(row.values()) for row in series.values() if len(row) > 1]
    n, k = sum(map(len, groups)), len(groups)
    means = [np.mean(g) for g in groups for _ in g]
    between = np.sum((np.array(means) - np.mean(np.concatenate(groups))) ** 2) / (k - 1)
    spread = pooled_sd(series.values())
    assert spread is not None and spread.df == n - k
    assert between / spread.sd**2 == pytest.approx(stats.f_oneway(*groups).statistic)


@pytest.mark.parametrize("groups", [[], [{}], [{0: 0.5}, {1: 0.6}]])
def test_no_spread_without_a_second_seed(groups):
    assert pooled_sd(groups) is paired_sd(groups) is None


def test_paired_sd_of_two_is_that_of_their_differences():
    series = drawn({"a": range(5), "b": range(5)})
    d = [series["b"][s] - series["a"][s] for s in range(5)]
    assert_spread(paired_sd(series.values()), float(np.std(d, ddof=1)), 4)


def test_paired_sd_is_the_mean_variance_of_all_pairs_if_all_have_all_seeds():
    series = drawn(COMPLETE)
    pairs = [[q[s] - p[s] for s in range(4)] for p, q in itertools.combinations(series.values(), 2)]
    assert_spread(paired_sd(series.values()), math.sqrt(np.mean([np.var(d, ddof=1) for d in pairs])), 12)


@pytest.mark.parametrize("shape", [COMPLETE, RAGGED, APART])
def test_paired_sd_is_that_of_least_squares(shape):
    series = drawn(shape)
    _, _, variance, df = least_squares(series, "a", "b")
    assert_spread(paired_sd(series.values()), math.sqrt(2 * variance), df)
    assert_spread(paired_sd(reversed(series.values())), math.sqrt(2 * variance), df)


def test_paired_sd_needs_shared_seeds():
    assert paired_sd(drawn({"a": (0, 1), "b": (1, 2), "c": (3, 4)}).values()) is None
    around = drawn({"a": (0, 1), "b": (1, 2), "c": (2, 0)})  # a circle has 6 runs and 5 independent effects
    assert_spread(paired_sd(around.values()), math.sqrt(2 * least_squares(around, "a", "b")[2]), 1)


@pytest.mark.parametrize("level", [0.05, 0.01])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_series_of_two_is_students_paired_t(n, level):
    series = drawn({"a": range(n), "b": range(n)}, key=n)
    a, b = ([series[name][s] for s in range(n)] for name in "ab")
    expected: Any = stats.ttest_rel(b, a)
    found = difference(series, "a", "b", level)
    assert found.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(1 - level)))
    assert (found.n, found.df, found.paired) == (n, n - 1, True)
    assert (found.verdict == "no clear difference") == (expected.pvalue > level)


def test_the_reversed_difference():
    series = drawn(COMPLETE)
    one, other = difference(series, "a", "b"), difference(series, "b", "a")
    assert one.interval and other.interval
    assert (other.mean, *other.interval) == pytest.approx((-one.mean, -one.interval[1], -one.interval[0]))
    assert (one.verdict, other.verdict) == ("higher", "lower")


def test_a_series_by_hand():
    """Residuals of rows (after rows and columns are centred): ±0.001 in four cells, 0 in c."""
    series = {"a": {0: 0.500, 1: 0.510}, "b": {0: 0.524, 1: 0.530}, "c": {0: 0.700, 1: 0.708}}
    found = difference(series, "a", "b")
    half = 4.302653 * math.sqrt(2 * 4 * 0.001**2 / 2) / math.sqrt(2)  # t(0.975, 2)
    assert (found.mean, found.interval) == (pytest.approx(0.022), pytest.approx((0.022 - half, 0.022 + half)))
    assert (found.n, found.df, found.paired, found.verdict) == (2, 2, True, "higher")
    alone = difference({name: series[name] for name in "ab"}, "a", "b")  # d = 0.024, 0.020; t(0.975, 1)
    assert alone.interval and (alone.mean, alone.interval[0]) == pytest.approx((0.022, 0.022 - 12.706205 * 0.002))
    assert alone.verdict == "no clear difference"


@pytest.mark.parametrize("shape", [COMPLETE, RAGGED, APART])
def test_the_mean_and_its_error_are_those_of_least_squares(shape):
    series = drawn(shape)
    common = series["a"].keys() & series["b"].keys()
    cut = series | {name: {s: series[name][s] for s in common} for name in "ab"}
    mean, error, _, df = least_squares(cut, "a", "b")
    found = difference(cut, "a", "b")
    interval: Any = stats.t.interval(0.95, df, mean, error)
    assert (found.mean, found.interval) == (pytest.approx(mean), pytest.approx(tuple(interval)))
    assert (found.n, found.df) == (len(common), df)


TIMES = 3000  # three standard errors of a coverage of 0.95 are 0.012


def coverage(shape: dict, seeds: float) -> float:
    """Return how often the interval of b - a holds the true difference, 0.01 for each step between configurations."""
    true = 0.01 * (list(shape).index("b") - list(shape).index("a"))
    intervals = [difference(drawn(shape, key, seeds), "a", "b").interval for key in range(TIMES)]
    return sum(i is not None and i[0] <= true <= i[1] for i in intervals) / TIMES


@pytest.mark.parametrize(
    ("shape", "seeds"),
    [
        ({"a": (0, 1), "b": (0, 1), "c": (0, 1), "d": (0, 1)}, 0.02),
        ({"c": (0, 1, 2), "a": (0,), "d": (0, 1, 2), "b": (0,)}, 0.02),
        ({"a": (0, 1, 9), "c": (0, 2), "b": (0, 1, 9), "d": (1, 2)}, 0.02),
        ({"a": (0,), "c": (2, 3, 4), "b": (1, 5)}, 0),  # not paired, and runs are independent
    ],
)
def test_95_of_100_intervals_hold_the_truth(shape, seeds):
    assert coverage(shape, seeds) == pytest.approx(0.95, abs=0.012)


def test_unpaired_intervals_are_too_wide_if_seeds_matter():
    shape = {"a": (0, 1, 9), "c": (0, 1, 2), "b": (0, 1, 2), "d": (0, 1, 2)}
    assert coverage(shape, seeds=0.02) > 0.95
    series = drawn(shape)
    found = difference(series, "a", "b")
    assert not found.paired and found.n == 2
    assert found.mean == pytest.approx(np.mean(list(series["b"].values())) - np.mean(list(series["a"].values())))


def test_no_seed_in_common_is_students_t_of_two_means():
    series = drawn({"a": (0, 1, 2), "b": (3, 4)})
    a, b = (list(series[name].values()) for name in "ab")
    expected: Any = stats.ttest_ind(b, a)
    found = difference(series, "a", "b")
    assert found.mean == pytest.approx(np.mean(b) - np.mean(a))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.n, found.df, found.paired) == (0, 3, False)


def test_one_seed_each_takes_the_spread_of_others():
    series = {"a": {0: 0.50}, "b": {0: 0.60}, "c": {0: 0.70, 1: 0.72}}
    found = difference(series, "a", "b")
    half = 12.706205 * math.sqrt(0.0002) * math.sqrt(2)  # t(0.975, 1), the spread of c, 1 / 1 + 1 / 1
    assert (found.mean, found.interval) == (pytest.approx(0.1), pytest.approx((0.1 - half, 0.1 + half)))
    assert (found.n, found.df, found.paired) == (1, 1, False)
    paired = difference(series | {"d": {0: 0.71, 1: 0.74}}, "a", "b")  # the differences of c and d: 0.01 and 0.02
    assert (paired.n, paired.df, paired.paired) == (1, 1, True)
    assert paired.interval and paired.interval[1] == pytest.approx(0.1 + 12.706205 * math.sqrt(0.00005))


@pytest.mark.parametrize("b", [{0: 0.9}, {1: 0.9}])
def test_one_seed_each_and_nothing_else(b):
    found = difference({"a": {0: 0.5}, "b": b}, "a", "b")
    assert (found.mean, found.interval, found.n) == (pytest.approx(0.4), None, len(b.keys() & {0}))
    assert (found.df, found.paired, found.verdict) == (0, False, "no interval")


@pytest.mark.parametrize(("step", "verdict"), [(0.0, "no clear difference"), (0.02, "higher"), (-0.02, "lower")])
def test_without_variance_the_sign_decides(step, verdict):
    a = {0: 0.82, 1: 0.71, 2: 0.63}
    paired = difference({"a": a, "b": {seed: y + step for seed, y in a.items()}}, "a", "b")
    pooled = difference({"a": {0: 0.1, 1: 0.1, 2: 0.1}, "b": {3: 0.1 + step}}, "a", "b")
    for found in (paired, pooled):
        assert found.mean == pytest.approx(step)
        assert found.interval == (found.mean, found.mean)
        assert found.verdict == verdict


def test_float_rounding_is_no_difference():
    series = {"a": {0: 0.3, 1: 0.3}, "b": {0: 0.1 + 0.2, 1: 0.1 + 0.2}}
    found = difference(series, "a", "b")
    assert found.interval == (found.mean, found.mean) and found.mean != 0
    assert found.verdict == difference(series, "b", "a").verdict == "no clear difference"


def power(n: int, effect: float, level: float = 0.05, times: int = 100_000) -> float:
    """Return how often Student's paired t of n normal differences, `effect` standard deviations above 0, is higher."""
    rng = np.random.default_rng(n)  # mean and variance of n normal numbers are independent: normal, and χ²
    t = rng.normal(effect * math.sqrt(n), 1, times) / np.sqrt(rng.chisquare(n - 1, times) / (n - 1))
    return float(np.mean(t > stats.t.ppf(1 - level / 2, n - 1)))


@pytest.mark.parametrize(("sd", "wanted"), [(0.001, 0.8), (0.002, 0.8), (0.004, 0.8), (0.002, 0.95)])
def test_seeds_needed_by_simulation(sd, wanted):
    """The number suffices, and one seed fewer does not; 0.004 is three standard errors of 100,000 draws."""
    n = seeds_needed(sd, power=wanted)
    assert power(n, 0.002 / sd) > wanted - 0.004
    assert power(n - 1, 0.002 / sd) < wanted + 0.004
    assert power(n - 1, 0.002 / sd) < power(n, 0.002 / sd) - 0.004


def test_seeds_needed_as_published():
    """The one-sided example of G*Power's guide ("Difference from constant": means 10 and 15, sd 8): 30."""
    assert seeds_needed(8, resolve=5, power=0.95, level=0.10) == 30
    assert [seeds_needed(1, resolve=d) for d in (0.2, 0.5, 0.8, 1)] == [199, 34, 15, 10]


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0) == seeds_needed(1e-9) == 2
    needed = [seeds_needed(sd) for sd in (0.0001, 0.0005, 0.001, 0.002, 0.01)]
    assert needed == sorted(set(needed))
    assert seeds_needed(1, resolve=0.001) == pytest.approx(7.8489e6, rel=1e-4)  # (1.95996 + 0.84162)² × 10⁶
    assert seeds_needed(0.01, power=0.01, level=0.5) == 2  # a power below chance


def test_the_interval_of_a_standard_deviation_holds_the_truth():
    rng = np.random.default_rng(0)
    low, high = zip(*(Spread(float(sd), 4).interval() for sd in rng.normal(size=(4000, 5)).std(1, ddof=1)), strict=True)
    assert np.mean((np.array(low) < 1) & (np.array(high) > 1)) == pytest.approx(0.95, abs=0.011)
    assert Spread(0.0067, 2).interval() == pytest.approx((0.00349, 0.0421), rel=0.01)
