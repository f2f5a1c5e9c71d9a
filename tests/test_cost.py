"""The counts against the papers' tables and TF-slim's, every printed cell of them."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest

from mobilenet_jax import published
from mobilenet_jax.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2
from mobilenet_jax.cost import describe, layer_costs, totals

Build = Callable[..., Architecture]
Counts = dict[str, int | Fraction]  # by column, in the column's unit
MILLION = 10**6

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
    (mobilenet_v1(num_classes=10, strides="cifar", variant="seed004"), 28, 91_799_552, 572_938),
]

# Microseconds a layer, 2 operations a mult-add and 10^12 a second: Table 4 of the 28x28 CIFAR-10 network's document.
SEED004_TABLE_4 = """
1.35475 0.451584 3.21126 0.903168 1.60563 0.225792 3.21126 0.451584 6.42253 0.451584 6.42253 0.451584 12.8451 0.903168
25.6901 0.903168 25.6901 0.903168 25.6901 0.903168 25.6901 0.903168 25.6901 0.903168 6.42253 0.225792 6.42253
"""

# The printed cells that the count does not give: (row, column) -> ours. Each is explained in its row's note.
MISPRINTS = {
    "slim_v1": {
        ("0.50 224", "mult_adds_m"): "149.50",
        ("0.25 192", "mult_adds_m"): "30.21",
    },
    "slim_v2": {},
    "paper_v1": {
        ("2 Conv 3x3", "mult_adds_pct"): "1.91",
        ("4 Conv MobileNet", "mult_adds_m"): "4867.29",
        ("7 1.0 MobileNet-160", "mult_adds_m"): "290.68",
        ("9 0.50 MobileNet-160", "mult_adds_m"): "76.52",
        ("9 0.50 MobileNet-160", "params_m"): "1.33",
    },
    "paper_v2": {
        ("4 MobileNetV1", "mult_adds_m"): "568.74",
        ("4 MobileNetV2 (1.4)", "mult_adds_m"): "582.20",
        ("4 MobileNetV2 (1.4)", "params_m"): "6.06",
    },
}
OTHERS = {"Squeezenet", "AlexNet", "ShuffleNet (1.5)", "ShuffleNet (x2)", "NasNet-A"}  # not ours to count


def millions(**counts: int) -> Counts:
    return {column: Fraction(count, MILLION) for column, count in counts.items()}


def slim_v1(row: dict[str, str], build: Build) -> Counts:
    """1001 outputs, 3 values per batch-norm channel: the one rule that gives every printed params cell."""
    rows = layer_costs(build(float(row["alpha"]), num_classes=1001), int(row["resolution"]))
    counted = rows[1:] if row["alpha"] == "0.75" else rows
    return millions(
        mult_adds_m=sum(r.mult_adds for r in counted),
        params_m=sum(r.weights + r.bias + 3 * r.bn // 2 for r in rows),
    )


def slim_v2(row: dict[str, str], build: Build) -> Counts:
    sums = totals(build(float(row["alpha"])), int(row["resolution"]))
    return millions(mult_adds_m=sums.mult_adds, params_m=sums.params_without_bn)


def paper_v1(row: dict[str, str], build: Build) -> Counts:
    if row["table"] == "2":
        rows = layer_costs(build(), 224)
        kind = {"Conv 1x1": "pointwise", "Conv DW 3x3": "depthwise", "Conv 3x3": "conv", "Fully Connected": "dense"}
        chosen = [r for r in rows if r.layer.kind == kind[row["row"]]]
        return {
            "mult_adds_pct": Fraction(100 * sum(r.mult_adds for r in chosen), sum(r.mult_adds for r in rows)),
            "params_pct": Fraction(100 * sum(r.weights for r in chosen), sum(r.weights for r in rows)),
        }
    if row["table"] == "3":
        width = int(512 * float(row["alpha"] or 1))
        size = round(14 * 0.714) if row["row"] == "rho=0.714" else 14
        pair = (Layer("dw", "depthwise", width, width, 3), Layer("pw", "pointwise", width, width))
        layers = (Layer("conv", "conv", width, width, 3),) if row["row"] == "Convolution" else pair
        sums = totals(Architecture("v1", layers), size)
        return millions(mult_adds_m=sums.mult_adds, params_m=sums.params_without_bn)
    sums = totals(build(float(row["alpha"]), variant=row["variant"]), int(row["resolution"]))
    return millions(mult_adds_m=sums.mult_adds, params_m=sums.params)


def paper_v2(row: dict[str, str], build: Build) -> Counts:
    return slim_v2(row, mobilenet_v1 if row["version"] == "v1" else build)


# How to count a row, with which network, and how each column was rounded.
CHECKS = {
    "slim_v1": (slim_v1, mobilenet_v1, {"mult_adds_m": ROUND_HALF_UP, "params_m": ROUND_HALF_UP}),
    "slim_v2": (slim_v2, mobilenet_v2, {"mult_adds_m": ROUND_FLOOR, "params_m": ROUND_HALF_UP}),
    "paper_v1": (
        paper_v1,
        mobilenet_v1,
        dict.fromkeys(("mult_adds_m", "params_m", "mult_adds_pct", "params_pct"), ROUND_HALF_UP),
    ),
    "paper_v2": (paper_v2, mobilenet_v2, {"mult_adds_m": ROUND_FLOOR, "params_m": ROUND_FLOOR}),
}


def label(row: dict[str, str]) -> str:
    return f"{row['table']} {row['row']}" if "table" in row else f"{row['alpha']} {row['resolution']}"


def printed(value: int | Fraction, like: str, rounding: str = ROUND_HALF_UP) -> str:
    """`value` with as many decimals as `like`."""
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return str(exact.quantize(Decimal(like), rounding=rounding))


def unchanged(network: Architecture) -> Architecture:
    return network


def mismatches(name: str, change: Callable[[Architecture], Architecture] = unchanged) -> dict[tuple[str, str], str]:
    """The printed cells of a table that the count, of networks changed by `change`, does not give, with ours."""
    count, build, roundings = CHECKS[name]
    found = {}
    for row in published.rows(name):
        if row.get("row") not in OTHERS:
            for column, value in count(row, lambda *args, **kwargs: change(build(*args, **kwargs))).items():
                if printed(value, row[column], roundings[column]) != row[column]:
                    found[label(row), column] = printed(value, "0.01")
    return found


def edit(**changes: dict[str, int]) -> Callable[[Architecture], Architecture]:
    """A change of some layers, by name."""
    return lambda network: dataclasses.replace(
        network, layers=tuple(dataclasses.replace(x, **changes.get(x.name, {})) for x in network.layers)
    )


def without_block13(network: Architecture) -> Architecture:
    return dataclasses.replace(network, layers=tuple(x for x in network.layers if not x.name.startswith("block13")))


@pytest.mark.parametrize("name", CHECKS)
def test_every_printed_cell(name):
    assert mismatches(name) == MISPRINTS[name]


@pytest.mark.parametrize("name", CHECKS)
def test_notes_explain_the_misprints_and_nothing_else(name):
    for row in published.rows(name):
        values = [ours for (where, _), ours in MISPRINTS[name].items() if where == label(row)]
        if name == "slim_v1" and row["alpha"] == "0.75":
            full = totals(mobilenet_v1(0.75), int(row["resolution"])).mult_adds
            values.append(printed(Fraction(full, MILLION), "0.01"))
        assert bool(values) == bool(row["note"]), row
        assert all(value in row["note"] for value in values), row


@pytest.mark.parametrize(
    ("version", "change"),
    [
        (
            "v1",
            edit(block06_pointwise={"out_channels": 504}, block07_depthwise={"out_channels": 504, "in_channels": 504}),
        ),
        ("v1", edit(block13_depthwise={"stride": 2})),  # as the paper's Table 1 prints it
        ("v1", edit(stem={"kernel": 5})),
        ("v1", without_block13),
        ("v2", edit(block01_project={"out_channels": 24}, block02_expand={"in_channels": 24})),
        ("v2", edit(block11_depthwise={"stride": 2})),
        ("v2", edit(head={"out_channels": 1024}, pool={"out_channels": 1024}, classifier={"in_channels": 1024})),
        ("v2", without_block13),
    ],
)
def test_a_wrong_row_would_be_seen(version, change):
    for name in (f"slim_{version}", f"paper_{version}"):
        assert mismatches(name, change).keys() - MISPRINTS[name].keys()


def test_published_tables_are_complete():
    def points(name):
        return {(float(row["alpha"]), int(row["resolution"])) for row in published.rows(name)}

    assert points("slim_v1") == set(itertools.product((1, 0.75, 0.5, 0.25), (224, 192, 160, 128)))
    assert points("slim_v2") == {
        (1.4, 224),
        (1.3, 224),
        *itertools.product((1, 0.75, 0.5, 0.35), (224, 192, 160, 128, 96)),
    }
    for name, sizes in {"paper_v1": {2: 4, 3: 4, 4: 2, 5: 2, 6: 4, 7: 4, 9: 3}, "paper_v2": {4: 6}}.items():
        tables = [int(row["table"]) for row in published.rows(name)]
        assert {table: tables.count(table) for table in tables} == sizes


@pytest.mark.parametrize("name", CHECKS)
def test_published_cells_are_printed_numbers(name):
    rows = published.rows(name)
    assert len({label(row) for row in rows}) == len(rows)
    for row in rows:
        assert all(isinstance(key, str) and isinstance(cell, str) for key, cell in row.items()), row
        for column in row.keys() - {"row", "variant", "version", "note", "table"}:
            assert row[column] == "" or Decimal(row[column]) > 0


@pytest.mark.parametrize(("network", "resolution", "mult_adds", "params"), EXACT)
def test_exact_totals(network, resolution, mult_adds, params):
    sums = totals(network, resolution)
    assert (sums.mult_adds, sums.params) == (mult_adds, params)


def test_params_without_batch_norm():
    assert totals(mobilenet_v2(), 224).params_without_bn == 3_470_760
    assert totals(mobilenet_v1(), 224).params_without_bn == 4_210_088


def test_seed004_layer_by_layer():
    times = [float(x) for x in SEED004_TABLE_4.split()]
    network = mobilenet_v1(num_classes=10, strides="cifar", variant="seed004")
    rows = layer_costs(network, 28)[:27]
    # The document counts its two strided layers at the size of their input.
    ours = [2 * row.mult_adds * row.layer.stride**2 / MILLION for row in rows]
    assert ours == pytest.approx(times, rel=1e-5)


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


def test_describe_for_people():
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


def test_describe_for_programs():
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
