"""What a report is made of: tables of text, pictures that are drawn when asked for, sections of both; plain columns."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

# A terminal would do what control characters say; halves of a character (surrogates) cannot be written at all, and SVG
# may not hold the last two.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text already; `name` is its file's name, `note` a line or two below it (Markdown)."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self, aligned: bool = True) -> str:
        """The grid alone, without title and note; its columns are `aligned` for those who read it as it is."""
        rows = [tuple(map(_escape, row)) for row in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) if aligned else 3 for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))
        return "\n".join(
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
        )

    def section(self, level: int = 2) -> str:
        """Title, as a heading of that level, grid and note."""
        title = self.title.replace("\n", " ")
        return plain("\n\n".join(part for part in (f"{'#' * level} {title}", self.markdown(), self.note) if part))

    def csv(self) -> str:
        out = io.StringIO()
        rows = [[_CONTROL.sub("\ufffd", cell) for cell in row] for row in (self.header, *self.rows)]
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Picture:
    """`draw` makes the matplotlib figure, which takes a second to import; `name` is its file's name."""

    name: str
    caption: str
    draw: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with paragraphs of plain text, pictures and tables below it, in this order; `data` are files alone."""

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    data: tuple[Table, ...] = ()


def columns(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Lines of plain text with aligned cells: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def cell(value: Any) -> str:
    """A number, or anything else, as tables of plain text show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """Text that can be shown anywhere: control characters, but for ends of lines, and half characters are replaced."""
    return _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else "\ufffd", text)


def _escape(cell: str) -> str:
    return plain(cell.replace("|", "\\|").replace("\n", " "))
