"""The files in sweeps/: their points, costs, comments and names in a database."""

import dataclasses
import functools
import itertools
import json
import pathlib
import runpy
from unittest import mock

import pytest
import yaml
from conftest import ROOT

from mobilenet_jax import config_keys
from mobilenet_jax.papers import printed
from mobilenet_jax.sweeps import file, tables
from mobilenet_jax.sweeps.points import WORK_TO_START, Budget, Plan, Point, check_search, points

# The names of earlier versions: with other names, no sweep in an existing database would resume.
STUDIES = {
    "alpha_rho": "alpha_rho-0f24b042",
    "bottleneck": "bottleneck-3b0eaff0",
    "digits_demo": "digits_demo-ab06b5ef",
    "equal_cost": "equal_cost-cc9f9f91",
    "expansion": "expansion-aa30ab1f",
    "imagenet_alpha_rho": "imagenet_alpha_rho-f3233375",
    "imagenet_v2": "imagenet_v2-5f8469fb",
    "rmsprop": "rmsprop-47b7d57e",
    "search": "search-d1807ec4",
    "weight_decay": "weight_decay-6143e323",
}
SHIPPED = pytest.mark.parametrize("name", STUDIES)


def path_of(name: str) -> pathlib.Path:
    return ROOT / "sweeps" / f"{name}.yaml"


@functools.cache
def points_of(name: str) -> list[Point]:
    """Return the points of a file, or its corners, with the config of its command."""
    sweep = file.read(path_of(name))
    (path,) = [ROOT / a.removeprefix("--config=") for a in sweep.arguments if a.startswith("--config=")]
    base = runpy.run_path(str(path))["get_config"]()
    overridden = dict(a.removeprefix("--config.").split("=") for a in sweep.arguments if a.startswith("--config."))
    base.update_from_flattened_dict({key: config_keys.RULES[key].kind(text) for key, text in overridden.items()})
    return (points if sweep.method == "grid" else check_search)(sweep, base, path.stem, overridden)


def programs(name: str) -> int:
    return len({p.spec.program_key for p in points_of(name)})


def test_there_are_sweeps():
    assert {path.stem for path in (ROOT / "sweeps").glob("*.yaml")} == {*STUDIES}


@SHIPPED
def test_points_equal_those_of_wandb(name, wandb_points):
    expected = wandb_points(yaml.safe_load(path_of(name).read_text(encoding="utf-8")))
    if name != "search":
        assert [{f"config.{k}": v for k, v in p.assignment.items()} for p in points_of(name)] == expected
        assert [[f"config.{k}" for k in p.assignment] for p in points_of(name)] == [[*e] for e in expected]


@SHIPPED
def test_comments_say_what_a_file_is_for(name):
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line.startswith("#"))
    cap = file.read(path_of(name)).run_cap or len(points_of(name))
    assert "?" in text and "# Feeds: " in text and f"# Costs: {cap} points" in text
    assert f"python launch.py --sweep sweeps/{name}.yaml" in text and f"wandb sweep sweeps/{name}.yaml" in text


@SHIPPED
def test_names_in_a_database_never_change(name):
    plan = Plan(file.read(path_of(name)), points_of(name), mock.Mock(), Budget(), pathlib.Path("runs"), "", 1)
    assert plan.study == STUDIES[name]
    bounded = dataclasses.replace(plan, budget=Budget(None, 13_000_000))
    assert bounded.study == ("search-bff069f6" if name == "search" else STUDIES[name])


def test_alpha_and_rho():
    found = points_of("alpha_rho")
    assert [p.spec.resolution for p in found] == [32, 27, 23, 18] * 4
    by_alpha = {p.assignment["model.alpha"]: p for p in found if p.spec.resolution == 32}
    assert (by_alpha[1.0].mult_adds, by_alpha[1.0].spec.totals.params) == (46_354_432, 3_217_226)
    assert (by_alpha[0.25].mult_adds, by_alpha[0.25].spec.totals.params) == (3_331_072, 215_642)
    assert programs("alpha_rho") == 16


def test_groups_of_equal_cost():
    found = points_of("equal_cost")
    groups = [found[i : i + 5] for i in range(0, 15, 5)]
    costs = [sorted(p.mult_adds for p in group) for group in groups]
    assert len(found) == 15 and all(group[-1] <= 1.03 * group[0] for group in costs)
    assert all(b[0] > 1.5 * a[-1] for a, b in itertools.pairwise(costs))
    for group, cost in zip(groups, costs, strict=True):
        assert ", ".join(f"{c / 1e6:.2f}" for c in cost) in path_of("equal_cost").read_text(encoding="utf-8")
        assert [p.spec.config.model.version for p in group] == ["v1", "v1", "v2", "v2", "v2"]
        assert len({p.spec.resolution for p in group}) > 1


@pytest.mark.parametrize(("name", "rows"), [("imagenet_alpha_rho", "slim_v1"), ("imagenet_v2", "slim_v2")])
def test_the_imagenet_sweeps_are_the_released_networks(name, rows):
    released = {(float(row["alpha"]), int(row["resolution"])) for row in printed.rows(rows)}
    assert {(p.spec.config.model.alpha, p.spec.resolution) for p in points_of(name)} == released
    shown = json.loads(tables.describe(file.read(path_of(name)), points_of(name), "json"))["points"]
    found = [(each["published_mult_adds_m"], each["published_top1"]) for each in shown]
    assert sorted(found) == sorted((row["mult_adds_m"], row["top1"]) for row in printed.rows(rows))
    table = tables.describe(file.read(path_of(name)), points_of(name)).splitlines()
    assert table[2].split()[-3:] == ["published", "mult-adds", "top-1"]
    assert table[3].split()[-4:] == [shown[0]["published_mult_adds_m"], "M", shown[0]["published_top1"], "%"]


def test_the_demo_is_small():
    found = points_of("digits_demo")
    assert len(found) == 8 and {p.spec.dataset.name for p in found} == {"digits"}
    assert sum(p.work for p in found) < 18 * WORK_TO_START  # three minutes on two CPU cores


def test_seeds_and_decay_share_a_program():
    assert [programs(name) for name in ("search", "weight_decay", "bottleneck")] == [1, 2, 6]
