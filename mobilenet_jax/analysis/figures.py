"""What the figures of costs and of inference times show: their numbers, from `arch` and `cost`, and the figures.

Imported only when something is drawn: matplotlib takes a second.
"""

from collections.abc import Sequence

from mobilenet_jax.analysis import latency
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import held_activations, layer_costs, totals
from mobilenet_jax.papers import printed as published
from mobilenet_jax.render import charts as figures
from mobilenet_jax.render.charts import Figure

_WIDTHS = {"v1": (0.25, 0.5, 0.75, 1.0), "v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)}


def checkpoints(count: str) -> list[figures.Point]:
    """TF-slim's 38 networks: `count` ('mult_adds' or 'params', in millions) and printed ImageNet top-1."""
    found = []
    for version in _WIDTHS:
        for row in published.rows(f"slim_{version}"):
            alpha, resolution = float(row["alpha"]), int(row["resolution"])
            sums = totals(arch.mobilenet(version, alpha), resolution)
            found.append(figures.Point(version, alpha, resolution, getattr(sums, count) / 1e6, float(row["top1"])))
    return found


def mult_adds_by_kind() -> dict[str, dict[str, int]]:
    """Network -> kind of layer -> mult-adds at 224 pixels; v2's pointwise layers by what they are for."""
    found: dict[str, dict[str, int]] = {}
    for version, widths in _WIDTHS.items():
        for alpha in widths:
            kinds = found.setdefault(f"{version}, alpha {alpha:g}", {})
            for row in layer_costs(arch.mobilenet(version, alpha), 224):
                role = row.layer.name.rpartition("_")[2]
                kind = role if role in ("expand", "project", "head") else row.layer.kind
                kinds[kind] = kinds.get(kind, 0) + row.mult_adds
    return found


def activation_memory() -> list[figures.Memory]:
    """Of both at alpha 1, 224 pixels: kB at 16 bits a value, as in the v2 paper's Table 3."""

    def held(version: str, bottlenecks_only: bool = False) -> list[float]:
        values = held_activations(arch.mobilenet(version), 224, bottlenecks_only)
        return [2 * n / 1000 for n in values]

    return [
        figures.Memory("v1, alpha 1", held("v1")),
        figures.Memory("v2, alpha 1", held("v2"), held("v2", bottlenecks_only=True)),
    ]


def timings(networks: Sequence[latency.Network]) -> list[figures.Timing]:
    """Milliseconds of an image, as measured."""
    return [
        figures.Timing(n.version, n.batch, n.alpha, n.mult_adds / 1e6, 1e3 * n.measured / n.batch) for n in networks
    ]


def layer_times(networks: Sequence[latency.Network]) -> list[figures.LayerTime]:
    """Microseconds of each distinct layer, measured and predicted."""
    layers = latency.distinct(networks)
    return [figures.LayerTime(x.time.row.layer.kind, 1e6 * x.measured, 1e6 * x.predicted) for x in layers]


def latency_figure(networks: Sequence[latency.Network]) -> Figure:
    return figures.latency(timings(networks))


def latency_layers(networks: Sequence[latency.Network]) -> Figure:
    return figures.predicted(layer_times(networks))


def pixel_1(timed: Sequence[latency.Timed]) -> Figure:
    """At 224 pixels: TF-slim's v2 networks and the v2 paper's v1."""
    shown = [t for t in timed if t.resolution == 224 and (t.source == "TF-slim" or t.version == "v1")]
    timings = [figures.Timing(t.version, 1, t.alpha, t.mult_adds / 1e6, 1e3 * t.seconds) for t in shown]
    return figures.latency(timings, "printed time per image (ms)")
