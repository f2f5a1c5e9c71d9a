"""Inference times, measured (a record of `benchmarks/layer_latency.py`) or printed, beside a roofline's prediction."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.networks.roofline import PIXEL_1, Device, LayerTime, roofline
from mobilenet_jax.papers import printed
from mobilenet_jax.render.tables import Picture, Section, Table, plain

if TYPE_CHECKING:
    from mobilenet_jax.render import charts
    from mobilenet_jax.render.charts import Figure

_KINDS = ("conv", "depthwise", "pointwise", "pool", "dense")


@dataclasses.dataclass(frozen=True)
class Alone:
    """A layer that ran as a program of its own, without its shortcut: seconds of a batch."""

    time: LayerTime
    predicted: float  # with what the least program takes
    measured: float


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that was measured: seconds of a batch, predicted and measured, and of each layer alone."""

    version: str
    alpha: float
    resolution: int
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
    """Reads a record; costs and predictions are computed anew.

    Raises:
      KeyError, TypeError, ValueError: it is something else, has a time or rate that is none, or a network twice.
    """
    device, launch = device_of(record), _positive(record["device"]["launch_seconds"])
    found: dict[tuple, Network] = {}
    for row in record["networks"]:
        version, alpha, resolution, batch = (row[key] for key in ("version", "alpha", "resolution", "batch"))
        if version not in ("v1", "v2"):
            raise ValueError(f"version {str(version)[:40]!r} is none of 'v1' and 'v2'")
        for count in (resolution, batch):
            if type(count) is not int or not 1 <= count <= 1_000_000:
                raise ValueError(f"{str(count)[:40]} is no resolution or batch")
        network = arch.mobilenet(version, _positive(alpha))
        alone = dataclasses.replace(
            network, layers=tuple(dataclasses.replace(x, shortcut=None) for x in network.layers)
        )
        layers = [
            Alone(time, time.seconds + launch, _positive(row["layers"][time.row.layer.name]))
            for time in roofline(alone, resolution, device, batch)
        ]
        predicted = sum(time.seconds for time in roofline(network, resolution, device, batch)) + launch
        count, measured = totals(network, resolution).mult_adds, _positive(row["seconds"])
        key = (version, alpha, resolution, batch)
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = Network(*key, count, predicted, measured, tuple(layers))
    if not found:
        raise ValueError("no networks")
    return list(found.values())


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise ValueError(f"{str(value)[:40]} is no time or rate")
    return value


def device_of(record: dict) -> Device:
    """The roofline of the machine that a record was made on, as measured there."""
    limits = record["device"]
    return Device(
        plain(str(limits["name"])),
        _positive(limits["mult_adds_per_second"]),
        _positive(limits["bytes_per_second"]),
        int(limits["cache_bytes"] and _positive(limits["cache_bytes"])),
        _positive(limits["cache_bytes_per_second"]),
        "measured with the record",
    )


def sections(record: dict) -> tuple[Section, ...]:
    """Whole networks; kinds of layers, with the rank correlation and the error of the prediction; layers of two."""
    found = networks(record)
    batches = sorted({network.batch for network in found})

    def pictures(name: str, caption: str, draw: Callable[[Sequence[Network]], "Figure"]) -> tuple[Picture, ...]:
        """Return one picture per batch size."""
        return tuple(
            Picture(
                f"{name}_{batch}",
                f"{caption}, batch {batch}",
                lambda batch=batch: draw([n for n in found if n.batch == batch]),
            )
            for batch in batches
        )

    networks_drawn = pictures("latency", "Measured time of an image against mult-adds", _draw_networks)
    layers_drawn = pictures("latency_layers", "Predicted against measured time of each layer", _draw_layers)
    kinds = tuple(_kinds([n for n in found if n.batch == batch], batch) for batch in batches)
    each = tuple(_layers(n) for n in found if n.alpha == 1 and n.batch == 1)
    return (
        Section(
            "Networks",
            pictures=networks_drawn,
            tables=(_whole(found, device_of(record), record["device"]["launch_seconds"]),),
        ),
        Section("Layers", pictures=layers_drawn, tables=(*kinds, *each)),
    )


def timings(networks: Sequence[Network]) -> "list[charts.Timing]":
    """Return each network's measured milliseconds per image, for a figure."""
    from mobilenet_jax.render import charts  # matplotlib takes a second to import

    return [charts.Timing(n.version, n.batch, n.alpha, n.mult_adds / 1e6, 1e3 * n.measured / n.batch) for n in networks]


def layer_times(networks: Sequence[Network]) -> "list[charts.LayerTime]":
    """Return the measured and predicted microseconds of each distinct layer, for a figure."""
    from mobilenet_jax.render import charts

    layers = distinct(networks)
    return [charts.LayerTime(x.time.row.layer.kind, 1e6 * x.measured, 1e6 * x.predicted) for x in layers]


def _draw_networks(networks: Sequence[Network]) -> "Figure":
    from mobilenet_jax.render import charts

    return charts.latency(timings(networks))


def _draw_layers(networks: Sequence[Network]) -> "Figure":
    from mobilenet_jax.render import charts

    return charts.predicted(layer_times(networks))


def _whole(found: Sequence[Network], device: Device, launch: float) -> Table:
    fastest = {b: max(n.rate for n in found if n.batch == b) for b in {n.batch for n in found}}
    rows = []
    for n in sorted(found, key=lambda n: (n.batch, n.mult_adds)):
        alone = sum(layer.measured for layer in n.layers)
        rows.append(
            (
                f"{n.version} {n.alpha:g}",
                str(n.resolution),
                str(n.batch),
                f"{n.mult_adds / 1e6:.2f}",
                f"{1e3 * n.measured:.2f}",
                f"{1e3 * alone:.2f}",
                f"{1e3 * n.predicted:.2f}",
                f"{n.measured / n.predicted:.2f}",
                f"{n.rate / 1e9:.1f}",
                f"{fastest[n.batch] / n.rate:.2f}",
            )
        )
    header = ("network", "pixels", "batch", "mult-adds, M", "measured, ms", "layers alone, ms", "predicted, ms")
    header += ("measured / predicted", "G mult-adds/s", "time of a mult-add / least")
    note = (
        f"Roofline of {device.name}, {device.source}: {device.mult_adds_per_second / 1e9:.1f} G mult-adds/s; GB/s: "
        f"{device.bytes_per_second / 1e9:.1f} from memory, {device.cache_bytes_per_second / 1e9:.1f} from "
        f"{device.cache_bytes / 2**20:.0f} MB of cache. Layers alone: the sum of the layers as programs of their own, "
        f"each started for itself. Predicted: the sum of the layers' rooflines, and {1e6 * launch:.0f} µs to start a "
        "program (for a layer that runs alone as well). The last column is the time of a mult-add over that of the "
        "network where one takes least: what mult-adds do not tell."
    )
    if misled := _misled(found):
        few, many = misled
        note += (
            f" Where they mislead most: {few.version} {few.alpha:g} has {few.mult_adds / many.mult_adds:.2f} of the "
            f"mult-adds of {many.version} {many.alpha:g} and takes {few.measured / many.measured:.2f} of its time "
            f"(batch {few.batch})."
        )
    return Table("latency", "Inference: measured beside predicted", header, tuple(rows), note)


def _misled(found: Iterable[Network]) -> tuple[Network, Network] | None:
    """Two networks of one batch size of which that with fewer mult-adds takes longer, by the largest factor."""
    pairs = [(a, b) for a, b in itertools.permutations(found, 2) if a.batch == b.batch and a.mult_adds < b.mult_adds]
    slower = [(a, b) for a, b in pairs if a.measured > b.measured]
    return max(slower, key=lambda pair: pair[0].measured / pair[1].measured, default=None)


def distinct(found: Iterable[Network]) -> list[Alone]:
    """Within a network, layers that are alike were measured once: each counts once."""
    layers = {}
    for i, network in enumerate(found):
        for layer in network.layers:
            row = layer.time.row
            layers.setdefault((i, dataclasses.replace(row.layer, name=""), row.in_size), layer)
    return list(layers.values())


def agreement(layers: Sequence[Alone]) -> tuple[float | None, float]:
    """Spearman's rank correlation of predicted and measured seconds; the median of |predicted / measured - 1|.

    None for the first where it says nothing: fewer than five different values on a side.
    """
    from scipy.stats import spearmanr  # half a second that other reports have no use for

    predicted, measured = [layer.predicted for layer in layers], [layer.measured for layer in layers]
    error = statistics.median(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    if min(len({*predicted}), len({*measured})) < 5:
        return None, error
    found: Any = spearmanr(predicted, measured)
    return float(found.statistic), error


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
                    "" if correlation is None else f"{correlation:.2f}",
                    f"{error:.0%}",
                    f"{statistics.median(x.measured / x.predicted for x in chosen):.2f}",
                    *(f"{sum(map(count, here)) / sum(map(count, everywhere)):.1%}" for count in counts),
                )
            )
    header = ("kind", "distinct layers", "rank correlation", "median |predicted / measured - 1|")
    header += ("measured / predicted, median",)
    header += ("share of mult-adds", "share of measured time", "share of predicted time")
    note = (
        "Each layer as a program of its own, in all of the networks; layers of one network that are alike count once, "
        "but in the shares. Predicted: the roofline, and what the least program takes."
    )
    title = f"Layers, batch {batch}: predicted against measured"
    return Table(f"latency_kinds_{batch}", title, header, tuple(rows), note)


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
    name = f"{network.version}, alpha {network.alpha:g}, {network.resolution} pixels"
    title = f"Layer by layer: {name}, batch {network.batch}"
    return Table(f"latency_{network.version}_{network.resolution}", title, header, tuple(rows))


@dataclasses.dataclass(frozen=True)
class Timed:
    """A network whose milliseconds of one image on a Pixel 1 are printed."""

    source: str
    version: str
    alpha: float
    resolution: int
    mult_adds: int
    printed: str
    predicted: float  # seconds

    @property
    def seconds(self) -> float:
        return float(self.printed) / 1e3


def on_pixel_1() -> list[Timed]:
    """The v2 paper's Table 4, of our networks, and TF-slim's 22 v2 checkpoints."""
    rows = [("v2 paper", row["version"], row) for row in printed.rows("paper_v2") if row["version"]]
    rows += [("TF-slim", "v2", row) for row in printed.rows("slim_v2")]
    found = []
    for source, version, row in rows:
        network, resolution = arch.mobilenet(version, float(row["alpha"])), int(row["resolution"])
        predicted = sum(time.seconds for time in roofline(network, resolution, PIXEL_1))
        count = totals(network, resolution).mult_adds
        found.append(Timed(source, version, float(row["alpha"]), resolution, count, row["pixel1_ms"], predicted))
    return found


def pixel_1() -> Section:
    """Printed milliseconds beside the roofline, and against mult-adds."""
    found = on_pixel_1()
    rows = tuple(
        (
            f"{t.version} {t.alpha:g} {t.resolution}",
            t.source,
            f"{t.mult_adds / 1e6:.2f}",
            t.printed,
            f"{1e3 * t.predicted:.1f}",
            f"{t.seconds / t.predicted:.2f}",
            f"{t.mult_adds / t.seconds / 1e9:.2f}",
        )
        for t in found
    )
    header = (
        "network",
        "source",
        "mult-adds, M",
        "printed, ms",
        "predicted, ms",
        "printed / predicted",
        "G mult-adds/s",
    )
    ratios = [t.seconds / t.predicted for t in found]
    note = f"{PIXEL_1.source} Printed / predicted: {min(ratios):.2f} to {max(ratios):.2f}."
    picture = Picture(
        "pixel_1",
        "Printed time of an image on a Pixel 1 against mult-adds, 224 pixels: v2 from TF-slim, v1 from the v2 paper",
        lambda: _draw_pixel_1(found),
    )
    table = Table("pixel_1", f"{PIXEL_1.name}: printed beside predicted", header, rows, note)
    return Section("Time on a phone", pictures=(picture,), tables=(table,))


def _draw_pixel_1(timed: Sequence[Timed]) -> "Figure":
    from mobilenet_jax.render import charts

    shown = [t for t in timed if t.resolution == 224 and (t.source == "TF-slim" or t.version == "v1")]
    points = [charts.Timing(t.version, 1, t.alpha, t.mult_adds / 1e6, 1e3 * t.seconds) for t in shown]
    return charts.latency(points, "printed time per image (ms)")
