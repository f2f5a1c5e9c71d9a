"""Document 004's performance model, row by row, and where its rows break its own rules."""

import dataclasses
import itertools
from decimal import Decimal

import pytest

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.cost import layer_costs
from mobilenet_jax.papers import cifar28 as documents
from mobilenet_jax.papers import compare as claims
from mobilenet_jax.papers import printed as published
from mobilenet_jax.papers.cifar28 import Scratchpad, scratchpad

TABLES = {table.name: table for table in documents.tables()}


def differing(name: str, column: str) -> list[str]:
    return [label for label, cell in TABLES[name].cells() if cell.column == column and not cell.agrees]


@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("seed004_table3", "data moved, bits", ["5", "9", "25"]),  # 24 of 27 to the digit
        ("seed004_table3", "rise of memory used, bits", ["5", "9"]),
        ("seed004_table3", "input map, bits", ["5", "6", "14", "25"]),
        ("seed004_table3", "output map, bits", ["4", "5", "13", "24"]),
        ("seed004_table4", "compute, s", ["4", "24"]),  # 25 of 27
        ("seed004_table4", "data movement, s", ["5", "9", "25"]),
        ("seed004_table4", "total, s", ["4", "5", "9", "24", "25", "total"]),
    ],
)
def test_which_rows_differ(name, column, rows):
    assert differing(name, column) == rows


def test_memory_by_its_plain_rule():
    """Output map and one bit a weight: 23 of 27 rows. Rows 1 and 26 start empty, and hold their input too."""
    rows, _ = documents._rows_004()
    weights = [row.weights for row in layer_costs(documents._network_004(), 28)]
    used = [0, *(int(row["memory_bits"]) for row in rows)]
    taken = [b - a for a, b in itertools.pairwise(used)]
    wrong = [i for i, row in enumerate(rows) if taken[i] != int(row["out_bits"]) + weights[i]]
    assert [i + 1 for i in wrong] == [1, 5, 9, 26]


def test_the_printed_total_has_row_7_twice():
    rows, total = documents._rows_004()
    seconds = [Decimal(row["total_seconds"]) for row in rows]
    assert sum(seconds) + seconds[6] == pytest.approx(Decimal(total["total_seconds"]), rel=Decimal("1e-6"))


def test_with_its_own_maps_nothing_overflows():
    own = documents._steps(own_maps=True)
    assert max(step.memory_bits for step in own) == 7_704_320 < documents.DEVICE.memory_bits
    assert sum(step.seconds for step in own) == pytest.approx(0.000326074, rel=1e-6)
    assert [i for i, step in enumerate(documents._steps(), 1) if step.overflows] == [25]


def test_the_notes_carry_the_figures():
    notes = TABLES["seed004_table3"].note + TABLES["seed004_table4"].note
    for words in ("data moved is equal to the digit in 24 of 27 rows", "25 of 27 rows (", "alone in 23)", "0.000326 s"):
        assert words in notes


def test_every_sentence_is_counted_and_every_count_used():
    assert {row["count"] for row in published.rows("documents")} == documents._COUNTS.keys()
    assert {row["document"] for row in published.rows("documents")} == {
        *("v1 paper", "v2 paper", "000", "001", "002", "003", "004")
    }


def test_a_formula_that_fails_says_for_how_many_layers():
    assert documents._every([(1, 1), (2, 3)]) == "1 of 2"
    assert documents._every([]) == "0 of 0"
    assert claims.cell(("documents", "x"), "", "all", documents._every([(1, 2)])).agrees is False


def changed(build, **changes):
    """The networks of `build`, with some layers changed."""

    def build_changed(*args, **kwargs) -> Architecture:
        network = build(*args, **kwargs)
        return dataclasses.replace(
            network, layers=tuple(dataclasses.replace(x, **changes.get(x.name, {})) for x in network.layers)
        )

    return build_changed


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
def test_a_sentence_can_fail(monkeypatch, count, version, changes, ours):
    build = {"v1": mobilenet_v1, "v2": mobilenet_v2}[version]
    monkeypatch.setattr(arch, f"mobilenet_{version}", changed(build, **changes))
    assert documents._COUNTS[count]() == ours


def test_a_network_of_other_depth_is_told_not_dropped(monkeypatch):
    """A layer more or fewer than the printed tables have: every table still ends, and says where."""

    def cut(*args, **kwargs) -> Architecture:
        network = mobilenet_v1(*args, **kwargs)
        return dataclasses.replace(network, layers=tuple(x for x in network.layers if not x.name.startswith("block13")))

    def longer(*args, **kwargs) -> Architecture:
        network = mobilenet_v1(*args, **kwargs)
        return dataclasses.replace(network, layers=(network.layers[0], *network.layers))

    for build in (cut, longer):
        monkeypatch.setattr(arch, "mobilenet_v1", build)
        wrong = claims.unexplained(documents.tables())
        for name in ("seed004_table1", "seed004_table3", "document_000"):
            assert any(entry.startswith(name) for entry in wrong), (build, name)


# At 2x2 pixels: maps of 12, 16 and 8 values; 12 and 8 weights; 48 and 32 mult-adds.
TWO = Architecture("v1", (Layer("a", "pointwise", 3, 4), Layer("b", "pointwise", 4, 2)))
SMALL = Scratchpad(1e3, 1000, 1e2, 8, 1, 2)


def test_scratchpad_by_hand():
    first, second = scratchpad(layer_costs(TWO, 2), SMALL)
    assert (first.out_bits, first.memory_bits, first.moved_bits) == (128, 96 + 128 + 12, 96 + 24)
    assert (second.out_bits, second.memory_bits, second.moved_bits) == (64, 236 + 64 + 8, 16)
    assert (first.move_seconds, first.compute_seconds) == (120 / 8 / 1e2, 2 * 48 / 1e3)
    assert first.seconds == first.move_seconds + first.compute_seconds


def test_a_scratchpad_that_overflows_moves_out_and_starts_again():
    full = Scratchpad(1e3, 235, 1e2, 8, 1, 2)
    first, second = scratchpad(layer_costs(TWO, 2), full)
    assert (first.memory_bits, first.overflows, second.overflows) == (236, True, False)
    assert first.moved_bits == 96 + 24 + 236 - 12  # the maps and what was held, not the kernels just fetched
    assert (second.memory_bits, second.moved_bits) == (128 + 64 + 8, 16)
    exact = Scratchpad(1e3, 236, 1e2, 8, 1, 2)
    assert scratchpad(layer_costs(TWO, 2), exact)[0].moved_bits == 96 + 24  # just fits


def test_maps_of_another_size():
    first, second = scratchpad(layer_costs(TWO, 2), SMALL, [100, 50])
    assert (first.memory_bits, second.memory_bits) == (96 + 100 + 12, 208 + 50 + 8)
    with pytest.raises(ValueError):
        scratchpad(layer_costs(TWO, 2), SMALL, [100])
