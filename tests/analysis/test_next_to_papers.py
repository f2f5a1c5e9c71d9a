"""Our accuracies next to the papers': width and resolution, findings of the v2 paper, CIFAR-10."""

import math

import numpy as np
import pytest
from analysis_runs import COST, report_of, table_of, trained
from helpers import put
from scipy import stats

from mobilenet_jax.analysis.statistics import fit, mean_slope, slope
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.papers import printed

ALPHAS, RHOS = (0.25, 0.5, 1.0), (0.571, 0.714, 1.0)
V2 = {"model.version": "v2", "model.expansion": 6.0}


def cost(alpha: float, rho: float) -> int:
    return totals(arch.mobilenet_v1(alpha, num_classes=10, strides="cifar"), round(32 * rho)).mult_adds


def grid(directory, without=(), **changes):
    """Write runs whose accuracies, with two seeds, gain 2 points per doubling of α and 5 per doubling of ρ."""
    for alpha in ALPHAS:
        for rho in RHOS:
            if (alpha, rho) not in without:
                top1 = changes.get(f"{alpha}-{rho}", 0.7 + 0.02 * math.log2(alpha) + 0.05 * math.log2(rho))
                settings = {"model.alpha": alpha, "model.rho": rho, **changes.get("settings", {})}
                trained(directory, settings, (top1 - 0.001, top1 + 0.001), mult_adds=cost(alpha, rho))


def cells(table):
    """Return the rows of a table by their first two cells."""
    return {row[:2]: row[2:] for row in table.rows}


def test_the_matrix(tmp_path):
    """An empty cell is one without a run; each α has the published rows that exist."""
    grid(tmp_path, without=[(1.0, 0.571)])
    table = table_of(tmp_path, "alpha_rho_1")
    assert table.header == ("α", "whose", "ρ 1", "ρ 0.714", "ρ 0.571")
    assert table.title.endswith("v1, cifar10, 3 epochs, batch 128, SGD")
    found = cells(table)
    assert found["1", "ours"] == ("70.00 ± 0.14 (2)", "67.57 ± 0.14 (2)", "")
    assert found["1", "v1 paper"] == ("70.6", "67.2", "64.4") and found["0.25", "v1 paper"] == ("50.6", "", "")
    assert found["0.25", "TF-slim"] == ("49.8", "45.5", "41.5")
    assert table.note.endswith("Of 10 steps to the next larger α or ρ, 10 raise top-1.")


def test_the_published_cells_are_those_that_are_printed(tmp_path):
    grid(tmp_path)
    found = cells(table_of(tmp_path, "alpha_rho_1"))
    for row in printed.rows("paper_v1"):
        rho = round(int(row["resolution"] or 0) / 224, 3)
        if row["table"] in ("6", "7") and float(row["alpha"]) in ALPHAS and rho in RHOS:
            printed_row = found[f"{float(row['alpha']):g}", "v1 paper"]
            assert printed_row[RHOS[::-1].index(rho)] == row["top1"]


def test_a_step_that_does_not_raise_top1_is_named(tmp_path):
    grid(tmp_path, **{"0.5-0.714": 0.71})
    note = table_of(tmp_path, "alpha_rho_1").note
    assert "Of 12 steps" in note and "10 raise top-1. Not, or not clearly: " in note
    assert "v1 α 0.5 ρ 0.714 → v1 α 1 ρ 0.714: -3.43 [" in note and "v1 α 0.5 ρ 0.714 → v1 α 0.5: -3.00 [" in note


def test_points_lost_per_halving(tmp_path):
    """One line has the slope of `fit`, where each run counts; lines of fewer than three networks are left out."""
    grid(tmp_path, without=[(1.0, 0.571)], **{"0.5-1.0": 0.75})
    put(tmp_path / "third", {"model.alpha": 1.0, "seed": 2}, test_accuracy=0.7, mult_adds=cost(1.0, 1.0))
    found = cells(table_of(tmp_path, "halvings_1"))
    top1 = {0.25: [0.66] * 2, 0.5: [0.75] * 2, 1.0: [0.7] * 3}
    line = fit([(cost(a, 1.0), dict(enumerate(top1[a]))) for a in ALPHAS])
    assert line and found["width multiplier", "ρ 1"][0].startswith(f"{100 * line.slope.value:.2f} [")
    assert found["width multiplier", "ρ 0.571"][0] == ""  # two networks
    assert found["width multiplier", "all ρ"][0].endswith(" (6)")
    assert (
        found["resolution multiplier", "all α"][0].endswith(" (6)") and found["resolution multiplier", "α 1"][0] == ""
    )
    # Without ρ 0.857 and α 0.75: 3 of the papers' 4 rows each, and 9 of TF-slim's 16 networks.
    assert found["width multiplier", "ρ 1"][1].endswith(" (3)") and found["width multiplier", "all ρ"][2].endswith(
        " (9)"
    )
    published = [(0.25, 50.6), (0.5, 63.7), (1.0, 70.6)]
    theirs = fit([(totals(arch.mobilenet_v1(a), 224).mult_adds, {0: top1 / 100}) for a, top1 in published])
    assert theirs and found["width multiplier", "ρ 1"][1].startswith(f"{100 * theirs.slope.value:.2f} [")


def test_recipes_are_not_mixed_in_a_matrix(tmp_path):
    """The larger grid comes first; a grid of another variant has nothing published."""
    grid(tmp_path, without=[(1.0, 0.571), (0.5, 0.571)], settings={"optim.name": "rmsprop", "optim.lr": 0.01})
    grid(tmp_path)
    grid(tmp_path, without=[(1.0, 0.571)], settings={"model.variant": "shallow"})
    titles = [table_of(tmp_path, f"alpha_rho_{i}").title.partition(", batch 128, ")[2] for i in (1, 2, 3)]
    assert titles == ["SGD", "SGD, shallow", "RMSprop"]
    assert table_of(tmp_path, "alpha_rho_3").rows[3][2:] == ("68.00 ± 0.14 (2)", "65.57 ± 0.14 (2)", "")
    assert {row[1] for row in table_of(tmp_path, "alpha_rho_2").rows} == {"ours"}
    assert table_of(tmp_path, "halvings_2").header == ("along", "at", "ours")


def test_a_line_of_widths_is_no_grid(tmp_path):
    for alpha in ALPHAS:
        trained(tmp_path, {"model.alpha": alpha}, (0.7,), mult_adds=cost(alpha, 1.0))
    trained(tmp_path, {"model.alpha": 0.25, "model.rho": 0.714}, (0.6,), mult_adds=cost(0.25, 0.714))
    assert "Width and resolution, next to published ones" not in report_of(tmp_path)


def test_v2_has_no_table_in_the_v1_paper(tmp_path):
    """Only networks with t = 6 were released."""
    grid(tmp_path, settings=V2)
    grid(tmp_path, without=[(1.0, 0.571)], settings=V2 | {"model.expansion": 4.0})
    assert {row[1] for row in table_of(tmp_path, "alpha_rho_2").rows} == {"ours"}
    table = table_of(tmp_path, "alpha_rho_1")
    assert table.title.partition(": ")[2].startswith("v2 t 6, cifar10")
    assert "TF-slim: " in table.note and "v1 paper: " not in table.note
    assert cells(table)["1", "TF-slim"] == ("71.8", "68.8", "65.3") and ("1", "v1 paper") not in cells(table)


def test_a_step_that_noise_may_explain_is_named(tmp_path):
    grid(tmp_path, **{"0.5-0.714": 0.69})
    put(tmp_path / "far", {"model.alpha": 0.25, "model.rho": 0.571, "seed": 2}, test_accuracy=0.75)  # noise
    note = table_of(tmp_path, "alpha_rho_1").note
    assert "Not, or not clearly: " in note and "no clear difference" in note


def test_steps_of_one_seed_have_no_interval(tmp_path):
    for alpha in ALPHAS:
        for rho in (0.571, 0.714, 1.0):
            settings = {"model.alpha": alpha, "model.rho": rho}
            put(tmp_path / f"{alpha}-{rho}", settings, test_accuracy=alpha / 2 + rho / 4, mult_adds=cost(alpha, rho))
    assert table_of(tmp_path, "alpha_rho_1").note.endswith("Of 12 steps to the next larger α or ρ, 12 raise top-1.")


def test_slope():
    assert slope([]) is None and slope([(2, 0.5, 1), (2, 0.6, 1)]) is None
    two = slope([(2, 0.5, 1), (8, 0.7, 3)])
    assert two and (two.value, two.interval, two.n) == (pytest.approx(0.1), None, 2)
    bent = [(2, (0.1,)), (4, (0.4,) * 3), (8, (0.5,) * 2)]
    same, weighted = fit([(x, dict(enumerate(y))) for x, y in bent]), slope([(x, y[0], len(y)) for x, y in bent])
    assert same and weighted and weighted.value == pytest.approx(same.slope.value)
    # R: summary(lm(y ~ x)) of x = 1, 2, 3, 4 and y = 0.1, 0.3, 0.3, 0.6 has slope 0.15, standard error 0.0387, df 2.
    line = slope([(2.0**x, y, 1) for x, y in ((1, 0.1), (2, 0.3), (3, 0.3), (4, 0.6))])
    assert line and line.value == pytest.approx(0.15)
    assert line.interval == pytest.approx((0.15 - 4.302653 * 0.0387298, 0.15 + 4.302653 * 0.0387298), abs=1e-6)


def test_mean_slope():
    assert mean_slope([]) is None and mean_slope([[(2, 0.5, 1), (8, 0.7, 3)], [(2, 0.5, 1)]]) is None
    line = [(2.0**x, y, 1) for x, y in ((1, 0.1), (2, 0.3), (3, 0.3), (4, 0.6))]
    assert mean_slope([line]) == slope(line)
    several = [[(2.0**x, y * factor, 2) for x, y in ((1, 0.1), (2, 0.3), (4, 0.4))] for factor in (1, 1.2, 2)]
    found, values = mean_slope(several), [each.value for each in map(slope, several) if each]
    assert found and found.interval and found.n == 9
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.value, *found.interval) == pytest.approx((np.mean(values), expected.low, expected.high))


def test_findings_of_the_v2_paper(tmp_path):
    for shortcut, top1 in (("bottleneck", 0.8), ("none", 0.7)):
        trained(tmp_path, V2 | {"model.shortcut": shortcut}, (top1, top1 + 0.01))
    trained(tmp_path, V2 | {"model.expansion": 8.0}, (0.85,), mult_adds=9_000_000)
    rows = {row[0]: row[3:] for row in table_of(tmp_path, "v2_findings").rows}
    assert rows["shortcut: bottleneck → none"] == (
        *("v2 α 0.25 t 6, cifar10, 3 epochs", "2", "-10.00 [-10.00, -10.00]", "lower"),
    )
    assert rows["expansion: 6.0 → 8.0"][:2] == ("v2 α 0.25, cifar10, 3 epochs", "1")
    assert rows["bottleneck: linear → relu6"] == ("", "", "", "no runs")
    assert "several percent" in next(r[1] for r in table_of(tmp_path, "v2_findings").rows if "relu6" in r[0])


def test_no_findings_without_such_runs(tmp_path):
    put(tmp_path / "a", V2)
    put(tmp_path / "b", V2 | {"model.expansion": 2.0}, mult_adds=1_000_000)
    assert "Findings of the v2 paper" not in report_of(tmp_path)


def test_published_accuracies_of_the_same_network(tmp_path):
    """Another width or another data set is no match, unless the run is long."""
    same = {"model.alpha": 1.0, "model.strides": "cifar"}
    trained(tmp_path, same, (0.9,), mult_adds=COST[1.0], test_loss=0.345)
    trained(tmp_path, same | {"data.name": "cifar100"}, (0.6,), mult_adds=COST[1.0])
    trained(tmp_path, {"model.alpha": 0.25}, (0.79,), mult_adds=COST[0.25])
    theirs = ("v1 α 1, 46.4 M", "92.35", "", "best epoch", "350", "wurongyuan")
    (row,) = table_of(tmp_path, "published_cifar10").rows
    assert row == ("v1 α 1, 46.4 M", "90.00", "0.34", "1", "3", *theirs)
    long = {"model.alpha": 0.5, "model.strides": "cifar", "train.epochs": 60}
    trained(tmp_path, long, (0.91,), mult_adds=COST[0.5], epochs=60)
    rows = [row for row in table_of(tmp_path, "published_cifar10").rows if row[0] == "v1 α 0.5, epochs 60, 12.2 M"]
    assert rows[0][5:] == theirs
    assert [row[5:7] for row in rows[1:]] == [("v2 α 0.5, 28.0 M", "92.61"), ("v2 α 0.5, 28.0 M", "92.88")]
