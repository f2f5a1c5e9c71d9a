"""Inference times compared with a roofline: measured (a record of `benchmarks/layer_latency.py`) or printed."""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.networks.roofline import PIXEL_1, Device, LayerTime, roofline
from mobilenet_jax.papers import printed
from mobilenet_jax.render import charts
from mobilenet_jax.render.tables import Picture, Section, Table, line

_KINDS = ("conv", "depthwise", "pointwise", "pool", "dense")


@dataclasses.dataclass(frozen=True)
class MeasuredLayer:
    """A layer that ran as a program of its own, without its shortcut. Times are seconds per batch."""

    time: LayerTime
    predicted: float  # including the start of the program
    measured: float


@dataclasses.dataclass(frozen=True)
class MeasuredNetwork:
    """A network whose time is known. Times are seconds per batch."""

    version: str
    alpha: float
    resolution: int
    batch: int
    mult_adds: int  # of one image
    predicted: float
    measured: float
    layers: tuple[MeasuredLayer, ...] = ()

    @property
    def name(self) -> str:
        """Version and width multiplier: 'v1 0.25'."""
        return f"{self.version} {self.alpha:g}"

    @property
    def rate(self) -> float:
        """Mult-adds per second, as measured."""
        return self.batch * self.mult_adds / self.measured


def networks(record: Mapping[str, Any]) -> list[MeasuredNetwork]:
    """Return the networks of a record. Costs and predictions are computed, not read.

    Raises:
      KeyError, ValueError: it is not what `benchmarks/layer_latency.py` writes.
    """
    _check(record)
    device, launch, found = _device(record), record["device"]["launch_seconds"], []
    for row in record["networks"]:
        version, alpha, resolution, batch = row["version"], row["alpha"], row["resolution"], row["batch"]
        network = arch.mobilenet(version, alpha)
        predicted = sum(time.seconds for time in roofline(network, resolution, device, batch)) + launch
        no_shortcuts = tuple(dataclasses.replace(layer, shortcut=None) for layer in network.layers)
        layers = tuple(
            MeasuredLayer(time, time.seconds + launch, row["layers"][time.row.layer.name])
            for time in roofline(dataclasses.replace(network, layers=no_shortcuts), resolution, device, batch)
        )
        count = totals(network, resolution).mult_adds
        found.append(MeasuredNetwork(version, alpha, resolution, batch, count, predicted, row["seconds"], layers))
    if len({(n.version, n.alpha, n.resolution, n.batch) for n in found}) < len(found):
        raise ValueError("networks: each version, alpha, resolution and batch is allowed once")
    return found


def sections(record: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return tables and figures of whole networks, of kinds of layers, and of the layers of each network of alpha 1.

    Raises:
      KeyError, ValueError: as `networks`.
    """
    found = networks(record)
    whole = _networks_table(found, _device(record), record["device"]["launch_seconds"])
    of_networks, of_layers, kinds = [], [], []
    for batch in sorted({n.batch for n in found}):
        chosen = [n for n in found if n.batch == batch]
        kinds.append(_kinds_table(chosen, batch))
        caption = f"Measured time per image against mult-adds, batch {batch}"
        of_networks.append(Picture(f"latency_{batch}", caption, functools.partial(charts.latency, _lines(chosen))))
        times: dict[str, list[tuple[float, float]]] = {}
        for x in distinct(chosen):
            times.setdefault(x.time.row.layer.kind, []).append((1e6 * x.measured, 1e6 * x.predicted))
        caption = f"Predicted against measured time of each layer, batch {batch}"
        of_layers.append(Picture(f"latency_layers_{batch}", caption, functools.partial(charts.predicted, times)))
    layers = [_layers_table(n) for n in found if n.alpha == 1 and n.batch == 1]
    return (
        Section("Networks", pictures=tuple(of_networks), tables=(whole,)),
        Section("Layers", pictures=tuple(of_layers), tables=(*kinds, *layers)),
    )


def distinct(found: Iterable[MeasuredNetwork]) -> list[MeasuredLayer]:
    """Return the layers, equal layers of one network once: they were measured once."""
    layers = {}
    for i, network in enumerate(found):
        for layer in network.layers:
            row = layer.time.row
            layers.setdefault((i, dataclasses.replace(row.layer, name=""), row.in_size), layer)
    return list(layers.values())


def agreement(layers: Sequence[MeasuredLayer]) -> tuple[float | None, float]:
    """Return Spearman's rank correlation of predicted and measured seconds, and the median |predicted / measured - 1|.

    The correlation is None with fewer than five different values on a side.
    """
    from scipy.stats import spearmanr  # late: takes half a second

    predicted, measured = [layer.predicted for layer in layers], [layer.measured for layer in layers]
    error = statistics.median(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    if min(len({*predicted}), len({*measured})) < 5:
        return None, error
    found: Any = spearmanr(predicted, measured)
    return float(found.statistic), error


def pixel_1() -> Section:
    """Return the times that the v2 paper (Table 4) and TF-slim print for a Pixel 1, compared with a roofline."""
    sources = [("v2 paper", row["version"], row) for row in printed.rows("paper_v2") if row["version"]]
    sources += [("TF-slim", "v2", row) for row in printed.rows("slim_v2")]
    rows, drawn, ratios = [], [], []
    for source, version, row in sources:
        alpha, resolution = float(row["alpha"]), int(row["resolution"])
        network = arch.mobilenet(version, alpha)
        predicted = sum(time.seconds for time in roofline(network, resolution, PIXEL_1))
        count, seconds = totals(network, resolution).mult_adds, float(row["pixel1_ms"]) / 1e3
        n = MeasuredNetwork(version, alpha, resolution, 1, count, predicted, seconds)
        cells = (f"{n.name} {resolution}", source, f"{count / 1e6:.2f}", row["pixel1_ms"], f"{1e3 * predicted:.1f}")
        rows.append((*cells, f"{seconds / predicted:.2f}", f"{n.rate / 1e9:.2f}"))
        ratios.append(seconds / predicted)
        if resolution == 224 and (source == "TF-slim" or version == "v1"):
            drawn.append(n)
    header = ("network", "source", "mult-adds, M", "printed, ms", "predicted, ms")
    header += ("printed / predicted", "G mult-adds/s")
    note = f"{PIXEL_1.source} Printed / predicted: {min(ratios):.2f} to {max(ratios):.2f}."
    caption = "Printed time per image on a Pixel 1 against mult-adds, 224 pixels: v2 from TF-slim, v1 from the v2 paper"
    draw = functools.partial(charts.latency, _lines(drawn), "printed time per image (ms)")
    table = Table("pixel_1", f"{PIXEL_1.name}: printed and predicted", header, tuple(rows), note)
    return Section("Time on a phone", pictures=(Picture("pixel_1", caption, draw),), tables=(table,))


def _check(record: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first key whose value is not allowed, and what is allowed."""
    from pydantic import Field, ValidationError, create_model

    rate = Annotated[float, Field(ge=1e-9, le=1e18, allow_inf_nan=False)]
    limits: dict[str, Any] = {"name": (str, ...), "cache_bytes": (Annotated[int, Field(ge=0, le=1e18)], ...)}
    limits |= dict.fromkeys(("mult_adds_per_second", "bytes_per_second", "cache_bytes_per_second"), (rate, ...))
    limits |= {"launch_seconds": (Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)], ...)}
    network: dict[str, Any] = dict.fromkeys(("resolution", "batch"), (Annotated[int, Field(ge=1, le=1e18)], ...))
    network |= {"version": (Literal["v1", "v2"], ...), "alpha": (Annotated[rate, Field(le=8)], ...)}
    network |= {"seconds": (rate, ...), "layers": (dict[str, rate], ...)}
    model: Any = functools.partial(create_model, __config__={"strict": True})
    found: Any = Annotated[list[model("Network", **network)], Field(min_length=1)]
    try:
        model("Record", device=(model("Limits", **limits), ...), networks=(found, ...)).model_validate(record)
    except ValidationError as e:
        raise ValueError(f"{'.'.join(map(str, e.errors()[0]['loc']))}: {e.errors()[0]['msg']}") from None


def _device(record: Mapping[str, Any]) -> Device:
    """Return the limits of the machine that made a record, as measured there."""
    device = record["device"] | {"name": line(record["device"]["name"])}
    names = ("name", "mult_adds_per_second", "bytes_per_second", "cache_bytes", "cache_bytes_per_second")
    return Device(*(device[name] for name in names), source="measured with the record")


def _lines(found: Iterable[MeasuredNetwork]) -> dict[tuple[str, int], list[tuple[float, float, float]]]:
    """Return the networks as `charts.latency` takes them."""
    lines: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for n in found:
        point = (n.alpha, n.mult_adds / 1e6, 1e3 * n.measured / n.batch)
        lines.setdefault((n.version, n.batch), []).append(point)
    return lines


def _networks_table(found: Sequence[MeasuredNetwork], device: Device, launch: float) -> Table:
    fastest = {batch: max(n.rate for n in found if n.batch == batch) for batch in {n.batch for n in found}}
    columns = {
        "network": lambda n: n.name,
        "pixels": lambda n: str(n.resolution),
        "batch": lambda n: str(n.batch),
        "mult-adds, M": lambda n: f"{n.mult_adds / 1e6:.2f}",
        "measured, ms": lambda n: f"{1e3 * n.measured:.2f}",
        "layers alone, ms": lambda n: f"{1e3 * sum(layer.measured for layer in n.layers):.2f}",
        "predicted, ms": lambda n: f"{1e3 * n.predicted:.2f}",
        "measured / predicted": lambda n: f"{n.measured / n.predicted:.2f}",
        "G mult-adds/s": lambda n: f"{n.rate / 1e9:.1f}",
        "time per mult-add / least": lambda n: f"{fastest[n.batch] / n.rate:.2f}",
    }
    note = (
        f"Roofline of {device.name}, {device.source}: {device.mult_adds_per_second / 1e9:.1f} G mult-adds/s; GB/s: "
        f"{device.bytes_per_second / 1e9:.1f} from memory, {device.cache_bytes_per_second / 1e9:.1f} from "
        f"{device.cache_bytes / 2**20:.0f} MB of cache. Layers alone: the sum over the layers, each run as a program "
        f"of its own. Predicted: the sum of the layers' rooflines and {1e6 * launch:.0f} µs to start a program. Last "
        "column: the time per mult-add, relative to the network of the same batch with the least."
    )
    reversals = [
        (few, many)
        for few, many in itertools.permutations(found, 2)
        if few.batch == many.batch and few.mult_adds < many.mult_adds and few.measured > many.measured
    ]
    if reversals:
        few, many = max(reversals, key=lambda pair: pair[0].measured / pair[1].measured)
        note += (
            f" Largest reversal: {few.name} has {few.mult_adds / many.mult_adds:.2f} of the mult-adds of {many.name}, "
            f"but takes {few.measured / many.measured:.2f} of its time (batch {few.batch})."
        )
    networks = sorted(found, key=lambda n: (n.batch, n.mult_adds))
    return Table.of("latency", "Inference: measured and predicted", networks, columns, note)


def _kinds_table(found: Sequence[MeasuredNetwork], batch: int) -> Table:
    layers, everywhere = distinct(found), [layer for n in found for layer in n.layers]
    quantities = (lambda x: x.time.row.mult_adds, lambda x: x.measured, lambda x: x.predicted)
    rows = []
    for kind in (*_KINDS, "all"):
        chosen, here = ([x for x in xs if kind in ("all", x.time.row.layer.kind)] for xs in (layers, everywhere))
        if len(chosen) > 1:
            correlation, error = agreement(chosen)
            rank = "" if correlation is None else f"{correlation:.2f}"
            ratio = statistics.median(x.measured / x.predicted for x in chosen)
            shares = (f"{sum(map(value, here)) / sum(map(value, everywhere)):.1%}" for value in quantities)
            rows.append((kind, str(len(chosen)), rank, f"{error:.0%}", f"{ratio:.2f}", *shares))
    header = ("kind", "distinct layers", "rank correlation", "median |predicted / measured - 1|")
    header += ("measured / predicted, median", "share of mult-adds", "share of measured time")
    note = (
        "Each layer of all networks, run as a program of its own. Equal layers of one network count once, except in "
        "the shares. Predicted: the roofline and the time to start a program."
    )
    title = f"Layers, batch {batch}: predicted against measured"
    return Table(f"latency_kinds_{batch}", title, (*header, "share of predicted time"), tuple(rows), note)


def _layers_table(network: MeasuredNetwork) -> Table:
    columns = {
        "layer": lambda x: x.time.row.layer.name,
        "input": lambda x: f"{x.time.row.in_size}x{x.time.row.in_size}x{x.time.row.layer.in_channels}",
        "mult-adds, M": lambda x: f"{x.time.row.mult_adds / 1e6:.2f}",
        "bound by": lambda x: x.time.bound,
        "predicted, µs": lambda x: f"{1e6 * x.predicted:.0f}",
        "measured, µs": lambda x: f"{1e6 * x.measured:.0f}",
        "measured / predicted": lambda x: f"{x.measured / x.predicted:.2f}",
    }
    name = f"{network.version}, alpha {network.alpha:g}, {network.resolution} pixels"
    title = f"Layer by layer: {name}, batch {network.batch}"
    return Table.of(f"latency_{network.version}_{network.resolution}", title, network.layers, columns)
