"""Compare printed tables with ours, cell by cell.

A cell agrees if ours, rounded as the source rounds, is what is printed. A cell that differs needs a row in
`data/misprints.csv`. Without one, its note starts with `UNEXPLAINED`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from mobilenet_jax.papers.printed import Key, misprints
from mobilenet_jax.render.tables import Table

UNEXPLAINED = "differs, and nothing explains it"
NEAREST, DOWN, TWO_DIGITS = "nearest", "down", "two digits"  # how a source rounds; the last cuts to two, and to whole

Value = Decimal | float | str  # a count, or a word
Columns = Mapping[str, tuple[str, Value | None]]  # column -> printed, ours
Line = tuple[str, Columns]  # label and columns of a row


@dataclasses.dataclass(frozen=True)
class Cell:
    """One printed cell and ours, both as text. `difference` is ours less printed, '' between words."""

    column: str
    printed: str
    ours: str = ""
    difference: str = ""
    agrees: bool = True
    note: str = ""  # why it differs


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One printed table next to ours: label and cells of each row. A cell that is not ours to count has no `ours`."""

    name: str
    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Yield each cell with the label of its row."""
        return ((label, cell) for label, cells in self.rows for cell in cells)


def compare(
    name: str, title: str, lines: Iterable[Line], rounding: Mapping[str, str] | None = None, note: str = ""
) -> Comparison:
    """Compare a printed table with ours, which is None for a cell that this package does not count.

    `name` is the table's name in `data/misprints.csv`. `rounding` maps a column to how the source rounds it, if not to
    the nearest.
    """
    how = rounding or {}
    rows = []
    for label, columns in lines:
        cells = (cell((name, label, c), *values, how.get(c, NEAREST)) for c, values in columns.items())
        rows.append((label, tuple(cells)))
    return Comparison(name, title, tuple(rows), note)


def cell(key: Key, printed: str, ours: Value | None, rounding: str = NEAREST) -> Cell:
    """Compare one printed cell with ours. Where they differ, the note of the known misprint says why."""
    if ours is None:
        return Cell(key[-1], printed)
    if isinstance(ours, str):
        shown, difference, agrees = ours, "", ours == printed
    else:
        exact = Decimal(str(ours))
        shown, difference = _show(exact, printed), _difference(exact, printed)
        agrees = _rounded(exact, printed, rounding) == Decimal(printed)
    note, misprint = "", misprints().get(key)
    if not agrees and misprint:
        note = misprint["note"] if misprint["ours"] == shown else f"{UNEXPLAINED}: ours was {misprint['ours']}"
    elif not agrees:
        note = UNEXPLAINED
    return Cell(key[-1], printed, shown, difference, agrees, note)


def as_table(comparison: Comparison) -> Table:
    """Return a wide table: printed, ours and difference for each column, then the notes."""
    texts = {cell.column: 2 for _, cell in comparison.cells()}  # printed and ours, in the order of the columns
    texts |= {cell.column: 3 for _, cell in comparison.cells() if cell.difference}
    header = [text for column, n in texts.items() for text in (f"{column}, printed", "ours", "difference")[:n]]
    rows = []
    for label, cells in comparison.rows:
        found = {cell.column: (cell.printed, cell.ours, cell.difference) for cell in cells}
        line = [text for column, n in texts.items() for text in found.get(column, ("", "", ""))[:n]]
        rows.append((label, *line, "; ".join(f"{cell.column}: {cell.note}" for cell in cells if cell.note)))
    return Table(comparison.name, comparison.title, ("row", *header, "note"), tuple(rows), comparison.note)


def summary(comparisons: Sequence[Comparison]) -> Table:
    """Return the cells that differ, of all tables, with their reasons; the note counts the cells that are compared."""
    cells = [(c.title, label, cell) for c in comparisons for label, cell in c.cells()]
    compared = sum(bool(cell.ours) for *_, cell in cells)
    rows = tuple((title, label, c.column, c.printed, c.ours, c.note) for title, label, c in cells if not c.agrees)
    note = f"{compared} cells are compared; {compared - len(rows)} agree within the rounding of what is printed."
    header = ("table", "row", "column", "printed", "ours", "note")
    return Table("differences", f"The {len(rows)} cells that differ from what is printed", header, rows, note)


def unexplained(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the cells that differ without a reason, and the misprints whose cell is missing or agrees."""
    cells = {(c.name, label, cell.column): cell for c in comparisons for label, cell in c.cells()}
    wrong = [key for key, cell in cells.items() if cell.note.startswith(UNEXPLAINED)]
    unused = [key for key in misprints() if key not in cells or cells[key].agrees]
    return [", ".join(key) for key in (*wrong, *unused)]


def _rounded(value: Decimal, printed: str, rounding: str) -> Decimal:
    unit = Decimal(1).scaleb(max(0, value.adjusted() - 1)) if rounding == TWO_DIGITS else Decimal(printed)
    return value.quantize(unit, rounding=ROUND_HALF_UP if rounding == NEAREST else ROUND_DOWN)


def _show(value: Decimal, printed: str) -> str:
    """Format whole numbers whole, seconds with six digits, others with one decimal more than printed, two at least."""
    decimals = -int(Decimal(printed).as_tuple().exponent)
    if value == value.to_integral_value() and decimals <= 0:
        return str(int(value))
    return f"{float(value):.6g}" if decimals > 4 else f"{value:.{max(2, decimals + 1)}f}"


def _difference(ours: Decimal, printed: str) -> str:
    difference = ours - Decimal(printed)
    shown = _show(difference, printed)
    nothing = float(shown) == 0 or abs(difference) < abs(ours) * Decimal("1e-5")  # six digits are shown
    return "0" if nothing else f"{'+' if difference > 0 else ''}{shown}"
