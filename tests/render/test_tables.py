"""Tables as Markdown and as CSV."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from mobilenet_jax.render.tables import Page, Picture, Section, Table, columns

TABLE = Table("name", "A title", ("network", "top-1"), (("v1 | wide", "70.6"), ("v2, 1.4", "9")), "A note.")


def test_columns_are_aligned_and_bars_escaped():
    assert TABLE.markdown().splitlines() == [
        "| network    | top-1 |",
        "| ---------- | ----: |",
        "| v1 \\| wide |  70.6 |",
        "| v2, 1.4    |     9 |",
    ]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("1", "-2.5", "+0.3", "−4", "1,234", "-", ""), True),
        (("12.3 M", "56.7 %", "3 ms", "1e-05"), True),
        (("71.2 ± 0.3 %", "+0.4 [-0.1, 0.9]", "≤ 5"), True),
        (("1", "2", "3", "diverged"), True),
        (("1", "2", "diverged"), False),
        (("1", "2", "3", "4", "diverged, so there is no accuracy"), False),
        (("3x3", "224²x3", "1.0 MobileNet-224"), False),
        (("28 layers", "17 layers"), False),
        (("-", "", "—"), False),
        ((), False),
    ],
)
def test_columns_of_numbers_are_aligned_to_the_right(cells, expected):
    grid = Table("name", "A title", ("1", "a"), tuple(("1", cell) for cell in cells)).markdown().splitlines()
    first, second = grid[1].strip("| ").split(" | ")
    assert not first.endswith(":") and second.endswith(":") is expected


def test_a_narrow_column_has_a_rule_of_three():
    assert Table("name", "A title", ("a",), (("b",),)).markdown() == "| a   |\n| --- |\n| b   |"


def test_a_section_has_title_grid_and_note():
    title, grid, note = TABLE.section().split("\n\n")
    assert (title, grid, note) == ("## A title", TABLE.markdown(), "A note.")
    assert Table("name", "A title", ("a",), ()).section().count("\n\n") == 1


def test_csv_is_read_back():
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [
        ["network", "top-1"],
        ["v1 | wide", "70.6"],
        ["v2, 1.4", "9"],
    ]


def test_a_cell_cannot_steer_the_terminal():
    table = Table("name", "A title", ("a",), (("\x1b[2J\x9b31mred\r",),))
    assert table.markdown().splitlines()[2].strip("| ") == "\ufffd[2J\ufffd31mred\ufffd"


def test_nor_can_a_title_or_a_note():
    section = Table("name", "A\n# title\x1b", ("a",), (), "A note\ud800\uffff\nin two lines").section()
    assert section.startswith("## A # title\ufffd\n") and section.endswith("\nA note\ufffd\ufffd\nin two lines")


def test_a_page_refers_to_its_pictures():
    section = Section("Runs", ("A paragraph.",), (Picture("over_alpha", "Top-1", Figure),), (TABLE,), (TABLE,))
    parts = ["# A page", "## Runs", "A paragraph.", "![Top-1](over_alpha.png)", "### A title", TABLE.markdown()]
    assert Page("runs", "A page", [section]).markdown().split("\n\n") == [*parts, "A note.\n"]


def test_columns_of_plain_text():
    assert columns([("a", "bb", "c"), ("dd", "e", "ffff")], left=1) == ["a   bb     c", "dd   e  ffff"]
