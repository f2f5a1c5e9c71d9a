"""The points of a sweep: those that W&B's own code lists, resolved and costed, and what cannot be run."""

import dataclasses
import itertools
import json
import pathlib
import runpy
import warnings
from typing import Any

import pytest
import yaml
from conftest import GRID, ROOT, SEARCH, parameters
from ml_collections import ConfigDict

from configs import default, digits_v1
from mobilenet_jax import config
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.sweeps import file as sweepfile
from mobilenet_jax.sweeps import points as grid
from mobilenet_jax.training import step as steps

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def oracle():
    """W&B's own package; a folder named `sweeps` is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = pytest.importorskip("sweeps.config.cfg")
        search = pytest.importorskip("sweeps.grid_search")

    def enumerate_points(tree: dict[str, Any]) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checked = cfg.SweepConfig({key: value for key, value in tree.items() if key != "run_cap"})  # newer than it
            if tree["method"] != "grid":
                return []
            runs = search.grid_search_next_runs([], checked, n=10**6)
        return [{key: value["value"] for key, value in run.config.items()} for run in runs if run is not None]

    return enumerate_points


def base_of(sweep: sweepfile.Sweep) -> tuple[ConfigDict, str, set[str]]:
    """The config of a sweep's command, its name, and the keys that the command overrides."""
    path, base, overridden = ROOT / "configs" / "digits_v1.py", ConfigDict(), set()
    for argument in sweep.arguments:
        if argument.startswith("--config="):
            path = ROOT / argument.removeprefix("--config=")
    base = runpy.run_path(str(path))["get_config"]()
    for argument in sweep.arguments:
        if argument.startswith("--config."):
            key, _, text = argument.removeprefix("--config.").partition("=")
            base.update_from_flattened_dict({key: config.RULES[key].kind(text)})
            overridden.add(key)
    return base, path.stem, overridden


def points_of(path: pathlib.Path) -> tuple[sweepfile.Sweep, list[grid.Point]]:
    sweep = sweepfile.read(path)
    return sweep, (grid.points if sweep.method == "grid" else grid.check_search)(sweep, *base_of(sweep))


# The files in sweeps/.


def test_there_are_sweeps():
    names = {"alpha_rho", "bottleneck", "digits_demo", "equal_cost", "expansion", "search", "weight_decay"}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_points_of_a_file_are_wandbs(path, oracle):
    sweep, points = points_of(path)
    assert any(argument.startswith("--config=configs/") for argument in sweep.arguments)
    expected = oracle(yaml.safe_load(path.read_text(encoding="utf-8")))
    if sweep.method == "grid":
        assert [{f"config.{k}": v for k, v in p.assignment.items()} for p in points] == expected
        assert [list(p.assignment) for p in points] == [[k.removeprefix("config.") for k in e] for e in expected]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_opens_with_what_it_is_for(path):
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    _, points = points_of(path)
    cap = sweepfile.read(path).run_cap or len(points)
    assert "?" in text and "# Feeds: " in text and f"# Costs: {cap} points" in text
    assert f"python launch.py --sweep sweeps/{path.name}" in text and f"wandb sweep sweeps/{path.name}" in text


def test_alpha_and_rho():
    _, points = points_of(ROOT / "sweeps" / "alpha_rho.yaml")
    assert [p.resolution for p in points] == [32, 27, 23, 18] * 4
    by_alpha = {p.assignment["model.alpha"]: p for p in points if p.resolution == 32}
    assert (by_alpha[1.0].mult_adds, by_alpha[1.0].params) == (46_354_432, 3_217_226)
    assert (by_alpha[0.25].mult_adds, by_alpha[0.25].params) == (3_331_072, 215_642)
    assert len({p.program for p in points}) == 16


def test_groups_of_equal_cost():
    path = ROOT / "sweeps" / "equal_cost.yaml"
    _, points = points_of(path)
    costs = [p.mult_adds for p in points]
    groups = [costs[i : i + 5] for i in range(0, 15, 5)]
    assert len(costs) == 15 and all(max(group) <= 1.03 * min(group) for group in groups)
    assert all(min(b) > 1.5 * max(a) for a, b in itertools.pairwise(groups))
    for group in groups:
        assert ", ".join(f"{c / 1e6:.2f}" for c in sorted(group)) in path.read_text(encoding="utf-8")
    for i in range(0, 15, 5):
        versions = [p.spec.config.model.version for p in points[i : i + 5]]
        assert versions == ["v1", "v1", "v2", "v2", "v2"]
        assert len({p.resolution for p in points[i : i + 5]}) > 1


def test_the_demo_is_small():
    _, points = points_of(ROOT / "sweeps" / "digits_demo.yaml")
    assert len(points) == 8 and {p.spec.dataset.name for p in points} == {"digits"}
    assert sum(p.estimated_seconds for p in points) < 180


def test_seeds_and_decay_share_a_program():
    assert {len({p.program for p in points_of(ROOT / "sweeps" / f"{name}.yaml")[1]}) for name in ("search",)} == {1}
    assert len({p.program for p in points_of(ROOT / "sweeps" / "weight_decay.yaml")[1]}) == 2
    assert len({p.program for p in points_of(ROOT / "sweeps" / "bottleneck.yaml")[1]}) == 6


@pytest.mark.parametrize(
    "given",
    [
        {"seed": {"values": [3, 1, 2]}, "model__alpha": {"values": [0.5, 0.25]}, "augment__pad": {"value": 1}},
        {"seed": {"min": 0, "max": 4}},
        {"seed": {"distribution": "int_uniform", "min": 2, "max": 3}},
        {"train__epochs": {"distribution": "q_uniform", "min": 3, "max": 11, "q": 3}},
        {"model__alpha": {"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 0.1}},
        {"model__alpha": {"distribution": "q_uniform", "min": 1, "max": 3}},
        {"model__alpha": {"distribution": "q_uniform", "min": 0.25, "max": 2, "q": 5}},
        {"model__alpha": {"distribution": "categorical", "values": [0.5, 0.25, 0.5]}, "seed": {"values": [0]}},
        {"model__version": {"distribution": "constant", "value": "v2"}, "model__shortcut": {"values": ["none"]}},
        {"augment__flip": {"values": [True, False]}, "optim__name": {"values": ["sgd", "rmsprop"]}},
    ],
)
def test_a_grid_is_enumerated_as_wandb_does(given, read_sweep, oracle):
    sweep = read_sweep(parameters(**given))
    base: Any = default.get_config()
    found = [p.assignment for p in grid.points(sweep, base, "default")]
    assert [{f"config.{k}": v for k, v in assignment.items()} for assignment in found] == oracle(parameters(**given))
    assert all(p.kind == "values" for p in sweep.parameters)


def test_values_of_a_grid_keep_their_type(read_sweep):
    def values(**given):
        return [(type(v), v) for v in read_sweep(parameters(seed=given)).parameters[0].values]

    assert values(values=[1, 1.0, True, 1]) == [(int, 1), (float, 1.0), (bool, True)]
    assert values(distribution="q_uniform", min=0, max=2, q=1) == [(int, 0), (int, 1)]
    assert values(distribution="q_uniform", min=0, max=2) == [(float, 0.0), (float, 1.0)]  # q = 1.0 to W&B


# Points.


def test_all_bad_points_are_told_before_any_starts(read_sweep):
    given = {"model__alpha": {"values": [0.5, 9, 10.0]}, "seed": {"values": [0, 1]}, "augment__pad": {"value": 1}}
    with pytest.raises(InputError) as caught:
        grid.points(read_sweep(parameters(**given)), default.get_config(), "default")
    assert str(caught.value) == (
        "sweep some: 4 of 6 points cannot be run, the first because of config.model.alpha=9: the width multiplier must "
        "be above 0 and at most 8 (at model.alpha=9, seed=0)"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"train__epochs": {"values": [1.5]}}, "config.train.epochs=1.5: is of type float; allowed is a whole number"),
        ({"model__version": {"values": [1]}}, "config.model.version=1: is of type int; allowed is one of 'v1', 'v2'"),
        (
            {"model__expansion": {"values": [6, 4]}},
            "1 of 2 points cannot be run, the first because of config.model.exp",
        ),
        ({"point": {"values": ["alpha=0.5,beta=1"]}}, "config.point='alpha=0.5,beta=1': allowed is"),
        (
            {"point": {"value": "alpha=1"}, "model__alpha": {"values": [1, 0.5]}},
            "config.point='alpha=1': sets config.model.a",
        ),
    ],
)
def test_bad_points(given, sentence, read_sweep):
    with pytest.raises(InputError) as caught:
        grid.points(read_sweep(parameters(**given)), default.get_config(), "default")
    assert sentence in str(caught.value)


def test_a_point_is_the_run_by_hand(read_sweep):
    base: Any = default.get_config()
    sweep = read_sweep(
        parameters(model__alpha={"values": [1, 0.5]}, point={"value": "rho=0.5"}, wandb__project={"value": "x"})
    )
    one, half = grid.points(sweep, base, "mine")
    assert base == default.get_config()
    base.model.alpha, base.model.rho = 0.5, 0.5
    assert half.spec == config.resolve(ConfigDict(base.to_dict() | {"wandb": {"mode": "auto", "project": "x"}}), "mine")
    assert half.run_name == f"mine-a0.5-r0.5-s0-{half.digest}" and half.resolution == 16
    assert one.spec.config.model.alpha == 1.0 and type(one.spec.config.model.alpha) is float
    expected = cost.totals(arch.mobilenet_v1(0.5, 10, "cifar"), 16)
    assert (half.mult_adds, half.params) == (expected.mult_adds, expected.params)


@pytest.mark.parametrize("tree", [{}, {"model": 3}])
def test_a_base_that_is_no_config(tree, read_sweep):
    with pytest.raises(InputError, match=r"the first because of (the config has no key|unknown key) config\.model"):
        grid.points(read_sweep(GRID), ConfigDict(tree), "x")


def test_the_same_run_is_listed_once(read_sweep):
    given = {"model__rho": {"values": [1.0, 0.999, 0.5]}, "wandb__mode": {"values": ["offline", "online"]}}
    found = grid.points(read_sweep(parameters(**given)), default.get_config(), "x")
    assert [(p.assignment["model.rho"], p.assignment["wandb.mode"]) for p in found] == [
        (1.0, "offline"),
        (0.999, "offline"),
        (0.5, "offline"),
    ]
    (one,) = grid.points(read_sweep(parameters(model__alpha={"values": [1, 1.0]})), default.get_config(), "x")
    assert type(one.assignment["model.alpha"]) is int


def test_a_cap(read_sweep):
    tree = parameters(seed={"values": [0, 1, 2]}, model__alpha={"values": [0.5, 1.0]}) | {"run_cap": 4}
    found = [tuple(p.assignment.values()) for p in grid.points(read_sweep(tree), default.get_config(), "x")]
    assert found == [(0.5, 0), (0.5, 1), (0.5, 2), (1.0, 0)]


def test_overrides(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.5]}, seed={"values": [0, 1]}))
    base: Any = default.get_config()
    base.train.epochs = 3
    assert {p.spec.config.train.epochs for p in grid.points(sweep, base, "x", {"train.epochs": 3})} == {3}
    for key in ("seed", "model.alpha"):
        sentence = f"config.{key} cannot be overridden: the sweep some sets it for every point"
        with pytest.raises(InputError, match=sentence):
            grid.points(sweep, base, "x", ["train.epochs", key])
    with pytest.raises(InputError, match="config.optim.lr cannot be overridden"):
        grid.check_search(read_sweep(SEARCH), base, "x", ["optim.lr"])


def test_budgets(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.25, 0.5, 1.0]}))

    def alphas(*bounds):
        return [p.assignment["model.alpha"] for p in grid.points(sweep, default.get_config(), "x", (), *bounds)]

    assert alphas() == alphas(None, None) == alphas(0, 10**9) == [0.25, 0.5, 1.0]
    assert alphas(3_331_073, None) == [0.5, 1.0] and alphas(3_331_072, None) == [0.25, 0.5, 1.0]
    assert alphas(None, 46_354_431) == [0.25, 0.5] and alphas(None, 46_354_432) == [0.25, 0.5, 1.0]
    assert alphas(4_000_000, 40_000_000) == [0.5]
    with pytest.raises(InputError) as caught:
        alphas(50_000_000, 60_000_000)
    assert str(caught.value) == (
        "sweep some: no point has at least 50,000,000 and at most 60,000,000 mult-adds; they have 3,331,072 to "
        "46,354,432"
    )
    with pytest.raises(InputError, match="no point has at most 0 mult-adds"):
        alphas(None, 0)


def test_a_metric_that_no_run_would_have(read_sweep):
    tree = GRID | {"metric": {"name": "val_loss"}}
    with pytest.raises(InputError, match="2 of 2 points cannot be run, .* val_loss needs config.data.holdout above 0"):
        grid.points(read_sweep(tree), default.get_config(), "x")
    base: Any = default.get_config()
    base.data.holdout = 0.1
    assert len(grid.points(read_sweep(tree), base, "x")) == 2


# Searches.


def test_the_corners_of_a_search(read_sweep):
    given = {
        "config.optim.lr": {"min": 0.1, "max": 0.9},
        "config.model.alpha": {"values": [0.25, 0.5, 1.0]},
        "config.seed": {"min": 0, "max": 5},
    }
    tree = SEARCH | {"parameters": SEARCH["parameters"] | given}
    found = [p.assignment for p in grid.check_search(read_sweep(tree), default.get_config(), "x")]
    first = {"data.holdout": 0.1, "model.alpha": 0.25, "optim.lr": 0.1, "seed": 0}
    assert found == [
        first,
        first | {"model.alpha": 0.5},
        first | {"model.alpha": 1.0},
        first | {"optim.lr": 0.9},
        first | {"seed": 5},
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"config.data.holdout": {"value": 0.0}}, "2 of 3 points|val_accuracy needs config.data.holdout above 0"),
        ({"config.data.holdout": {"values": [0.1, 0]}}, "1 of 4 .* val_accuracy needs config.data.holdout above 0"),
        (
            {"config.optim.momentum": {"min": 0.5, "max": 1.5}},
            r"momentum=1.5: allowed is .* \(at optim.lr=0.01, optim.mom",
        ),
        ({"config.train.epochs": {"min": 1.0, "max": 5.0}}, "config.train.epochs=1.0: is of type float"),
    ],
)
def test_impossible_ranges(given, sentence, read_sweep):
    sweep = read_sweep(SEARCH | {"parameters": SEARCH["parameters"] | given})
    with pytest.raises(InputError, match=sentence):
        grid.check_search(sweep, default.get_config(), "x")


def test_a_search_on_training_figures_needs_no_holdout(read_sweep):
    tree = SEARCH | {"metric": {"name": "train_loss"}, "parameters": {"config.optim.lr": {"min": 0.1, "max": 0.9}}}
    assert len(grid.check_search(read_sweep(tree), default.get_config(), "x")) == 2


def test_a_drawn_point(read_sweep):
    sweep, base = read_sweep(SEARCH), default.get_config()
    point = grid.draw(sweep, base, "x", {"optim.lr": 0.3})
    assert point.assignment == {"data.holdout": 0.1, "optim.lr": 0.3}
    assert point.spec.train_size == 45_000 and point.spec.config.optim.lr == 0.3
    with pytest.raises(InputError, match=r"config.optim.lr=-1.0: allowed is above 0"):
        grid.draw(sweep, base, "x", {"optim.lr": -1.0})


# Programs and times.


def test_what_is_traced_is_what_the_step_takes():
    """Unlisted scalars would be compiled anew for each value; what is listed and is none would be trained wrongly."""
    named = {"key": "seed", "learning_rate": "optim.lr", "depthwise_weight_decay": "optim.decay_depthwise"}
    fields = [field.name for field in dataclasses.fields(steps.Hyper)]
    keys = [named.get(f) or next(k for k in config.RULES if k.endswith(f".{f}")) for f in fields]
    assert sorted(keys) == sorted(config.TRACED)


@pytest.mark.parametrize(
    ("given", "programs"),
    [
        ({"seed": [0, 1], "optim.lr": [0.1, 0.2], "optim.decay_depthwise": [False, True]}, 1),
        ({"train.ema_decay": [0.9, 0.99]}, 1),
        ({"train.ema_decay": [0.0, 0.9, 0.99]}, 2),
        ({"train.label_smoothing": [0, 0.1], "optim.clip_norm": [0, 1.0]}, 1),
        ({"model.alpha": [0.5, 1.0], "seed": [0, 1]}, 2),
        ({"model.rho": [0.5, 1.0]}, 2),
        ({"train.epochs": [3, 4]}, 2),
    ],
)
def test_points_that_share_a_program(given, programs, read_sweep):
    sweep = read_sweep(GRID | {"parameters": {f"config.{k}": {"values": v} for k, v in given.items()}})
    found = grid.points(sweep, default.get_config(), "x")
    assert len({p.program for p in found}) == programs


def test_the_estimate_is_near_the_benchmark(read_sweep):
    """Images of one epoch a second, against those of results/bench/cpu.json."""
    measured = json.loads((ROOT / "results" / "bench" / "cpu.json").read_bytes())["networks"]
    for network, given in measured.items():
        version, alpha = network.split("-")
        base: Any = default.get_config()
        base.model.version, base.model.alpha, base.train.epochs = version, float(alpha), 1
        (point,) = grid.points(read_sweep(parameters(seed={"value": 0})), base, "x")
        contenders = given["contenders"]
        spec, rate = point.spec, {name: contenders[name]["images_per_second"] for name in ("ours", "ours evaluation")}
        expected = spec.total_steps * 128 / rate["ours"] + spec.dataset.test_size / rate["ours evaluation"]
        assert point.estimated_seconds - grid.SECONDS_TO_START == pytest.approx(expected, rel=0.04)


def test_the_estimate_counts_every_epoch_and_evaluation(read_sweep):
    def seconds(**changes):
        base: Any = default.get_config()
        base.train.update(changes.pop("train", {}))
        base.data.update(changes)
        (point,) = grid.points(read_sweep(parameters(seed={"value": 0})), base, "x")
        return point.estimated_seconds - grid.SECONDS_TO_START

    image = seconds(train={"eval_epochs": 1}) - seconds(train={"eval_epochs": 10})
    image /= 9 * 10_000 * grid.EVALUATION
    epoch = (seconds(train={"epochs": 20}) - seconds()) / 10
    assert epoch == pytest.approx(390 * grid.SECONDS_PER_STEP + image * (390 * 128 + 2_000))
    assert seconds(train={"eval_epochs": 3}) == pytest.approx(10 * epoch - 6 * image * 2_000)
    held = seconds(holdout=0.1) - 351 * 10 * (grid.SECONDS_PER_STEP + 128 * image)
    assert held == pytest.approx(image * grid.EVALUATION * (10 * 5_000 + 10_000))


def test_digits_need_no_command(read_sweep):
    found = grid.points(read_sweep(GRID), digits_v1.get_config(), "digits_v1")
    assert [p.run_name.rpartition("-")[0] for p in found] == ["digits_v1-a0.25-r1-s0", "digits_v1-a0.5-r1-s0"]
