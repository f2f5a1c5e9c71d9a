"""What differs by more than the noise between seeds: numbers in, numbers out.

Accuracies are fractions (0.002 is 0.2 points); a configuration's results are a mapping from seed to accuracy.
`difference` compares two configurations of a series: paired by seed where they have the same ones, with the noise of
the whole series. Each interval holds by itself: of 20 comparisons of equals about one is told apart by chance. For m
that hold together, give `level=0.05 / m` (Bonferroni).
"""

import dataclasses
import itertools
import math
import operator
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Results = Mapping[int, float]  # seed -> accuracy
Name = TypeVar("Name", bound=Hashable)
Item = TypeVar("Item")

_ROUNDING = 1e-12  # of accuracy: less is the rounding of floats; one image of 50,000 is 2e-5


@dataclasses.dataclass(frozen=True)
class Spread:
    """A standard deviation (a fraction, as the accuracies) and its degrees of freedom, at least 1."""

    sd: float
    df: int

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """The confidence interval of `sd`: sd · √(df / χ²(1 - level / 2)) to sd · √(df / χ²(level / 2))."""
        from scipy.special import chdtri

        low, high = (self.sd * math.sqrt(self.df / float(chdtri(self.df, p))) for p in (level / 2, 1 - level / 2))
        return low, high


@dataclasses.dataclass(frozen=True)
class Difference:
    """Accuracy of b minus accuracy of a, with its confidence interval (fractions); no interval: None, and df 0.

    how: 'series', paired by seed with the noise of the whole series; 'paired', with that of the pairs alone; 'pooled',
    of two means, not paired; '' without an interval.
    """

    mean: float
    low: float | None
    high: float | None
    n: int  # seeds in common
    df: int
    how: str

    @property
    def verdict(self) -> str:
        """What b is beside a: 'higher', 'lower', 'cannot be told apart' (0 lies in the interval) or 'no interval'."""
        if self.low is None:
            return "no interval"
        if self.low > _ROUNDING:
            return "higher"
        if self.high is not None and self.high < -_ROUNDING:
            return "lower"
        return "cannot be told apart"

    @property
    def reason(self) -> str:
        """Why there is no interval; '' if there is one."""
        return "one seed each" if self.low is None else ""


def pooled_sd(groups: Iterable[Results]) -> Spread | None:
    """Of a run around its configuration's mean, pooled over configurations; None if none has two seeds.

    s² = Σ (n_i - 1) s_i² / Σ (n_i - 1) over configurations of n_i ≥ 2 runs and variance s_i²; the sum below is the
    degrees of freedom. It takes the variances as equal and the runs as independent. Source: Box, Hunter and Hunter,
    Statistics for Experimenters, 2nd ed. (2005), section 4.1: within treatments.
    """
    runs = [list(_checked(group).values()) for group in groups]
    return _spread(sum(map(_squares, runs)), sum(len(values) - 1 for values in runs if values))


def paired_sd(series: Iterable[Results]) -> Spread | None:
    """Of the difference between two configurations' runs of one seed, from all of a series; None if no seed repeats.

    Accuracy = configuration + seed + noise, by least squares; s² = 2 × residual sum of squares / degrees of freedom
    (runs less independent effects), 2 as a difference holds two runs' noise. It takes the noise as normal, of the same
    variance over the series. Of k configurations that all have the same n seeds s² is the mean of the variances of all
    pairs' differences, with (k - 1)(n - 1) degrees of freedom; of two, the variance of the paired differences. Source:
    Box, Hunter and Hunter, Statistics for Experimenters, 2nd ed. (2005), section 4.2: randomized blocks (the seeds).
    """
    rows = [row for row in map(_checked, series) if len(row) > 1]  # a lone run tells of no noise
    if not rows:
        return None
    from scipy.linalg import lstsq

    place = {seed: i for i, seed in enumerate(sorted({seed for row in rows for seed in row}))}
    # The normal equations of the seeds' effects, the configurations' being eliminated (their rows centred).
    left, right = [[0.0] * len(place) for _ in place], [0.0] * len(place)
    for row in rows:
        centre = statistics.mean(row.values())
        for seed, accuracy in row.items():
            right[place[seed]] += accuracy - centre
            left[place[seed]][place[seed]] += 1
            for other in row:
                left[place[seed]][place[other]] -= 1 / len(row)
    solution: Any = lstsq(left, right, cond=1e-9)  # singular: effects are known up to a constant
    effects, rank = solution[0], int(solution[2])
    squares = sum(_squares([accuracy - float(effects[place[seed]]) for seed, accuracy in row.items()]) for row in rows)
    return _spread(2 * squares, sum(len(row) - 1 for row in rows) - rank)


def difference(series: Mapping[Name, Results], a: Name, b: Name, level: float = 0.05) -> Difference:
    """Of two configurations of a series: mean(b) - mean(a), the noise estimated from all of the series.

    Where both have the same n seeds, paired: mean(d) ± t(1 - level / 2, df) · s / √n over the seeds' differences
    d = b - a, s and df being `paired_sd` of the series. Of a series of two it is Student's paired t: honest, but very
    wide with two or three seeds. Two seeds: df 1, t 12.7; six configurations of two seeds: df 5, t 2.6. The price is
    the assumption that noise has the same variance in all of the series: what trains differently (other data, other
    epochs) does not belong in it.

    Else, or where that df is 0: mean(b) - mean(a) ± t · s · √(1 / n_a + 1 / n_b), s and df being `pooled_sd` of the
    series. Each run counts as independent: too wide rather than too narrow, if some seeds are in both and a seed is
    good or bad for all. Where no configuration has two seeds: no interval.
    """
    if not (series[a] and series[b]):
        raise ValueError("a configuration without results cannot be compared")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    first, second = _checked(series[a]), _checked(series[b])
    mean = float(statistics.mean(second.values()) - statistics.mean(first.values()))
    n = len(first.keys() & second.keys())
    if first.keys() == second.keys() and (spread := paired_sd(series.values())):
        mean = float(statistics.mean([second[seed] - first[seed] for seed in first]))
        error, how = spread.sd / math.sqrt(n), "series" if spread.df > n - 1 else "paired"
    elif spread := pooled_sd(series.values()):
        error, how = spread.sd * math.sqrt(1 / len(first) + 1 / len(second)), "pooled"
    else:
        return Difference(mean, None, None, n, 0, "")
    from scipy.special import stdtrit

    half = float(stdtrit(spread.df, 1 - level / 2)) * error
    return Difference(mean, mean - half, mean + half, n, spread.df, how)


def seeds_needed(sd: float, resolve: float = 0.002, power: float = 0.8, level: float = 0.05) -> int:
    """Seeds a configuration, at least 2, with which a true difference of `resolve` is told apart, and the right way
    round, with probability `power`; `sd` is that of the paired differences (`paired_sd`).

    The least n with P(T > t(1 - level / 2, n - 1)) ≥ power, T being noncentral t with n - 1 degrees of freedom and
    noncentrality √n · resolve / sd: what R's `power.t.test(type = "paired")` solves. Of Student's paired t: with the
    noise of a whole series fewer may do. Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed.
    (1988), chapter 2.
    """
    if not (sd >= 0 and math.isfinite(sd) and resolve > 0 and math.isfinite(resolve)):
        raise ValueError(f"sd must be at least 0 and resolve above 0, both finite; got {sd} and {resolve}")
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must lie between 0 and 1; got {power} and {level}")
    if sd < _ROUNDING:
        return 2
    from scipy.stats import nct, norm, t

    quantiles = float(norm.ppf(1 - level / 2) + norm.ppf(power))
    n = max(2, math.ceil((max(0.0, quantiles) * sd / resolve) ** 2))  # were sd known: never too many
    while nct.sf(t.ppf(1 - level / 2, n - 1), n - 1, math.sqrt(n) * resolve / sd) < power:
        n += 1
    return n


@dataclasses.dataclass(frozen=True)
class Fit:
    """accuracy = intercept + slope · log2(mult_adds), over configurations of n_i runs and mean y_i at x_i.

    All are fractions of accuracy: the residuals y_i - ŷ_i (above the line: > 0) in the order of the configurations and
    their sd √(Σ r_i² / (k - 2)), which is the line's misfit; the slope's standard error s / √(Σ n_i (x_i - x̄)²), which
    is the seeds' alone, s being `noise` (None where no configuration has two). R² is 0 where all means are the same.
    """

    slope: float
    slope_error: float | None
    noise: Spread | None
    intercept: float
    residuals: tuple[float, ...]
    residual_sd: float
    r_squared: float

    @property
    def points_per_doubling(self) -> float:
        """The slope in points of top-1 (hundredths) per doubling of mult-adds."""
        return 100 * self.slope

    def interval(self, level: float = 0.05) -> tuple[float, float] | None:
        """The confidence interval of `points_per_doubling` over seeds: ± t(1 - level / 2, df) standard errors."""
        if self.noise is None or self.slope_error is None:
            return None
        from scipy.special import stdtrit

        half = 100 * float(stdtrit(self.noise.df, 1 - level / 2)) * self.slope_error
        return self.points_per_doubling - half, self.points_per_doubling + half

    def at(self, mult_adds: float) -> float:
        """The line's accuracy."""
        return self.intercept + self.slope * math.log2(mult_adds)


def fit(points: Sequence[tuple[float, Results]]) -> Fit | None:
    """Of (mult-adds, results), by least squares over all runs, as MobileNets (arXiv:1704.04861, section 4.2) reads its
    Figure 4: "log linear". None with fewer than three different mult-adds."""
    _check_costs(mult_adds for mult_adds, _ in points)
    results = [_checked(each) for _, each in points]
    x, y = [math.log2(mult_adds) for mult_adds, _ in points], [statistics.mean(each.values()) for each in results]
    if len(set(x)) < 3:
        return None
    n = [len(each) for each in results]
    middle, level = (math.fsum(map(operator.mul, n, each)) / sum(n) for each in (x, y))
    spread_x = math.fsum(w * (u - middle) ** 2 for w, u in zip(n, x, strict=True))
    spread_y = math.fsum(w * (v - level) ** 2 for w, v in zip(n, y, strict=True))
    slope = math.fsum(w * (u - middle) * (v - level) for w, u, v in zip(n, x, y, strict=True)) / spread_x
    residuals = tuple(v - level - slope * (u - middle) for u, v in zip(x, y, strict=True))
    noise = pooled_sd(results)
    return Fit(
        slope=slope,
        slope_error=noise and noise.sd / math.sqrt(spread_x),
        noise=noise,
        intercept=level - slope * middle,
        residuals=residuals,
        residual_sd=math.sqrt(math.fsum(r * r for r in residuals) / (len(points) - 2)),
        r_squared=1 - math.fsum(w * r * r for w, r in zip(n, residuals, strict=True)) / spread_y
        if min(y) < max(y)
        else 0.0,
    )


def pareto(points: Sequence[Item], cost: Callable[[Item], float], value: Callable[[Item], float]) -> list[Item]:
    """The points that no other one beats, in order of cost: none is as cheap and as good, and better in one."""

    def beaten(p: Item) -> bool:
        return any(
            cost(q) <= cost(p) and value(q) >= value(p) and (cost(q) < cost(p) or value(q) > value(p)) for q in points
        )

    return sorted((p for p in points if not beaten(p)), key=cost)


def equal_cost(mult_adds: Mapping[Name, float], tolerance: float = 0.03) -> list[tuple[Name, ...]]:
    """Configurations that cost the same, in groups of at least two, cheapest first: the largest of a group has at most
    (1 + tolerance) times the mult-adds of its smallest, and none is in two groups.

    Closest first (complete linkage): of all neighbouring groups the two whose union is narrowest are joined, the
    cheaper ones of equals, until no union is within the tolerance.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be at least 0 and finite; got {tolerance}")
    _check_costs(mult_adds.values())
    groups: list[tuple[Name, ...]] = [(name,) for name in sorted(mult_adds, key=lambda name: mult_adds[name])]
    while len(groups) > 1:
        unions = [low + high for low, high in itertools.pairwise(groups)]
        width, i = min((mult_adds[names[-1]] / mult_adds[names[0]], i) for i, names in enumerate(unions))
        if width > 1 + tolerance:
            break
        groups[i : i + 2] = [unions[i]]
    return [names for names in groups if len(names) > 1]


def _squares(values: Sequence[float]) -> float:
    """The sum of squares around the mean."""
    return (len(values) - 1) * float(statistics.variance(values)) if len(values) > 1 else 0.0


def _spread(squares: float, df: int) -> Spread | None:
    if df < 1:
        return None
    sd = math.sqrt(squares / df)
    return Spread(sd if sd > _ROUNDING else 0.0, df)


def _checked(results: Results) -> dict[int, float]:
    return dict(zip(results, _fractions(results.values()), strict=True))


def _fractions(accuracies: Iterable[float]) -> list[float]:
    found = [float(accuracy) for accuracy in accuracies]
    for accuracy in found:
        if not 0 <= accuracy <= 1:  # nan too
            raise ValueError(f"accuracies are fractions between 0 and 1; got {accuracy}")
    return found


def _check_costs(mult_adds: Iterable[float]) -> None:
    for cost in mult_adds:
        if not 0 < cost < math.inf:
            raise ValueError(f"mult-adds must be above 0 and finite; got {cost}")
