"""Configurations set beside each other: what is comparable, fits, differences, equal cost, curves, published ones."""

import itertools
import re
import types
from typing import Any

import numpy as np
import pytest
from helpers import put

from mobilenet_jax.analysis import configurations as grouping
from mobilenet_jax.analysis import statistics as noise
from mobilenet_jax.analysis import tradeoffs
from mobilenet_jax.networks.arch import mobilenet_v1
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.records import collect as runs

COST = {alpha: totals(mobilenet_v1(alpha, num_classes=10, strides="cifar"), 32).mult_adds for alpha in (0.25, 0.5, 1.0)}


def trained(directory, settings, accuracies, **summary):
    """A configuration's runs, seed by seed."""
    for seed, accuracy in enumerate(accuracies):
        name = "-".join(f"{value}" for value in settings.values())
        put(directory / f"{name}-s{seed}", settings | {"seed": seed}, test_accuracy=accuracy, **summary)


def sections(directory) -> dict[str, tradeoffs.Section]:
    found, problems = runs.read([directory])
    return {s.title: s for s in tradeoffs.sections(grouping.configurations(found), problems)}


def table(directory, name: str):
    return next(t for s in sections(directory).values() for t in s.tables if t.name == name)


@pytest.fixture
def widths(tmp_path):
    """Three widths, two seeds each; each doubling of the mult-adds gives about the same."""
    for alpha, accuracies in {0.25: (0.78, 0.79), 0.5: (0.85, 0.86), 1.0: (0.92, 0.93)}.items():
        trained(tmp_path, {"model.alpha": alpha, "model.strides": "cifar"}, accuracies, mult_adds=COST[alpha])
    return tmp_path


def test_sections_in_order(widths):
    assert list(sections(widths)) == [
        "Configurations",
        "Knob by knob",
        "Accuracy against cost: cifar10, 3 epochs, batch 128",
        "Over width multiplier",
        "Beside published accuracies",
        "Training curves",
    ]
    pictures = [p.name for s in sections(widths).values() for p in s.pictures]
    assert pictures == ["accuracy_mult_adds_1", "accuracy_params_1", "over_alpha", "curves_1"]


def test_every_picture_can_be_drawn(widths):
    for section in sections(widths).values():
        for picture in section.pictures:
            assert picture.draw().axes, picture.name


def test_what_is_drawn(widths):
    (axes,) = sections(widths)["Accuracy against cost: cifar10, 3 epochs, batch 128"].pictures[0].draw().axes
    points = sorted({tuple(x) for line in axes.lines for x in zip(*line.get_data(), strict=True)})
    for alpha, mean in {0.25: 78.5, 0.5: 85.5, 1.0: 92.5}.items():
        assert any(x == pytest.approx(COST[alpha] / 1e6) and y == pytest.approx(mean) for x, y in points)
    assert axes.get_xlabel() == "mult-adds (millions)"
    (axes,) = sections(widths)["Accuracy against cost: cifar10, 3 epochs, batch 128"].pictures[1].draw().axes
    assert axes.get_xlabel() == "trainable params (millions)"


def test_only_one_recipe_is_compared(widths):
    """Another number of epochs, another rate, another set: a group of its own. Width, resolution, t, version: no."""
    trained(widths, {"model.alpha": 0.25, "model.strides": "cifar", "train.epochs": 4}, (0.8,))
    trained(widths, {"model.alpha": 0.25, "model.strides": "cifar", "optim.lr": 0.123}, (0.8,))
    v2 = {"model.version": "v2", "model.alpha": 0.5, "model.strides": "cifar", "model.expansion": 4.0}
    trained(widths, v2, (0.9,), mult_adds=25_000_000)
    trained(widths, v2 | {"model.bottleneck": "relu6"}, (0.9,), mult_adds=25_000_000)
    found, _ = runs.read([widths])
    groups = tradeoffs.comparable(grouping.configurations(found))
    assert [[c.label for c in group] for group in groups] == [["v1 α 0.25", "v1 α 0.5", "v2 α 0.5 t 4", "v1 α 1"]]


def test_the_fit(widths):
    fit = table(widths, "fit_v1_1")
    assert [row[0] for row in fit.rows] == ["v1 α 0.25", "v1 α 0.5", "v1 α 1"]
    assert [row[2] for row in fit.rows] == ["78.50 ± 0.71", "85.50 ± 0.71", "92.50 ± 0.71"]
    assert all(float(row[3]) + float(row[4]) == pytest.approx(float(row[2][:5]), abs=0.011) for row in fit.rows)
    assert re.search(r"Top-1 grows by 3.69 \[3.\d\d, 4.\d\d\] points with each doubling", fit.note)


def test_what_a_doubling_buys(widths):
    (row,) = table(widths, "doublings").rows
    assert row[:4] == ("width multiplier, 0.25 to 1", "v1, cifar10, 3 epochs", "3.33 to 46.35", "3")
    line = noise.fit([(COST[a], {0: p, 1: p + 0.01}) for a, p in ((0.25, 0.78), (0.5, 0.85), (1.0, 0.92))])
    assert line and (interval := line.interval())
    assert row[4:] == (f"3.69 [{interval[0]:.2f}, {interval[1]:.2f}]", f"{100 * line.residual_sd:.2f}")


def test_differences_along_a_series(widths):
    series = table(widths, "over_alpha_1")
    assert [row[0] for row in series.rows] == ["0.25", "0.5", "1.0"]
    assert [row[5] for row in series.rows] == ["", "higher", "higher"]
    assert series.rows[1][4].startswith("+7.00 [")
    assert "To resolve 0.2 points: 2 (2 to 2) seeds each" in series.note  # these seeds differ by the same everywhere


def test_what_cannot_be_told_apart(tmp_path):
    trained(tmp_path, {"model.alpha": 0.25, "optim.decay_depthwise": False}, (0.786, 0.792, 0.793))
    trained(tmp_path, {"model.alpha": 0.25, "optim.decay_depthwise": True}, (0.792, 0.791, 0.785))
    series = table(tmp_path, "over_decay_depthwise_1")
    assert [(row[0], row[5]) for row in series.rows] == [("False", ""), ("True", "cannot be told apart")]


def test_switches_are_set_beside_the_usual_way(tmp_path):
    v2 = {"model.version": "v2", "model.expansion": 6.0, "model.bottleneck": "linear"}
    for shortcut, accuracies in {"none": (0.70, 0.72), "bottleneck": (0.80, 0.82), "expansion": (0.75, 0.77)}.items():
        trained(tmp_path, v2 | {"model.shortcut": shortcut}, accuracies, version="v2", expansion=6.0)
    rows = table(tmp_path, "changes").rows
    assert [row[0] for row in rows] == ["shortcut: bottleneck → expansion", "shortcut: bottleneck → none"]
    assert [row[2:5] for row in rows] == [
        ("2", "-5.00 [-5.00, -5.00]", "lower"),
        ("2", "-10.00 [-10.00, -10.00]", "lower"),
    ]
    series = table(tmp_path, "over_shortcut_1")
    assert series.header[4] == "to bottleneck, points"
    assert [row[4] for row in series.rows] == ["", "-5.00 [-5.00, -5.00]", "-10.00 [-10.00, -10.00]"]


def test_numbers_are_no_switches(widths):
    assert "One change at a time" not in sections(widths)


def test_one_seed_each_has_no_interval(tmp_path):
    for alpha in (0.25, 0.5):
        trained(tmp_path, {"model.alpha": alpha}, (alpha,), mult_adds=COST[alpha])
    assert table(tmp_path, "over_alpha_1").rows[1][4:] == ("+25.00", "no interval: one seed each")


def test_equal_cost(tmp_path):
    """Within 3 %: three networks together, beside the best of them; the fourth costs more."""
    found = {
        "v1": ({"model.alpha": 0.5}, (0.85, 0.86), 12_171_776),
        "v2": ({"model.version": "v2", "model.alpha": 0.52, "model.expansion": 2.0}, (0.90, 0.91), 12_180_000),
        "rho": ({"model.alpha": 0.68, "model.rho": 0.625}, (0.84, 0.86), 11_950_000),
        "dear": ({"model.alpha": 1.0}, (0.92, 0.91), 46_354_432),
    }
    for settings, accuracies, mult_adds in found.values():
        trained(tmp_path, settings | {"model.strides": "cifar"}, accuracies, mult_adds=mult_adds)
    rows = table(tmp_path, "equal_cost_1").rows
    assert (rows[0][1], rows[0][5]) == ("v2 α 0.52 t 2", "best")
    assert [row[1] for row in rows] == ["v2 α 0.52 t 2", "v1 α 0.5", "v1 α 0.68 ρ 0.625"]
    assert [row[0] for row in rows] == ["12.18", "12.17", "11.95"]
    assert rows[1][5].startswith("-5.00 [") and rows[1][6] == "lower"
    series = {row[1]: dict(enumerate(found[name][1])) for row, name in zip(rows, ("v2", "v1", "rho"), strict=True)}
    one = noise.difference(series, "v2 α 0.52 t 2", "v1 α 0.5", 0.05)  # at either side, two beside the best
    assert one.low is not None and f"[{100 * one.low:+.2f}, " in rows[1][5]
    section = sections(tmp_path)["Accuracy against cost: cifar10, 3 epochs, batch 128"]
    assert table(tmp_path, "equal_cost_1").note.startswith(
        "At 11.95 to 12.18 M mult-adds the best of 3 is v2 α 0.52 t 2 (90.50 ± 0.71 %); "
        f"{sum(row[6] == 'lower' for row in rows)} of the others can be told apart from it. Mult-adds of a group"
    )
    (axes,) = section.pictures[2].draw().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{row[1]} ({float(row[0]):.1f} M)" for row in rows
    ]
    assert [t.name for t in tradeoffs.equal_cost(grouping.configurations(runs.read([tmp_path])[0]))] == ["equal_cost_1"]


def test_the_truly_best_is_seldom_called_lower():
    """Five networks that are the same in truth, so that any of them is the best: the first is not, 5 times of 100."""

    def network(label, accuracies):
        return types.SimpleNamespace(
            label=label,
            mean=sum(accuracies) / len(accuracies),
            runs=[types.SimpleNamespace(seed=i, accuracy=a) for i, a in enumerate(accuracies)],
        )

    random, called = np.random.default_rng(0), 0
    for _ in range(1500):
        networks: list[Any] = [network(str(i), 0.5 + 0.01 * random.normal(size=3)) for i in range(5)]
        best, *others = sorted(networks, key=lambda c: -c.mean)
        found = tradeoffs._to_the_best([best, *others])
        called += any(c.label == "0" and d.verdict == "lower" for c, d in zip(others, found, strict=True))
    assert 0.02 < called / 1500 < 0.06


def test_published_accuracies_of_the_same_network(tmp_path):
    """The same layers only: not another width, not relu6 bottlenecks, not another data set."""
    same = {"model.alpha": 1.0, "model.strides": "cifar"}
    trained(tmp_path, same, (0.9,), mult_adds=COST[1.0], test_loss=0.345)
    trained(tmp_path, same | {"data.name": "cifar100"}, (0.6,), mult_adds=COST[1.0])
    trained(tmp_path, {"model.alpha": 0.25}, (0.79,), mult_adds=COST[0.25])
    (row,) = table(tmp_path, "beside_published").rows
    assert row == ("v1 α 1", "90.00", "0.34", "1", "3", "92.35", "", "best epoch", "350", "wurongyuan")


def test_curves_of_many_are_cut_and_told(tmp_path):
    for i in range(54):
        put(tmp_path / str(i), {"optim.lr": 0.1 + i / 100})
    curves = sections(tmp_path)["Training curves"]
    assert len(curves.pictures) == 8
    assert curves.text == ("6 more configurations are not drawn: name fewer run directories to see theirs.",)


def test_curves_are_beside_those_that_train_for_as_long(tmp_path):
    for i, epochs in enumerate((3, 9, 3, 9)):
        put(tmp_path / str(i), {"train.epochs": epochs, "model.alpha": 0.25 * (i + 1)}, mult_adds=1000 * (i + 1))
    captions = [p.caption.rpartition("seed: ")[2] for p in sections(tmp_path)["Training curves"].pictures]
    assert captions == ["v1 α 0.25; v1 α 0.75", "v1 α 0.5, epochs 9; v1 α 1, epochs 9"]


def test_groups_are_told_apart_by_their_titles(tmp_path):
    for i, (alpha, decay) in enumerate(itertools.product((0.25, 0.5), (1e-4, 4e-5))):
        put(tmp_path / f"{i}", {"model.alpha": alpha, "optim.weight_decay": decay}, mult_adds=COST[alpha])
        put(tmp_path / f"s{i}", {"model.alpha": alpha, "model.variant": "seed004"}, mult_adds=COST[alpha] + i // 2)
    titles = [title for title in sections(tmp_path) if title.startswith("Accuracy")]
    start = "Accuracy against cost: cifar10, 3 epochs, batch 128"
    assert sorted(titles) == [f"{start}, seed004", f"{start}, weight_decay 0.0001", f"{start}, weight_decay 4e-05"]


def test_a_series_over_epochs_names_no_epochs(tmp_path):
    for epochs in (3, 9):
        put(tmp_path / str(epochs), {"train.epochs": epochs})
    assert table(tmp_path, "over_epochs_1").title == "epochs: v1 α 0.25, cifar10"


def test_problems_have_their_section(widths):
    (widths / "broken").mkdir()
    (widths / "broken" / "summary.json").write_text("{")
    section = sections(widths)["Left out, or counted in part"]
    assert section.tables[0].rows[0][1].startswith("summary.json is damaged")


def test_nothing_but_problems(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    found = sections(tmp_path)
    assert list(found) == ["Configurations", "Left out, or counted in part"]
    assert found["Configurations"].text[0].startswith("No accuracy against cost")
