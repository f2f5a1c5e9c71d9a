"""A table of text: as Markdown for people, as CSV for programs."""

import csv
import dataclasses
import io


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text already; `name` is its file's name, `note` a line or two below it (Markdown)."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The grid alone, without title and note; its columns are aligned, for those who read it as it is."""
        rows = [tuple(map(_escape, row)) for row in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in widths))
        return "\n".join(
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows
        )

    def section(self) -> str:
        """Title, grid and note."""
        return "\n\n".join(part for part in (f"## {self.title}", self.markdown(), self.note) if part)

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows((self.header, *self.rows))
        return out.getvalue()


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
