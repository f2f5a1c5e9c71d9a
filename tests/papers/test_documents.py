"""Sentences of the papers and of five documents: each follows from the layers, or differs for a known reason."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from decimal import Decimal

import pytest

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.networks.cost import LayerCost, blocks, layer_costs, totals
from mobilenet_jax.papers import cifar28, compare
from mobilenet_jax.papers.tables import expansion, millions, share

DOCUMENTS = pathlib.Path(__file__).with_name("documents.csv")
SENTENCES = list(csv.DictReader(x for x in DOCUMENTS.read_text(encoding="utf-8").splitlines() if x[0] != "#"))

# What is computed for a sentence. A formula is checked for every layer of v1 that it applies to. D_F is the side of the
# output map, which is the input's at stride 1, for which the documents write their formulas.


def v1(**options) -> tuple[LayerCost, ...]:
    return layer_costs(arch.mobilenet_v1(**options), 224)


def every(found: Iterable[tuple[int | Decimal, int | Decimal]]) -> str:
    """Return 'all' where both counts of each layer are equal, else how many are."""
    equal = [a == b for a, b in found]
    return "all" if equal and all(equal) else f"{sum(equal)} of {len(equal)}"


def standard() -> str:
    rows = (row for row in v1(variant="standard_conv") if row.layer.kind == "conv")
    return every((r.mult_adds, 9 * r.layer.in_channels * r.layer.out_channels * r.out_size**2) for r in rows)


def depthwise() -> str:
    rows = (row for row in v1() if row.layer.kind == "depthwise")
    return every((r.mult_adds, 9 * r.layer.in_channels * r.out_size**2) for r in rows)


def pointwise() -> str:
    rows = (row for row in v1() if row.layer.kind == "pointwise")
    return every((r.mult_adds, r.layer.in_channels * r.layer.out_channels * r.out_size**2) for r in rows)


def bottleneck() -> str:
    """Check h w d' t (d' + k² + d'') for every block of v2 that is expanded and has stride 1."""
    found = []
    for expand, depthwise, project in (b for b in blocks(layer_costs(arch.mobilenet_v2(), 224)) if len(b) == 3):
        if depthwise.layer.stride == 1:
            d1, d2, t = expand.layer.in_channels, project.layer.out_channels, expansion([expand, depthwise, project])
            formula = expand.in_size**2 * d1 * t * (d1 + depthwise.layer.kernel**2 + d2)
            found.append((sum(row.mult_adds for row in (expand, depthwise, project)), formula))
    return every(found)


def separable(alpha: float = 1, rho: float = 1) -> str:
    """Check equation 7 of the v1 paper: alpha M, alpha N, rho D_F."""
    full = blocks(v1())
    ours = blocks(layer_costs(arch.mobilenet_v1(alpha), round(224 * rho)))

    def formula(block: list[LayerCost]) -> int:
        m, n = (int(alpha * width) for width in (block[0].layer.in_channels, block[1].layer.out_channels))
        size = round(rho * block[0].out_size)
        return 9 * m * size**2 + m * n * size**2

    return every((sum(r.mult_adds for r in b), formula(a)) for a, b in zip(full, ours, strict=True))


def pairs() -> list[tuple[int, int, int]]:
    """Return for each block its mult-adds as a standard convolution, as a separable one, and its outputs."""
    standard, separable = blocks(v1(variant="standard_conv")), blocks(v1())
    return [
        (s[0].mult_adds, sum(row.mult_adds for row in p), p[-1].layer.out_channels)
        for s, p in zip(standard, separable, strict=True)
    ]


def saving() -> str:
    times = [Decimal(standard) / separable for standard, separable, _ in pairs()]
    return f"{min(times):.0f} to {max(times):.0f}"


def reduction() -> str:
    """Check separable / standard = 1/N + 1/9, without fractions."""
    return every((separable * 9 * n, standard * (9 + n)) for standard, separable, n in pairs())


def widths_half() -> str:
    wide, narrow = arch.mobilenet_v1().layers, arch.mobilenet_v1(0.5).layers
    return every((a.out_channels, 2 * b.out_channels) for a, b in zip(wide[:-1], narrow[:-1], strict=True))


def with_weights(network: Architecture) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind != "pool"]


def share_of_full(count: str, alpha: float = 1.0, resolution: int = 224) -> Decimal:
    part, full = totals(arch.mobilenet_v1(alpha), resolution), totals(arch.mobilenet_v1(), 224)
    return Decimal(getattr(part, count)) / getattr(full, count)


def cifar_widths() -> str:
    rows = [layer for layer in arch.mobilenet_v1(strides="cifar").layers if layer.kind in ("depthwise", "pointwise")]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return " ".join(f"{p.out_channels}{'/2' if d.stride == 2 else ''}" for d, p in pairs)


def typical_expansion() -> str:
    found = {expansion(block).normalize() for block in blocks(layer_costs(arch.mobilenet_v2(), 224))[1:]}
    return ", ".join(f"{t:f}" for t in sorted(found))


def strided_shortcuts() -> int:
    found = blocks(layer_costs(arch.mobilenet_v2(), 224))
    return sum(b[-1].layer.shortcut is not None for b in found if b[-2].layer.stride == 2)


# Document 003's layer: 3 channels to 5, 3x3, to a 4x4 map (of a 6x6 one without padding, which costs as much).
EXAMPLE = {
    "conv": Layer("conv", "conv", 3, 5, 3),
    "depthwise": Layer("depthwise", "depthwise", 3, 3, 3),
    "pointwise": Layer("pointwise", "pointwise", 3, 5),
}


def example(*kinds: str) -> int:
    return totals(Architecture("v1", tuple(EXAMPLE[kind] for kind in kinds)), 4).mult_adds


def example_product() -> str:
    (row,) = layer_costs(Architecture("v1", (EXAMPLE["conv"],)), 4)
    k, size, layer = row.layer.kernel, row.out_size, row.layer
    return f"({k}x{k}x{layer.in_channels}) x ({size}x{size}) x ({layer.out_channels})"


def example_formula() -> Decimal:
    layer = EXAMPLE["conv"]
    return Decimal(1) / layer.out_channels + Decimal(1) / layer.kernel**2


def saving_512() -> Decimal | str:
    found = [Decimal(standard) / separable for standard, separable, outputs in pairs() if outputs == 512]
    return found[0] if found else "none"


def overflow() -> int | str:
    return next((i for i, step in enumerate(cifar28.steps(), 1) if step.overflows), "none")


def slowest() -> str:
    seconds = [step.seconds for step in cifar28.steps()]
    return ", ".join(str(i) for i, s in enumerate(seconds, 1) if s == max(seconds))


PAIR = ("depthwise", "pointwise")
COUNTS: dict[str, Callable[[], Decimal | str | int]] = {
    "saving": saving,
    "reduction": reduction,
    "layers": lambda: len(with_weights(arch.mobilenet_v1())),
    "pointwise_mult_adds": lambda: share(v1(), "pointwise", lambda row: row.mult_adds),
    "pointwise_params": lambda: share(v1(), "pointwise", lambda row: row.weights),
    "width_multiplier": lambda: separable(0.5),
    "multipliers": lambda: separable(0.5, 4 / 7),
    "bottleneck": bottleneck,
    "bottlenecks": lambda: len(blocks(layer_costs(arch.mobilenet_v2(), 224))),
    "least_mult_adds": lambda: millions(arch.mobilenet_v2(0.35), 96, "mult-adds"),
    "most_mult_adds": lambda: millions(arch.mobilenet_v2(1.4), 224, "mult-adds"),
    "least_params": lambda: millions(arch.mobilenet_v2(0.35), 96, "without batch norm"),
    "most_params": lambda: millions(arch.mobilenet_v2(1.4), 224, "without batch norm"),
    "widths": cifar_widths,
    "pooled": lambda: layer_costs(arch.mobilenet_v1(strides="cifar"), 32)[-2].in_size,
    "classifier_inputs": lambda: arch.mobilenet_v1(strides="cifar").layers[-1].in_channels,
    "standard": standard,
    "depthwise": depthwise,
    "pointwise": pointwise,
    "separable": separable,
    "widths_half": widths_half,
    "expansion": typical_expansion,
    "strided_shortcuts": strided_shortcuts,
    "half_width": lambda: share_of_full("mult_adds", alpha=0.5),
    "half_width_params": lambda: share_of_full("params", alpha=0.5),
    "low_resolution": lambda: share_of_full("mult_adds", resolution=128),
    "example_standard": lambda: example("conv"),
    "example_signs": example_product,
    "example_depthwise": lambda: example("depthwise"),
    "example_pointwise": lambda: example("pointwise"),
    "example_separable": lambda: example(*PAIR),
    "example_sum": lambda: f"{example('depthwise')} + {example('pointwise')}",
    "example_ratio": lambda: Decimal(example(*PAIR)) / example("conv"),
    "example_formula": example_formula,
    "cheaper_512": saving_512,
    "blocks": lambda: len(blocks(v1())),
    "layers_004": lambda: len(with_weights(cifar28.network())),
    "convolutions_004": lambda: sum(layer.norm for layer in cifar28.network().layers),
    "overflow_004": overflow,
    "slowest_004": slowest,
}


@pytest.mark.parametrize("row", SENTENCES, ids=lambda row: f"{row['document']}-{row['count']}")
def test_a_sentence_follows_from_the_layers_or_differs_as_known(row):
    cell = compare.cell(("documents", row["claim"], row["count"]), row["printed"], COUNTS[row["count"]]())
    assert cell.agrees == (not row["note"])
    if not cell.agrees:
        assert cell.ours == row["ours"]


def test_all_sentences_are_there():
    assert len(SENTENCES) == 53
    assert sum(bool(row["note"]) for row in SENTENCES) == 12
    assert {row["count"] for row in SENTENCES} == COUNTS.keys()
    assert {row["document"] for row in SENTENCES} == {*("v1 paper", "v2 paper", "000", "001", "002", "003", "004")}


@pytest.mark.parametrize(
    ("count", "version", "changes", "ours"),
    [
        ("strided_shortcuts", "v2", {"block02_project": {"shortcut": "block01_project"}}, 1),
        ("bottleneck", "v2", {"block03_expand": {"kernel": 3}}, "11 of 12"),
        ("pooled", "v1", {"block12_depthwise": {"stride": 1}}, 4),
        ("classifier_inputs", "v1", {"classifier": {"in_channels": 512}}, 512),
        ("convolutions_004", "v1", {"stem": {"kind": "pool"}}, 26),
        ("layers", "v1", {"stem": {"kind": "pool"}}, 27),
        ("widths_half", "v1", {"stem": {"out_channels": 40}}, "27 of 28"),
    ],
)
def test_a_sentence_fails_for_other_layers(change_networks, count, version, changes, ours):
    def change(network: Architecture) -> Architecture:
        layers = tuple(dataclasses.replace(x, **changes.get(x.name, {})) for x in network.layers)
        return dataclasses.replace(network, layers=layers)

    change_networks(version, change)
    assert COUNTS[count]() == ours
