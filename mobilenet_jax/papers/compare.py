"""A printed figure beside ours: does the count give it, and if not, why?

A printed cell that the count does not give, within its rounding, needs a row in `published/misprints.csv`; one without
is marked `UNEXPLAINED`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal

from mobilenet_jax.papers import printed as published
from mobilenet_jax.render.tables import Table

UNEXPLAINED = "differs, and nothing explains it"
NEAREST, DOWN, TWO_DIGITS = "nearest", "down", "two digits"  # how a source rounds; the last cuts to two, and to whole
_ROUNDINGS = {"cut off": ROUND_DOWN, "rounded up": ROUND_UP}  # the readings that are about rounding

Reading = str  # another way of counting, named in misprints.csv; '' is the plain one
Count = Callable[[Reading], Decimal | str]
Ours = Count | Decimal | str | int  # a function where a reading may change it
Line = tuple[str, Mapping[str, tuple[str, Ours | None]]]  # label; by column: printed, ours


@dataclasses.dataclass(frozen=True)
class Cell:
    """One printed cell beside ours, both as text. `difference` is ours less printed, '' between words."""

    column: str
    printed: str
    ours: str = ""
    difference: str = ""
    agrees: bool = True  # within the rounding of what is printed
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Printed:
    """One printed table: the rows' labels and cells. A row that is not ours to count has cells without ours."""

    name: str
    title: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    def cells(self) -> Iterator[tuple[str, Cell]]:
        return ((label, cell) for label, cells in self.rows for cell in cells)


def cell(where: tuple[str, str], column: str, printed: str, count: Ours, rounding: str = NEAREST) -> Cell:
    """Sets ours beside what is printed; where they differ, the misprint's note says why.

    Args:
      where: names of the table and of the row, as in `published/misprints.csv`.
      column: what is counted, with its unit.
      printed: the cell as printed.
      count: ours, or a function that counts it under a reading.
      rounding: how the source rounds.
    """
    counted: Count = count if callable(count) else lambda _: _exact(count)
    ours = _exact(counted(""))
    shown, difference = _show(ours, printed), _difference(printed, ours)
    if _gives(ours, printed, rounding):
        return Cell(column, printed, shown, difference)
    note = _explanation(_misprints().get((*where, column)), printed, counted, shown, rounding)
    return Cell(column, printed, shown, difference, False, note)


def _explanation(known: tuple[Reading, str, str] | None, printed: str, count: Count, shown: str, rounding: str) -> str:
    """The note of a known misprint, if its reading gives what is printed and ours is what it says."""
    if known is None:
        return UNEXPLAINED
    reading, ours, note = known
    if ours != shown:
        return f"{UNEXPLAINED}: ours was {ours}"
    if reading:
        other = _exact(count("" if reading in _ROUNDINGS else reading))
        if not _gives(other, printed, _ROUNDINGS.get(reading, rounding)):
            return f"{UNEXPLAINED}: not even {reading}"
        if reading not in _ROUNDINGS:
            note += f" ({_show(other, printed)})"
    return note


def table(
    name: str, title: str, lines: Iterable[Line], rounding: str | Mapping[str, str] = NEAREST, note: str = ""
) -> Printed:
    """Sets a whole table beside ours; a cell without ours (None) is of a network that is not ours to count."""
    rows = []
    for label, by_column in lines:
        cells = []
        for column, (printed, count) in by_column.items():
            how = rounding.get(column, NEAREST) if isinstance(rounding, Mapping) else rounding
            cells.append(Cell(column, printed) if count is None else cell((name, label), column, printed, count, how))
        rows.append((label, tuple(cells)))
    return Printed(name, title, tuple(rows), note)


def as_table(printed: Printed) -> Table:
    """Wide: printed, ours and difference for each column, then the notes."""
    columns = list(dict.fromkeys(cell.column for _, cell in printed.cells()))
    counted = {c.column for _, c in printed.cells() if c.difference}
    header = ["row"]
    for column in columns:
        header += [f"{column}, printed".removeprefix(", "), "ours", *(["difference"] if column in counted else [])]
    rows = []
    for label, cells in printed.rows:
        line, notes = [label], []
        by_column = {cell.column: cell for cell in cells}
        for column in columns:
            found = by_column.get(column, Cell(column, ""))
            line += [found.printed, found.ours, *([found.difference] if column in counted else [])]
            if found.note:
                notes.append(f"{column}: {found.note}" if len(columns) > 1 else found.note)
        rows.append((*line, "; ".join(notes)))
    return Table(printed.name, printed.title, (*header, "note"), tuple(rows), printed.note)


def summary(tables: Sequence[Printed]) -> Table:
    """The cells that differ, of all tables, with their reasons."""
    rows = [(t.title, label, cell) for t in tables for label, cell in t.cells()]
    compared = [cell for *_, cell in rows if cell.ours]
    differ = tuple(
        (title, label, cell.column, cell.printed, cell.ours, cell.note)
        for title, label, cell in rows
        if not cell.agrees
    )
    agree = len(compared) - len(differ)
    note = f"{len(compared)} cells are compared; {agree} agree within the rounding of what is printed."
    title = f"The {len(differ)} cells that differ from what is printed"
    return Table("differences", title, ("table", "row", "column", "printed", "ours", "note"), differ, note)


def unexplained(tables: Iterable[Printed]) -> list[str]:
    """The cells that differ without a reason, and the reasons for which nothing differs, each by its name."""
    cells = {(t.name, label, cell.column): cell for t in tables for label, cell in t.cells()}
    wrong = [key for key, cell in cells.items() if cell.note.startswith(UNEXPLAINED)]
    idle = [key for key in _misprints() if key not in cells or cells[key].agrees]
    return [", ".join(filter(None, key)) for key in (*wrong, *idle)]


@functools.cache
def _misprints() -> dict[tuple[str, str, str], tuple[Reading, str, str]]:
    """Table, row and column -> reading, ours, note."""
    found = published.rows("misprints")
    return {(r["table"], r["row"], r["column"]): (r["reading"], r["ours"], r["note"]) for r in found}


def _exact(value: Decimal | str | int) -> Decimal | str:
    return Decimal(value) if isinstance(value, int) else value


def _gives(ours: Decimal | str, printed: str, rounding: str) -> bool:
    if isinstance(ours, str):
        return ours == printed
    unit = Decimal(printed)
    if rounding == TWO_DIGITS:
        unit = Decimal(1).scaleb(max(0, ours.adjusted() - 1))
    how = {NEAREST: ROUND_HALF_UP, DOWN: ROUND_DOWN, TWO_DIGITS: ROUND_DOWN}.get(rounding, rounding)
    return ours.quantize(unit, rounding=how) == Decimal(printed)


def _show(value: Decimal | str, printed: str) -> str:
    """Whole numbers whole, six digits beside seconds, else one decimal more than is printed, two at least."""
    if isinstance(value, str):
        return value
    decimals = -int(Decimal(printed).as_tuple().exponent)
    if value == value.to_integral_value() and decimals <= 0:
        return str(int(value))
    return f"{float(value):.6g}" if decimals > 4 else f"{value:.{max(2, decimals + 1)}f}"


def _difference(printed: str, ours: Decimal | str) -> str:
    if isinstance(ours, str):
        return ""
    difference = ours - Decimal(printed)
    shown = _show(difference, printed)
    nothing = float(shown) == 0 or abs(difference) < abs(ours) * Decimal("1e-5")  # six digits are shown
    return "0" if nothing else f"{'+' if difference > 0 else ''}{shown}"
