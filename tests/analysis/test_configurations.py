"""Runs grouped into configurations, series that vary one key, labels, and the tables of both."""

import itertools
import json

import pytest
from helpers import ENV, put

from mobilenet_jax.analysis.configurations import (
    configurations_table,
    find_series,
    group_runs,
    recipes_table,
)
from mobilenet_jax.records.collect import read


def grouped(*directories):
    found, problems = read(directories)
    assert not problems
    return group_runs(found)


def test_a_configuration(tmp_path):
    for seed, accuracy, seconds in ((2, 0.79, 60), (0, 0.80, 120), (1, 0.78, 90)):
        device = "NVIDIA H200" if seed == 1 else "cpu (2 cores)"
        figures = {"test_accuracy": accuracy, "wall_seconds": seconds, "train_images_per_second": 1000.0 + seed}
        put(tmp_path / f"{accuracy}", {"seed": seed}, device=device, **figures)
    put(tmp_path / "other", {"model.alpha": 0.5}, mult_adds=5_000_000, fused=4)
    c, other = grouped(tmp_path)
    assert list(c.accuracies) == [0, 1, 2]
    assert (c.n, c.mean, c.sd) == (3, pytest.approx(0.79), pytest.approx(0.01))
    assert (c.summary.dataset, c.summary.epochs, c.summary.mult_adds) == ("cifar10", 3, 3_331_072)
    assert (other.n, other.mean, other.sd) == (1, 0.7914, None)
    rows = configurations_table([c, other]).rows  # device by device: a mean would be the speed of neither
    assert rows[0][-3:] == ("1,001; 1,001", "1.5; 1.5", "NVIDIA H200; cpu (2 cores)")
    assert rows[1][-1] == "cpu (2 cores), 4 runs at once"


@pytest.mark.parametrize(
    ("env", "mixed"),
    [
        ({}, False),
        ({"python": "3.12", "packages": {"jax": "0.10.2", "flax": "0.13"}}, False),
        ({"git_commit": "4567"}, True),
        ({"git_dirty": True}, True),
        ({"packages": {"jax": "0.11.0"}}, True),
        ({"packages": ["jax"]}, True),
        (None, False),  # lost
    ],
)
def test_seeds_of_several_commits_or_versions_of_jax_are_named(env, mixed, tmp_path):
    put(tmp_path / "a")
    put(tmp_path / "c", {"model.alpha": 0.5}, mult_adds=5_000_000)
    path = put(tmp_path / "b", {"seed": 1}) / "env.json"
    path.write_text("{}" if env is None else json.dumps(ENV | env))
    found = grouped(tmp_path)
    note = configurations_table(found).note
    assert ("JAX" in note) == ("v1 α 0.25" in note) == mixed and "v1 α 0.5" not in note
    if mixed:
        note = configurations_table(found[:1] * 7).note
        assert note.count("v1 α 0.25") == 5 and "2 more" in note


def test_sets_behind_one_name_are_not_merged(tmp_path):
    """Runs of the same seed and of others; those whose record says nothing about the set form one group."""
    facts = {"1.0.0": "11111111", "1.0.0 again": "22222222", "2.0.0": "33333333"}
    for name, fingerprint in facts.items():
        for seed, alpha in ((0, 0.25), (1, 0.25), (0, 0.5)):
            settings = {"data.name": "toy", "seed": seed, "model.alpha": alpha}
            file = put(tmp_path / name / f"{alpha}-{seed}", settings) / "config.json"
            data = {"dataset": {"name": "toy", "version": name[:5], "fingerprint": fingerprint}}
            file.write_text(json.dumps(json.loads(file.read_text()) | data))
    for seed in (0, 1):
        put(tmp_path / "older" / str(seed), {"data.name": "toy", "seed": seed, "model.alpha": 0.25})
    found = grouped(tmp_path)
    names = ["toy", "toy (1.0.0, 11111111)", "toy (1.0.0, 22222222)", "toy (2.0.0, 33333333)"]
    assert [(c.summary.dataset, c.n) for c in found] == [(names[0], 2)] + [(n, k) for n in names[1:] for k in (2, 1)]
    assert {c.label for c in found} == {"v1 α 0.25", "v1 α 0.5"}  # the set is not a setting
    assert [(s.key, len(s.configurations)) for s in find_series(found)] == [("model.alpha", 2)] * 3
    assert not {cell for row in recipes_table(found).rows for cell in row} & {"dataset.version", *facts.values()}


def test_settings_that_labels_leave_out(tmp_path):
    put(tmp_path / "a", {"optim.lr": 0.1})
    put(tmp_path / "b", {"optim.lr": 0.1, "seed": 1})
    put(tmp_path / "c", {"optim.lr": 0.2, "model.alpha": 0.5}, mult_adds=5_000_000)
    put(tmp_path / "d", {"optim.lr": 0.1, "model.alpha": 1.0}, mult_adds=46_000_000)
    put(tmp_path / "e", {"model.version": "v2", "model.bottleneck": "relu6"}, mult_adds=60_000_000)
    found = grouped(tmp_path)
    assert [c.label for c in found][:3] == ["v1 α 0.25", "v1 α 0.5, lr 0.2", "v1 α 1"]
    made = recipes_table(found)
    assert made.header == ("setting", "cifar10, v1, SGD", "cifar10, v2, SGD")
    rows = {key: values for key, *values in made.rows}
    assert rows["optim.lr"][0] == "0.1" and rows["model.bottleneck"] == ["", "relu6"]
    assert "model.alpha" not in rows and "seed" not in rows and "train.batch_size" in rows


def test_a_setting_that_an_older_config_lacks_is_not_recorded(tmp_path):
    put(tmp_path / "a")
    put(tmp_path / "b", {"seed": 1})
    path = put(tmp_path / "c", {"seed": 2}) / "config.json"
    tree = json.loads(path.read_text())
    del tree["optim"]["clip_norm"]
    path.write_text(json.dumps(tree))
    assert [(c.label, c.n) for c in grouped(tmp_path)] == [("v1 α 0.25", 2), ("v1 α 0.25, clip_norm not recorded", 1)]


@pytest.mark.parametrize("trained", [1, 3])
def test_networks_to_start_from_are_named(tmp_path, trained):
    """A record has their digest, and no such key if the weights were random."""
    for i in range(4):
        put(tmp_path / str(i), {"seed": i} | ({"model.weights": "d8c3f2e8"} if i < trained else {}))
    found = {c.label: c.n for c in grouped(tmp_path)}
    assert found == {"v1 α 0.25": 4 - trained, "v1 α 0.25, weights d8c3f2e8": trained}


def test_a_setting_may_be_a_list(tmp_path):
    for seed, value in ((0, [1, 2]), (1, [1, 2]), (2, [])):
        put(tmp_path / str(seed), {"augment.sizes": value, "seed": seed})
    assert [(c.label, c.n) for c in grouped(tmp_path)] == [("v1 α 0.25", 2), ("v1 α 0.25, sizes []", 1)]


def test_v2_settings_do_not_separate_v1_runs(tmp_path):
    meaningless = {"model.bottleneck": "relu6", "model.shortcut": "none", "model.expansion": 4.0}
    put(tmp_path / "a")
    put(tmp_path / "b", {"seed": 1, **meaningless}, expansion=4.0)
    assert [c.n for c in grouped(tmp_path)] == [2]
    put(tmp_path / "c", {"model.version": "v2"})
    put(tmp_path / "d", {"model.version": "v2", "seed": 1, **meaningless})
    assert [c.n for c in grouped(tmp_path)] == [2, 1, 1]


def test_labels(tmp_path):
    v2 = {"model.version": "v2", "model.alpha": 0.35}
    for i, settings in enumerate(
        (
            {},
            {"model.rho": 0.857},
            {"optim.decay_depthwise": True},
            {"augment.flip": False, "optim.lr": 0.05},
            {"model.variant": "shallow", "optim.name": "rmsprop"},
            {"data.name": "digits", "train.epochs": 9},
            v2,
            v2 | {"train.epochs": 4},
            v2 | {"train.epochs": 4, "model.bottleneck": "relu6"},
            v2 | {"train.epochs": 4, "model.bottleneck": "relu6", "model.expansion": 1.5},
        )
    ):
        put(tmp_path / str(i), settings, mult_adds=1000 + i)
    assert [c.label for c in grouped(tmp_path)] == [
        "v1 α 0.25",
        "v1 α 0.25 ρ 0.857",
        "v1 α 0.25, decay_depthwise",
        "v1 α 0.25, no flip, lr 0.05",
        "v1 α 0.25, shallow",  # of another variant, with a recipe of its own
        "v2 α 0.35 t 6, epochs 3",
        "v2 α 0.35 t 6",
        "v2 α 0.35 t 6, bottleneck relu6",
        "v2 α 0.35 t 1.5, bottleneck relu6",
        "v1 α 0.25",  # alone on its data
    ]


RMSPROP = {"optim.name": "rmsprop", "optim.lr": 0.02, "optim.epsilon": 1e-3}


def test_every_label_names_the_optimiser_where_there_are_several(tmp_path):
    """Settings are named where they are unusual for their optimiser. SGD has no epsilon."""
    for seed, settings in enumerate(({}, {"optim.epsilon": 0.1}, RMSPROP, RMSPROP, RMSPROP)):
        put(tmp_path / f"{seed}", {"seed": seed, **settings})
    put(tmp_path / "lr", {**RMSPROP, "optim.lr": 0.5})
    put(tmp_path / "t", {"model.version": "v2"}, mult_adds=9_000_000)
    found = grouped(tmp_path)
    assert [(c.label, c.n) for c in found] == [
        ("v1 α 0.25, RMSprop", 3),
        ("v1 α 0.25, RMSprop, lr 0.5", 1),
        ("v1 α 0.25, SGD", 2),
        ("v2 α 0.25 t 6, SGD", 1),
    ]
    made = configurations_table(found)
    recipes = [row[made.header.index("recipe")] for row in made.rows]
    assert recipes == ["RMSprop, lr 0.02", "RMSprop, lr 0.5", "SGD, lr 0.1", "SGD, lr 0.1"]
    assert recipes_table(found).header[1:] == ("cifar10, v1, RMSprop", "cifar10, v1, SGD", "cifar10, v2, SGD")


def test_trials_do_not_decide_what_is_usual(tmp_path):
    put(tmp_path / "a", {"optim.lr": 0.2})
    for i, lr in enumerate((0.3, 0.3, 0.4)):
        put(tmp_path / f"{i}", {"data.holdout": 0.1, "optim.lr": lr, "seed": i})
    labels = ["v1 α 0.25", "v1 α 0.25, holdout 0.1", "v1 α 0.25, holdout 0.1, lr 0.4"]
    assert [c.label for c in grouped(tmp_path)] == labels


def test_series_compare_optimisers_at_the_usual_rates_of_each_and_mix_them_nowhere_else(tmp_path):
    for seed, settings in enumerate(({}, {}, RMSPROP, RMSPROP)):
        put(tmp_path / f"{seed}", {"seed": seed % 2, **settings})
        put(tmp_path / f"w{seed}", {"seed": seed % 2, "model.alpha": 0.5, **settings}, mult_adds=5_000_000)
    put(tmp_path / "lr", {**RMSPROP, "optim.lr": 0.5})
    found = find_series(grouped(tmp_path))
    assert [(s.key, s.label, [c.optimizer for c in s.configurations]) for s in found] == [
        ("model.alpha", "v1, RMSprop", ["RMSprop"] * 2),
        ("model.alpha", "v1, SGD", ["SGD"] * 2),
        ("optim.lr", "v1 α 0.25, RMSprop", ["RMSprop"] * 2),
        ("optim.name", "v1 α 0.25", ["RMSprop", "SGD"]),
        ("optim.name", "v1 α 0.5", ["RMSprop", "SGD"]),
    ]
    assert [c.n for c in found[3].configurations] == [2, 2]


def test_a_run_without_config_is_a_configuration_of_its_own(tmp_path):
    put(tmp_path / "a")
    for name, seed, changes in (("b", 1, {}), ("c", 2, {}), ("d", 3, {"steps": 60}), ("e", 1, {"alpha": 0.5})):
        (put(tmp_path / name, {"seed": seed}, **changes) / "config.json").unlink()
    found, problems = read([tmp_path])
    assert len(problems) == 4
    assert [(c.label, list(c.accuracies)) for c in group_runs(found)] == [
        ("v1 α 0.25", [0]),
        ("v1 α 0.25, recipe unknown", [1, 2]),
        ("v1 α 0.25, recipe unknown", [3]),
        ("v1 α 0.5, recipe unknown", [1]),
    ]
    assert [(s.key, s.label) for s in find_series(group_runs(found))] == [("model.alpha", "v1, recipe unknown")]


def test_series(tmp_path):
    """A grid of α and ρ over three seeds, weight decay on depthwise kernels at one point, and two coupled points."""
    for alpha, rho, seed in itertools.product((0.25, 1.0, 0.5), (1.0, 0.714), range(3)):
        settings = {"model.alpha": alpha, "model.rho": rho, "seed": seed}
        put(tmp_path / f"{alpha}-{rho}-{seed}", settings, mult_adds=round(1e6 * alpha * rho))
    put(tmp_path / "decay", {"model.alpha": 0.5, "optim.decay_depthwise": True}, mult_adds=500_000)
    for t in (10.0, 2.0):
        put(tmp_path / f"v2-{t}", {"model.version": "v2", "model.expansion": t}, mult_adds=round(1e6 * t))
    put(tmp_path / "digits", {"data.name": "digits"})
    put(tmp_path / "coupled", {"model.alpha": 0.68, "model.rho": 0.625})

    found = find_series(grouped(tmp_path))
    assert [(s.key, s.label, [c.identity[s.key] for c in s.configurations]) for s in found] == [
        ("model.alpha", "v1 ρ 0.714", [0.25, 0.5, 1.0]),
        ("model.alpha", "v1", [0.25, 0.5, 1.0]),
        ("model.rho", "v1 α 0.25", [0.714, 1.0]),
        ("model.rho", "v1 α 0.5", [0.714, 1.0]),
        ("model.rho", "v1 α 1", [0.714, 1.0]),
        ("model.expansion", "v2 α 0.25", [2.0, 10.0]),
        ("optim.decay_depthwise", "v1 α 0.5", [False, True]),
    ]
    assert [c.n for c in found[0].configurations] == [3, 3, 3]
    assert found[0].title == "v1 ρ 0.714, cifar10, 3 epochs"


def test_series_of_knobs_come_first_and_values_are_in_order(tmp_path):
    for i, value in enumerate(("none", "bottleneck", "expansion")):
        put(tmp_path / f"a{i}", {"model.version": "v2", "model.shortcut": value}, mult_adds=9 - i)
    for i, value in enumerate((256, 32, 1024)):
        put(tmp_path / f"b{i}", {"model.version": "v2", "train.batch_size": value}, mult_adds=9 - i)
    put(tmp_path / "t", {"model.version": "v2", "model.expansion": 8.0})
    found = find_series(grouped(tmp_path))
    assert [(s.key, [c.identity[s.key] for c in s.configurations]) for s in found] == [
        ("model.expansion", [6.0, 8.0]),
        ("model.shortcut", ["bottleneck", "expansion", "none"]),
        ("train.batch_size", [32, 128, 256, 1024]),
    ]


def test_configurations_come_by_data_and_cost(tmp_path):
    for name, data, cost in (("a", "digits", 5), ("b", "cifar10", 7), ("c", "cifar10", 6)):
        put(tmp_path / name, {"data.name": data, "optim.lr": cost / 100}, mult_adds=cost)
    assert [(c.summary.dataset, c.summary.mult_adds) for c in grouped(tmp_path)] == [
        ("cifar10", 6),
        ("cifar10", 7),
        ("digits", 5),
    ]


def test_the_table(tmp_path):
    put(tmp_path / "a", test_accuracy=0.79)
    put(tmp_path / "b", {"seed": 1}, test_accuracy=0.80, wall_seconds=319.6, train_images_per_second=1711.1)
    put(tmp_path / "c", {"model.alpha": 1.0}, mult_adds=46_354_432, params=3_217_226, device="NVIDIA H200")
    made = configurations_table(grouped(tmp_path))
    assert made.header == (
        *("configuration", "data", "test top-1, %", "n", "mult-adds, M", "params, M"),
        *("epochs", "recipe", "images/s", "minutes per run", "device"),
    )
    rest = ("SGD, lr 0.1", "1,711", "5.3")
    assert made.rows == (
        ("v1 α 0.25", "cifar10 32x32", "79.50 ± 0.71", "2", "3.33", "0.22", "3", *rest, "cpu (2 cores)"),
        ("v1 α 1", "cifar10 32x32", "79.14", "1", "46.35", "3.22", "3", *rest, "NVIDIA H200"),
    )
