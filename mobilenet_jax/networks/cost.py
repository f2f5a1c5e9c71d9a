"""What a network costs: parameters, mult-adds and activations of every layer, exactly, without running it.

Mult-adds are the multiplications of the convolutions and the classifier, SAME padding counted in full; batch norm,
bias, activation and pooling are not counted (the rule behind both papers' tables). Parameters are the trainable ones.
"""

import dataclasses
import json
import re
from collections.abc import Iterable

from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.render.tables import columns


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One layer at one resolution. Sizes are the side of the square map in pixels; counts are exact integers."""

    layer: Layer
    in_size: int
    out_size: int
    weights: int  # convolution or classifier kernel
    bias: int  # classifier only
    bn: int  # batch-norm scale and offset
    mult_adds: int

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return self.weights + self.bias + self.bn

    @property
    def in_activations(self) -> int:
        """Values read for one image."""
        return self.in_size**2 * self.layer.in_channels

    @property
    def out_activations(self) -> int:
        """Values written for one image."""
        return self.out_size**2 * self.layer.out_channels


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over a network; `params_without_bn` is the figure TF-slim prints for v2."""

    mult_adds: int
    params: int
    params_without_bn: int


def layer_costs(arch: Architecture, resolution: int) -> tuple[LayerCost, ...]:
    """Costs every layer of `arch` for square inputs of `resolution` pixels, in the order of the layers."""
    rows = []
    size = resolution
    for layer in arch.layers:
        out_size = 1 if layer.kind in ("pool", "dense") else -(-size // layer.stride)
        per_position = _kernel_weights(layer)
        rows.append(
            LayerCost(
                layer,
                size,
                out_size,
                weights=per_position,
                bias=layer.out_channels if layer.kind == "dense" else 0,
                bn=2 * layer.out_channels if layer.norm else 0,
                mult_adds=per_position * out_size**2,
            )
        )
        size = out_size
    return tuple(rows)


def totals(arch: Architecture, resolution: int) -> Totals:
    """Sums `layer_costs(arch, resolution)`."""
    rows = layer_costs(arch, resolution)
    params = sum(row.params for row in rows)
    return Totals(sum(row.mult_adds for row in rows), params, params - sum(row.bn for row in rows))


def blocks(rows: Iterable[LayerCost]) -> list[list[LayerCost]]:
    """The layers of each block of a network, in order; stem, head and top are in none."""
    found: dict[str, list[LayerCost]] = {}
    for row in rows:
        if block := re.match(r"block\d+", row.layer.name):
            found.setdefault(block[0], []).append(row)
    return list(found.values())


def held_activations(arch: Architecture, resolution: int, bottlenecks_only: bool = False) -> tuple[int, ...]:
    """Values of one image that must be in memory while each layer runs: its input, its output, what a shortcut keeps.

    Args:
      arch: the layers.
      resolution: side of the image in pixels.
      bottlenecks_only: within a block, hold its input and output alone: what is between them can be made and used up
        piece by piece (v2 paper, section 5.1).
    """
    rows = layer_costs(arch, resolution)
    held = [row.in_activations + row.out_activations for row in rows]
    place = {row.layer.name: i for i, row in enumerate(rows)}
    for i, row in enumerate(rows):
        if row.layer.shortcut:
            source = place[row.layer.shortcut]
            for between in range(source + 2, i + 1):  # the layer behind the source has it as its input
                held[between] += rows[source].out_activations
    if bottlenecks_only:
        for block in blocks(rows):
            for row in block:
                held[place[row.layer.name]] = block[0].in_activations + block[-1].out_activations
    return tuple(held)


def _kernel_weights(layer: Layer) -> int:
    """D_K^2 M for depthwise, D_K^2 M N for the others (v1 paper, section 3.1, equations 2 to 5)."""
    if layer.kind == "pool":
        return 0
    outputs = 1 if layer.kind == "depthwise" else layer.out_channels
    return layer.kernel**2 * layer.in_channels * outputs


def describe(arch: Architecture, resolution: int, title: str, output_format: str = "text") -> str:
    """The per-layer table and the totals, as text for people or as JSON for programs."""
    rows, sums = layer_costs(arch, resolution), totals(arch, resolution)
    records = [
        {
            "name": row.layer.name,
            "kind": row.layer.kind,
            "stride": row.layer.stride,
            "output_size": row.out_size,
            "in_channels": row.layer.in_channels,
            "out_channels": row.layer.out_channels,
            "params": row.params,
            "mult_adds": row.mult_adds,
            "share": row.mult_adds / sums.mult_adds,
        }
        for row in rows
    ]
    if output_format == "json":
        network = {"network": title, "version": arch.version, "resolution": resolution, "num_classes": arch.num_classes}
        return json.dumps({**network, **dataclasses.asdict(sums), "layers": records}, indent=1)

    header = ("layer", "kind", "output", "channels", "params", "mult-adds", "share")
    lines = [
        (
            r["name"],
            r["kind"] + (f" /{r['stride']}" if r["stride"] > 1 else ""),
            f"{r['output_size']}x{r['output_size']}",
            f"{r['in_channels']}>{r['out_channels']}",
            f"{r['params']:,}",
            f"{r['mult_adds']:,}",
            f"{r['share']:.2%}",
        )
        for r in records
    ]
    total = ("total", "", "", "", f"{sums.params:,}", f"{sums.mult_adds:,}", f"{1:.2%}")
    return "\n".join(
        [
            title,
            "",
            *columns([header, *lines, total], 2),
            "",
            f"mult-adds  {sums.mult_adds:,}",
            f"params     {sums.params:,} trainable ({sums.params_without_bn:,} without batch norm)",
        ]
    )
