"""Run directories with chosen accuracies, and the report on them."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

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
