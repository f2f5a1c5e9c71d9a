"""Accuracy against cost: comparable groups, fits, doublings, equal cost, published accuracies, curves."""

import itertools
import re
import types
from typing import Any

import numpy as np
import pytest
from analysis_runs import COST, report_of, trained
from helpers import put

from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.analysis.statistics import difference, fit
from mobilenet_jax.analysis.tradeoffs import comparable, compare_with_best
from mobilenet_jax.records.collect import read
from mobilenet_jax.render.tables import Section

RECIPE = "cifar10, 3 epochs, batch 128, SGD"
WIDTHS = {0.25: (0.78, 0.79), 0.5: (0.85, 0.86), 1.0: (0.92, 0.93)}  # two seeds; equal gains per doubling


@pytest.fixture(scope="module")
def widths(tmp_path_factory) -> dict[str, Section]:
    """Return the report of three widths with two seeds each."""
    directory = tmp_path_factory.mktemp("widths")
    for alpha, accuracies in WIDTHS.items():
        trained(directory, {"model.alpha": alpha, "model.strides": "cifar"}, accuracies, mult_adds=COST[alpha])
    return report_of(directory)


def test_sections_in_order(widths):
    assert list(widths) == [
        "",  # the answer
        f"Accuracy against cost: {RECIPE}",
        "Knob by knob",
        "Over width multiplier",
        "Next to published accuracies",
        "Training curves",
        "Configurations",
        "Recipes",
    ]


def test_every_picture_can_be_drawn(widths):
    pictures = {p.name: p.draw() for section in widths.values() for p in section.pictures}
    assert list(pictures) == ["accuracy_mult_adds_1", "accuracy_params_1", "over_alpha", "curves_1"]
    assert all(figure.axes for figure in pictures.values())
    (axes,) = pictures["accuracy_mult_adds_1"].axes
    points = sorted({tuple(x) for line in axes.lines for x in zip(*line.get_data(), strict=True)})
    for alpha, mean in {0.25: 78.5, 0.5: 85.5, 1.0: 92.5}.items():
        assert any(x == pytest.approx(COST[alpha] / 1e6) and y == pytest.approx(mean) for x, y in points)
    assert axes.get_xlabel() == "mult-adds (millions)"
    (axes,) = pictures["accuracy_params_1"].axes
    assert axes.get_xlabel() == "trainable params (millions)"


def test_only_one_recipe_is_compared(tmp_path):
    """Other epochs, rates or bottlenecks make another group; width, resolution, t and version do not."""
    for alpha in (0.25, 0.5, 1.0):
        trained(tmp_path, {"model.alpha": alpha}, (0.8,), mult_adds=COST[alpha])
    trained(tmp_path, {"model.alpha": 0.25, "train.epochs": 4}, (0.8,), mult_adds=COST[0.25])
    trained(tmp_path, {"model.alpha": 0.25, "optim.lr": 0.123}, (0.8,), mult_adds=COST[0.25])
    v2 = {"model.version": "v2", "model.alpha": 0.5, "model.expansion": 4.0}
    trained(tmp_path, v2, (0.9,), mult_adds=25_000_000)
    trained(tmp_path, v2 | {"model.bottleneck": "relu6"}, (0.9,), mult_adds=25_000_000)
    ((title, group),) = comparable(group_runs(read([tmp_path])[0]))
    assert title == RECIPE
    assert [c.label for c in group] == ["v1 α 0.25", "v1 α 0.5", "v2 α 0.5 t 4", "v1 α 1"]


def test_optimisers_are_told_apart(tmp_path):
    """Groups, fits, slopes, switches, and the slopes and budgets of the answer are of one optimiser, and say which."""
    other = {"optim.name": "rmsprop", "optim.lr": 0.02}
    for alpha, accuracies in WIDTHS.items():
        trained(tmp_path, {"model.alpha": alpha}, accuracies, mult_adds=COST[alpha])
        trained(tmp_path, {"model.alpha": alpha, **other}, [a - 0.03 for a in accuracies], mult_adds=COST[alpha])
        rival = {"model.version": "v2", "model.alpha": alpha, "model.expansion": 6.0, **other}
        trained(tmp_path, rival, (0.6, 0.61), mult_adds=COST[alpha] + 1)
    found = report_of(tmp_path)
    tables = {table.name: table for section in found.values() for table in section.tables}
    names = [(name, title) for name in ("RMSprop", "SGD") for title in found if title.endswith(f"batch 128, {name}")]
    assert [name for name, _ in names] == ["RMSprop", "SGD"]
    for name, title in names:
        fits = [t for t in found[title].tables if t.name.startswith(("fit", "equal_cost"))]
        assert fits and all(name in "".join(row) for t in fits for row in t.rows)
    assert [row[1].split(", ")[1] for row in tables["doublings"].rows] == ["RMSprop", "SGD", "RMSprop"]
    changes = [row for row in tables["changes"].rows if row[0].startswith("optimizer")]
    assert [(row[0], row[1].split(",")[0], row[3], row[4]) for row in changes] == [
        ("optimizer: rmsprop → sgd", f"v1 α {alpha:g}", "+3.00 [+3.00, +3.00]", "higher") for alpha in WIDTHS
    ]
    doubling, _, budgets = found[""].text
    assert re.search("by width \\(v[12](?: t 6)?, (?:SGD|RMSprop), ", doubling)
    assert "batch 128, RMSprop)" in budgets and "SGD" not in budgets  # the largest group
    assert budgets.count("RMSprop") == 1


def test_the_fit(widths):
    table = next(t for t in widths[f"Accuracy against cost: {RECIPE}"].tables if t.name == "fit_v1_1")
    assert [row[0] for row in table.rows] == ["v1 α 0.25", "v1 α 0.5", "v1 α 1"]
    assert [row[2] for row in table.rows] == ["78.50 ± 0.71", "85.50 ± 0.71", "92.50 ± 0.71"]
    assert all(float(row[3]) + float(row[4]) == pytest.approx(float(row[2][:5]), abs=0.011) for row in table.rows)
    assert re.search(r"3.69 \[3.\d\d, 4.\d\d\] points per doubling", table.note)


def test_the_gain_per_doubling(widths):
    ((row,),) = (table.rows for table in widths["Knob by knob"].tables)
    assert row[:4] == ("width multiplier, 0.25 to 1", "v1, cifar10, 3 epochs", "3.33 to 46.35", "3")
    line = fit([(COST[alpha], dict(enumerate(accuracies))) for alpha, accuracies in WIDTHS.items()])
    assert line and line.slope.interval
    assert row[4:] == (
        f"3.69 [{100 * line.slope.interval[0]:.2f}, {100 * line.slope.interval[1]:.2f}]",
        f"{100 * line.residual_sd:.2f}",
    )


def test_equal_cost(tmp_path):
    """Three networks lie within 3 % and are compared with the best of them; the fourth costs more."""
    found = {
        "v1": ({"model.alpha": 0.5}, (0.85, 0.86), 12_171_776),
        "v2": ({"model.version": "v2", "model.alpha": 0.52, "model.expansion": 2.0}, (0.90, 0.91), 12_180_000),
        "rho": ({"model.alpha": 0.68, "model.rho": 0.625}, (0.84, 0.86), 11_950_000),
        "expensive": ({"model.alpha": 1.0}, (0.92, 0.91), 46_354_432),
    }
    for settings, accuracies, mult_adds in found.values():
        trained(tmp_path, settings | {"model.strides": "cifar"}, accuracies, mult_adds=mult_adds)
    section = report_of(tmp_path)[f"Accuracy against cost: {RECIPE}"]
    (table,) = (table for table in section.tables if table.name == "equal_cost_1")
    assert [row[:2] for row in table.rows] == [
        ("12.18", "v2 α 0.52 t 2"),
        ("12.17", "v1 α 0.5"),
        ("11.95", "v1 α 0.68 ρ 0.625"),
    ]
    assert table.rows[0][5] == "best"
    assert table.rows[1][5].startswith("-5.00 [") and table.rows[1][6] == "lower"
    series = {name: dict(enumerate(accuracies)) for name, (_, accuracies, _) in found.items() if name != "expensive"}
    one = difference(series, "v2", "v1", 0.05)  # one-sided, of two comparisons
    assert one.interval and f"[{100 * one.interval[0]:+.2f}, " in table.rows[1][5]
    lower = sum(row[6] == "lower" for row in table.rows)
    assert f"the best of 3 is v2 α 0.52 t 2 (90.50 ± 0.71 %); {lower} of the others" in table.note
    (axes,) = section.pictures[-1].draw().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"{row[1]} ({float(row[0]):.1f} M)" for row in table.rows]


def test_single_runs_at_equal_cost_are_compared_by_the_noise_of_other_costs(tmp_path):
    trained(tmp_path, {"model.alpha": 0.25}, (0.780, 0.782, 0.781), mult_adds=3_331_072)
    trained(tmp_path, {"model.alpha": 0.5}, (0.86,), mult_adds=12_171_776)
    trained(tmp_path, {"model.alpha": 0.68, "model.rho": 0.625}, (0.84,), mult_adds=11_950_000)
    section = report_of(tmp_path)[f"Accuracy against cost: {RECIPE}"]
    (table,) = (table for table in section.tables if table.name == "equal_cost_1")
    assert [row[6] for row in table.rows] == ["", "lower"]


def test_the_truly_best_is_seldom_called_lower():
    """Any of five equal networks counts as the best; the first of them is called lower in at most 5 of 100 cases."""

    def network(label: str, accuracies: list[float]) -> Any:
        return types.SimpleNamespace(label=label, mean=sum(accuracies), accuracies=dict(enumerate(accuracies)))

    random, called = np.random.default_rng(0), 0
    for _ in range(1500):
        networks = [network(str(i), (0.5 + 0.01 * random.normal(size=3)).tolist()) for i in range(5)]
        networks.sort(key=lambda c: -c.mean)
        found = zip(networks[1:], compare_with_best(networks, networks), strict=True)
        called += any(c.label == "0" and d.verdict == "lower" for c, d in found)
    assert 0.02 < called / 1500 < 0.06


def test_the_number_of_figures_of_curves_is_limited(tmp_path):
    for i in range(54):
        put(tmp_path / str(i), {"optim.lr": 0.1 + i / 100})
    curves = report_of(tmp_path)["Training curves"]
    assert len(curves.pictures) == 8
    assert curves.text[0].startswith("6 more configurations are not drawn")


def test_a_figure_of_curves_has_one_number_of_epochs(tmp_path):
    for i, epochs in enumerate((3, 9, 3, 9)):
        put(tmp_path / str(i), {"train.epochs": epochs, "model.alpha": 0.25 * (i + 1)}, mult_adds=1000 * (i + 1))
    captions = [p.caption.rpartition("seed: ")[2] for p in report_of(tmp_path)["Training curves"].pictures]
    assert captions == ["v1 α 0.25; v1 α 0.75", "v1 α 0.5, epochs 9; v1 α 1, epochs 9"]


def test_titles_name_the_settings_in_which_groups_differ(tmp_path):
    for i, (alpha, decay) in enumerate(itertools.product((0.25, 0.5), (1e-4, 4e-5))):
        put(tmp_path / f"{i}", {"model.alpha": alpha, "optim.weight_decay": decay}, mult_adds=COST[alpha])
        put(tmp_path / f"s{i}", {"model.alpha": alpha, "model.variant": "shallow"}, mult_adds=COST[alpha] + i // 2)
    titles = [title.partition(": ")[2] for title in report_of(tmp_path) if title.startswith("Accuracy")]
    assert sorted(titles) == [f"{RECIPE}, shallow", f"{RECIPE}, weight_decay 0.0001", f"{RECIPE}, weight_decay 4e-05"]


def test_the_largest_groups_have_figures(tmp_path):
    for i in range(10):
        for alpha in (0.25, 0.5, 1.0)[: 2 + (i == 9)]:
            put(tmp_path / f"{i}-{alpha}", {"model.alpha": alpha, "optim.lr": i / 10 + 0.05}, mult_adds=COST[alpha])
    pictures = [[picture.name for picture in s.pictures] for t, s in report_of(tmp_path).items() if "against cost" in t]
    assert pictures[0] == ["accuracy_params_1"]  # of the largest; its other figure leads
    assert [len(names) for names in pictures] == [1, *[2] * 7, 0, 0]


def test_trials_on_held_out_images_have_a_table_of_their_own(tmp_path):
    """They count nowhere else, except in the data, unless there is nothing else."""
    for i, (lr, val) in enumerate(((0.1, 0.70), (0.2, 0.75), (0.3, 0.72))):
        settings = {"data.holdout": 0.1, "optim.lr": lr}
        put(tmp_path / "trials" / f"{i}", settings, val_accuracy=val, test_accuracy=0.9)
    put(tmp_path / "trials" / "sgd", {"data.holdout": 0.1, "seed": 1}, val_accuracy=0.68)  # another seed of the first
    assert "Over optim.lr" in report_of(tmp_path)
    trained(tmp_path, {"optim.lr": 0.2}, (0.8, 0.81))
    found = report_of(tmp_path)
    assert "Over optim.lr" not in found and len(found["Configurations"].tables[0].rows) == 1
    assert len(found["Configurations"].data[0].rows) == 6
    (table,) = found["Trials on held-out images"].tables
    assert table.header == ("network", "lr", "validation top-1, %", "n")
    assert [row[1:] for row in table.rows] == [("0.2", "75.00", "1"), ("0.3", "72.00", "1"), ("0.1", "69.00", "2")]


def test_trials_differ_in_keys_that_some_networks_lack(tmp_path):
    put(tmp_path / "v1", {"data.holdout": 0.1}, val_accuracy=0.5, mult_adds=1)
    for i, bottleneck in enumerate(("linear", "relu6")):
        settings = {"data.holdout": 0.1, "model.version": "v2", "model.bottleneck": bottleneck}
        put(tmp_path / f"{i}", settings, val_accuracy=0.6 + i / 10, version="v2", expansion=6.0)
    (table,) = report_of(tmp_path)["Trials on held-out images"].tables
    assert table.header[1] == "bottleneck" and [row[1] for row in table.rows] == ["", "relu6", "linear"]


def test_trials_name_random_weights(tmp_path):
    for weights, val in (({}, 0.7), ({"model.weights": "c7884024"}, 0.8)):
        put(tmp_path / f"{val}", {"data.holdout": 0.1} | weights, val_accuracy=val)
    (table,) = report_of(tmp_path)["Trials on held-out images"].tables
    assert [row[1] for row in table.rows] == ["c7884024", "random"]


def test_titles_name_random_weights(tmp_path):
    for i, (alpha, weights) in enumerate(itertools.product((0.25, 0.5), ({}, {"model.weights": "c7884024"}))):
        put(tmp_path / f"{i}", {"model.alpha": alpha} | weights, mult_adds=COST[alpha])
    titles = {title.rpartition(", ")[2] for title in report_of(tmp_path) if title.startswith("Accuracy")}
    assert titles == {"weights random", "weights c7884024"}


def test_problems_have_their_section(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    found = report_of(tmp_path)
    assert list(found) == ["", "Left out, or counted in part", "Configurations"]
    assert found["Left out, or counted in part"].tables[0].rows[0][1].startswith("summary.json is damaged")
    assert found[""].text == ("No run has finished.",) and not found["Configurations"].tables
