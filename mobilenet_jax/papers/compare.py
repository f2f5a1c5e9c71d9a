"""Compare printed tables with ours, cell by cell.

A cell agrees if ours, rounded as the source rounds, is what is printed. A cell that differs needs a row in
`data/misprints.csv`. Without one, its note starts with `UNEXPLAINED`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from mobilenet_jax.papers import misprints
from mobilenet_jax.render.tables import Table

UNEXPLAINED = "differs, and nothing explains it"
NEAREST, DOWN, TWO_DIGITS = "nearest", "down", "two digits"  # how a source rounds; the last cuts to two, and to whole

Value = Decimal | int | str  # a count, or a word
Line = tuple[str, Mapping[str, tuple[str, Value | None]]]  # label; column -> printed, ours


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
    """One printed table next to ours: the label and the cells of each row.

    A row of a network that this package does not build has cells without ours.
    """

    name: str
    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Yield each cell with the label of its row."""
        return ((label, cell) for label, cells in self.rows for cell in cells)


def compare(
    name: str, title: str, lines: Iterable[Line], rounding: str | Mapping[str, str] = NEAREST, note: str = ""
) -> Comparison:
    """Compare a printed table with ours.

    Args:
      name: the table's name, in `data/misprints.csv` and of its CSV file.
      title: the table's title.
      lines: the rows; ours is None for a cell that this package does not count.
      rounding: how the source rounds, or how it rounds each column (NEAREST where a column is missing).
      note: text below the table.
    """

    def cells(label: str, columns: Mapping[str, tuple[str, Value | None]]) -> Iterator[Cell]:
        for column, (printed, ours) in columns.items():
            how = rounding if isinstance(rounding, str) else rounding.get(column, NEAREST)
            yield Cell(column, printed) if ours is None else cell((name, label, column), printed, ours, how)

    return Comparison(name, title, tuple((label, tuple(cells(label, columns))) for label, columns in lines), note)


def cell(key: misprints.Key, printed: str, ours: Value, rounding: str = NEAREST) -> Cell:
    """Compare one printed cell with ours; where they differ, the note of the known misprint says why."""
    if isinstance(ours, str):
        shown, difference, agrees = ours, "", ours == printed
    else:
        exact = Decimal(ours)
        shown, difference = _show(exact, printed), _difference(exact, printed)
        agrees = _rounded(exact, printed, rounding) == Decimal(printed)
    note = ""
    if not agrees:
        misprint = misprints.known().get(key)
        if misprint is None:
            note = UNEXPLAINED
        else:
            note = misprint.note if misprint.ours == shown else f"{UNEXPLAINED}: ours was {misprint.ours}"
    return Cell(key[-1], printed, shown, difference, agrees, note)


def as_table(comparison: Comparison) -> Table:
    """Return a wide table: printed, ours and difference for each column, then the notes."""
    numeric = {cell.column: False for _, cell in comparison.cells()}  # in the order of the columns
    numeric |= {cell.column: True for _, cell in comparison.cells() if cell.difference}
    header = ["row"]
    for column, has_difference in numeric.items():
        header += [f"{column}, printed", "ours", *(["difference"] if has_difference else [])]
    rows = []
    for label, cells in comparison.rows:
        line, by_column = [label], {cell.column: cell for cell in cells}
        for column, has_difference in numeric.items():
            found = by_column.get(column, Cell(column, ""))
            line += [found.printed, found.ours, *([found.difference] if has_difference else [])]
        rows.append((*line, "; ".join(f"{cell.column}: {cell.note}" for cell in cells if cell.note)))
    return Table(comparison.name, comparison.title, (*header, "note"), tuple(rows), comparison.note)


def summary(comparisons: Sequence[Comparison]) -> Table:
    """Return the cells that differ, of all tables, with their reasons; the note counts the cells that are compared."""
    cells = [(c.title, label, cell) for c in comparisons for label, cell in c.cells()]
    compared = sum(bool(cell.ours) for *_, cell in cells)
    rows = tuple(
        (title, label, cell.column, cell.printed, cell.ours, cell.note)
        for title, label, cell in cells
        if not cell.agrees
    )
    note = f"{compared} cells are compared; {compared - len(rows)} agree within the rounding of what is printed."
    header = ("table", "row", "column", "printed", "ours", "note")
    return Table("differences", f"The {len(rows)} cells that differ from what is printed", header, rows, note)


def unexplained(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the cells that differ without a reason, and the misprints whose cell is missing or agrees."""
    cells = {(c.name, label, cell.column): cell for c in comparisons for label, cell in c.cells()}
    wrong = [key for key, cell in cells.items() if cell.note.startswith(UNEXPLAINED)]
    unused = [key for key in misprints.known() if key not in cells or cells[key].agrees]
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
