"""Tables of a sweep: before training, and its results."""

import json
import subprocess
import sys

from conftest import ROOT, SEARCH, parameters
from sweep_helpers import FINISHED

from configs import default
from mobilenet_jax.sweeps import tables
from mobilenet_jax.sweeps.points import check_search, points
from mobilenet_jax.sweeps.queue import Entry


def test_the_dry_run_of_a_grid(read_sweep):
    sweep = read_sweep(
        parameters(model__alpha={"values": [0.25, 1]}, seed={"values": [0, 1]}, augment__pad={"value": 1})
    )
    found = points(sweep, default.get_config(), "x")
    text = tables.describe(sweep, found)
    lines = text.splitlines()
    assert lines[0] == "sweep some: grid, maximize test_accuracy"
    assert lines[2].split() == ["alpha", "seed", "resolution", "mult-adds", "params"]
    assert [line.split() for line in lines[3:7]] == [
        [alpha, seed, "32", cost, "M", params, "M"]
        for alpha, cost, params in (("0.25", "3.33", "0.22"), ("1", "46.35", "3.22"))
        for seed in "01"
    ]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert lines[8:] == [
        "points     4",
        "programs   2 to compile",
        "mult-adds  3.33 M to 46.35 M",
        "time       unknown until the first point is done",
    ]


def test_the_dry_run_of_a_grid_as_json(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.25, 1]}, augment__pad={"value": 1}))
    found = points(sweep, default.get_config(), "x")
    shown = json.loads(tables.describe(sweep, found, "json"))
    assert {key: shown[key] for key in ("sweep", "method", "metric", "goal")} == {
        "sweep": "some",
        "method": "grid",
        "metric": "test_accuracy",
        "goal": "maximize",
    }
    assert shown["points"] == [
        {
            "run": p.spec.run_name,
            "digest": p.spec.digest,
            "assignment": {"augment.pad": 1, "model.alpha": alpha},
            "resolution": 32,
            "mult_adds": mult_adds,
            "params": params,
        }
        for p, alpha, mult_adds, params in zip(
            found, (0.25, 1), (3_331_072, 46_354_432), (215_642, 3_217_226), strict=True
        )
    ]
    assert shown["totals"] == {
        "points": 2,
        "programs": 2,
        "mult_adds_min": 3_331_072,
        "mult_adds_max": 46_354_432,
    }


def test_the_dry_run_of_a_search(read_sweep):
    given = {
        "config.train.epochs": {"distribution": "q_uniform", "min": 4, "max": 8, "q": 2},
        "config.augment.pad": {"min": 0, "max": 4},
        "config.optim.momentum": {"min": 0.5, "max": 0.95},
        "config.model.alpha": {"values": [0.25, 0.5]},
    }
    sweep = read_sweep(SEARCH | {"parameters": SEARCH["parameters"] | given})
    corners = check_search(sweep, default.get_config(), "x")
    assert tables.describe(sweep, corners).splitlines() == [
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
        "time       unknown until the first point is done",
    ]
    shown = json.loads(tables.describe(sweep, corners, "json"))
    assert "points" not in shown and shown["run_cap"] == 10
    assert shown["parameters"][3] == {
        "key": "optim.lr",
        "kind": "float",
        "values": [],
        "low": 0.01,
        "high": 1.0,
        "step": None,
        "log": True,
    }
    assert shown["totals"] == {"points": 10, "mult_adds_min": 3_331_072, "mult_adds_max": 12_167_168}


def test_results(read_sweep):
    sweep = read_sweep(parameters(model__alpha={"values": [0.25, 1]}, seed={"value": 0}))
    summary = FINISHED.model_copy(update={"test_accuracy": 0.98611, "wall_seconds": 61.42})
    diverged = summary.model_copy(update={"status": "diverged", "test_accuracy": None})
    entries = [
        Entry(1, "a" * 8, "finished", {"model.alpha": 0.25}, summary, "", "here"),
        Entry(2, "b" * 8, "diverged", {"model.alpha": 0.5}, diverged, "", "there"),
        Entry(3, "c" * 8, "failed", {"model.alpha": 1.0}, None, "out of memory", "here"),
    ]
    assert tables.results(sweep, entries).splitlines() == [
        "alpha  mult-adds  params  test_accuracy  seconds     state",
        " 0.25     3.33 M  0.22 M         0.9861     61.4  finished",
        "  0.5     3.33 M  0.22 M                    61.4  diverged",
        "    1                                               failed",
    ]


def test_starts_without_anything_heavy():
    """A dry run lists a thousand points on a laptop."""
    heavy = ("jax", "numpy", "optuna", "wandb", "sweeps", "scipy")
    code = f"import sys, mobilenet_jax.sweeps.tables; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
