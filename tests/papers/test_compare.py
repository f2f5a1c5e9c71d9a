"""One printed cell beside ours: when it agrees, and what is said when it does not."""

from decimal import Decimal

import pytest

from mobilenet_jax.papers import compare as claims
from mobilenet_jax.papers.compare import DOWN, NEAREST, TWO_DIGITS, UNEXPLAINED

WHERE = "table", "row"


@pytest.fixture(autouse=True)
def misprints(monkeypatch):
    """The list of known misprints, which a test fills."""
    known: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    monkeypatch.setattr(claims, "_misprints", lambda: known)
    return known


@pytest.mark.parametrize(
    ("printed", "ours", "rounding", "agrees"),
    [
        ("569", "568.74", NEAREST, True),
        ("568", "568.74", NEAREST, False),
        ("568", "568.74", DOWN, True),
        ("569", "568.74", DOWN, False),
        ("0.5", "0.45", NEAREST, True),
        ("0.5", "0.4499", NEAREST, False),
        ("4.2", "4.249", NEAREST, True),
        ("1.35475E-06", "0.000001354752", NEAREST, True),
        ("1.35476E-06", "0.000001354752", NEAREST, False),
        ("1600", "1605.6", TWO_DIGITS, True),
        ("1610", "1605.6", TWO_DIGITS, False),
        ("62", "62.7", TWO_DIGITS, True),
        ("2", "2.56", TWO_DIGITS, True),
        ("3", "2.56", TWO_DIGITS, False),
    ],
)
def test_within_its_rounding(printed, ours, rounding, agrees):
    cell = claims.cell(WHERE, "c", printed, Decimal(ours), rounding)
    assert (cell.agrees, cell.note) == (agrees, "" if agrees else UNEXPLAINED)


@pytest.mark.parametrize(
    ("printed", "ours", "shown", "difference"),
    [
        ("569", "568.740352", "568.74", "-0.26"),
        ("4.24", "4.243945", "4.244", "+0.004"),
        ("1.65", "1.65", "1.650", "0"),
        ("18816", "18816", "18816", "0"),
        ("16384", "8192", "8192", "-8192"),
        ("0.000002048", "0.000001024", "1.024e-06", "-1.024e-06"),
        ("4.51584E-07", "4.515841E-07", "4.51584e-07", "0"),
    ],
)
def test_how_ours_is_shown(printed, ours, shown, difference):
    cell = claims.cell(WHERE, "c", printed, Decimal(ours))
    assert (cell.printed, cell.ours, cell.difference) == (printed, shown, difference)


def test_words_and_whole_numbers():
    assert claims.cell(WHERE, "c", "s2", "s2") == claims.Cell("c", "s2", "s2")
    assert claims.cell(WHERE, "c", "s2", "s1") == claims.Cell("c", "s2", "s1", "", False, UNEXPLAINED)
    assert claims.cell(WHERE, "c", "28", 28) == claims.Cell("c", "28", "28", "0")


def test_a_known_misprint_says_why(misprints):
    misprints["table", "row", "c"] = "", "1.910", "two digits swapped"
    cell = claims.cell(WHERE, "c", "1.19", Decimal("1.91"))
    assert (cell.agrees, cell.note, cell.difference) == (False, "two digits swapped", "+0.720")
    assert claims.cell(WHERE, "d", "1.19", Decimal("1.91")).note == UNEXPLAINED
    assert claims.cell(WHERE, "c", "1.19", Decimal("1.92")).note == f"{UNEXPLAINED}: ours was 1.910"


def test_a_reading_must_give_what_is_printed(misprints):
    misprints["table", "row", "c"] = "without stem", "325.40", "the stem is left out"

    def count(stem):
        return lambda reading: Decimal("325.4") - (stem if reading == "without stem" else 0)

    assert claims.cell(WHERE, "c", "317", count(Decimal("8.1"))).note == "the stem is left out (317.30)"
    assert claims.cell(WHERE, "c", "317", count(Decimal("9.1"))).note == f"{UNEXPLAINED}: not even without stem"


def test_a_rounding_must_give_what_is_printed(misprints):
    misprints["table", "row", "c"] = "cut off", "290.68", "cut off, not rounded"
    assert claims.cell(WHERE, "c", "290", Decimal("290.68")).note == "cut off, not rounded"
    assert claims.cell(WHERE, "c", "289", Decimal("290.68")).note == f"{UNEXPLAINED}: not even cut off"
    misprints["table", "row", "c"] = "rounded up", "149.20", "rounded up"
    assert claims.cell(WHERE, "c", "150", Decimal("149.2")).note == "rounded up"
    assert claims.cell(WHERE, "c", "151", Decimal("149.2")).note == f"{UNEXPLAINED}: not even rounded up"


def lines():
    yield "ours", {"a": ("1", 1), "b": ("x", "y")}
    yield "theirs", {"a": ("2", None)}


def test_a_table_is_wide():
    table = claims.as_table(claims.table("table", "Title", lines(), note="Below."))
    assert table.header == ("row", "a, printed", "ours", "difference", "b, printed", "ours", "note")
    assert table.rows == (
        ("ours", "1", "1", "0", "x", "y", f"b: {UNEXPLAINED}"),
        ("theirs", "2", "", "", "", "", ""),
    )
    assert (table.name, table.title, table.note) == ("table", "Title", "Below.")


def test_rounding_by_column():
    found = {"a": ("568", Decimal("568.74")), "b": ("568", Decimal("568.74"))}
    printed = claims.table("table", "Title", [("row", found)], {"a": DOWN})
    assert [cell.agrees for _, cell in printed.cells()] == [True, False]


def test_what_is_unexplained(misprints):
    """Cells that differ without a reason, and reasons without a difference."""
    assert claims.unexplained([claims.table("table", "Title", lines())]) == ["table, ours, b"]
    misprints["table", "ours", "b"] = "", "y", "why"
    assert claims.unexplained([claims.table("table", "Title", lines())]) == []
    misprints["table", "ours", "a"] = "", "1", "why"
    misprints["table", "nobody", "a"] = "", "1", "why"
    assert claims.unexplained([claims.table("table", "Title", lines())]) == ["table, ours, a", "table, nobody, a"]
