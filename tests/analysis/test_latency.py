"""Measured and predicted times, from a small artificial record, and the times printed for a Pixel 1."""

import dataclasses
import functools
import json
import math
import operator
import re
import statistics
from typing import Any

import pytest
from conftest import ROOT
from helpers import LAYERS, MULT_ADDS, record

from mobilenet_jax.analysis import latency
from mobilenet_jax.networks.arch import mobilenet_v1
from mobilenet_jax.networks.cost import layer_costs, totals
from mobilenet_jax.papers import printed

RECORD = ROOT / "results" / "bench" / "cpu_latency.json"


def test_a_network_and_its_layers():
    (network,) = latency.networks(record())
    assert (network.mult_adds, network.measured) == (MULT_ADDS, 0.002)
    assert network.predicted == pytest.approx(MULT_ADDS / 1e9 + 0.001, rel=1e-3)  # one program, started once
    assert network.rate == MULT_ADDS / 0.002
    assert [x.time.row.layer.name for x in network.layers] == [row.layer.name for row in LAYERS]
    stem = network.layers[0]
    assert (stem.predicted, stem.measured) == pytest.approx(
        (LAYERS[0].mult_adds / 1e9 + 0.001, LAYERS[0].mult_adds / 5e8 + 0.001)
    )


def test_equal_layers_count_once():
    (network,) = latency.networks(record())
    assert len(network.layers) == 29
    assert len(latency.distinct([network])) == 21  # v1 has equal layers
    assert len(latency.distinct([network, network])) == 42  # each network was measured by itself


def test_agreement():
    (network,) = latency.networks(record())
    layers = [x for x in latency.distinct([network]) if x.time.row.mult_adds]
    correlation, error = latency.agreement(layers)
    assert latency.agreement(layers[:4])[0] is None  # too few to rank
    assert correlation == pytest.approx(1)
    assert error == pytest.approx(1 - statistics.median(x.predicted / x.measured for x in layers))
    backwards = [dataclasses.replace(x, measured=1 / x.predicted) for x in layers]
    assert latency.agreement(backwards)[0] == pytest.approx(-1)


def tables(of: dict) -> list[tuple]:
    return [section.tables for section in latency.sections(of)]


def test_tables():
    (whole,), (kinds,) = tables(record())
    (row,) = whole.rows
    assert row[:5] == ("v1 0.25", "32", "1", f"{MULT_ADDS / 1e6:.2f}", "2.00")
    assert row[5] == f"{2 * MULT_ADDS / 1e6 + 29:.2f}"  # the layers alone, each started as a program
    assert row[-1] == "1.00"
    assert [r[0] for r in kinds.rows] == ["depthwise", "pointwise", "all"]  # the other kinds have one layer
    assert kinds.rows[-1][5:] == ("100.0%",) * 3
    assert "1.0 G mult-adds/s" in whole.note


def test_tables_of_several_networks():
    """Layers are listed for alpha 1 only; each network is compared with the fastest of its batch size."""
    slow = record()["networks"][0] | {"seconds": 0.008}
    wide = {row.layer.name: 0.0011 + row.mult_adds / 1e9 for row in layer_costs(mobilenet_v1(), 32)}
    full = slow | {"alpha": 1.0, "layers": wide, "seconds": 0.05}
    both = record() | {"networks": [full, slow, slow | {"seconds": 0.004, "batch": 2}]}
    (whole,), (*kinds, layers) = tables(both)
    assert [(row[0], row[2]) for row in whole.rows] == [("v1 0.25", "1"), ("v1 1", "1"), ("v1 0.25", "2")]
    rates = [MULT_ADDS / 0.008, totals(mobilenet_v1(), 32).mult_adds / 0.05]
    assert [row[-1] for row in whole.rows] == [f"{max(rates) / rate:.2f}" for rate in rates] + ["1.00"]
    assert "reversal" not in whole.note  # the smaller one is the faster one
    assert [table.name for table in kinds] == ["latency_kinds_1", "latency_kinds_2"]
    assert (layers.name, len(layers.rows)) == ("latency_v1_32", 29)


def test_the_largest_reversal():
    """Only networks of one batch size count; of two pairs, the one with the larger factor."""
    small = record()["networks"][0]
    wide = {row.layer.name: 0.0011 + row.mult_adds / 1e9 for row in layer_costs(mobilenet_v1(), 32)}
    large = small | {"alpha": 1.0, "layers": wide}
    found = [small | {"seconds": 0.03}, large | {"seconds": 0.02}, small | {"seconds": 0.05, "batch": 2}]
    (whole,), _ = tables(record() | {"networks": found})
    share = MULT_ADDS / totals(mobilenet_v1(), 32).mult_adds
    assert f"v1 0.25 has {share:.2f} of the mult-adds of v1 1, but takes 1.50 of its time (batch 1)" in whole.note
    (whole,), _ = tables(record() | {"networks": [*found, large | {"seconds": 0.02, "batch": 2}]})
    assert "takes 2.50 of its time (batch 2)" in whole.note


def test_shares_are_of_all_layers():
    _, (kinds,) = tables(record())
    alone = {row.layer.name: 2 * row.mult_adds / 1e9 + 0.001 for row in LAYERS}
    depthwise = sum(seconds for name, seconds in alone.items() if "depthwise" in name)
    assert kinds.rows[0][6] == f"{depthwise / sum(alone.values()):.1%}"


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("networks", [], "networks: .* at least 1 "),
        ("networks", record()["networks"] * 2, "networks: .* once"),
        ("networks.0.version", "v3", "'v1' or 'v2'"),
        ("networks.0.alpha", 9, "less than or equal to 8"),
        *(("networks.0.batch", value, "integer|greater than or equal to 1$") for value in (-1, 0, 1.5, True)),
        *(("networks.0.resolution", value, "greater than or equal to 1$") for value in (0, -5)),
        *(("networks.0.seconds", value, "number|to 0.0+1") for value in (0, -1, "fast", 1e-320)),
        *(("networks.0.layers.stem", value, "number|0.0+1|10+$") for value in (0, math.nan, math.inf, True)),
        *(("device.mult_adds_per_second", value, "number|0.0+1|10+$") for value in (0, -1, math.nan, math.inf, True)),
        *(("device.bytes_per_second", value, "number|0.0+1|10+$") for value in (0, -1, math.nan, math.inf, True)),
        ("device.cache_bytes_per_second", -1, "to 0.0+1"),
        ("device.cache_bytes", -1, "greater than or equal to 0"),
        ("device.launch_seconds", -1, "greater than or equal to 0"),
        ("device.name", 5, "string"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(where, value, reason):
    damaged = json.loads(json.dumps(record()))
    *path, last = (int(key) if key.isdigit() else key for key in where.split("."))
    functools.reduce(operator.getitem, path, damaged)[last] = value
    with pytest.raises(ValueError, match=f"^{where}: ") as caught:
        latency.sections(damaged)
    assert type(caught.value) is ValueError and re.search(reason, str(caught.value))


def test_a_missing_key_is_refused():
    damaged = json.loads(json.dumps(record()))
    del damaged["networks"][0]["layers"]["stem"]
    with pytest.raises(KeyError, match="stem"):
        latency.sections(damaged)
    del damaged["device"]["launch_seconds"]
    with pytest.raises(ValueError, match="device.launch_seconds: .*required"):
        latency.sections(damaged)


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def test_figures_show_the_measured_times():
    batch = json.loads(json.dumps(record()))
    batch["networks"][0] |= {"batch": 4}
    whole, layers = (section.pictures[0].draw().axes[0] for section in latency.sections(batch))
    (line,) = (line for line in whole.lines if line.get_label() == "v1, batch 4")
    assert points(line) == [(MULT_ADDS / 1e6, 0.5)]  # milliseconds per image, not per batch
    drawn = sorted(point for line in layers.lines if line.get_linestyle() == "None" for point in points(line))
    found = latency.distinct(latency.networks(batch))
    assert drawn == sorted((1e6 * x.measured, 1e6 * x.predicted) for x in found)


def test_pixel_1_has_every_printed_time():
    (table,) = latency.pixel_1().tables
    slim = [row["pixel1_ms"] for row in printed.rows("slim_v2")]
    assert [row[3] for row in table.rows] == ["113", "75", "143", *slim]
    assert all(float(row[3]) > float(row[4]) for row in table.rows)  # no network is faster than the roofline


@pytest.mark.skipif(not RECORD.exists(), reason="no record of latencies in results/bench")
def test_the_record_is_of_all_widths():
    found = latency.networks(json.loads(RECORD.read_text()))
    widths = {"v1": (0.25, 0.5, 0.75, 1), "v2": (0.35, 0.5, 0.75, 1, 1.3, 1.4)}
    assert {(n.version, n.alpha, n.batch) for n in found} == {
        (version, alpha, batch) for version, alphas in widths.items() for alpha in alphas for batch in (1, 32)
    }
