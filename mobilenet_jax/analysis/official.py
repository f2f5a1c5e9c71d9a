"""Assemble the page of official networks: measured on labelled images, next to what is published."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet_jax.analysis.statistics import pareto
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.papers import printed
from mobilenet_jax.render import charts
from mobilenet_jax.render.charts import NetworkPoint
from mobilenet_jax.render.tables import Picture, Section, Table

_Z = 1.959964  # of a 95 % interval
_CAVEAT = (
    "Measured: top-1 of {n:,} labelled images of the validation split, stored at 227x227 pixels, by this package in "
    "float32. Published: top-1 of TF-slim's float checkpoints on the whole validation split of 50,000 images. The "
    "{n:,} images are another and easier selection, and the measured networks are the quantised ones. So ranks "
    "compare. Levels and slopes may not: a view of 224 pixels is enlarged from 199 stored ones, so it buys less here."
)


@dataclasses.dataclass(frozen=True)
class Official:
    """One official network on the labelled images."""

    name: str
    version: str
    alpha: float
    resolution: int
    mult_adds: int
    right: np.ndarray  # bool `[N]`: whether the best class of each image is right
    top5: float  # fraction
    published: float | None  # top-1 of TF-slim's checkpoint, %; None if it is another network
    runtime_top1: float | None  # of the official runtime on the same images, fraction
    same: float | None  # share of the images in whose best class both agree

    @property
    def top1(self) -> float:
        return float(self.right.mean())


def read(ours: Mapping[str, Any], runtime: Mapping[str, Any]) -> list[Official]:
    """Return the networks of `benchmarks/official.py` with those of the official runtime, cheapest first.

    Raises:
      KeyError, ValueError: the records are something else.
    """
    found = []
    for name, row in ours["networks"].items():
        version, alpha, resolution, n = (row[key] for key in ("version", "alpha", "resolution", "n"))
        network = arch.mobilenet(version, alpha, num_classes=row["num_classes"])
        bits = np.array([*f"{int(row['right'], 16):0{n}b}"]) == "1"
        other = runtime["networks"].get(name)
        same = other and float(np.mean(np.array(other["classes"]) == np.array(row["classes"])))
        slim = [
            float(line["top1"])
            for line in printed.rows(f"slim_{version}")
            if (float(line["alpha"]), int(line["resolution"])) == (alpha, resolution)
        ]
        published = slim[0] if name.endswith("_quant") else None
        cost = totals(network, resolution).mult_adds
        litert = other and other["top1"]
        found.append(Official(name, version, alpha, resolution, cost, bits, row["top5"], published, litert, same))
    return sorted(found, key=lambda each: each.mult_adds)


def sections(ours: Mapping[str, Any], runtime: Mapping[str, Any]) -> list[Section]:
    """Return the page: the networks, the points per halving of mult-adds, and the official runtime next to ours."""
    networks = read(ours, runtime)
    family = [each for each in networks if each.published is not None]
    n = len(networks[0].right)
    measured = [_point(each, 100 * each.top1, 100 * _Z * _error(each.right)) for each in family]
    published = [_point(each, each.published or 0.0, None) for each in family]
    caption = f"Measured top-1 on {n:,} images, with 95 % intervals, against mult-adds"
    pictures = (
        _picture("accuracy_measured", caption, measured),
        _picture("accuracy_published", "Published top-1 of the same networks on 50,000 images", published),
    )
    rank = _rank_correlation(family)
    text = (
        _CAVEAT.format(n=n),
        f"Spearman's rank correlation of measured and published top-1 is {rank:.3f} over {len(family)} networks.",
    )
    tables = (_networks_table(networks), _halvings_table(family), _runtime_table(networks))
    return [Section("Official networks", text, pictures, tables)]


def _point(each: Official, top1: float, half: float | None) -> NetworkPoint:
    return NetworkPoint(each.version, each.alpha, each.resolution, each.mult_adds / 1e6, top1, half)


def _picture(name: str, caption: str, points: Sequence[NetworkPoint]) -> Picture:
    front = pareto(points, lambda p: p.cost, lambda p: p.top1)
    return Picture(name, caption, lambda: charts.accuracy(points, front))


def _error(right: np.ndarray) -> float:
    """Return the standard error of a mean over images."""
    return float(right.std(ddof=1) / math.sqrt(len(right)))


def _networks_table(networks: Sequence[Official]) -> Table:
    columns: dict[str, Callable[[Official], str]] = {
        "network": lambda x: x.name,
        "pixels": lambda x: str(x.resolution),
        "mult-adds, M": lambda x: f"{x.mult_adds / 1e6:.2f}",
        "top-1, %": lambda x: f"{100 * x.top1:.1f} ± {100 * _Z * _error(x.right):.1f}",
        "top-5, %": lambda x: f"{100 * x.top5:.1f}",
        "published top-1, %": lambda x: "" if x.published is None else f"{x.published:.1f}",
    }
    note = "±: half a 95 % interval over images. The same images are in all rows, so differences are more certain."
    return Table.of("official", "Official networks by mult-adds", networks, columns, note)


def _halvings_table(family: Sequence[Official]) -> Table:
    rows = []
    for version in ("v1", "v2"):
        for knob, fixed in (("alpha", "resolution"), ("resolution", "alpha")):
            of_version = [each for each in family if each.version == version]
            weights = _slope_weights(of_version, fixed)
            lost = np.sum([w * each.right for w, each in zip(weights, of_version, strict=True)], axis=0)
            half = _Z * _error(lost)
            published = sum(w * (each.published or 0) for w, each in zip(weights, of_version, strict=True))
            values = sorted({getattr(each, knob) for each in of_version})
            name = "width multiplier α" if knob == "alpha" else "resolution (ρ)"
            slope = float(lost.mean())
            interval = f"{100 * slope:.2f} [{100 * (slope - half):.2f}, {100 * (slope + half):.2f}]"
            rows.append((version, f"{name}, {values[0]:g} to {values[-1]:g}", interval, f"{published:.2f}"))
    note = (
        "Least squares of top-1 on log2 of the mult-adds, with one slope for all lines along the knob, each at a fixed "
        "value of the other one. 95 % intervals are over the images, which all networks share."
    )
    header = ("version", "knob", "points lost per halving, measured", "published")
    return Table("halvings", "Points of top-1 lost per halving of the mult-adds", header, tuple(rows), note)


def _slope_weights(networks: Sequence[Official], fixed: str) -> list[float]:
    """Return what to multiply each network's top-1 with, so that the sum is the slope per doubling."""
    x = [math.log2(each.mult_adds) for each in networks]
    lines: dict[Any, list[float]] = {}
    for value, each in zip(x, networks, strict=True):
        lines.setdefault(getattr(each, fixed), []).append(value)
    centred = [value - statistics.mean(lines[getattr(each, fixed)]) for value, each in zip(x, networks, strict=True)]
    squares = math.fsum(value * value for value in centred)
    return [value / squares for value in centred]


def _rank_correlation(family: Sequence[Official]) -> float:
    from scipy.stats import rankdata

    pairs = [(each.top1, each.published) for each in family]
    return statistics.correlation(*(rankdata(column).tolist() for column in zip(*pairs, strict=True)))


def _runtime_table(networks: Sequence[Official]) -> Table:
    columns: dict[str, Callable[[Official], str]] = {
        "network": lambda x: x.name,
        "ours, float32, %": lambda x: f"{100 * x.top1:.1f}",
        "LiteRT, 8 bits, %": lambda x: f"{100 * (x.runtime_top1 or 0):.1f}",
        "difference, points": lambda x: f"{100 * (x.top1 - (x.runtime_top1 or 0)):+.1f}",
        "same best class, %": lambda x: f"{100 * (x.same or 0):.1f}",
    }
    compared = sorted((each for each in networks if each.runtime_top1 is not None), key=lambda x: x.name)
    limits = [
        each
        for each in compared
        if abs(each.top1 - (each.runtime_top1 or 0)) <= 0.01 + 1e-9 and (each.same or 0) >= 0.9
    ]
    note = (
        f"{len(limits)} of {len(compared)} networks lie within 1 point of LiteRT and have the same best class for 90 % "
        "of the images. Ours has the same weights as real numbers, and does not round activations to 8 bits."
    )
    return Table.of("runtime", "The official runtime next to ours, top-1 on the same images", compared, columns, note)
