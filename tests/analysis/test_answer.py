"""The three sentences that lead the report."""

import re

from analysis_runs import COST, trained

from mobilenet_jax.analysis import tradeoffs
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.analysis.statistics import mean_slope
from mobilenet_jax.records.collect import read

V2 = {"model.version": "v2", "model.expansion": 6.0}


def answer(directory) -> tuple[str, ...]:
    return tradeoffs.page(group_runs(read([directory])[0]), []).sections[0].text


def test_all_three(tmp_path):
    for alpha, top1 in {0.25: (0.70, 0.71), 0.5: (0.80, 0.81), 1.0: (0.90, 0.91)}.items():
        trained(tmp_path, {"model.alpha": alpha}, top1, mult_adds=COST[alpha])
    for rho, top1 in {0.5: 0.60, 1.0: 0.70}.items():  # two resolutions make no slope
        trained(tmp_path, {"model.alpha": 0.3, "model.rho": rho}, (top1, top1 + 0.01), mult_adds=int(4e6 * rho))
    rival = {"model.alpha": 1.0, "model.rho": 0.5, **V2}
    trained(tmp_path, rival, (0.55, 0.56), mult_adds=COST[0.5] + 1000)
    doubling, equal, budgets = answer(tmp_path)
    assert re.search(r"5\.\d points of top-1 \[95 %: \d\.\d, \d\.\d\] by width \(v1, 3\.3 to 46 M\)", doubling)
    assert "resolution" not in doubling and "expansion" not in doubling and "epochs" not in doubling
    for t, top1 in {2.0: 0.6, 4.0: 0.7, 6.0: 0.8}.items():
        settings = V2 | {"model.expansion": t, "train.epochs": 4}
        trained(tmp_path, settings, (top1,), mult_adds=int(t * 1e6))
    assert "by expansion ratio (v2 α 0.25, 4 epochs, 2.0 to 6.0 M)" in answer(tmp_path)[0]
    assert "cifar10, 3 epochs" in equal and "v1 α 0.5 at 12 M (80.5 %, clearly above 1 of 1 others)" in equal
    assert re.findall(r"([\d.]+) % up to ([\d.]+) M", budgets) == [
        ("60.5", "2"),
        ("70.5", "5"),
        ("80.5", "20"),
        ("90.5", "50"),
    ]
    assert "cifar10, 3 epochs" in budgets


def test_series_of_the_largest_group_are_quoted(tmp_path):
    """Unless another one has more networks; the number of seeds counts less."""
    rhos = {0.5: 0.6, 0.75: 0.7, 1.0: 0.8}
    for alpha, epochs in {0.25: 3, 0.5: 9}.items():
        for rho, top1 in rhos.items():
            accuracies = (top1, top1 + 0.01) if epochs == 9 else (top1,)
            settings = {"model.alpha": alpha, "model.rho": rho, "train.epochs": epochs}
            trained(tmp_path, settings, accuracies, mult_adds=int(COST[alpha] * rho**2), epochs=epochs)
    trained(tmp_path, {"model.alpha": 1.0}, (0.9,), mult_adds=COST[1.0])
    assert "by resolution (v1 α 0.25, " in answer(tmp_path)[0]
    trained(tmp_path, {"model.alpha": 0.5, "model.rho": 0.25, "train.epochs": 9}, (0.5,), mult_adds=10**6, epochs=9)
    trained(tmp_path, {"model.alpha": 0.75}, (0.85,), mult_adds=2 * COST[0.5])
    assert "by resolution (v1 α 0.5" in answer(tmp_path)[0]


def test_several_groups_of_equal_cost(tmp_path):
    for cost, full in ((10**7, 0.9), (3 * 10**7, 0.7)):
        trained(tmp_path, {"model.alpha": cost / 1e8}, (0.8, 0.801), mult_adds=cost)
        trained(tmp_path, V2 | {"model.alpha": 1 + cost / 1e9}, (full, full + 0.001), mult_adds=cost)
    _, equal, _ = answer(tmp_path)
    best = [
        "v2 α 1.01 t 6 at 10 M (90.1 %, clearly above 1 of 1 others)",
        "v1 α 0.3 at 30 M (80.0 %, clearly above 1 of",
    ]
    assert [equal.index(text) for text in best] == sorted(equal.index(text) for text in best)
    for cost in range(4, 9):  # more groups than a sentence holds; a larger one stays
        for i in range(2):
            settings = {"model.alpha": cost / 10 + i / 100}
            trained(tmp_path, settings, (0.8,), mult_adds=cost * 10**7)
    trained(tmp_path, {"model.alpha": 0.83}, (0.81,), mult_adds=8 * 10**7)
    equal = answer(tmp_path)[1]
    assert equal.count("clearly") == 4 and "v1 α 0.83 at 80 M (81.0 %, clearly above 2 of 2 others)" in equal


def test_the_mean_slope_of_all_lines_is_quoted(tmp_path):
    """Of a grid, all networks count; a line that falls somewhere says so."""
    for rho in (0.5, 0.75, 1.0):
        for alpha, top1 in {0.25: 0.60, 0.5: 0.70, 1.0: 0.80}.items():
            settings = {"model.alpha": alpha, "model.rho": rho}
            trained(tmp_path, settings, (top1 + rho / 10,), mult_adds=int(4**alpha * 10**7 * rho**2))
    doubling, equal, _ = answer(tmp_path)
    assert "open" in equal
    assert "by width (v1 at 3 ρ, 3.5 to 40 M, up to 2.8-fold on a line)" in doubling
    assert "by resolution (v1 at 3 α, 3.5 to 40 M, up to 4.0-fold on a line)" in doubling
    lines = [
        [(4**alpha * rho**2, top1 + rho / 10, 1) for alpha, top1 in ((0.25, 0.6), (0.5, 0.7), (1, 0.8))]
        for rho in (0.5, 0.75, 1.0)
    ]
    slope = mean_slope(lines)
    assert slope and slope.interval
    low, high = slope.interval
    assert f"{100 * slope.value:.1f} points of top-1 [95 %: {100 * low:.1f}, {100 * high:.1f}] by width" in doubling
    assert "do not compare" not in doubling  # over the same networks, they do
    trained(tmp_path, {"model.alpha": 2.0, "model.rho": 0.5}, (0.7,), mult_adds=5 * 10**7)
    assert re.search(r"by width \(v1 at 3 ρ, 3.5 to 50 M, up to [\d.]+-fold on a line, not m", answer(tmp_path)[0])


def test_a_network_without_expanding_convolutions_is_on_no_line(tmp_path):
    for t, top1 in {1.0: 0.9, 2.0: 0.6, 4.0: 0.7, 6.0: 0.8}.items():
        trained(tmp_path, V2 | {"model.expansion": t}, (top1,), mult_adds=int(t * 1e6))
    assert "by expansion ratio (v2 α 0.25, 2.0 to 6.0 M)" in answer(tmp_path)[0]


def test_what_is_missing_is_said(tmp_path):
    trained(tmp_path, {"model.alpha": 0.25}, (0.7,), mult_adds=COST[0.25])
    doubling, equal, budgets = answer(tmp_path)
    assert "three networks" in doubling and "open" in equal and "70.0 % up to 5 M" in budgets
    trained(tmp_path, V2, (0.8,), mult_adds=COST[0.25] + 1)
    assert "v2 α 0.25 t 6 at 3.3 M (80.0 %, one seed each)" in answer(tmp_path)[1]
    (tmp_path / "none").mkdir()
    assert len(answer(tmp_path / "none")) == 1


def test_without_comparable_networks_the_longest_runs_lead(tmp_path):
    """And the best of these, which is neither the cheapest nor the first."""
    for i, (epochs, top1) in enumerate(((3, 0.999), (30, 0.95), (30, 0.99), (30, 0.97), (3, 0.998))):
        settings = {"model.alpha": 0.25 + i / 100, "train.epochs": epochs, "optim.lr": 0.1 + i / 100}
        trained(tmp_path, settings, (top1,), mult_adds=COST[0.25] + i)
    budgets = answer(tmp_path)[2]
    assert "30 epochs" in budgets and "99.0 % up to 5 M" in budgets and budgets.count("up to") == 1


def test_the_best_per_budget_are_few(tmp_path):
    """Four at most, the largest among them."""
    for i in range(1, 13):
        trained(tmp_path, {"model.alpha": i / 10}, (0.5 + i / 100,), mult_adds=10**5 * 2**i)
    budgets = answer(tmp_path)[2]
    assert budgets.count("up to") <= 4 and "up to 500 M (v1 α 1.2)" in budgets
