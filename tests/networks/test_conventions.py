"""Compare the conventions with counts by hand, XLA's own count, TF-slim's tables and the output of profilers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.conventions import NAMED as BY_NAME
from mobilenet_jax.networks.conventions import OPERATIONS, PARAMS, explain, tables
from mobilenet_jax.networks.cost import layer_costs
from mobilenet_jax.papers import printed as published

V1, V2 = (mobilenet_v1(), 224), (mobilenet_v2(), 224)

# At 4x4 pixels: 4 -> 2 (padded by one after), 2 -> 2 (padded by one before and after), 2x2, pooled.
TINY = Architecture(
    "v2",
    (
        Layer("stem", "conv", 3, 4, 3, 2, "relu6"),
        Layer("depthwise", "depthwise", 4, 4, 3, 1, "relu"),
        Layer("project", "pointwise", 4, 4, shortcut="stem"),
        Layer("pool", "pool", 4, 4),
        Layer("classifier", "dense", 4, 2),
    ),
)
# Layer by layer: 108, 36, 16 and 8 weights at 4, 4, 4 and 1 positions; every map has 16 values.
MULT_ADDS = 432 + 144 + 64 + 8
# Of three taps a position, along one axis: 3 and 2 are inside for the stem, 2 and 2 for the depthwise layer.
INSIDE = 12 * 5**2 + 4 * 4**2 + 64 + 8
WEIGHTS = 108 + 36 + 16 + 8
BY_HAND = {
    "mult-adds": MULT_ADDS,
    "without classifier": 432 + 144 + 64,
    "without stem": 144 + 64 + 8,
    "with bias": MULT_ADDS + 2,
    "inside the image": INSIDE,
    "with batch norm, 1": MULT_ADDS + 3 * 16,
    "with batch norm, 2": MULT_ADDS + 2 * 3 * 16,
    "fvcore 0.1.5": MULT_ADDS + 2 * 3 * 16 + 16,
    "ptflops 0.7.5": MULT_ADDS + 2 * 3 * 16 + 16 + 2 * 16 + 16 + 2,  # ReLU6, ReLU twice, pooling, bias
    "thop 0.1.1": MULT_ADDS + 4 * 3 * 16,
    "thop 0.0.31": MULT_ADDS + 2 * 3 * 16 + 8,
    "FLOPs": 2 * MULT_ADDS,
    # Batch norm by value and by channel, two activations, pooling, shortcut, bias.
    "XLA flops": 2 * INSIDE + 2 * 3 * 16 + 4 * 3 * 4 + 2 * 2 * 16 + 16 + 16 + 2,
    "trainable": WEIGHTS + 2 + 3 * 2 * 4,
    "without batch norm": WEIGHTS + 2,
    "kernels": WEIGHTS,
    "with running statistics": WEIGHTS + 2 + 3 * 4 * 4,
    "TF-slim v1": WEIGHTS + 4 + 2 + 1 + 3 * 3 * 4,  # a third class: 4 weights and a bias
}


def figures(arch: Architecture, resolution: int) -> dict[str, int]:
    return {name: c.count(arch, resolution) for name, c in BY_NAME.items()}


def without(name: str) -> Architecture:
    return dataclasses.replace(TINY, layers=tuple(x for x in TINY.layers if x.name != name))


def names(figure: float, network: tuple[Architecture, int], tolerance: float) -> list[str]:
    return [c.name for c in explain(figure, *network, tolerance)]


def xla_flops(arch: Architecture, resolution: int) -> float:
    model = MobileNet(arch, depthwise="conv")
    x = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    analysis = jax.jit(model.apply).lower(variables, x).cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_every_convention_by_hand():
    assert figures(TINY, 4) == BY_HAND
    assert (MULT_ADDS, INSIDE, WEIGHTS) == (648, 436, 168)
    assert len(BY_NAME) == len(OPERATIONS) + len(PARAMS)  # names are unique


@pytest.mark.parametrize(
    ("arch", "resolution"),
    [
        (TINY, 4),
        (TINY, 7),
        (mobilenet_v1(0.25, 10, "cifar"), 27),
        (mobilenet_v1(0.25, 10, "cifar"), 1),
        (mobilenet_v1(0.25, 10, "cifar", padding="symmetric"), 27),
        (mobilenet_v2(0.35, num_classes=10, padding="symmetric"), 26),
        (mobilenet_v2(0.35, num_classes=10, strides="cifar"), 13),
        (mobilenet_v2(0.35, num_classes=10, bottleneck="relu6", shortcut="expansion"), 27),
        V1,
        V2,
        (mobilenet_v2(num_classes=10, strides="cifar"), 27),
        (mobilenet_v1(variant="standard_conv"), 97),
    ],
)
def test_xla_counts_the_same(arch, resolution):
    ours, xla = BY_NAME["XLA flops"].count(arch, resolution), xla_flops(arch, resolution)
    # XLA adds up in float32: whole numbers are exact below 2^24.
    assert xla == ours if ours < 2**24 else xla == pytest.approx(ours, rel=1e-6)


def test_slim_v1():
    for row in published.rows("slim_v1"):
        network = (mobilenet_v1(float(row["alpha"])), int(row["resolution"]))
        assert "TF-slim v1" in names(float(row["params_m"]) * 1e6, network, 0.005e6), row
        found = names(float(row["mult_adds_m"]) * 1e6, network, 0.5e6)
        assert ("without stem" in found) == (row["alpha"] == "0.75"), row
        misprinted = (row["alpha"], row["resolution"]) in {("0.50", "224"), ("0.25", "192")}
        assert ("mult-adds" in found) == (row["alpha"] != "0.75" and not misprinted), row


def test_slim_v2():
    for row in published.rows("slim_v2"):
        network = (mobilenet_v2(float(row["alpha"])), int(row["resolution"]))
        assert f"{BY_NAME['without batch norm'].count(*network) / 1e6:.2f}" == row["params_m"], row
        assert str(BY_NAME["mult-adds"].count(*network) // 10**6) == row["mult_adds_m"], row


@pytest.mark.parametrize(
    ("name", "v1", "v2"),
    [
        # The output of the tools: profilers on PyTorch 2.13, and Keras's `summary()`.
        ("fvcore 0.1.5", 578_875_904, 314_193_216),
        ("ptflops 0.7.5", 588_962_280, 320_300_008),
        ("thop 0.1.1", 588_911_104, 327_486_720),
        ("with running statistics", 4_253_864, 3_538_984),
        ("trainable", 4_231_976, 3_504_872),
    ],
)
def test_figures_of_other_tools(name, v1, v2):
    assert (BY_NAME[name].count(*V1), BY_NAME[name].count(*V2)) == (v1, v2)


@pytest.mark.parametrize(
    ("layer", "left_out_by"),
    [("stem", {"without stem"}), ("depthwise", set()), ("project", set()), ("classifier", {"without classifier"})],
)
def test_a_layer_changes_every_figure(layer, left_out_by):
    before, after = figures(TINY, 4), figures(without(layer), 4)
    if layer == "stem":  # without the stem the other layers run at 4x4 pixels, so count them at 2x2
        after = {**after, **{c.name: c.count(without(layer), 2) for c in OPERATIONS}}
    assert {name for name in before if before[name] == after[name]} == left_out_by


def test_thop_of_2020():
    """Its sum of v2 1.4 is 603,134,720 (issue 66 of pytorch-OpCounter): module by module, in float32."""
    network = mobilenet_v2(1.4)
    assert [c.name for c in explain(603_134_720, network)] == ["thop 0.0.31"]
    total = np.float32(0)
    for row in layer_costs(network, 224):
        total += np.float32(row.mult_adds + (row.mult_adds if row.layer.kind == "dense" else 0))
        total += np.float32(2 * row.out_activations if row.layer.norm else 0)
    assert (int(total), BY_NAME["thop 0.0.31"].count(network, 224)) == (603_134_720, 603_134_672)


def test_resolution_changes_operations_only():
    before, after = figures(TINY, 4), figures(TINY, 8)
    assert {name for name in before if before[name] == after[name]} == {c.name for c in PARAMS}


def test_explain():
    assert names(573.8e6, V1, 0.05e6) == ["with batch norm, 1"]
    assert names(327.49e6, V2, 0.005e6) == ["thop 0.1.1"]
    assert names(3.54e6, V2, 0.005e6) == ["with running statistics"]
    assert names(1.0e6, V1, 0.5e6) == []
    # 568,740,352 and 568,741,352: the nearest comes first, and the tolerance is inclusive.
    assert names(568_741_000, V1, 1_000) == ["with bias", "mult-adds"]
    assert names(568_740_000, V1, 352) == ["mult-adds"]
    assert names(568_740_000, V1, 351) == []


def test_tables():
    operations, params = tables()
    networks = ["v1, 224", "v2, 224", "CIFAR v1, 32", "CIFAR v2, 32"]
    for table, conventions in ((operations, OPERATIONS), (params, PARAMS)):
        assert list(table.header[2:6]) == networks
        assert [row[:2] for row in table.rows] == [(c.name, c.rule) for c in conventions]
        assert all(len(row) == len(table.header) for row in table.rows)
    cells = {row[0]: row[2:] for row in (*operations.rows, *params.rows)}
    assert cells["mult-adds"] == ("568,740,352", "300,774,272", "46,354,432", "87,976,448", "1.000")
    assert cells["FLOPs"] == ("1,137,480,704", "601,548,544", "92,708,864", "175,952,896", "2.000")
    assert cells["thop 0.1.1"] == ("588,911,104", "327,486,720", "48,001,024", "94,536,192", "1.035")
    assert cells["trainable"] == ("4,231,976", "3,504,872", "3,217,226", "2,236,682", "1.000")
    assert cells["with running statistics"] == ("4,253,864", "3,538,984", "3,239,114", "2,270,794", "1.005")
