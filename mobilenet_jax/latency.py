"""Inference times, measured (a record of `benchmarks/layer_latency.py`) or printed, beside a roofline's prediction."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mobilenet_jax import arch, published
from mobilenet_jax.cost import totals
from mobilenet_jax.device import PIXEL_1, Device, LayerTime, roofline
from mobilenet_jax.tables import Table

_BUILD = {"v1": arch.mobilenet_v1, "v2": arch.mobilenet_v2}
_KINDS = ("conv", "depthwise", "pointwise", "pool", "dense")


@dataclasses.dataclass(frozen=True)
class Alone:
    """A layer that ran as a program of its own: seconds of a batch, with what the least program takes in both."""

    time: LayerTime
    predicted: float
    measured: float


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that was measured: seconds of a batch, predicted and measured, and of each layer alone."""

    version: str
    alpha: float
    batch: int
    mult_adds: int  # of one image
    predicted: float
    measured: float
    layers: tuple[Alone, ...]

    @property
    def rate(self) -> float:
        """Mult-adds a second, as measured."""
        return self.batch * self.mult_adds / self.measured


def networks(record: dict) -> list[Network]:
    """Reads a record; costs and predictions are computed anew."""
    device, launch = device_of(record), record["device"]["launch_seconds"]
    found = []
    for row in record["networks"]:
        network = _BUILD[row["version"]](row["alpha"])
        times = roofline(network, row["resolution"], device, row["batch"])
        found.append(
            Network(
                row["version"],
                row["alpha"],
                row["batch"],
                totals(network, row["resolution"]).mult_adds,
                sum(time.seconds for time in times) + launch,
                row["seconds"],
                tuple(Alone(t, t.seconds + launch, row["layers"][t.row.layer.name]) for t in times),
            )
        )
    return found


def device_of(record: dict) -> Device:
    """The roofline of the machine that a record was made on, as measured there."""
    limits = record["device"]
    return Device(
        limits["name"],
        limits["mult_adds_per_second"],
        limits["bytes_per_second"],
        limits["cache_bytes"],
        limits["cache_bytes_per_second"],
        "measured with the record",
    )


def tables(record: dict) -> tuple[Table, ...]:
    """Whole networks; kinds of layers, with the rank correlation and the error of the prediction; layers of two."""
    found = networks(record)
    batches = sorted({network.batch for network in found})
    return (
        _whole(found, device_of(record)),
        *(_kinds([n for n in found if n.batch == batch], batch) for batch in batches),
        *(_layers(n) for n in found if n.alpha == 1 and n.batch == 1),
    )


def _whole(found: Sequence[Network], device: Device) -> Table:
    fastest = {b: max(n.rate for n in found if n.batch == b) for b in {n.batch for n in found}}
    rows = []
    for n in sorted(found, key=lambda n: (n.batch, n.mult_adds)):
        rows.append(
            (
                f"{n.version} {n.alpha:g}",
                str(n.batch),
                f"{n.mult_adds / 1e6:.2f}",
                f"{1e3 * n.measured:.2f}",
                f"{1e3 * n.predicted:.2f}",
                f"{n.measured / n.predicted:.2f}",
                f"{n.rate / 1e9:.1f}",
                f"{fastest[n.batch] / n.rate:.2f}",
            )
        )
    header = ("network", "batch", "mult-adds, M", "measured, ms", "predicted, ms", "measured / predicted")
    note = (
        f"Roofline of {device.name}, {device.source}: {device.mult_adds_per_second / 1e9:.1f} G mult-adds/s; GB/s: "
        f"{device.bytes_per_second / 1e9:.1f} from memory, {device.cache_bytes_per_second / 1e9:.1f} from "
        f"{device.cache_bytes / 2**20:.0f} MB of cache. The last column is the time of a mult-add over that of the "
        "network where one takes least: what mult-adds do not tell."
    )
    if misled := _misled(found):
        few, many = misled
        note += (
            f" Where they mislead most: {few.version} {few.alpha:g} has {few.mult_adds / many.mult_adds:.2f} of the "
            f"mult-adds of {many.version} {many.alpha:g} and takes {few.measured / many.measured:.2f} of its time "
            f"(batch {few.batch})."
        )
    header += ("G mult-adds/s", "time of a mult-add")
    return Table("latency", "Inference: measured beside predicted", header, tuple(rows), note)


def _misled(found: Iterable[Network]) -> tuple[Network, Network] | None:
    """Two networks of one batch size of which that with fewer mult-adds takes longer, by the largest factor."""
    pairs = [(a, b) for a, b in itertools.permutations(found, 2) if a.batch == b.batch and a.mult_adds < b.mult_adds]
    slower = [(a, b) for a, b in pairs if a.measured > b.measured]
    return max(slower, key=lambda pair: pair[0].measured / pair[1].measured, default=None)


def distinct(found: Iterable[Network]) -> list[Alone]:
    """Layers that are alike were measured once: each counts once."""
    return list({(layer.measured, layer.predicted): layer for n in found for layer in n.layers}.values())


def agreement(layers: Sequence[Alone]) -> tuple[float, float]:
    """Spearman's rank correlation of predicted and measured seconds; the median of |predicted / measured - 1|."""
    from scipy.stats import spearmanr  # half a second that other reports have no use for

    correlation: Any = spearmanr([layer.predicted for layer in layers], [layer.measured for layer in layers])
    return float(correlation.statistic), statistics.median(
        abs(layer.predicted / layer.measured - 1) for layer in layers
    )


def _kinds(found: Sequence[Network], batch: int) -> Table:
    layers, everywhere = distinct(found), [layer for n in found for layer in n.layers]
    rows = []
    for kind in (*_KINDS, "all"):
        chosen, here = ([x for x in xs if kind in ("all", x.time.row.layer.kind)] for xs in (layers, everywhere))
        if len(chosen) > 1:
            correlation, error = agreement(chosen)
            counts = (lambda x: x.time.row.mult_adds, lambda x: x.measured, lambda x: x.predicted)
            rows.append(
                (
                    kind,
                    str(len(chosen)),
                    f"{correlation:.2f}",
                    f"{error:.0%}",
                    f"{statistics.median(x.measured / x.predicted for x in chosen):.2f}",
                    *(f"{sum(map(count, here)) / sum(map(count, everywhere)):.1%}" for count in counts),
                )
            )
    header = ("kind", "distinct layers", "rank correlation", "median error", "measured / predicted, median")
    header += ("share of mult-adds", "share of measured time", "share of predicted time")
    return Table(f"latency_kinds_{batch}", f"Layers, batch {batch}: predicted against measured", header, tuple(rows))


def _layers(network: Network) -> Table:
    rows = []
    for layer in network.layers:
        row = layer.time.row
        rows.append(
            (
                row.layer.name,
                f"{row.in_size}x{row.in_size}x{row.layer.in_channels}",
                f"{row.mult_adds / 1e6:.2f}",
                layer.time.bound,
                f"{1e6 * layer.predicted:.0f}",
                f"{1e6 * layer.measured:.0f}",
                f"{layer.measured / layer.predicted:.2f}",
            )
        )
    header = ("layer", "input", "mult-adds, M", "bound by", "predicted, µs", "measured, µs", "measured / predicted")
    title = f"Layer by layer: {network.version}, alpha {network.alpha:g}, batch {network.batch}"
    return Table(f"latency_{network.version}", title, header, tuple(rows))


def pixel_1() -> Table:
    """TF-slim's printed milliseconds of its 22 v2 networks, and the papers' of v1, on a Pixel 1 beside its roofline."""
    printed = [("v1", row) for row in published.rows("paper_v2") if row["version"] == "v1"]
    printed += [("v2", row) for row in published.rows("slim_v2")]
    rows, pairs = [], []
    for version, row in printed:
        network, resolution = _BUILD[version](float(row["alpha"])), int(row["resolution"])
        seconds = sum(time.seconds for time in roofline(network, resolution, PIXEL_1))
        count, took = totals(network, resolution).mult_adds, float(row["pixel1_ms"]) / 1e3
        pairs.append(took / seconds)
        rows.append(
            (
                f"{version} {row['alpha']} {resolution}",
                f"{count / 1e6:.2f}",
                row["pixel1_ms"],
                f"{1e3 * seconds:.1f}",
                f"{took / seconds:.2f}",
                f"{count / took / 1e9:.2f}",
            )
        )
    header = ("network", "mult-adds, M", "printed, ms", "predicted, ms", "printed / predicted", "G mult-adds/s")
    note = f"{PIXEL_1.source} Printed / predicted: {min(pairs):.2f} to {max(pairs):.2f}."
    return Table("pixel_1", f"{PIXEL_1.name}: printed beside predicted", header, tuple(rows), note)
