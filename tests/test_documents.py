"""Document 004's performance model, row by row, and where its rows break its own rules."""

from decimal import Decimal

import pytest

from mobilenet_jax import claims, device, documents, published

TABLES = {table.name: table for table in documents.tables()}


def differing(name: str, column: str) -> list[str]:
    return [label for label, cell in TABLES[name].cells() if cell.column == column and not cell.agrees]


@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("seed004_table3", "data moved, bits", ["5", "9", "25"]),  # 24 of 27 to the digit
        ("seed004_table3", "memory taken, bits", ["5", "9"]),
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
    rows = published.rows("seed004_times")
    given = documents._steps()
    held, equal = 0, []
    for row, step in zip(rows, given, strict=True):
        weights = (step.moved_bits if step.moved_bits < 10**6 else 131072) // 2
        weights = 864 if row["layer"] == "1" else weights  # its data moved has the image too
        if int(row["memory_bits"]) - held == int(row["out_bits"]) + weights:
            equal.append(int(row["layer"]))
        held = int(row["memory_bits"])
    assert sorted({*range(1, 28)} - {*equal}) == [1, 5, 9, 26]


def test_the_printed_total_has_row_7_twice():
    rows = [Decimal(row["total_seconds"]) for row in published.rows("seed004_times")]
    assert sum(rows) + rows[6] == pytest.approx(Decimal("0.001340632"), rel=Decimal("1e-6"))


def test_with_its_own_maps_nothing_overflows():
    own = documents._steps(own_maps=True)
    assert max(step.memory_bits for step in own) == 7_704_320 < device.SEED004.memory_bits
    assert sum(step.seconds for step in own) == pytest.approx(0.000326074, rel=1e-6)
    given = documents._steps()
    assert [i for i, step in enumerate(given, 1) if step.memory_bits > device.SEED004.memory_bits] == [25]


def test_the_notes_carry_the_figures():
    notes = TABLES["seed004_table3"].note + TABLES["seed004_table4"].note
    for words in ("24 of 27 rows of data moved", "25 of 27 rows of memory", "25 of 27 rows equal", "0.000326 s"):
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
