"""What a sweep shows while it goes: a table that renews itself on a terminal, plain lines when piped."""

import contextlib
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mobilenet_jax import console

_LINE_SECONDS = 30.0  # between two plain lines of progress
_ORDER = ("running", "waiting", "failed", "diverged", "done")


@dataclasses.dataclass(frozen=True)
class Line:
    """One point as it stands."""

    state: str
    name: str
    accuracy: float | None
    progress: str
    host: str


class Board:
    """Shows the points of a sweep."""

    def __init__(self):
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last = time.monotonic()
        self._shown = ""

    def line(self, text: str) -> None:
        """Something happened that should stay to be read."""
        if self._live is not None:
            with self._terminal():
                self._live.console.print(text, markup=False)
        else:
            console.say(text)
        self._last = time.monotonic()

    def show(self, lines: Sequence[Line], eta: float | None) -> None:
        """The points as they stand; `eta` is in seconds."""
        count = Counter(line.state for line in lines)
        totals = ", ".join(f"{count[state]} {state}" for state in reversed(_ORDER) if count[state])
        if eta is not None and count["running"] + count["waiting"]:
            totals += f", ETA {int(eta) // 3600}:{int(eta) // 60 % 60:02}:{int(eta) % 60:02}"
        if not self._console.is_terminal:
            going = "".join(f"; {line.name} {line.progress}" for line in lines if line.progress)
            if time.monotonic() - self._last > _LINE_SECONDS and totals + going != self._shown:
                self._shown = totals + going
                self.line(totals + going)
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            with self._terminal():
                self._live.start()
        table = Table("state", "run", "accuracy", "progress", "machine", box=None, pad_edge=False)
        room = max(3, self._console.height - 4)
        for line in sorted(lines, key=lambda line: _ORDER.index(line.state))[:room]:
            accuracy = "" if line.accuracy is None else f"{line.accuracy:.4f}"
            table.add_row(line.state, line.name, accuracy, line.progress, line.host)
        with self._terminal():
            self._live.update(Group(table, totals), refresh=True)

    def close(self) -> None:
        """Takes the table away; the lines stay."""
        if self._live is not None:
            with self._terminal():
                self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # it was closed
            console.mute()
