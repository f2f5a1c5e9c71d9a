"""Run directories with chosen accuracies, the report on them, and random accuracies over seeds."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from helpers import put

from mobilenet_jax.analysis import tradeoffs
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.networks.arch import mobilenet_v1
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.records.collect import read
from mobilenet_jax.render.tables import Section, Table

COST = {alpha: totals(mobilenet_v1(alpha, num_classes=10, strides="cifar"), 32).mult_adds for alpha in (0.25, 0.5, 1.0)}


def trained(directory: pathlib.Path, settings: Mapping[str, Any], accuracies: Iterable[float], **summary: Any) -> None:
    """Write one run directory per accuracy, with seeds from 0."""
    name = "-".join(map(str, settings.values()))
    for seed, accuracy in enumerate(accuracies):
        put(directory / f"{name}-s{seed}", {**settings, "seed": seed}, test_accuracy=accuracy, **summary)


def report_of(directory: pathlib.Path) -> dict[str, Section]:
    """Return the sections of the report on a directory by title."""
    runs, problems = read([directory])
    return {section.title: section for section in tradeoffs.page(group_runs(runs), problems).sections}


def table_of(directory: pathlib.Path, name: str) -> Table:
    return next(table for section in report_of(directory).values() for table in section.tables if table.name == name)


# The seeds of each configuration: some are shared.
RAGGED = {"a": (0, 1, 5), "b": (0, 1, 2), "c": (1, 2, 3), "d": (0, 3), "e": (4,), "f": (3, 4)}


def drawn(shape: dict, key: int = 0, seeds: float = 0.01, sd: float = 0.004) -> dict[str, dict[int, float]]:
    """Return a series of that shape: configurations 0.01 apart, normal effects of seeds, normal noise."""
    rng = np.random.default_rng(key)
    effects = (seeds * rng.standard_normal(30)).tolist()
    return {
        name: {s: 0.5 + 0.01 * i + effects[s] + e for s, e in zip(row, sd * rng.standard_normal(len(row)), strict=True)}
        for i, (name, row) in enumerate(shape.items())
    }
