"""The list of misprints: complete notes, and the figures in the notes recomputed by another way of counting."""

import re
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal

import pytest

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import blocks, layer_costs
from mobilenet_jax.papers import printed, tables
from mobilenet_jax.papers.compare import Cell

CELLS = {(t.name, label, cell.column): cell for t in tables.tables() for label, cell in t.cells()}
CONVENTIONS = {  # how a note begins -> the convention that gives what is printed
    "the classifier is left out": "without classifier",
    "batch norm is left out": "without batch norm",
    "the 3x3 stem is left out": "without stem",
}


def noted(*beginnings: str) -> list[tuple[printed.Key, Cell]]:
    return [
        (key, CELLS[key]) for key, misprint in printed.misprints().items() if misprint["note"].startswith(beginnings)
    ]


def in_brackets(cell: Cell) -> Decimal:
    found = re.search(r"\(([\d.]+)\)$", cell.note)
    assert found, cell
    return Decimal(found[1])


def rounded(value: Decimal, places: Decimal, how: str) -> Decimal:
    return value.quantize(places, rounding=how)


def network(key: printed.Key) -> tuple[arch.Architecture, int]:
    """The network of a misprinted row of the v1 paper or of TF-slim's v1 table."""
    table, label, _ = key
    if table == "slim_v1":
        alpha, resolution = label.split()
        return arch.mobilenet_v1(float(alpha)), int(resolution)
    (row,) = (r for r in printed.rows("paper_v1") if (f"v1_table{r['table']}", r["row"]) == (table, label))
    return arch.mobilenet_v1(float(row["alpha"]), variant=row["variant"]), int(row["resolution"])


def test_misprints_are_listed_once_and_explained():
    assert len(printed.misprints()) == len(printed.rows("misprints")) == 49
    assert all(misprint["note"] for misprint in printed.misprints().values())


def test_six_counts_leave_something_out():
    assert len(noted(*CONVENTIONS)) == 6


@pytest.mark.parametrize(("key", "cell"), noted(*CONVENTIONS))
def test_a_count_that_leaves_something_out_gives_what_is_printed(key, cell):
    convention = CONVENTIONS[cell.note.partition(" (")[0]]
    count, theirs = tables.millions(*network(key), convention), Decimal(cell.printed)
    assert rounded(count, theirs, ROUND_HALF_UP) == theirs
    assert rounded(count, in_brackets(cell), ROUND_HALF_UP) == in_brackets(cell)


@pytest.mark.parametrize(("beginning", "how", "number"), [("cut off", ROUND_DOWN, 2), ("rounded up", ROUND_UP, 2)])
def test_another_rounding_gives_what_is_printed(beginning, how, number):
    found = noted(beginning)
    assert len(found) == number
    for _, cell in found:
        assert rounded(Decimal(cell.ours), Decimal(cell.printed), how) == Decimal(cell.printed)


def test_the_width_of_the_next_stage_gives_what_is_printed():
    """v2, Table 3: of the blocks that read a map of a resolution, the widest output, as if it had the map's size."""
    found = noted("the width printed is that of the next stage")
    assert len(found) == 7
    entered = [(b[0].in_size, b[-1].layer.out_channels) for b in blocks(layer_costs(arch.mobilenet_v2(), 224))[1:]]
    for (_, label, column), cell in found:
        sizes = (56, 28, 14, 7) if label.startswith("max") else (int(label.partition("x")[0]),)
        if column == "v2 channels":
            count = Decimal(max(channels for size, channels in entered if size in sizes))
        else:
            count = Decimal(max(2 * size**2 * channels for size, channels in entered if size in sizes)) / 1000
        assert rounded(count, in_brackets(cell), ROUND_HALF_UP) == in_brackets(cell)
        two_digits = Decimal(1).scaleb(max(0, count.adjusted() - 1))  # as the source cuts memory
        assert rounded(count, two_digits, ROUND_DOWN) == Decimal(cell.printed)
