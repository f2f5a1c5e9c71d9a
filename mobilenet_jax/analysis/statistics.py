"""Statistics of accuracies over seeds: differences with confidence intervals, log-linear fits, equal costs.

Accuracies are fractions (0.002 is 0.2 points). The results of a configuration map each seed to an accuracy.

Every interval covers one comparison. Of 20 comparisons of equal configurations, about one shows a difference by chance.
For m comparisons that hold together, pass `level=0.05 / m` (Bonferroni).
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

Results = Mapping[int, float]  # seed -> accuracy
Name = TypeVar("Name", bound=Hashable)
Item = TypeVar("Item")

_ROUNDING = 1e-12  # smaller differences are float rounding: one image of 50,000 is 2e-5


@dataclasses.dataclass(frozen=True)
class Spread:
    """A standard deviation, as a fraction of 1, and its degrees of freedom (at least 1)."""

    sd: float
    df: int

    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of `sd`: sd · √(df / χ²(0.975)) to sd · √(df / χ²(0.025))."""
        from scipy.special import chdtri

        low, high = (self.sd * math.sqrt(self.df / float(chdtri(self.df, p))) for p in (0.025, 0.975))
        return low, high


@dataclasses.dataclass(frozen=True)
class Difference:
    """The accuracy of b minus the accuracy of a, as fractions, with a confidence interval."""

    mean: float
    interval: tuple[float, float] | None  # None where no seed repeats
    n: int  # seeds that a and b share
    df: int  # degrees of freedom of the interval; 0 without an interval
    paired: bool  # whether the interval is that of differences seed by seed

    @property
    def verdict(self) -> str:
        """How b compares with a: 'higher', 'lower', 'no clear difference' (the interval holds 0) or 'no interval'."""
        if self.interval is None:
            return "no interval"
        low, high = self.interval
        return "higher" if low > _ROUNDING else "lower" if high < -_ROUNDING else "no clear difference"


def pooled_sd(groups: Iterable[Results]) -> Spread | None:
    """Return the pooled within-configuration standard deviation of a run; None without a repeated seed.

    s² = Σ (n_i - 1) s_i² / Σ (n_i - 1), over configurations of n_i ≥ 2 runs and variance s_i². The denominator is the
    degrees of freedom. Assumes equal variances and independent runs. Source: Box, Hunter and Hunter, Statistics for
    Experimenters, 2nd ed. (2005), section 4.1: within treatments.
    """
    runs = [list(group.values()) for group in groups if group]
    return _spread(sum(map(_squares, runs)), sum(len(values) - 1 for values in runs))


def paired_sd(series: Iterable[Results]) -> Spread | None:
    """Return the standard deviation of the difference between two runs of one seed; None without a repeated seed.

    The estimate uses all configurations of a series: accuracy = configuration + seed + noise, by least squares.
    s² = 2 × residual sum of squares / degrees of freedom, where 2 accounts for the noise of two runs. Assumes normal
    noise of equal variance. For k configurations with the same n seeds, s² is the mean of the variances of all paired
    differences, with (k - 1)(n - 1) degrees of freedom. Source: Box, Hunter and Hunter, Statistics for Experimenters,
    2nd ed. (2005), section 4.2: randomized blocks (the seeds).
    """
    rows = [row for row in series if len(row) > 1]  # a single run has no residual
    if not rows:
        return None
    import numpy as np

    seeds = sorted({seed for row in rows for seed in row})
    runs = [(i, seed) for i, row in enumerate(rows) for seed in row]
    design = np.array([[*(i == j for j in range(len(rows))), *(seed == s for s in seeds)] for i, seed in runs], float)
    accuracies = np.array([accuracy for row in rows for accuracy in row.values()])
    effects, _, rank, _ = np.linalg.lstsq(design, accuracies, rcond=1e-9)  # singular: an effect is free
    return _spread(2 * float(np.sum((accuracies - design @ effects) ** 2)), len(runs) - int(rank))


def difference(series: Mapping[Name, Results], a: Name, b: Name, level: float = 0.05) -> Difference:
    """Return mean(b) - mean(a) with a confidence interval whose noise is estimated from the whole series.

    If a and b have the same n seeds, the interval is paired: mean(d) ± t(1 - level / 2, df) · s / √n, where d are the
    differences seed by seed, and s and df are the `paired_sd` of the series. A series of two gives Student's paired t,
    which is wide with two or three seeds (two seeds: df 1, t 12.7). Six configurations with two seeds have df 5, t 2.6.

    Otherwise, or if that df is 0, it is mean(b) - mean(a) ± t · s · √(1 / n_a + 1 / n_b), where s and df are the
    `pooled_sd` of the series. This counts every run as independent: the interval is rather too wide if a and b share
    some seeds and a seed helps or harms both.

    Args:
      series: configuration -> results. Both intervals assume the same noise in all of it, so configurations that
        train on other data or for other epochs do not belong here.
      a, b: two keys of `series`.
      level: probability that the interval misses the true difference.
    """
    first, second = series[a], series[b]
    n = len(first.keys() & second.keys())
    mean = statistics.mean(second.values()) - statistics.mean(first.values())
    spread = paired_sd(series.values()) if first.keys() == second.keys() else None
    paired = spread is not None
    if spread is None and (spread := pooled_sd(series.values())) is None:
        return Difference(mean, None, n, 0, paired)
    error = 1 / math.sqrt(n) if paired else math.sqrt(1 / len(first) + 1 / len(second))
    half = _t(spread.df, level) * spread.sd * error
    return Difference(mean, (mean - half, mean + half), n, spread.df, paired)


def seeds_needed(sd: float, resolve: float = 0.002, power: float = 0.8, level: float = 0.05) -> int:
    """Return the seeds per configuration, at least 2, that show a true difference with the given power.

    This is the least n with P(T > t(1 - level / 2, n - 1)) ≥ power, where T is noncentral t with n - 1 degrees of
    freedom and noncentrality √n · resolve / sd, as in R's `power.t.test(type = "paired")`. The noise of a whole series
    has more degrees of freedom, so fewer seeds may do. Source: Cohen, Statistical Power Analysis for the Behavioral
    Sciences, 2nd ed. (1988), chapter 2.

    Args:
      sd: standard deviation of the paired differences (`paired_sd`).
      resolve: the true difference.
      power: probability of an interval that lies on the correct side of 0.
      level: as in `difference`.
    """
    if sd < _ROUNDING:
        return 2
    from scipy.stats import nct, norm, t

    quantiles = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    n = max(2, math.ceil((max(0.0, quantiles) * sd / resolve) ** 2))  # enough if `sd` were exact: a lower bound
    while nct.sf(t.ppf(1 - level / 2, n - 1), n - 1, math.sqrt(n) * resolve / sd) < power:
        n += 1
    return n


@dataclasses.dataclass(frozen=True)
class Slope:
    """The slope of accuracy on log2(mult_adds), of one line or the mean of several."""

    value: float  # per doubling of mult-adds
    error: float  # standard error of `value`
    df: int  # degrees of freedom of `error`; 0 for one line of two costs
    n: int  # points on all lines

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None without degrees of freedom."""
        if not self.df:
            return None
        half = _t(self.df, 0.05) * self.error
        return self.value - half, self.value + half


@dataclasses.dataclass(frozen=True)
class Fit:
    """A line, accuracy = intercept + slope · log2(mult_adds), over k configurations of n_i runs."""

    slope: Slope
    intercept: float
    residuals: tuple[float, ...]  # mean accuracy minus the line, by configuration
    residual_sd: float  # √(Σ residual² / (k - 2)): how far the configurations lie from the line
    r_squared: float  # of the means, weighted by n_i; 0 if all means are equal


def fit(points: Sequence[tuple[float, Results]]) -> Fit | None:
    """Return the least-squares line over pairs (mult-adds, results).

    None with fewer than three different costs, or if the largest cost is below 1.5 times the smallest: over so short a
    range a slope is noise.

    MobileNets (arXiv:1704.04861, section 4.2) reads its Figure 4 the same way: "log linear".
    """
    costs = {math.log2(mult_adds) for mult_adds, _ in points}
    if len(costs) < 3 or max(costs) - min(costs) < math.log2(1.5):
        return None
    means = [(mult_adds, statistics.mean(results.values()), len(results)) for mult_adds, results in points]
    x, y = zip(*((math.log2(mult_adds), mean) for mult_adds, mean, n in means for _ in range(n)), strict=True)
    line = slope(means)
    assert line  # there are three costs
    intercept = statistics.mean(y) - line.value * statistics.mean(x)
    residuals = tuple(mean - intercept - line.value * math.log2(mult_adds) for mult_adds, mean, _ in means)
    return Fit(
        slope=line,
        intercept=intercept,
        residuals=residuals,
        residual_sd=math.sqrt(math.fsum(r * r for r in residuals) / (len(points) - 2)),
        r_squared=statistics.correlation(x, y) ** 2 if min(y) < max(y) else 0.0,
    )


def slope(line: Sequence[tuple[float, float, int]]) -> Slope | None:
    """Return the least-squares slope of a line; None without two costs.

    The interval needs no repeated run: slope ± t(0.975, df) · s / √(Σ n x²), where s² = Σ n residual² / df, x is
    centred, and df = points - 2. Both noise and curvature widen it.

    Args:
      line: of each point, mult-adds, mean accuracy, and the number n of runs.
    """
    if not line:
        return None
    runs = [(math.log2(mult_adds), accuracy) for mult_adds, accuracy, n in line for _ in range(n)]
    x, y = (statistics.mean(values) for values in zip(*runs, strict=True))
    points = [(math.log2(mult_adds) - x, accuracy - y, n) for mult_adds, accuracy, n in line]
    squares = math.fsum(n * x * x for x, _, n in points)
    if squares < _ROUNDING:
        return None
    value, df = math.fsum(n * x * y for x, y, n in points) / squares, len(points) - 2
    misfit = math.fsum(n * (y - value * x) ** 2 for x, y, n in points)
    return Slope(value, math.sqrt(misfit / max(df, 1) / squares), df, len(points))


def mean_slope(lines: Iterable[Sequence[tuple[float, float, int]]]) -> Slope | None:
    """Return the mean of the slopes of several lines, or the slope of one; None if a line has none, or without lines.

    Of several lines, the interval is Student's for the mean of their slopes: it says how far the slope differs from
    line to line. Curvature that all lines share does not widen it.
    """
    found = [slope(line) for line in lines]
    if len(found) < 2:
        return found[0] if found else None
    slopes = [each for each in found if each]
    if len(slopes) < len(found):
        return None
    values = [each.value for each in slopes]
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Slope(statistics.mean(values), error, len(values) - 1, sum(each.n for each in slopes))


def pareto(points: Iterable[Item], cost: Callable[[Item], float], value: Callable[[Item], float]) -> list[Item]:
    """Return the Pareto front by increasing cost: points such that no other is as cheap, as good, and better in one."""
    front: list[Item] = []
    for p in sorted(points, key=lambda p: (cost(p), -value(p))):
        if not front or value(p) > value(front[-1]) or (cost(p), value(p)) == (cost(front[-1]), value(front[-1])):
            front.append(p)
    return front


def group_by_cost(items: Iterable[Item], cost: Callable[[Item], float], tolerance: float = 0.03) -> list[list[Item]]:
    """Return groups of items of equal cost, cheapest first, by complete linkage on the logarithm of the cost.

    Within a group the largest cost is at most (1 + tolerance) times the smallest. An item is in one group at most.
    Items without a partner are left out.
    """
    ordered = sorted(items, key=cost)
    if len(ordered) < 2:
        return []
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage([[math.log(cost(item))] for item in ordered], "complete")
    groups: dict[int, list[Item]] = {}
    for item, label in zip(ordered, fcluster(tree, math.log1p(tolerance) + _ROUNDING, "distance"), strict=True):
        groups.setdefault(label, []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _squares(values: Sequence[float]) -> float:
    """Return the sum of squares around the mean."""
    return (len(values) - 1) * statistics.variance(values) if len(values) > 1 else 0.0


def _spread(squares: float, df: int) -> Spread | None:
    if df < 1:
        return None
    sd = math.sqrt(squares / df)
    return Spread(sd if sd > _ROUNDING else 0.0, df)


def _t(df: int, level: float) -> float:
    """Return the quantile of Student's t at 1 - level / 2."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - level / 2))
