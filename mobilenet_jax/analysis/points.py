"""The points and curves of the interactive figure, as JSON: our configurations, and published networks."""

import collections
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from mobilenet_jax.analysis.configurations import Configuration, Series
from mobilenet_jax.analysis.latency import MeasuredNetwork
from mobilenet_jax.files import read_json_object
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.papers import printed
from mobilenet_jax.records.collect import Run
from mobilenet_jax.records.identity import KNOBS
from mobilenet_jax.render.tables import line

_NAMED = 6  # runs that a point names: more are counted
_EPOCHS = 100  # points of a curve: more cannot be seen


def interactive(
    configurations: Sequence[Configuration],
    all_series: Iterable[Series],
    measured: Iterable[MeasuredNetwork] = (),
    official: Sequence[dict[str, Any]] = (),
    shown: Configuration | None = None,
) -> dict[str, Any]:
    """Return the data of the interactive figure.

    Args:
      configurations: the points of the layer 'runs'.
      all_series: series of them. Those of a knob become lines.
      measured: networks whose time is known. Points of the same version, width and mult-adds have it.
      official: points of that layer, by `official_networks`.
      shown: a configuration whose data set and epochs are shown first. By default the first one.
    """
    lines: dict[Configuration, dict[str, int]] = {}
    for i, s in enumerate(all_series):
        for c in s.configurations if s.key in KNOBS else ():
            lines.setdefault(c, {})[s.key.removeprefix("model.")] = i
    optimizers = collections.defaultdict[Any, set[str]](set)
    for c in configurations:
        optimizers[c.summary.dataset, c.summary.epochs].add(c.optimizer)

    def epochs(c):
        """Return the number, and the optimiser where others have trained on the same set for as long."""
        several = len(optimizers[c.summary.dataset, c.summary.epochs]) > 1 and c.optimizer
        return f"{c.summary.epochs}, {c.optimizer}" if several else c.summary.epochs

    points = [{**_configuration(c, lines.get(c, {})), "epochs": epochs(c)} for c in configurations]
    sets = collections.defaultdict[str, dict[str, None]](dict)  # name -> sets of that name, by version
    for point in points:
        sets[_set_name(point["dataset"])][point["dataset"]] = None
    points += [
        {**point, "dataset": found}
        for point in official
        for found in sets.get(point["dataset"], {point["dataset"]: None})
    ]
    points += [other for dataset in dict.fromkeys(point["dataset"] for point in points) for other in published(dataset)]
    times: dict[Any, MeasuredNetwork] = {}
    for n in measured:
        times.setdefault(_network(n.version, n.alpha, n.mult_adds / 1e6), n)  # a record has the smallest batch first
    for point in points:
        if n := times.get(_network(point["version"], point["alpha"], point["mult_adds"])):
            point["ms"] = _rounded(1e3 * n.measured / n.batch)
            point["time"] = f"{point['ms']:g} ms"
    first = shown or next(iter(configurations), None)
    costs = {"mult_adds": "mult-adds (millions)", "params": "trainable params (millions)"}
    if any("ms" in point for point in points):
        costs["ms"] = "measured time per image (ms)"
    return {
        "costs": costs,
        "points": points,
        "curves": [curves(c.runs) for c in configurations],
        "first": first and {"dataset": first.summary.dataset, "epochs": epochs(first)},
    }


def _set_name(dataset: str) -> str:
    """Return the name of a data set without its version and fingerprint."""
    return dataset.partition(" (")[0]


def curves(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the accuracies (%) over the epochs of each run, named by its seed; [] without two epochs."""
    found = []
    for run in runs:
        rows = run.epochs[:: -(-len(run.epochs) // _EPOCHS) or 1]
        rows += run.epochs[-1:] if rows[-1:] != run.epochs[-1:] else ()
        if len(rows) > 1:
            percent = {key: [_percent(row.get(f"{key}_accuracy")) for row in rows] for key in ("test", "train")}
            epochs = [_rounded(row["epoch"] or 0) for row in rows]
            found.append({"run": f"seed {run.summary.seed}", "epoch": epochs, **percent})
    return found


def published(dataset: str) -> list[dict[str, Any]]:
    """Return published accuracies on a data set, of networks whose layers are ours, as points of a layer."""
    data = _set_name(dataset)
    if data == "imagenet2012":
        rows = [{**row, "version": v, "source": "TF-slim"} for v in ("v1", "v2") for row in printed.rows(f"slim_{v}")]
    else:
        rows = printed.rows(data) if data == "cifar10" else []
    found = []
    for row in rows:
        kind = {"num_classes": 10, "strides": "cifar"} if data == "cifar10" else {}
        if row["version"] == "v1" and "variant" in row:
            kind["variant"] = row["variant"]
        alpha, resolution = float(row["alpha"]), int(row["resolution"])
        counts = totals(arch.mobilenet(row["version"], alpha, **kind), resolution)
        how = ", ".join(filter(None, (row["source"], row.get("which"))))
        name = f"{row['version']} α {alpha:g}, {resolution} pixels"
        point = {"layer": "published", "name": name, "dataset": dataset, "epochs": row.get("epochs", "not stated")}
        point |= {"version": row["version"], "alpha": alpha, "top1": float(row["top1"]), "accuracy": f"{row['top1']} %"}
        point |= {"mult_adds": counts.mult_adds / 1e6, "params": counts.params / 1e6}
        found.append(point | {"time": "", "runs": f"none: published by {how}"})
    return found


def official_networks(directories: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Return the networks in the JSON records of the directories, as points of a layer.

    A record has `networks`: a name -> the fields of `_Official`. Other files and other networks are left out.
    """
    found = []
    for path in (path for directory in directories for path in sorted(directory.glob("*.json"))):
        try:
            networks = read_json_object(path).get("networks")
        except (OSError, ValueError):
            continue  # not a record of networks
        for name, fields in networks.items() if isinstance(networks, dict) else ():
            try:
                n = _Official.model_validate(fields)
            except ValidationError:
                continue
            counts = totals(arch.mobilenet(n.version, n.alpha, num_classes=n.num_classes), n.resolution)
            point = {"layer": "official", "name": line(name), "dataset": "imagenet2012", "epochs": "", "time": ""}
            point |= {"version": n.version, "alpha": n.alpha, "top1": round(100 * n.top1, 2)}
            point |= {"sd": _percent(math.sqrt(n.top1 * (1 - n.top1) / n.n)), "runs": "none: official weights"}
            point |= {"mult_adds": counts.mult_adds / 1e6, "params": counts.params / 1e6}
            found.append(point | {"accuracy": f"{100 * n.top1:.2f} % of {n.n:,} images"})
    return found


class _Official(BaseModel):
    """The accuracy of official weights."""

    version: Literal["v1", "v2"]
    alpha: float = Field(gt=0, le=8)
    num_classes: int = Field(ge=2, le=10**6)
    resolution: int = Field(ge=1, le=10**5)
    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)  # images


def _network(version: str, alpha: float, millions: float) -> tuple[str, float, str]:
    """Return what networks of one time have in common: 1000 or 1001 classes make no difference."""
    return version, alpha, f"{millions:.3g}"


def _configuration(c: Configuration, lines: Mapping[str, int]) -> dict[str, Any]:
    names = [run.directory.name for run in c.runs]
    more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return {
        **{"layer": "runs", "name": c.label, "dataset": c.summary.dataset},
        **{"top1": _percent(c.mean), "sd": _percent(c.sd), "accuracy": f"{c.percent} % (n = {c.n})"},
        **{"mult_adds": c.mult_adds / 1e6, "params": c.summary.params / 1e6},
        **{key.removeprefix("model."): c.identity[key] for key in ("model.version", *KNOBS)},
        **{"runs": ", ".join(names[:_NAMED]) + more, "time": "", "lines": lines},
    }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 2)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
