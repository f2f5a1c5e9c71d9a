"""The points of a sweep: equal to W&B's, resolved and costed; and points that cannot be run."""

import dataclasses
import json
import pathlib
import statistics
from typing import Any

import pytest
from conftest import GRID, ROOT, SEARCH, parameters
from ml_collections import ConfigDict

from configs import default, digits_v1
from mobilenet_jax import config, config_keys
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.sweeps.points import (
    EVALUATION,
    WORK_OF_STEP,
    WORK_TO_START,
    Budget,
    Plan,
    check_search,
    draw,
    points,
)
from mobilenet_jax.training.step import Hyper


def test_a_sweep_on_another_set_is_another_one_in_the_database(read_sweep):
    sweep = read_sweep(GRID)
    found = points(sweep, digits_v1.get_config(), "digits_v1")
    fingerprints, studies = ("", "11111111", "22222222"), set()
    for fingerprint in fingerprints:
        data = dataclasses.replace(found[0].spec.dataset, fingerprint=fingerprint)
        of_set = [dataclasses.replace(each, spec=dataclasses.replace(each.spec, dataset=data)) for each in found]
        studies.add(Plan(sweep, of_set, draw, Budget(), pathlib.Path(), "", 1).study)  # type: ignore[arg-type]
    assert len(studies) == 3


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
def test_a_grid_is_enumerated_as_wandb_does(given, read_sweep, wandb_points):
    sweep = read_sweep(parameters(**given))
    base: Any = default.get_config()
    found = [p.assignment for p in points(sweep, base, "default")]
    assert [{f"config.{k}": v for k, v in assignment.items()} for assignment in found] == wandb_points(
        parameters(**given)
    )
    assert all(p.kind == "values" for p in sweep.parameters)


def test_values_of_a_grid_keep_their_type(read_sweep):
    def values(**given):
        key = "model__alpha" if "values" in given else "seed"
        return [(type(v), v) for v in read_sweep(parameters(**{key: given})).parameters[0].values]

    assert values(values=[1, 1.0, 1]) == [(int, 1), (float, 1.0)]
    assert values(distribution="q_uniform", min=0, max=2, q=1) == [(int, 0), (int, 1)]
    assert values(distribution="q_uniform", min=0, max=2) == [(float, 0.0), (float, 1.0)]  # q = 1.0 to W&B


# Points.


def test_all_bad_points_are_reported_before_any_starts(read_sweep):
    given = {"model__alpha": {"values": [0.5, 9, 10.0]}, "seed": {"values": [0, 1]}, "augment__pad": {"value": 1}}
    with pytest.raises(InputError) as caught:
        points(read_sweep(parameters(**given)), default.get_config(), "default")
    assert str(caught.value) == (
        "sweep some: 4 of 6 points cannot be run, the first because of config.model.alpha=9.0: allowed is a width "
        "multiplier above 0 and at most 8 (at model.alpha=9, seed=0)"
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"train__epochs": {"values": [1.5]}}, "config.train.epochs: '1.5' is 1.5 (float) to YAML; allowed is a whole"),
        ({"model__version": {"values": [1]}}, "config.model.version: '1' is 1 (int) to YAML; allowed is one of 'v1'"),
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
        points(read_sweep(parameters(**given)), default.get_config(), "default")
    assert sentence in str(caught.value)


def test_a_point_is_the_run_by_hand(read_sweep):
    base: Any = default.get_config()
    sweep = read_sweep(
        parameters(model__alpha={"values": [1, 0.5]}, point={"value": "rho=0.5"}, wandb__project={"value": "x"})
    )
    one, half = points(sweep, base, "mine")
    assert base == default.get_config()
    base.model.alpha, base.model.rho = 0.5, 0.5
    assert half.spec == config.resolve(ConfigDict(base.to_dict() | {"wandb": {"mode": "auto", "project": "x"}}), "mine")
    assert half.spec.run_name == f"mine-a0.5-r0.5-s0-{half.spec.digest}" and half.spec.resolution == 16
    assert one.spec.config.model.alpha == 1.0 and type(one.spec.config.model.alpha) is float
    expected = cost.totals(arch.mobilenet_v1(0.5, 10, "cifar"), 16)
    assert (half.mult_adds, half.spec.totals.params) == (expected.mult_adds, expected.params)


@pytest.mark.parametrize("tree", [{}, {"model": 3}])
def test_a_base_that_is_no_config(tree, read_sweep):
    with pytest.raises(InputError, match=r"the first because of (the config has no key|unknown key) config\.model"):
        points(read_sweep(GRID), ConfigDict(tree), "x")


def test_the_same_run_is_listed_once(read_sweep):
    given = {"model__rho": {"values": [1.0, 0.999, 0.5]}, "wandb__mode": {"values": ["offline", "online"]}}
    found = points(read_sweep(parameters(**given)), default.get_config(), "x")
    assert [(p.assignment["model.rho"], p.assignment["wandb.mode"]) for p in found] == [
        (1.0, "offline"),
        (0.999, "offline"),
        (0.5, "offline"),
    ]
    (one,) = points(read_sweep(parameters(model__alpha={"values": [1, 1.0]})), default.get_config(), "x")
    assert type(one.assignment["model.alpha"]) is int


def test_a_former_name_of_a_value(read_sweep):
    sweep = read_sweep(parameters(model__variant={"values": ["seed004", "paper"]}))
    found = points(sweep, digits_v1.get_config(), "digits_v1")
    assert [p.spec.config.model.variant for p in found] == ["cifar28", "paper"]
    assert found[0].assignment["model.variant"] == "seed004"


def test_a_cap(read_sweep):
    tree = parameters(seed={"values": [0, 1, 2]}, model__alpha={"values": [0.5, 1.0]}) | {"run_cap": 4}
    found = [tuple(p.assignment.values()) for p in points(read_sweep(tree), default.get_config(), "x")]
    assert found == [(0.5, 0), (0.5, 1), (0.5, 2), (1.0, 0)]


def test_overrides(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.5]}, seed={"values": [0, 1]}))
    base: Any = default.get_config()
    base.train.epochs = 3
    assert {p.spec.config.train.epochs for p in points(sweep, base, "x", {"train.epochs": 3})} == {3}
    for key in ("seed", "model.alpha"):
        with pytest.raises(InputError, match=f"config.{key} cannot be overridden"):
            points(sweep, base, "x", ["train.epochs", key])
    with pytest.raises(InputError, match="config.optim.lr cannot be overridden"):
        check_search(read_sweep(SEARCH), base, "x", ["optim.lr"])


def test_budgets(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.25, 0.5, 1.0]}))

    def alphas(*bounds):
        return [p.assignment["model.alpha"] for p in points(sweep, default.get_config(), "x", (), Budget(*bounds))]

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
    with pytest.raises(InputError, match="2 of 2 points .* config.data.holdout above 0"):
        points(read_sweep(tree), default.get_config(), "x")
    base: Any = default.get_config()
    base.data.holdout = 0.1
    assert len(points(read_sweep(tree), base, "x")) == 2


# Searches.


def test_the_corners_of_a_search(read_sweep):
    given = {
        "config.optim.lr": {"min": 0.1, "max": 0.9},
        "config.model.alpha": {"values": [0.25, 0.5, 1.0]},
        "config.seed": {"min": 0, "max": 5},
    }
    tree = SEARCH | {"parameters": SEARCH["parameters"] | given}
    found = [p.assignment for p in check_search(read_sweep(tree), default.get_config(), "x")]
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
        ({"config.data.holdout": {"value": 0.0}}, "3 of 3 .* config.data.holdout above 0"),
        ({"config.data.holdout": {"values": [0.1, 0]}}, "1 of 4 .* config.data.holdout above 0"),
        (
            {"config.optim.momentum": {"min": 0.5, "max": 1.5}},
            r"momentum=1.5: allowed is .* \(at optim.lr=0.01, optim.mom",
        ),
        (
            {"config.train.epochs": {"min": 1, "max": 5, "distribution": "uniform"}},
            "config.train.epochs=1.0: is of type float",
        ),
    ],
)
def test_impossible_ranges(given, sentence, read_sweep):
    sweep = read_sweep(SEARCH | {"parameters": SEARCH["parameters"] | given})
    with pytest.raises(InputError, match=sentence):
        check_search(sweep, default.get_config(), "x")


def test_a_search_on_training_figures_needs_no_holdout(read_sweep):
    tree = SEARCH | {"metric": {"name": "train_loss"}, "parameters": {"config.optim.lr": {"min": 0.1, "max": 0.9}}}
    assert len(check_search(read_sweep(tree), default.get_config(), "x")) == 2


def test_a_drawn_point(read_sweep):
    sweep, base = read_sweep(SEARCH), default.get_config()
    point = draw(sweep, base, "x", {"optim.lr": 0.3})
    assert point.assignment == {"data.holdout": 0.1, "optim.lr": 0.3}
    assert point.spec.train_size == 45_000 and point.spec.config.optim.lr == 0.3
    with pytest.raises(InputError, match=r"config.optim.lr=-1.0: allowed is above 0"):
        draw(sweep, base, "x", {"optim.lr": -1.0})


# Programs and the work of a run.


def test_traced_keys_are_the_arguments_of_the_step():
    """A missing key would compile once per value; a superfluous one would train with the value of another run."""
    named = {"key": "seed", "learning_rate": "optim.lr", "depthwise_weight_decay": "optim.decay_depthwise"}
    named |= {"total_steps": "train.epochs", "rise_steps": "optim.warmup_epochs"}
    named |= {"stair_steps": "optim.lr_decay_epochs"}
    fields = [field.name for field in dataclasses.fields(Hyper)]
    keys = [named.get(f) or next(k for k in config_keys.RULES if k.endswith(f".{f}")) for f in fields]
    assert sorted(keys) == sorted(config_keys.TRACED)


@pytest.mark.parametrize(
    ("given", "programs"),
    [
        ({"seed": [0, 1], "optim.lr": [0.1, 0.2], "optim.decay_depthwise": [False, True]}, 1),
        ({"train.ema_decay": [0.9, 0.99]}, 1),
        ({"train.ema_decay": [0.0, 0.9, 0.99]}, 2),
        ({"train.label_smoothing": [0, 0.1], "optim.clip_norm": [0, 1.0]}, 1),
        ({"model.alpha": [0.5, 1.0], "seed": [0, 1]}, 2),
        ({"model.rho": [0.5, 1.0]}, 2),
        ({"train.epochs": [3, 4], "optim.lr_decay_epochs": [1.0, 2.5]}, 1),
        ({"optim.schedule": ["cosine", "constant"]}, 2),
    ],
)
def test_points_that_share_a_program(given, programs, read_sweep):
    sweep = read_sweep(GRID | {"parameters": {f"config.{k}": {"values": v} for k, v in given.items()}})
    found = points(sweep, default.get_config(), "x")
    assert len({p.spec.program_key for p in found}) == programs


def test_programs_come_first_and_long_runs_before_short_ones(read_sweep, tmp_path):
    values = {"config.model.alpha": [0.25, 1.0], "config.seed": [0, 1], "config.optim.lr": [0.1, 0.2]}
    sweep = read_sweep(GRID | {"parameters": {key: {"values": v} for key, v in values.items()}})
    found = points(sweep, default.get_config(), "x")
    plan = Plan(sweep, found, lambda values: found[0], Budget(), tmp_path, "", 1)
    ordered = [plan.grid[digest].assignment for digest in plan.order]
    assert [a["model.alpha"] for a in ordered] == [1.0, 0.25] * 4


def test_work_is_proportional_to_the_benchmarks_time(read_sweep):
    """One epoch of the networks in results/bench/cpu.json."""
    measured = json.loads((ROOT / "results" / "bench" / "cpu.json").read_bytes())["networks"]
    seconds_per_work = []
    for network, given in measured.items():
        version, alpha = network.split("-")
        base: Any = default.get_config()
        base.model.version, base.model.alpha, base.train.epochs = version, float(alpha), 1
        (point,) = points(read_sweep(parameters(seed={"value": 0})), base, "x")
        contenders = given["contenders"]
        spec, rate = point.spec, {name: contenders[name]["images_per_second"] for name in ("ours", "ours evaluation")}
        seconds = spec.total_steps * 128 / rate["ours"] + spec.dataset.test_size / rate["ours evaluation"]
        seconds_per_work.append(seconds / (point.work - WORK_TO_START))
    assert len(seconds_per_work) == 6
    assert seconds_per_work == pytest.approx([statistics.median(seconds_per_work)] * 6, rel=0.04)


def test_work_counts_every_epoch_and_evaluation(read_sweep):
    def work(**changes):
        base: Any = default.get_config()
        base.train.update(changes.pop("train", {}))
        base.data.update(changes)
        (point,) = points(read_sweep(parameters(seed={"value": 0})), base, "x")
        return point.work - WORK_TO_START

    image = work(train={"eval_epochs": 1}) - work(train={"eval_epochs": 10})
    image /= 9 * 10_000 * EVALUATION
    epoch = (work(train={"epochs": 20}) - work()) / 10
    assert epoch == pytest.approx(390 * WORK_OF_STEP + image * (390 * 128 + 2_000))
    assert work(train={"eval_epochs": 3}) == pytest.approx(10 * epoch - 6 * image * 2_000)
    held = work(holdout=0.1) - 351 * 10 * (WORK_OF_STEP + 128 * image)
    assert held == pytest.approx(image * EVALUATION * (10 * 5_000 + 10_000))


def test_a_file_without_a_command(read_sweep):
    found = points(read_sweep(GRID), digits_v1.get_config(), "digits_v1")
    assert [p.spec.run_name.rpartition("-")[0] for p in found] == ["digits_v1-a0.25-r1-s0", "digits_v1-a0.5-r1-s0"]
