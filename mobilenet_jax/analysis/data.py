"""Runs and configurations as data for other programs: plain column names, numbers in full precision, no units in cells.

Accuracies are fractions, times are in seconds, and a cell without a value is empty.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.analysis.configurations import Configuration, setting_name
from mobilenet_jax.config_keys import RULES
from mobilenet_jax.records.collect import Run
from mobilenet_jax.records.identity import NOT_CONFIGURATION
from mobilenet_jax.render.tables import Table

# Column -> config key.
SETTINGS = {"dataset" if k == "data.name" else setting_name(k): k for k in RULES if k not in NOT_CONFIGURATION}
_COSTS = {
    "resolution": "pixels a side of the network's input",
    "mult_adds": "multiply-adds of one image",
    "params": "trainable parameters",
}
_NAME = "the network and what sets it apart in this report; the same for runs that differ only in the seed"
_RUN = {
    "steps": "training steps",
    "test_accuracy": "test top-1 of the last epoch, a fraction",
    "test_loss": "mean cross-entropy on the test images",
    "val_accuracy": "top-1 on the held-out training images, a fraction; empty without any",
    "val_loss": "mean cross-entropy on the held-out images",
    "train_accuracy": "top-1 of the last epoch's training batches, a fraction",
    "train_loss": "mean cross-entropy of the last epoch's training batches",
    "train_images_per_second": "images per second while training",
    "compile_seconds": "time to compile",
    "wall_seconds": "time from start to end, summed over resumptions",
    "device": "what trained it",
    "fused": "runs that one program trained at the same time",
}
RUN_COLUMNS = {
    "run": "name of the run directory",
    "configuration": _NAME,
    "seed": "random seed",
    **{column: f"config key `{key}`" for column, key in SETTINGS.items()},
    **_COSTS,
    **_RUN,
    "git_commit": "commit of this project",
    "git_dirty": "whether files differed from that commit",
    "jax": "version of JAX",
}
CONFIGURATION_COLUMNS = {
    "configuration": _NAME,
    "n": "number of runs",
    "seeds": "their seeds, separated by spaces",
    **{column: RUN_COLUMNS[column] for column in (*SETTINGS, *_COSTS)},
    "test_accuracy_mean": "mean over the runs of test top-1, a fraction",
    "test_accuracy_sd": "sample standard deviation of test top-1; empty for one run",
    "test_loss_mean": "mean of the test loss",
    "val_accuracy_mean": "mean of the accuracy on held-out images; empty without any",
    "train_accuracy_mean": "mean of the training accuracy",
    "wall_seconds_mean": "mean of the time from start to end",
}


def tables(configurations: Sequence[Configuration]) -> tuple[Table, Table]:
    """Return `runs`, one row per run, and `configurations`, one row per configuration."""
    runs = (_run(c, run) for c in configurations for run in c.runs)
    return _table("runs", RUN_COLUMNS, runs), _table(
        "configurations", CONFIGURATION_COLUMNS, map(_mean, configurations)
    )


def _table(name: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> Table:
    cells = (["" if (value := row[column]) is None else str(value) for column in columns] for row in rows)
    return Table(name, name.capitalize(), tuple(columns), tuple(map(tuple, cells)))


def _run(c: Configuration, run: Run) -> dict[str, Any]:
    packages = run.env.get("packages")
    return {
        **{"run": run.directory.name, "configuration": c.label, "seed": run.summary.seed, **_settings(c)},
        **{column: getattr(run.summary, column) for column in (*_COSTS, *_RUN)},
        **{column: run.env.get(column) for column in ("git_commit", "git_dirty")},
        "jax": packages.get("jax") if isinstance(packages, dict) else None,
    }


def _mean(c: Configuration) -> dict[str, Any]:
    seeds = " ".join(map(str, c.accuracies))
    return {
        **{"configuration": c.label, "n": c.n, "seeds": seeds, **_settings(c)},
        **{column: getattr(c.summary, column) for column in _COSTS},
        **{"test_accuracy_mean": c.mean, "test_accuracy_sd": c.sd},
        "test_loss_mean": _mean_of(c, lambda run: run.summary.test_loss),
        "val_accuracy_mean": _mean_of(c, lambda run: run.summary.val_accuracy),
        "train_accuracy_mean": _mean_of(c, lambda run: run.summary.train_accuracy),
        "wall_seconds_mean": _mean_of(c, lambda run: run.summary.wall_seconds),
    }


def _settings(c: Configuration) -> dict[str, Any]:
    return {column: c.identity.get(key) for column, key in SETTINGS.items()}


def _mean_of(c: Configuration, value: Callable[[Run], float | None]) -> float | None:
    """Return the mean over the runs; None if a run lacks the value."""
    values = [v for run in c.runs if (v := value(run)) is not None]
    return statistics.mean(values) if len(values) == c.n else None
