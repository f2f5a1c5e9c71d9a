"""Runs and configurations as data for other programs."""

import csv
import io
import re

from helpers import put

from mobilenet_jax.analysis import data
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.config_keys import RULES
from mobilenet_jax.records.collect import read
from mobilenet_jax.records.identity import NOT_CONFIGURATION


def rows_of(directory):
    """Return the rows of both tables as a program reads them."""
    tables = data.tables(group_runs(read([directory])[0]))
    return [list(csv.DictReader(io.StringIO(table.csv()))) for table in tables]


def test_runs(tmp_path):
    put(tmp_path / "a", test_accuracy=0.79125, fused=4)
    put(tmp_path / "b", {"seed": 1, "model.version": "v2", "optim.name": "rmsprop"}, mult_adds=5_000_000)
    (first, second), _ = rows_of(tmp_path)
    assert (first["run"], first["configuration"], first["seed"], first["git_commit"]) == (
        *("a", "v1 α 0.25, SGD", "0", "0123"),
    )
    assert (first["dataset"], first["epochs"], first["jax"], first["fused"]) == ("cifar10", "3", "0.10.2", "4")
    assert (first["test_accuracy"], first["mult_adds"], first["device"]) == ("0.79125", "3331072", "cpu (2 cores)")
    assert (first["optimizer"], first["lr"], first["epsilon"], first["expansion"]) == ("sgd", "0.1", "", "")
    assert (second["optimizer"], second["epsilon"], second["expansion"], second["flip"]) == (
        *("rmsprop", "1.0", "6.0", "True"),
    )


def test_configurations(tmp_path):
    for seed, (accuracy, loss) in enumerate(((0.79, 0.5), (0.80, None), (0.78, 0.7))):
        put(tmp_path / f"{seed}", {"seed": seed + 2}, test_accuracy=accuracy, test_loss=loss, wall_seconds=100.0 + seed)
    put(tmp_path / "wide", {"model.alpha": 1.0}, mult_adds=46_354_432)
    _, (narrow, wide) = rows_of(tmp_path)
    assert (narrow["n"], narrow["seeds"], wide["n"], wide["test_accuracy_sd"]) == ("3", "2 3 4", "1", "")
    assert [round(float(narrow[f"test_accuracy_{name}"]), 9) for name in ("mean", "sd")] == [0.79, 0.01]
    assert (narrow["test_loss_mean"], narrow["wall_seconds_mean"], wide["mult_adds"]) == ("", "101.0", "46354432")


def test_a_run_without_config_has_empty_settings(tmp_path):
    (put(tmp_path / "a") / "config.json").unlink()
    (run,), (mean,) = rows_of(tmp_path)
    assert (run["optimizer"], mean["lr"], run["alpha"], mean["epochs"]) == ("", "", "0.25", "3")


def test_columns():
    """Every key that makes a configuration is a column; a name is one word in small letters."""
    assert set(data.SETTINGS.values()) == RULES.keys() - {*NOT_CONFIGURATION}
    for columns in (data.RUN_COLUMNS, data.CONFIGURATION_COLUMNS):
        assert data.SETTINGS.keys() <= columns.keys()
        assert all(re.fullmatch("[a-z]+(_[a-z0-9]+)*", name) for name in columns)
