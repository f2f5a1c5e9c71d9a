"""Document 004's model of a device, by hand and row by row, and where its printed rows break its own rules."""

import dataclasses
import itertools
from decimal import Decimal

import pytest

from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.networks.cost import layer_costs
from mobilenet_jax.papers import cifar28, printed
from mobilenet_jax.papers.cifar28 import Scratchpad, scratchpad
from mobilenet_jax.papers.compare import unexplained

TABLES = {table.name: table for table in cifar28.tables()}
*ROWS, TOTAL = printed.rows("cifar28_times")
WEIGHTS = [row.weights for row in layer_costs(cifar28.network(), 28)]

# At 2x2 pixels: maps of 12, 16 and 8 values; 12 and 8 weights; 48 and 32 mult-adds.
TWO = layer_costs(Architecture("v1", (Layer("a", "pointwise", 3, 4), Layer("b", "pointwise", 4, 2))), 2)
SMALL = Scratchpad(1e3, 1000, 1e2, 8, 1, 2)


def test_scratchpad_by_hand():
    first, second = scratchpad(TWO, SMALL)
    assert (first.out_bits, first.memory_bits, first.moved_bits) == (128, 96 + 128 + 12, 96 + 24)
    assert (second.out_bits, second.memory_bits, second.moved_bits) == (64, 236 + 64 + 8, 16)
    assert (first.move_seconds, first.compute_seconds) == (120 / 8 / 1e2, 2 * 48 / 1e3)
    assert first.seconds == first.move_seconds + first.compute_seconds


def test_a_scratchpad_that_overflows_moves_out_and_starts_again():
    first, second = scratchpad(TWO, dataclasses.replace(SMALL, memory_bits=235))
    assert (first.memory_bits, first.overflows, second.overflows) == (236, True, False)
    assert first.moved_bits == 96 + 24 + 236 - 12  # the maps and what was held, without the kernels just fetched
    assert (second.memory_bits, second.moved_bits) == (128 + 64 + 8, 16)
    exact = dataclasses.replace(SMALL, memory_bits=236)
    assert scratchpad(TWO, exact)[0].moved_bits == 96 + 24  # just fits


def test_maps_of_another_size():
    first, second = scratchpad(TWO, SMALL, [100, 50])
    assert (first.memory_bits, second.memory_bits) == (96 + 100 + 12, 208 + 50 + 8)
    with pytest.raises(ValueError):
        scratchpad(TWO, SMALL, [100])


@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("cifar28_table3", "data moved, bits", ["5", "9", "25"]),  # 24 of 27 to the digit
        ("cifar28_table3", "rise of memory used, bits", ["5", "9"]),
        ("cifar28_table3", "input map, bits", ["5", "6", "14", "25"]),
        ("cifar28_table3", "output map, bits", ["4", "5", "13", "24"]),
        ("cifar28_table4", "compute, s", ["4", "24"]),  # 25 of 27
        ("cifar28_table4", "data movement, s", ["5", "9", "25"]),
        ("cifar28_table4", "total, s", ["4", "5", "9", "24", "25", "total"]),
    ],
)
def test_which_rows_differ(name, column, rows):
    assert [label for label, cell in TABLES[name].cells() if cell.column == column and not cell.agrees] == rows


def test_memory_by_its_plain_rule():
    """Output map and one bit per weight: 23 of 27 rows. Rows 1 and 26 start empty, and hold their input too."""
    used = [0, *(int(row["memory_bits"]) for row in ROWS)]
    taken = [b - a for a, b in itertools.pairwise(used)]
    wrong = [i + 1 for i, row in enumerate(ROWS) if taken[i] != int(row["out_bits"]) + WEIGHTS[i]]
    assert wrong == [1, 5, 9, 26]
    assert f"alone in {len(ROWS) - len(wrong)})" in TABLES["cifar28_table3"].note


def test_the_printed_total_has_row_7_twice():
    seconds = [Decimal(row["total_seconds"]) for row in ROWS]
    assert sum(seconds) + seconds[6] == pytest.approx(Decimal(TOTAL["total_seconds"]), rel=Decimal("1e-6"))


def test_with_its_own_maps_nothing_overflows():
    own = cifar28.steps()
    most, moved, seconds = (
        max(step.memory_bits for step in own),
        sum(step.moved_bits for step in own),
        sum(step.seconds for step in own),
    )
    assert not any(step.overflows for step in own)
    assert f"at most {most:,} of {cifar28.DEVICE.memory_bits:,} bits" in TABLES["cifar28_table3"].note
    assert f"{moved:,} moved in all" in TABLES["cifar28_table3"].note
    assert f"takes {seconds:.6f} s" in TABLES["cifar28_table4"].note
    assert (most, seconds) == (7_704_320, pytest.approx(0.000326074, rel=1e-6))


def test_with_the_printed_maps_row_25_overflows():
    assert [i for i, step in enumerate(cifar28.steps(printed_maps=True), 1) if step.overflows] == [25]


@pytest.mark.parametrize(
    ("table", "column", "words"),
    [
        ("cifar28_table3", "data moved, bits", "data moved is equal to the digit in {} of 27 rows"),
        ("cifar28_table3", "rise of memory used, bits", "the rise of memory used in {} of 27 rows"),
        ("cifar28_table4", "data movement, s", "over 1 GB/s, {} of 27 rows equal"),
        ("cifar28_table4", "compute, s", "at 1 TFLOP/s, {} of 27 rows equal"),
    ],
)
def test_the_notes_count_the_equal_rows(table, column, words):
    found = [cell.agrees for label, cell in TABLES[table].cells() if cell.column == column and label != "total"]
    assert len(found) == 27 and words.format(sum(found)) in TABLES[table].note


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: tuple(x for x in layers if not x.name.startswith("block13")),
        lambda layers: (layers[0], *layers),
    ],
)
def test_a_network_of_another_depth_is_refused(change_networks, change):
    change_networks("v1", lambda network: dataclasses.replace(network, layers=change(network.layers)))
    assert unexplained([next(cifar28.tables())])[0].startswith("cifar28_table1")
    with pytest.raises(ValueError):
        list(cifar28.tables())
