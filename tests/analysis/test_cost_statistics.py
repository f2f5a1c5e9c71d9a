"""Accuracy over cost: fits against NumPy and SciPy, Pareto fronts, and groups of equal cost."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from analysis_runs import RAGGED, drawn
from scipy import stats

from mobilenet_jax.analysis.statistics import fit, group_by_cost, pareto


def single(*points):
    """Return (mult-adds, results) of configurations with one run each."""
    return [(mult_adds, {0: accuracy}) for mult_adds, accuracy in points]


def test_fit_by_hand():
    found = fit(single((1e6, 0.50), (2e6, 0.54), (4e6, 0.64), (8e6, 0.68)))
    assert found is not None
    assert found.slope.value == pytest.approx((3 * 0.18 + 0.10) / 10)  # over steps of -1.5, -0.5, 0.5, 1.5 doublings
    assert 100 * found.slope.value == pytest.approx(6.4)
    assert found.intercept + found.slope.value * math.log2(2e6 * math.sqrt(2)) == pytest.approx(0.59)
    assert found.residuals == pytest.approx((0.006, -0.018, 0.018, -0.006))
    assert found.residual_sd == pytest.approx(math.sqrt(0.00072 / 2))
    assert found.r_squared == pytest.approx(1 - 0.00072 / 0.0212)
    # s² = 0.00072 / 2 over Σ x² = 5 doublings², t(0.975, 2) = 4.302653
    half = 4.302653 * math.sqrt(0.00036 / 5)
    assert found.slope.interval == pytest.approx((0.064 - half, 0.064 + half))


def test_fit_of_single_runs_is_scipys_regression():
    rng = np.random.default_rng(0)
    points = [(float(m), float(y)) for m, y in zip(rng.uniform(1e6, 6e8, 9), rng.uniform(0.4, 0.8, 9), strict=True)]
    expected: Any = stats.linregress([math.log2(m) for m, _ in points], [y for _, y in points])
    found = fit(single(*points))
    assert found is not None
    assert (found.slope.value, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    assert found.r_squared == pytest.approx(expected.rvalue**2)
    assert found.residuals == pytest.approx([y - found.intercept - found.slope.value * math.log2(m) for m, y in points])
    assert sum(found.residuals) == pytest.approx(0, abs=1e-12)


def test_fit_of_several_seeds_is_that_of_all_runs():
    """NumPy's line over every run; its error comes from the misfit of the means, weighted by their runs."""
    series = drawn(RAGGED, seeds=0)
    points = [(1e6 * 2**i, row) for i, row in enumerate(series.values())]
    found = fit(points)
    runs = [(math.log2(m), y) for m, row in points for y in row.values()]
    design = np.array([[1, x] for x, _ in runs])
    intercept, slope = np.linalg.lstsq(design, np.array([y for _, y in runs]))[0]
    assert found is not None and (found.intercept, found.slope.value) == pytest.approx((intercept, slope))
    n, means = np.array([len(row) for _, row in points]), np.array([np.mean(list(row.values())) for _, row in points])
    around = np.sum(n * (means - np.average(means, weights=n)) ** 2)
    misfit = np.sum(n * np.square(found.residuals))
    assert found.r_squared == pytest.approx(1 - misfit / around)
    error = math.sqrt(misfit / (len(points) - 2) * np.linalg.inv(design.T @ design)[1, 1])
    half = stats.t.ppf(0.975, len(points) - 2) * error
    assert found.slope.interval == pytest.approx((slope - half, slope + half))


def test_fit_needs_three_costs():
    assert fit([]) is None
    assert fit(single((1e6, 0.5), (2e6, 0.6))) is None
    assert fit(single((1e6, 0.5), (2e6, 0.6), (2e6, 0.7), (1e6, 0.6))) is None
    assert fit(single(*((2**53 + i, 0.5) for i in (0, 2, 4)))) is None  # their logarithms are equal
    assert fit(single((1e6, 0.5), (1.2e6, 0.6), (1.4e6, 0.7))) is None  # too short a range
    flat = fit(single((1e6, 0.1), (2e6, 0.1), (4e6, 0.1)))
    assert flat is not None
    assert (flat.slope.value, flat.r_squared, flat.residual_sd) == pytest.approx((0, 0, 0), abs=1e-12)


def test_pareto():
    points = [(1, 5), (2, 4), (2, 7), (2, 7), (3, 7), (4, 9), (1, 5), (5, 8)]
    assert pareto(points, lambda p: p[0], lambda p: p[1]) == [(1, 5), (1, 5), (2, 7), (2, 7), (4, 9)]


def closest_first(mult_adds: dict[str, float], tolerance: float) -> list[list[str]]:
    """Join the neighbouring groups with the narrowest union while it is within the tolerance: complete linkage."""
    groups = [[name] for name in sorted(mult_adds, key=lambda name: mult_adds[name])]
    while len(groups) > 1:
        unions = [low + high for low, high in itertools.pairwise(groups)]
        width, i = min((mult_adds[names[-1]] / mult_adds[names[0]], i) for i, names in enumerate(unions))
        if width > 1 + tolerance:
            break
        groups[i : i + 2] = [unions[i]]
    return [names for names in groups if len(names) > 1]


def grouped(costs: dict[str, float], *tolerance: float) -> list[list[str]]:
    return group_by_cost(costs, lambda name: costs[name], *tolerance)


def test_equal_cost():
    costs = {"t6": 300.0, "alone": 50, "rho": 103, "alpha": 100, "t3": 300}
    assert grouped(costs) == [["alpha", "rho"], ["t6", "t3"]]  # 103 is just within 3 %
    assert grouped(costs, 0.029) == grouped(costs, 0) == [["t6", "t3"]]
    assert grouped({}) == grouped({"a": 1}) == []
    assert grouped({"a": 100, "b": 102.9, "c": 103.1}) == [["b", "c"]]
    assert grouped({"a": 1000, "b": 1010, "c": 1020, "d": 1025, "e": 1051}) == [["a", "b", "c", "d"]]
    assert grouped({"a": 64, "b": 66, "c": 68.0625}, 0.04) == [["a", "b"]]  # the cheaper of equal unions


def test_equal_cost_joins_the_closest_first():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, spread = rng.integers(1, 40), rng.choice([0.1, 1, 3])
        costs = {f"c{i}": float(c) for i, c in enumerate(1e6 * np.exp(rng.uniform(0, spread, size)))}
        tolerance = rng.choice([0, 0.01, 0.03, 0.1])
        groups = grouped(costs, tolerance)
        assert groups == closest_first(costs, tolerance)
        assert groups == grouped(dict(reversed(costs.items())), tolerance)
