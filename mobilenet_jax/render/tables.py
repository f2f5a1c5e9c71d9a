"""The parts of a report: tables of text, pictures that are drawn on demand, sections, pages; columns of plain text."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Item = TypeVar("Item")

# A terminal would obey control characters. Surrogates cannot be encoded. SVG may not hold the last two.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NUMBER = re.compile(r"\W*\d[\d\W]*(e[-+]?\d+)?([^\W\d_]{1,3}\W*)?")  # with its sign, error and a short unit


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text. `name` is the name of its file, `note` a paragraph or two below it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @classmethod
    def of(
        cls, name: str, title: str, items: Iterable[Item], columns: Mapping[str, Callable[[Item], str]], note: str = ""
    ) -> "Table":
        """Return a table with one row per item; `columns` gives the text of a cell by the head of its column."""
        rows = tuple(tuple(text(item) for text in columns.values()) for item in items)
        return cls(name, title, tuple(columns), rows, note)

    def markdown(self, aligned: bool = True) -> str:
        """Return the grid without title and note. `aligned` pads the cells for readers of the text itself.

        Columns of numbers are aligned to the right, except the first column, which names the rows.
        """
        columns = []
        for i, name in enumerate(self.header):
            cells = [row[i] for row in self.rows]
            right = i > 0 and _numeric(cells)
            texts = [line(text).replace("|", "\\|") for text in (name, *cells)]
            width = max(3, *map(len, texts)) if aligned else 3
            texts.insert(1, "-" * (width - right) + ":" * right)
            columns.append([text.rjust(width) if right else text.ljust(width) for text in texts])
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))

    def section(self, level: int = 2) -> str:
        """Return the title as a heading of that level, the grid and the note."""
        parts = (f"{'#' * level} {line(self.title)}", self.markdown(), self.note)
        return plain("\n\n".join(part for part in parts if part))

    def csv(self) -> str:
        """Return header and rows as CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(map(line, row) for row in (self.header, *self.rows))
        return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure that `draw` makes on demand: importing matplotlib takes a second. `name` is the name of its files."""

    name: str
    caption: str
    draw: "Callable[[], Figure]"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading above paragraphs of plain text, pictures and tables. `data` are tables that are only written as CSV,
    in place of a table of the same name.

    A page may begin with one section without a title, which is its answer.
    """

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    data: tuple[Table, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """Sections under one title. `name` is the name of its files, `interactive` the data of an interactive figure."""

    name: str
    title: str
    sections: Sequence[Section]
    interactive: Mapping[str, Any] | None = None

    def markdown(self) -> str:
        """Return the page, with references to the PNG files of its pictures."""
        parts = [f"# {line(self.title)}"]
        for section in self.sections:
            parts += [f"## {line(section.title)}"] if section.title else []
            parts += section.text
            parts += [f"![{line(picture.caption)}]({picture.name}.png)" for picture in section.pictures]
            parts += [table.section(level=3) for table in section.tables]
        return plain("\n\n".join(parts) + "\n")


def columns(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Return lines of aligned cells: the first `left` columns to the left, the others to the right."""
    aligned = []
    for i, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        aligned.append([text.ljust(width) if i < left else text.rjust(width) for text in column])
    return ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]


def cell(value: Any) -> str:
    """Return a value as tables of plain text show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """Return text that can be shown anywhere: control characters other than newlines, and surrogates, are replaced."""
    return _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else "\ufffd", text)


def line(text: str) -> str:
    """Return text that stays inside its heading, cell or paragraph: `plain` text without newlines."""
    return plain(text).replace("\n", " ")


def _numeric(column: Sequence[str]) -> bool:
    """Return whether three in four cells with text are numbers and none is long: a sentence would push them away."""
    texts = [cell for cell in column if re.search(r"\w", cell)]
    numbers = sum(bool(_NUMBER.fullmatch(cell)) for cell in texts)
    return bool(texts) and 4 * numbers >= 3 * len(texts) and max(map(len, texts)) <= 24
