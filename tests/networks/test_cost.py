"""Compare the counts with counts by hand. `tests/papers` compares them with the published tables."""

import json
import math
from typing import Any

import numpy as np
import pytest

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import conventions, roofline
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.cost import blocks, describe, held_activations, layer_costs, totals

# Whole numbers by hand: mult-adds, trainable params.
EXACT = [
    (mobilenet_v1(), 224, 568_740_352, 4_231_976),
    (mobilenet_v1(0.75), 224, 325_400_448, 2_585_560),
    (mobilenet_v1(0.5), 224, 149_497_088, 1_331_592),
    (mobilenet_v1(0.25), 224, 41_030_272, 470_072),
    (mobilenet_v2(), 224, 300_774_272, 3_504_872),
    (mobilenet_v2(0.5, num_classes=10, strides="cifar"), 32, 27_969_024, 700_490),
    (mobilenet_v2(0.75, num_classes=10, strides="cifar"), 32, 59_310_080, 1_368_234),
    (mobilenet_v2(1.0, num_classes=10, strides="cifar"), 32, 87_976_448, 2_236_682),
    (mobilenet_v2(1.4, num_classes=10, strides="cifar"), 32, 170_073_344, 4_333_706),
    (mobilenet_v1(num_classes=10, strides="cifar"), 32, 46_354_432, 3_217_226),
    (mobilenet_v1(variant="standard_conv"), 224, 4_867_293_184, 29_294_088),
    (mobilenet_v1(variant="shallow"), 224, 307_323_392, 2_887_976),
    (mobilenet_v1(num_classes=10, strides="cifar", variant="cifar28"), 28, 91_799_552, 572_938),
]


@pytest.mark.parametrize(("network", "resolution", "mult_adds", "params"), EXACT)
def test_exact_totals(network, resolution, mult_adds, params):
    sums = totals(network, resolution)
    assert (sums.mult_adds, sums.params) == (mult_adds, params)


def test_params_without_batch_norm():
    assert totals(mobilenet_v2(), 224).params_without_bn == 3_470_760
    assert totals(mobilenet_v1(), 224).params_without_bn == 4_210_088


@pytest.mark.parametrize(
    ("layer", "weights", "bias", "bn", "out_size"),
    [
        (Layer("x", "conv", 3, 8, 3, 2), 216, 0, 16, 3),
        (Layer("x", "conv", 4, 8, 5), 800, 0, 16, 5),
        (Layer("x", "depthwise", 8, 8, 3), 72, 0, 16, 5),
        (Layer("x", "depthwise", 8, 8, 3, 2), 72, 0, 16, 3),
        (Layer("x", "pointwise", 8, 12), 96, 0, 24, 5),
        (Layer("x", "pool", 12, 12), 0, 0, 0, 1),
        (Layer("x", "dense", 12, 10), 120, 10, 0, 1),
    ],
)
def test_one_layer_by_hand(layer, weights, bias, bn, out_size):
    (row,) = layer_costs(Architecture("v1", (layer,)), 5)
    assert (row.weights, row.bias, row.bn, row.params) == (weights, bias, bn, weights + bias + bn)
    assert (row.in_size, row.out_size, row.mult_adds) == (5, out_size, weights * out_size**2)
    assert (row.in_activations, row.out_activations) == (25 * layer.in_channels, out_size**2 * layer.out_channels)


@pytest.mark.parametrize(
    ("network", "resolution", "sizes"),
    [
        (mobilenet_v1(), 225, [113, 57, 29, 15, 8, 1]),  # SAME padding rounds up
        (mobilenet_v1(strides="cifar"), 23, [23, 12, 6, 3, 2, 1]),
        (mobilenet_v2(), 97, [49, 25, 13, 7, 4, 1]),
        (mobilenet_v2(strides="cifar"), 1, [1]),
    ],
)
def test_odd_sizes_round_up(network, resolution, sizes):
    rows = layer_costs(network, resolution)
    assert list(dict.fromkeys(row.out_size for row in rows)) == sizes
    assert [row.in_size for row in rows[1:]] == [row.out_size for row in rows[:-1]]


def test_blocks_leave_out_stem_head_and_top():
    rows = layer_costs(mobilenet_v2(), 224)
    found = blocks(rows)
    assert len(found) == 17
    assert [len(block) for block in found] == [2] + 16 * [3]  # the first is not expanded
    assert sum(len(block) for block in found) == len(rows) - 4


# At 4x4 pixels: values of the maps 48, 64, 128, 128, 64 and 16.
HELD = Architecture(
    "v2",
    (
        Layer("stem", "conv", 3, 4, 3),
        Layer("block01_expand", "pointwise", 4, 8),
        Layer("block01_depthwise", "depthwise", 8, 8, 3),
        Layer("block01_project", "pointwise", 8, 4, shortcut="stem"),
        Layer("block02_depthwise", "depthwise", 4, 4, 3, 2),
    ),
)


def test_held_activations_by_hand():
    # The shortcut keeps the stem's map in memory while the depthwise layer and the projection run.
    assert held_activations(HELD, 4) == (48 + 64, 64 + 128, 128 + 128 + 64, 128 + 64 + 64, 64 + 16)
    assert held_activations(HELD, 4, bottlenecks_only=True) == (48 + 64, 64 + 64, 64 + 64, 64 + 64, 64 + 16)


def test_held_activations_of_the_papers_networks():
    # At most, v2 holds more than v1, except if it holds only the ends of its blocks.
    assert max(held_activations(mobilenet_v1(), 224)) == 112 * 112 * (32 + 64)
    assert max(held_activations(mobilenet_v2(), 224)) == 112 * 112 * 96 + 56 * 56 * 96
    assert max(held_activations(mobilenet_v2(), 224, bottlenecks_only=True)) == 112 * 112 * (32 + 16)


def test_describe_as_text():
    title, _, header, *lines = describe(mobilenet_v1(), 224, "MobileNet v1").splitlines()
    assert title == "MobileNet v1"
    assert header.split() == ["layer", "kind", "output", "channels", "params", "mult-adds", "share"]
    assert lines[0].split() == ["stem", "conv", "/2", "112x112", "3>32", "928", "10,838,016", "1.91%"]
    assert lines[28].split() == ["classifier", "dense", "1x1", "1024>1000", "1,025,000", "1,024,000", "0.18%"]
    assert lines[29].split() == ["total", "4,231,976", "568,740,352", "100.00%"]
    assert len({len(line) for line in (header, *lines[:30])}) == 1  # columns are aligned
    assert lines[31:] == [
        "mult-adds  568,740,352",
        "params     4,231,976 trainable (4,210,088 without batch norm)",
    ]


def test_describe_as_json():
    network = mobilenet_v2(0.5, num_classes=10, strides="cifar")
    found = json.loads(describe(network, 32, "MobileNet v2", "json"))
    layers = found.pop("layers")
    assert found == {
        "network": "MobileNet v2",
        "version": "v2",
        "resolution": 32,
        "num_classes": 10,
        "mult_adds": 27_969_024,
        "params": 700_490,
        "params_without_bn": 681_946,
    }
    assert [layer["name"] for layer in layers] == [layer.name for layer in network.layers]
    assert sum(layer["mult_adds"] for layer in layers) == 27_969_024
    assert sum(layer["params"] for layer in layers) == 700_490
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    assert layers[0] == {
        "name": "stem",
        "kind": "conv",
        "stride": 1,
        "output_size": 32,
        "in_channels": 3,
        "out_channels": 16,
        "params": 464,
        "mult_adds": 442_368,
        "share": 442_368 / 27_969_024,
    }


@pytest.mark.parametrize("resolution", [0, -3, 224.0, True, None, "224", math.nan])
def test_impossible_resolutions_are_refused(resolution):
    network = mobilenet_v1()
    for count in (
        lambda: layer_costs(network, resolution),
        lambda: totals(network, resolution),
        lambda: held_activations(network, resolution),
        lambda: describe(network, resolution, "a title"),
        lambda: roofline.roofline(network, resolution, roofline.PIXEL_1),
        lambda: conventions.explain(569e6, network, resolution),
    ):
        with pytest.raises(InputError, match=f"^resolution={resolution!r}: .*from 1"):
            count()


def test_a_resolution_of_numpy_is_accepted():
    network = mobilenet_v1()
    resolution: Any = np.int16(224)  # a product would overflow
    assert type(totals(network, resolution).mult_adds) is int
    assert describe(network, resolution, "a title", "json") == describe(network, 224, "a title", "json")


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="^output_format='xml': .*'text'.*'json'"):
        describe(mobilenet_v1(), 224, "a title", "xml")
