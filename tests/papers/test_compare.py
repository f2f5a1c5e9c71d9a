"""One printed cell next to ours: when it agrees, and what its note says when it does not."""

from decimal import Decimal

import pytest

from mobilenet_jax.papers import compare, printed
from mobilenet_jax.papers.compare import DOWN, NEAREST, TWO_DIGITS, UNEXPLAINED

KEY = "table", "row", "c"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The list of known misprints, which a test fills."""
    found: dict[printed.Key, dict[str, str]] = {}
    monkeypatch.setattr(compare, "misprints", lambda: found)
    return found


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
    cell = compare.cell(KEY, printed, Decimal(ours), rounding)
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
    cell = compare.cell(KEY, printed, Decimal(ours))
    assert (cell.printed, cell.ours, cell.difference) == (printed, shown, difference)


def test_words_and_whole_numbers():
    assert compare.cell(KEY, "s2", "s2") == compare.Cell("c", "s2", "s2")
    assert compare.cell(KEY, "s2", "s1") == compare.Cell("c", "s2", "s1", "", False, UNEXPLAINED)
    assert compare.cell(KEY, "28", 28) == compare.Cell("c", "28", "28", "0")


def test_a_known_misprint_says_why(known):
    known[KEY] = {"ours": "1.910", "note": "two digits swapped"}
    cell = compare.cell(KEY, "1.19", Decimal("1.91"))
    assert (cell.agrees, cell.note, cell.difference) == (False, "two digits swapped", "+0.720")
    assert compare.cell(("table", "row", "d"), "1.19", Decimal("1.91")).note == UNEXPLAINED


def test_a_known_misprint_holds_for_one_figure_of_ours(known):
    known[KEY] = {"ours": "1.910", "note": "two digits swapped"}
    assert compare.cell(KEY, "1.19", Decimal("1.92")).note == f"{UNEXPLAINED}: ours was 1.910"


def lines():
    yield "ours", {"a": ("1", 1), "b": ("x", "y")}
    yield "theirs", {"a": ("2", None)}


def test_a_table_is_wide():
    table = compare.as_table(compare.compare("table", "Title", lines(), note="Below."))
    assert table.header == ("row", "a, printed", "ours", "difference", "b, printed", "ours", "note")
    assert table.rows == (
        ("ours", "1", "1", "0", "x", "y", f"b: {UNEXPLAINED}"),
        ("theirs", "2", "", "", "", "", ""),
    )
    assert (table.name, table.title, table.note) == ("table", "Title", "Below.")


def test_the_summary_counts_cells_with_ours():
    table = compare.summary([compare.compare("table", "Title", lines())])
    assert table.rows == (("Title", "ours", "b", "x", "y", UNEXPLAINED),)
    assert table.note.startswith("2 cells are compared; 1 agree")


def test_rounding_by_column():
    found = {"a": ("568", Decimal("568.74")), "b": ("568", Decimal("568.74"))}
    comparison = compare.compare("table", "Title", [("row", found)], {"a": DOWN})
    assert [cell.agrees for _, cell in comparison.cells()] == [True, False]


def test_what_is_unexplained(known):
    """Cells that differ without a reason, and reasons without a difference."""

    def unexplained():
        return compare.unexplained([compare.compare("table", "Title", lines())])

    assert unexplained() == ["table, ours, b"]
    known["table", "ours", "b"] = {"ours": "y", "note": "why"}
    assert unexplained() == []
    known["table", "ours", "a"] = {"ours": "1", "note": "why"}
    known["table", "missing", "a"] = {"ours": "1", "note": "why"}
    assert unexplained() == ["table, ours, a", "table, missing, a"]
