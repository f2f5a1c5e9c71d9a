"""Sweep files: the same points as W&B's own code lists, and one sentence for everything that would go wrong."""

import dataclasses
import itertools
import json
import math
import pathlib
import random
import runpy
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from ml_collections import ConfigDict

from configs import default, digits_v1
from mobilenet_jax import arch, config, cost, grid, steps
from mobilenet_jax.errors import InputError

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
GRID = {"program": "launch.py", "method": "grid", "parameters": {"config.model.alpha": {"values": [0.25, 0.5]}}}
SEARCH = GRID | {
    "method": "random",
    "run_cap": 10,
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "parameters": {
        "config.data.holdout": {"value": 0.1},
        "config.optim.lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
    },
}
ARGS = ["${program}", "${args}"]


@pytest.fixture
def read(tmp_path):
    """Reads a sweep file that holds this text, or this tree."""

    def run(content: Any) -> grid.Sweep:
        path = tmp_path / "some.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return grid.read(path)

    return run


@pytest.fixture
def refused(read, tmp_path):
    """The one sentence about a bad sweep file, without its name."""

    def run(content: Any) -> str:
        with pytest.raises(InputError) as caught:
            read(content)
        sentence, start = str(caught.value), f"{tmp_path / 'some.yaml'}"
        assert sentence.startswith(start) and "\n" not in sentence
        return sentence.removeprefix(start)

    return run


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


def base_of(sweep: grid.Sweep) -> tuple[ConfigDict, str, set[str]]:
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


def points_of(path: pathlib.Path) -> tuple[grid.Sweep, list[grid.Point]]:
    sweep = grid.read(path)
    return sweep, (grid.points if sweep.method == "grid" else grid.check_search)(sweep, *base_of(sweep))


def parameters(**given: Any) -> dict[str, Any]:
    """The smallest file with these parameters, a double underscore standing for a dot."""
    return GRID | {"parameters": {f"config.{key.replace('__', '.')}": value for key, value in given.items()}}


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
    cap = grid.read(path).run_cap or len(points)
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


# The grammar.


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
def test_a_grid_is_enumerated_as_wandb_does(given, read, oracle):
    sweep = read(parameters(**given))
    base: Any = default.get_config()
    found = [p.assignment for p in grid.points(sweep, base, "default")]
    assert [{f"config.{k}": v for k, v in assignment.items()} for assignment in found] == oracle(parameters(**given))
    assert all(p.kind == "values" for p in sweep.parameters)


def test_values_of_a_grid_keep_their_type(read):
    def values(**given):
        return [(type(v), v) for v in read(parameters(seed=given)).parameters[0].values]

    assert values(values=[1, 1.0, True, 1]) == [(int, 1), (float, 1.0), (bool, True)]
    assert values(distribution="q_uniform", min=0, max=2, q=1) == [(int, 0), (int, 1)]
    assert values(distribution="q_uniform", min=0, max=2) == [(float, 0.0), (float, 1.0)]  # q = 1.0 to W&B


def test_steps_are_numpys_to_the_last_bit():
    chance = random.Random(0)
    for _ in range(500):
        start, step = chance.uniform(-2, 2), chance.choice([0.1, 0.3, 1, chance.uniform(0.01, 1)])
        stop = start + chance.uniform(0.01, 3)
        assert grid._arange(start, stop, step) == tuple(np.arange(start, stop, step).tolist())
    assert [type(value) for value in grid._arange(1, 4, 2)] == [int, int]


def test_what_a_search_draws(read):
    def one(**given):
        (found,) = read(SEARCH | {"parameters": {"config.optim.lr": given}}).parameters
        assert found.key == "optim.lr"
        return found.kind, found.low, found.high, found.step, found.log

    assert one(min=1, max=3) == ("int", 1, 3, None, False)
    assert one(min=1, max=3.0) == ("float", 1.0, 3.0, None, False)
    assert one(min=1, max=3, distribution="uniform") == ("float", 1.0, 3.0, None, False)
    assert one(min=2, max=8, q=2, distribution="q_uniform") == ("int", 2, 8, 2, False)
    assert one(min=0.1, max=0.7, q=0.1, distribution="q_uniform") == ("float", 0.1, 0.7, 0.1, False)
    assert one(min=0.01, max=1, distribution="log_uniform_values") == ("float", 0.01, 1.0, None, True)
    assert one(min=-2, max=0, distribution="log_uniform") == ("float", math.exp(-2), 1.0, None, True)


def test_a_whole_file(read):
    command = ["${env}", "${interpreter}", "${program}"]
    command += ["--config", "configs/cifar_v1.py", "--config.train.epochs=4", "-config.train.batch_size", "64"]
    command += ["--config.augment.flip", "${args}", "--noconfig.optim.decay_depthwise"]
    sweep = read(
        GRID
        | {"name": "x", "description": "x", "project": "x", "entity": "x", "run_cap": 3, "program": "../launch.py"}
        | {"metric": {"name": "train_loss"}, "command": command}
    )
    assert sweep == grid.Sweep(
        name="some",
        method="grid",
        parameters=(grid.Parameter("model.alpha", "values", (0.25, 0.5)),),
        metric="train_loss",
        goal="minimize",  # W&B's default
        run_cap=3,
        arguments=(
            "--config=configs/cifar_v1.py",
            "--config.train.epochs=4",
            "--config.train.batch_size=64",
            "--config.augment.flip=True",
            "--config.optim.decay_depthwise=False",
        ),
    )


def test_what_need_not_be_said(read):
    sweep = read(GRID)
    assert (sweep.metric, sweep.goal, sweep.run_cap, sweep.arguments) == ("test_accuracy", "maximize", None, ())


def test_an_alias_is_no_repetition(read):
    text = "x: &x {values: [0, 1]}\n".replace("x:", "  config.seed:", 1)
    text = f"program: launch.py\nmethod: grid\nparameters:\n{text}  config.augment.pad: *x\n"
    assert [p.values for p in read(text).parameters] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", ": must be a mapping of program, method, parameters and command"),
        ("- 1", ": must be a mapping"),
        ("method: grid\nprogram: [", ", line 2: is not YAML: expected the node content"),
        ("a: 1\nb: 2\na: 3", ", line 3: is not YAML: the key 'a' stands there twice"),
        ("a:\n  b: {c: 1, c: 1}", ", line 2: is not YAML: the key 'c' stands there twice"),
        ("a: !!python/name:os.system", ", line 1: is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", ", line 2: is not YAML: but found another document"),
        ("a: \x00", ": is not YAML: unacceptable character"),
        ("a: 2000-99-99", ": is not YAML: month must be in 1..12"),
        ("a: !!map [1]", "is not YAML"),
        ("[" * 400, "is not YAML"),
    ],
)
def test_what_is_no_sweep_file(text, sentence, refused):
    assert sentence in refused(text)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"absent.yaml: the sweep file cannot be read \(No such file or directory\)"):
        grid.read(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        grid.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.yaml: is not YAML: 'utf-8' codec"):
        grid.read(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"early_terminate": {"type": "hyperband"}},
            "early_terminate is not supported: every point trains to its last",
        ),
        ({"metod": "grid"}, "unknown key 'metod'; did you mean method?"),
        ({"job": "x"}, "unknown key 'job'; known are program, method, metric, parameters"),
        ({"imports": "x"}, "unknown key 'imports'; known are"),
        ({"controller": {"type": "local"}}, "unknown key 'controller'"),
        ({1: 2}, "unknown key 1; known are"),
        ({"program": "train.py"}, "program='train.py': must be launch.py"),
        ({"program": None}, "program=None: must be launch.py"),
        ({"method": "sobol"}, "method='sobol': allowed are grid, random, bayes"),
        ({"method": ["grid"]}, "method=['grid']: allowed are grid, random, bayes"),
        ({"metric": "test_accuracy"}, "metric='test_accuracy': must be a mapping of name and goal"),
        ({"metric": {"goal": "maximize"}}, "must be a mapping of name and goal"),
        ({"metric": {"name": "test_loss", "impute": "worst"}}, "must be a mapping of name and goal"),
        ({"metric": {"name": "test_loss", "target": 1}}, "metric.target is not supported: every point of a sweep is"),
        (
            {"metric": {"name": "accuracy"}},
            "metric.name='accuracy': allowed are test_accuracy, test_loss, val_accuracy",
        ),
        ({"metric": {"name": "test_loss", "goal": "max"}}, "metric.goal='max': allowed are maximize, minimize"),
        (
            {"metric": {"name": "test_loss", "goal": "maximize"}},
            "metric.goal=maximize: for test_loss it must be minimize",
        ),
        ({"metric": {"name": "val_accuracy"}}, "metric.goal=minimize (W&B's default): for val_accuracy it must be max"),
        ({"run_cap": 0}, "run_cap=0: must be a whole number from 1"),
        ({"run_cap": True}, "run_cap=True: must be a whole number from 1"),
        ({"run_cap": None}, "run_cap=None: must be a whole number from 1"),
        ({"parameters": None}, "parameters must be a mapping such as"),
        ({"parameters": {}}, "parameters must be a mapping such as"),
        (
            {"parameters": {f"config.{k}": {"values": [*range(101)]} for k in ("seed", "augment.pad")}},
            "a grid of 10,201",
        ),
        ({"command": "python launch.py"}, "command must be a list of texts"),
        ({"command": ["${program}", 1]}, "command must be a list of texts"),
        ({"command": ["python", "launch.py", "${args}"]}, "command must have ${program}"),
        ({"command": ["python", *ARGS]}, "command: 'python' stands before ${program}; allowed are ${env} and"),
        ({"command": ["${program}"]}, "command must have ${args} once, after ${program}"),
        ({"command": [*ARGS, "${args}"]}, "command must have ${args} once"),
        ({"command": ["${args}", "${program}"]}, "'${args}' stands before ${program}"),
        (
            {"command": [*ARGS, "${args_no_boolean_flags}"]},
            "'${args_no_boolean_flags}' is not supported (it drops what",
        ),
        ({"command": ["${program}", "${args_json}"]}, "'${args_json}' is not supported; allowed are ${env}, ${interp"),
        ({"command": [*ARGS, "--config=${envvar:X}"]}, "'--config=${envvar:X}' is not supported"),
        (
            {"command": [*ARGS, "--workdir=runs"]},
            "'--workdir=runs' is not allowed; --config=FILE and --config.KEY=VALUE",
        ),
        ({"command": [*ARGS, "extra"]}, "command: 'extra' is not allowed"),
        ({"command": [*ARGS, "--config configs/cifar_v1.py"]}, "is not allowed; --config=FILE and"),
        ({"command": [*ARGS, "--noconfig"]}, "'--noconfig' is not allowed"),
        ({"command": [*ARGS, "--config"]}, "command: '--config' lacks its value"),
        ({"command": ["${program}", "--config.seed", "${args}"]}, "command: '--config.seed' lacks its value"),
        ({"command": [*ARGS, "--config.sed=1"]}, "unknown key config.sed; did you mean config.seed?"),
        ({"command": [*ARGS, "--noconfig.seed"]}, "'--noconfig.seed' does not switch a key off that is True or False"),
        ({"command": [*ARGS, "--noconfig.augment.flip=1"]}, "does not switch a key off"),
        ({"command": [*ARGS, "--config.model.alpha=1"]}, "config.model.alpha stands in command and in parameters"),
    ],
)
def test_bad_files(changes, sentence, refused):
    assert sentence in refused(GRID | changes)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("config.model.alhpa", {"value": 1}, "unknown key config.model.alhpa; did you mean config.model.alpha?"),
        ("model.alpha", {"value": 1}, "parameter 'model.alpha': must be named config.KEY"),
        (1, {"value": 1}, "parameter 1: must be named config.KEY"),
        ("config", {"parameters": {"seed": {"value": 1}}}, "parameter 'config' is nested, and W&B would replace"),
        ("config.model", {"parameters": {"alpha": {"value": 1}}}, "parameter 'config.model' is nested"),
        ("config.seed", 1, "parameter config.seed=1: must be a mapping, such as {values: [...]}"),
        ("config.seed", {}, "parameter config.seed: must have value, values, or min and max"),
        ("config.seed", {"min": 1}, "must have value, values, or min and max"),
        (
            "config.seed",
            {"distribution": "normal"},
            "no distribution 'normal'; allowed are constant, categorical, int_uni",
        ),
        (
            "config.optim.lr",
            {"min": 0.1, "max": 0.2},
            "a grid sweep has no distribution 'uniform'; allowed are constant",
        ),
        ("config.seed", {"distribution": ["constant"]}, "no distribution ['constant']"),
        ("config.seed", {"distribution": "constant"}, "constant must have value"),
        ("config.seed", {"distribution": "int_uniform", "max": 1}, "int_uniform must have min and max"),
        ("config.seed", {"values": [0, 1], "probabilities": [0.5, 0.5]}, "categorical may not have probabilities"),
        ("config.seed", {"value": 1, "values": [1]}, "constant may not have values"),
        ("config.seed", {"min": 0, "max": 3, "q": 1}, "int_uniform may not have q"),
        ("config.seed", {"values": []}, "config.seed: values must be a list that is not empty"),
        ("config.seed", {"values": 3}, "config.seed: values must be a list that is not empty"),
        ("config.seed", {"values": [[1]]}, "config.seed: [1] must be a number, text, true or false"),
        ("config.seed", {"value": {"a": 1}}, "config.seed: {'a': 1} must be a number, text, true or false"),
        ("config.seed", {"values": [None]}, "config.seed: None must be a number, text"),
        ("config.optim.lr", {"values": ["3e-4"]}, "config.optim.lr: '3e-4' is text to YAML; write 3.0e-4"),
        ("config.optim.lr", {"value": "1.5e3"}, "'1.5e3' is text to YAML; write 1.5e+3"),
        ("config.optim.lr", {"value": "0.1"}, "'0.1' is text to YAML; write 0.1"),
        ("config.seed", {"min": 3, "max": 3}, "config.seed: min=3 must be below max=3"),
        (
            "config.seed",
            {"distribution": "int_uniform", "min": 0, "max": 3.0},
            "min and max of int_uniform must be whole",
        ),
        ("config.seed", {"min": True, "max": 3}, "a grid sweep has no distribution 'uniform'"),
        (
            "config.seed",
            {"distribution": "int_uniform", "min": True, "max": 3},
            "config.seed: min=True must be a number",
        ),
        ("config.seed", {"distribution": "q_uniform", "min": 0, "max": 3, "q": 0}, "config.seed: q=0 must be above 0"),
        ("config.seed", {"distribution": "q_uniform", "min": 0, "max": 3, "q": "1e0"}, "is text to YAML; write 1.0e+0"),
        (
            "config.seed",
            {"distribution": "q_uniform", "min": 0, "max": math.inf},
            "config.seed: max=inf must be a number",
        ),
        (
            "config.seed",
            {"min": 0, "max": 2**32 - 1},
            "config.seed: has 4,294,967,296 values; at most 10,000 are allowed",
        ),
    ],
)
def test_bad_parameters(name, given, sentence, refused):
    assert sentence in refused(GRID | {"parameters": {name: given}})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": {"name": "test_accuracy", "goal": "maximize"}}, "a search may not choose by the test images"),
        ({"method": "bayes", "metric": {"name": "test_loss"}}, "a search may not choose by the test images"),
        ({"run_cap": 0}, "run_cap=0: must be"),
        ({"parameters": {"config.seed": {"value": 1}}}, "no parameter varies, so method random has nothing to draw"),
    ],
)
def test_bad_searches(changes, sentence, refused):
    assert sentence in refused(SEARCH | changes)


@pytest.mark.parametrize("method", ["random", "bayes"])
@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("run_cap", "must be a whole number from 1 (method {} has no end of its own)"), ("metric", "{} needs a metric")],
)
def test_what_a_search_cannot_do_without(method, missing, sentence, refused):
    tree = {key: value for key, value in SEARCH.items() if key != missing} | {"method": method}
    assert sentence.format(method) in refused(tree)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min=0 of log_uniform_values must be above 0"),
        ({"distribution": "log_uniform", "min": 0, "max": 1000}, "e to the 1000 is too large or small"),
        ({"distribution": "log_uniform", "min": -1e9, "max": 1}, "is too large or small"),
        (
            {"distribution": "log_uniform_values", "min": "1e-4", "max": 1},
            "optim.lr.min: '1e-4' is text to YAML; write 1.0",
        ),
        ({"distribution": "q_uniform", "min": 0.15, "max": 0.4, "q": 0.1}, "min and max must be multiples of q=0.1"),
        (
            {"distribution": "inv_log_uniform_values", "min": 1, "max": 2},
            "a random sweep has no distribution 'inv_log_un",
        ),
    ],
)
def test_bad_ranges(given, sentence, refused):
    assert sentence in refused(SEARCH | {"parameters": {"config.optim.lr": given}})


# Points.


def test_all_bad_points_are_told_before_any_starts(read):
    given = {"model__alpha": {"values": [0.5, 9, 10.0]}, "seed": {"values": [0, 1]}, "augment__pad": {"value": 1}}
    with pytest.raises(InputError) as caught:
        grid.points(read(parameters(**given)), default.get_config(), "default")
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
def test_bad_points(given, sentence, read):
    with pytest.raises(InputError) as caught:
        grid.points(read(parameters(**given)), default.get_config(), "default")
    assert sentence in str(caught.value)


def test_a_point_is_the_run_by_hand(read):
    base: Any = default.get_config()
    sweep = read(
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
def test_a_base_that_is_no_config(tree, read):
    with pytest.raises(InputError, match=r"the first because of (the config has no key|unknown key) config\.model"):
        grid.points(read(GRID), ConfigDict(tree), "x")


def test_the_same_run_is_listed_once(read):
    given = {"model__rho": {"values": [1.0, 0.999, 0.5]}, "wandb__mode": {"values": ["offline", "online"]}}
    found = grid.points(read(parameters(**given)), default.get_config(), "x")
    assert [(p.assignment["model.rho"], p.assignment["wandb.mode"]) for p in found] == [
        (1.0, "offline"),
        (0.999, "offline"),
        (0.5, "offline"),
    ]
    (one,) = grid.points(read(parameters(model__alpha={"values": [1, 1.0]})), default.get_config(), "x")
    assert type(one.assignment["model.alpha"]) is int


def test_a_cap(read):
    tree = parameters(seed={"values": [0, 1, 2]}, model__alpha={"values": [0.5, 1.0]}) | {"run_cap": 4}
    found = [tuple(p.assignment.values()) for p in grid.points(read(tree), default.get_config(), "x")]
    assert found == [(0.5, 0), (0.5, 1), (0.5, 2), (1.0, 0)]


def test_overrides(read):
    sweep = read(parameters(model__alpha={"values": [0.5]}, seed={"values": [0, 1]}))
    base: Any = default.get_config()
    base.train.epochs = 3
    assert {p.spec.config.train.epochs for p in grid.points(sweep, base, "x", {"train.epochs": 3})} == {3}
    for key in ("seed", "model.alpha"):
        sentence = f"config.{key} cannot be overridden: the sweep some sets it for every point"
        with pytest.raises(InputError, match=sentence):
            grid.points(sweep, base, "x", ["train.epochs", key])
    with pytest.raises(InputError, match="config.optim.lr cannot be overridden"):
        grid.check_search(read(SEARCH), base, "x", ["optim.lr"])


def test_budgets(read):
    sweep = read(parameters(model__alpha={"values": [0.25, 0.5, 1.0]}))

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


def test_a_metric_that_no_run_would_have(read):
    tree = GRID | {"metric": {"name": "val_loss"}}
    with pytest.raises(InputError, match="2 of 2 points cannot be run, .* val_loss needs config.data.holdout above 0"):
        grid.points(read(tree), default.get_config(), "x")
    base: Any = default.get_config()
    base.data.holdout = 0.1
    assert len(grid.points(read(tree), base, "x")) == 2


# Searches.


def test_the_corners_of_a_search(read):
    given = {
        "config.optim.lr": {"min": 0.1, "max": 0.9},
        "config.model.alpha": {"values": [0.25, 0.5, 1.0]},
        "config.seed": {"min": 0, "max": 5},
    }
    tree = SEARCH | {"parameters": SEARCH["parameters"] | given}
    found = [p.assignment for p in grid.check_search(read(tree), default.get_config(), "x")]
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
def test_impossible_ranges(given, sentence, read):
    sweep = read(SEARCH | {"parameters": SEARCH["parameters"] | given})
    with pytest.raises(InputError, match=sentence):
        grid.check_search(sweep, default.get_config(), "x")


def test_a_search_on_training_figures_needs_no_holdout(read):
    tree = SEARCH | {"metric": {"name": "train_loss"}, "parameters": {"config.optim.lr": {"min": 0.1, "max": 0.9}}}
    assert len(grid.check_search(read(tree), default.get_config(), "x")) == 2


def test_a_drawn_point(read):
    sweep, base = read(SEARCH), default.get_config()
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
def test_points_that_share_a_program(given, programs, read):
    sweep = read(GRID | {"parameters": {f"config.{k}": {"values": v} for k, v in given.items()}})
    found = grid.points(sweep, default.get_config(), "x")
    assert len({p.program for p in found}) == programs


def test_the_estimate_is_near_the_benchmark(read):
    """Images of one epoch a second, against those of results/bench/cpu.json."""
    measured = json.loads((ROOT / "results" / "bench" / "cpu.json").read_bytes())["networks"]
    for network, given in measured.items():
        version, alpha = network.split("-")
        base: Any = default.get_config()
        base.model.version, base.model.alpha, base.train.epochs = version, float(alpha), 1
        (point,) = grid.points(read(parameters(seed={"value": 0})), base, "x")
        contenders = given["contenders"]
        spec, rate = point.spec, {name: contenders[name]["images_per_second"] for name in ("ours", "ours evaluation")}
        expected = spec.total_steps * 128 / rate["ours"] + spec.dataset.test_size / rate["ours evaluation"]
        assert point.estimated_seconds - grid.SECONDS_TO_START == pytest.approx(expected, rel=0.04)


def test_the_estimate_counts_every_epoch_and_evaluation(read):
    def seconds(**changes):
        base: Any = default.get_config()
        base.train.update(changes.pop("train", {}))
        base.data.update(changes)
        (point,) = grid.points(read(parameters(seed={"value": 0})), base, "x")
        return point.estimated_seconds - grid.SECONDS_TO_START

    image = seconds(train={"eval_epochs": 1}) - seconds(train={"eval_epochs": 10})
    image /= 9 * 10_000 * grid.EVALUATION
    epoch = (seconds(train={"epochs": 20}) - seconds()) / 10
    assert epoch == pytest.approx(390 * grid.SECONDS_PER_STEP + image * (390 * 128 + 2_000))
    assert seconds(train={"eval_epochs": 3}) == pytest.approx(10 * epoch - 6 * image * 2_000)
    held = seconds(holdout=0.1) - 351 * 10 * (grid.SECONDS_PER_STEP + 128 * image)
    assert held == pytest.approx(image * grid.EVALUATION * (10 * 5_000 + 10_000))


# The dry run.


def test_the_dry_run_of_a_grid(read):
    sweep = read(parameters(model__alpha={"values": [0.25, 1]}, seed={"values": [0, 1]}, augment__pad={"value": 1}))
    found = grid.points(sweep, default.get_config(), "x")
    text = grid.describe(sweep, found)
    lines = text.splitlines()
    assert lines[0] == "sweep some: grid, maximize test_accuracy"
    assert lines[2].split() == ["alpha", "seed", "resolution", "mult-adds", "params", "time"]
    assert [line.split()[:7] for line in lines[3:7]] == [
        [alpha, seed, "32", cost, "M", params, "M"]
        for alpha, cost, params in (("0.25", "3.33", "0.22"), ("1", "46.35", "3.22"))
        for seed in "01"
    ]
    assert len({len(line) for line in lines[2:7]}) == 1
    total = sum(p.estimated_seconds for p in found)
    assert lines[8:] == [
        "points     4",
        "programs   2 to compile",
        "mult-adds  3.33 M to 46.35 M",
        f"time       about {grid._duration(total)} on two CPU cores, by estimate",
    ]


def test_the_dry_run_of_a_grid_for_programs(read):
    sweep = read(parameters(model__alpha={"values": [0.25, 1]}, augment__pad={"value": 1}))
    found = grid.points(sweep, default.get_config(), "x")
    said = json.loads(grid.describe(sweep, found, "json"))
    assert {key: said[key] for key in ("sweep", "method", "metric", "goal")} == {
        "sweep": "some",
        "method": "grid",
        "metric": "test_accuracy",
        "goal": "maximize",
    }
    assert said["points"] == [
        {
            "run": p.run_name,
            "digest": p.digest,
            "assignment": {"augment.pad": 1, "model.alpha": alpha},
            "resolution": 32,
            "mult_adds": mult_adds,
            "params": params,
            "estimated_seconds": p.estimated_seconds,
        }
        for p, alpha, mult_adds, params in zip(
            found, (0.25, 1), (3_331_072, 46_354_432), (215_642, 3_217_226), strict=True
        )
    ]
    assert said["totals"] == {
        "points": 2,
        "programs": 2,
        "mult_adds_min": 3_331_072,
        "mult_adds_max": 46_354_432,
        "estimated_seconds": sum(p.estimated_seconds for p in found),
    }


def test_the_dry_run_of_a_search(read):
    given = {
        "config.train.epochs": {"distribution": "q_uniform", "min": 4, "max": 8, "q": 2},
        "config.augment.pad": {"min": 0, "max": 4},
        "config.optim.momentum": {"min": 0.5, "max": 0.95},
        "config.model.alpha": {"values": [0.25, 0.5]},
    }
    sweep = read(SEARCH | {"parameters": SEARCH["parameters"] | given})
    corners = grid.check_search(sweep, default.get_config(), "x")
    seconds = 10 * sum(p.estimated_seconds for p in corners) / len(corners)
    assert grid.describe(sweep, corners).splitlines() == [
        "sweep some: random, maximize val_accuracy",
        "",
        "augment.pad     0 to 4                 whole numbers",
        "data.holdout    0.1                    constant",
        "model.alpha     0.25, 0.5              one of them",
        "optim.lr        0.01 to 1              in the logarithm",
        "optim.momentum  0.5 to 0.95            uniform",
        "train.epochs    4 to 8, in steps of 2  whole numbers",
        "",
        "points     up to 10",
        "mult-adds  3.33 M to 12.17 M",
        f"time       about {grid._duration(seconds)} on two CPU cores, by estimate",
    ]
    said = json.loads(grid.describe(sweep, corners, "json"))
    assert "points" not in said and said["run_cap"] == 10
    assert said["parameters"][3] == {
        "key": "optim.lr",
        "kind": "float",
        "values": [],
        "low": 0.01,
        "high": 1.0,
        "step": None,
        "log": True,
    }
    assert said["totals"] == {
        "points": 10,
        "mult_adds_min": 3_331_072,
        "mult_adds_max": 12_167_168,
        "estimated_seconds": pytest.approx(seconds),
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.6, "10 s"), (59.4, "59 s"), (61, "1 min"), (3570, "1 h 00 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds, text):
    assert grid._duration(seconds) == text


def test_columns():
    assert grid.columns([("a", "bb", "c"), ("dd", "e", "ffff")], left=1) == ["a   bb     c", "dd   e  ffff"]


def test_starts_without_anything_heavy():
    """A listing of a thousand points is read on a laptop, in a terminal."""
    heavy = ("jax", "numpy", "optuna", "wandb", "sweeps", "scipy")
    code = f"import sys, mobilenet_jax.grid; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_digits_need_no_command(read):
    found = grid.points(read(GRID), digits_v1.get_config(), "digits_v1")
    assert [p.run_name.rpartition("-")[0] for p in found] == ["digits_v1-a0.25-r1-s0", "digits_v1-a0.5-r1-s0"]
