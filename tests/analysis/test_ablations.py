"""Configurations that differ in one knob or one switch."""

import pytest
from analysis_runs import COST, report_of, table_of, trained


def test_a_knob_is_compared_with_the_value_before(tmp_path):
    for alpha, accuracies in {0.25: (0.78, 0.79), 0.5: (0.85, 0.86), 1.0: (0.92, 0.93)}.items():
        trained(tmp_path, {"model.alpha": alpha}, accuracies, mult_adds=COST[alpha])
    series = table_of(tmp_path, "over_alpha_1")
    assert [row[0] for row in series.rows] == ["0.25", "0.5", "1.0"]
    assert [row[5] for row in series.rows] == ["", "higher", "higher"]
    assert series.rows[1][4].startswith("+7.00 [")
    assert "2 (2 to 2) seeds" in series.note  # the seeds differ by the same everywhere
    assert "One change at a time" not in report_of(tmp_path)  # a number is no switch


def test_a_switch_without_a_clear_effect(tmp_path):
    trained(tmp_path, {"model.alpha": 0.25, "optim.decay_depthwise": False}, (0.786, 0.792, 0.793))
    trained(tmp_path, {"model.alpha": 0.25, "optim.decay_depthwise": True}, (0.792, 0.791, 0.785))
    series = table_of(tmp_path, "over_decay_depthwise_1")
    assert [(row[0], row[5]) for row in series.rows] == [("False", ""), ("True", "no clear difference")]


def test_a_switch_is_compared_with_the_papers_choice(tmp_path):
    v2 = {"model.version": "v2", "model.expansion": 6.0, "model.bottleneck": "linear"}
    for shortcut, accuracies in {"none": (0.70, 0.72), "bottleneck": (0.80, 0.82), "expansion": (0.75, 0.77)}.items():
        trained(tmp_path, v2 | {"model.shortcut": shortcut}, accuracies, version="v2", expansion=6.0)
    changes = table_of(tmp_path, "changes")
    assert [row[:5] for row in changes.rows] == [
        ("shortcut: bottleneck → expansion", "v2 α 0.25 t 6, cifar10, 3 epochs", "2", "-5.00 [-5.00, -5.00]", "lower"),
        ("shortcut: bottleneck → none", "v2 α 0.25 t 6, cifar10, 3 epochs", "2", "-10.00 [-10.00, -10.00]", "lower"),
    ]
    series = table_of(tmp_path, "over_shortcut_1")
    assert "bottleneck" in series.header[4]
    assert [row[4] for row in series.rows] == ["", "-5.00 [-5.00, -5.00]", "-10.00 [-10.00, -10.00]"]


@pytest.mark.parametrize("digests", [("c7884024",), ("c7884024", "cae78daf")])
def test_weights_are_compared_with_random_ones(tmp_path, digests):
    """Whose record has no such key."""
    trained(tmp_path, {"train.epochs": 3}, (0.5,))
    for i, digest in enumerate(digests):
        trained(tmp_path, {"model.weights": digest}, (0.7 + i / 10,))
    found = [(row[0], row[3][:3]) for row in table_of(tmp_path, "changes").rows]
    assert found == [(f"weights: random → {digest}", f"+{20 + 10 * i}") for i, digest in enumerate(digests)]
    series = table_of(tmp_path, "over_weights_1")
    assert [row[0] for row in series.rows] == ["random", *digests] and "random" in series.header[4]


def test_an_optimiser_is_compared_with_the_papers(tmp_path):
    trained(tmp_path, {"optim.name": "sgd"}, (0.8, 0.82, 0.81))
    trained(tmp_path, {"optim.name": "rmsprop", "optim.lr": 0.01}, (0.82,))
    (row,) = table_of(tmp_path, "changes").rows
    assert row[0] == "optimizer: rmsprop → sgd"


@pytest.mark.parametrize(("seeds", "reference"), [((3, 2), "False"), ((2, 3), "True")])
def test_another_switch_is_compared_with_the_most_frequent_value(tmp_path, seeds, reference):
    for value, n in zip((False, True), seeds, strict=True):
        trained(tmp_path, {"augment.flip": value}, (0.7, 0.72, 0.71)[:n])
    (row,) = table_of(tmp_path, "changes").rows
    assert row[0].startswith(f"flip: {reference} → ") and row[3].endswith("not paired")


def test_one_seed_each_has_no_interval(tmp_path):
    for alpha in (0.25, 0.5):
        trained(tmp_path, {"model.alpha": alpha}, (alpha,), mult_adds=COST[alpha])
    assert table_of(tmp_path, "over_alpha_1").rows[1][4:] == ("+25.00", "no interval: one seed each")


def test_a_series_over_epochs_names_no_epochs(tmp_path):
    for epochs in (3, 9):
        trained(tmp_path, {"train.epochs": epochs}, (0.8,))
    assert table_of(tmp_path, "over_epochs_1").title == "epochs: v1 α 0.25, cifar10"
