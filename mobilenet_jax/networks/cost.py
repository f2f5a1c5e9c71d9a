"""Count parameters, mult-adds and activations of every layer exactly, without running the network.

Mult-adds are the multiplications of the convolutions and the classifier, with SAME padding counted in full. Batch norm,
bias, activation and pooling are not counted. Both papers' tables follow this rule. Parameters are the trainable ones.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable

from mobilenet_jax.errors import InputError, number
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.render.tables import columns


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of one layer at one resolution. A size is the side of a square map in pixels. Counts are exact."""

    layer: Layer
    in_size: int
    out_size: int
    weights: int  # convolution or classifier kernel
    bias: int  # classifier only
    bn: int  # batch-norm scale and offset
    mult_adds: int

    @property
    def params(self) -> int:
        """Return the trainable parameters."""
        return self.weights + self.bias + self.bn

    @property
    def in_activations(self) -> int:
        """Return the values that the layer reads for one image, without a shortcut's."""
        return self.in_size**2 * self.layer.in_channels

    @property
    def out_activations(self) -> int:
        """Return the values that the layer writes for one image."""
        return self.out_size**2 * self.layer.out_channels


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over a network."""

    mult_adds: int
    params: int
    params_without_bn: int  # which TF-slim prints for v2


def layer_costs(arch: Architecture, resolution: int) -> tuple[LayerCost, ...]:
    """Return the cost of each layer of `arch`, in order, for square images of `resolution` pixels, a whole number."""
    rows, size = [], number("resolution", resolution, "a whole number from 1", lambda n: n >= 1, whole=True)
    for layer in arch.layers:
        out_size = 1 if layer.kind in ("pool", "dense") else -(-size // layer.stride)
        # D_K^2 M for depthwise, D_K^2 M N for the others (v1 paper, section 3.1, equations 2 to 5).
        weights = 0 if layer.kind == "pool" else math.prod(layer.kernel_shape)
        bias = layer.out_channels if layer.kind == "dense" else 0
        bn = 2 * layer.out_channels if layer.norm else 0
        rows.append(LayerCost(layer, size, out_size, weights, bias, bn, mult_adds=weights * out_size**2))
        size = out_size
    return tuple(rows)


def totals(arch: Architecture, resolution: int) -> Totals:
    """Return the sums of `layer_costs(arch, resolution)`."""
    rows = layer_costs(arch, resolution)
    params = sum(row.params for row in rows)
    return Totals(sum(row.mult_adds for row in rows), params, params - sum(row.bn for row in rows))


def blocks(rows: Iterable[LayerCost]) -> list[list[LayerCost]]:
    """Group layers by the block they belong to, in order. Stem, head, pool and classifier belong to none."""
    inside = (row for row in rows if row.layer.name.startswith("block"))
    return [list(found) for _, found in itertools.groupby(inside, lambda row: row.layer.name.partition("_")[0])]


def held_activations(arch: Architecture, resolution: int, bottlenecks_only: bool = False) -> tuple[int, ...]:
    """Return the values of one image in memory while each layer runs: its input and output, and maps for shortcuts.

    `bottlenecks_only` counts only the input and output of a block. The maps between them can be computed and used piece
    by piece (v2 paper, section 5.1).
    """
    rows = layer_costs(arch, resolution)
    held = [row.in_activations + row.out_activations for row in rows]
    place = {row.layer.name: i for i, row in enumerate(rows)}
    for i, row in enumerate(rows):
        if row.layer.shortcut:
            source = place[row.layer.shortcut]
            for between in range(source + 2, i + 1):  # layer source + 1 already counts the map as its input
                held[between] += rows[source].out_activations
    if bottlenecks_only:
        for block in blocks(rows):
            for row in block:
                held[place[row.layer.name]] = block[0].in_activations + block[-1].out_activations
    return tuple(held)


def describe(arch: Architecture, resolution: int, title: str, output_format: str = "text") -> str:
    """Format the costs per layer and the totals, as 'text' or as 'json'."""
    if output_format not in ("text", "json"):
        raise InputError(f"output_format={output_format!r}: allowed are 'text' and 'json'")
    rows, sums = layer_costs(arch, resolution), totals(arch, resolution)
    if output_format == "json":
        layers = [
            {**{key: getattr(row.layer, key) for key in ("name", "kind", "stride")}, "output_size": row.out_size}
            | {key: getattr(row.layer, key) for key in ("in_channels", "out_channels")}
            | {"params": row.params, "mult_adds": row.mult_adds, "share": row.mult_adds / sums.mult_adds}
            for row in rows
        ]
        network = {"network": title, "version": arch.version, "resolution": resolution, "num_classes": arch.num_classes}
        return json.dumps({**network, **dataclasses.asdict(sums), "layers": layers}, indent=1, default=int)  # NumPy's

    lines = [("layer", "kind", "output", "channels", "params", "mult-adds", "share")]
    for row in rows:
        kind = row.layer.kind + (f" /{row.layer.stride}" if row.layer.stride > 1 else "")
        size, channels = f"{row.out_size}x{row.out_size}", f"{row.layer.in_channels}>{row.layer.out_channels}"
        share = f"{row.mult_adds / sums.mult_adds:.2%}"
        lines.append((row.layer.name, kind, size, channels, f"{row.params:,}", f"{row.mult_adds:,}", share))
    lines.append(("total", "", "", "", f"{sums.params:,}", f"{sums.mult_adds:,}", f"{1:.2%}"))
    params = f"params     {sums.params:,} trainable ({sums.params_without_bn:,} without batch norm)"
    return "\n".join([title, "", *columns(lines, 2), "", f"mult-adds  {sums.mult_adds:,}", params])
