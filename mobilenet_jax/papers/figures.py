"""Compute the points of the figures of published networks: released checkpoints, mult-adds by layer kind, memory."""

from typing import Literal

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import held_activations, layer_costs, totals
from mobilenet_jax.papers import printed
from mobilenet_jax.render.charts import NetworkPoint

_WIDTHS = {"v1": (0.25, 0.5, 0.75, 1.0), "v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)}


def checkpoints(count: Literal["mult_adds", "params"]) -> list[NetworkPoint]:
    """Return TF-slim's 38 networks: a count, in millions, and the printed ImageNet top-1, in %."""
    found = []
    for version in _WIDTHS:
        for row in printed.rows(f"slim_{version}"):
            alpha, resolution = float(row["alpha"]), int(row["resolution"])
            sums = totals(arch.mobilenet(version, alpha), resolution)
            found.append(NetworkPoint(version, alpha, resolution, getattr(sums, count) / 1e6, float(row["top1"])))
    return found


def mult_adds_by_kind() -> dict[str, dict[str, int]]:
    """Return the mult-adds of each network at 224 pixels: network -> kind of layer -> mult-adds.

    The pointwise layers of v2 are divided by their role: expand, project, head.
    """
    found: dict[str, dict[str, int]] = {}
    for version, widths in _WIDTHS.items():
        for alpha in widths:
            kinds = found.setdefault(f"{version}, alpha {alpha:g}", {})
            for row in layer_costs(arch.mobilenet(version, alpha), 224):
                role = row.layer.name.rpartition("_")[2]
                kind = role if role in ("expand", "project", "head") else row.layer.kind
                kinds[kind] = kinds.get(kind, 0) + row.mult_adds
    return found


def activation_memory() -> dict[str, list[list[float]]]:
    """Return the memory held at each layer of v1 and v2 at alpha 1 and 224 pixels, in kB at 16 bits a value.

    For v2 also if only bottlenecks are held. These are the units of the v2 paper's Table 3.
    """

    def held(version: str, bottlenecks_only: bool = False) -> list[float]:
        return [2 * n / 1000 for n in held_activations(arch.mobilenet(version), 224, bottlenecks_only)]

    return {"v1, alpha 1": [held("v1")], "v2, alpha 1": [held("v2"), held("v2", bottlenecks_only=True)]}
