"""Show a sweep while it runs: a live table on a terminal, plain lines otherwise; and estimate the time left."""

import contextlib
import dataclasses
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mobilenet_jax import console
from mobilenet_jax.render.tables import cell
from mobilenet_jax.sweeps.points import Plan
from mobilenet_jax.sweeps.queue import Entry

_LINE_SECONDS = 30.0  # between two plain lines of progress
_ORDER = ("running", "waiting", "failed", "diverged", "finished")
_SYMBOLS = {"model.alpha": "α", "model.rho": "ρ", "model.expansion": "t"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One point of the live table."""

    values: tuple[str, ...]  # of what varies
    mult_adds: str
    accuracy: str
    done: float  # the finished part of a running point, from 0 to 1
    rate: str  # images per second
    state: str
    host: str


@dataclasses.dataclass(frozen=True)
class View:
    """What the display shows: the names of what varies, the points, and the time left, None where it is unknown."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    seconds_left: float | None


def view(plan: Plan, entries: Sequence[Entry]) -> View:
    """Return what to show of the points in a database."""
    keys = [p.key for p in plan.sweep.parameters if p.varies]
    names = tuple(_SYMBOLS.get(key, key.rpartition(".")[2]) for key in keys)
    return View(names, tuple(_rows(plan, entries, keys)), seconds_left(plan, entries))


def _rows(plan: Plan, entries: Sequence[Entry], keys: Sequence[str]) -> Iterator[Row]:
    for entry in entries:
        point, summary, now = plan.grid.get(entry.digest), entry.summary, entry.progress
        mult_adds = point.mult_adds if point else summary.mult_adds if summary else None
        accuracy = getattr(summary, plan.sweep.metric) if summary else now.get("accuracy")
        rate = summary.train_images_per_second if summary else now.get("images_per_second")
        yield Row(
            tuple(cell(entry.values.get(key)) for key in keys),
            "" if mult_adds is None else f"{mult_adds / 1e6:.2f} M",
            "" if accuracy is None else f"{accuracy:.4f}",
            now["step"] / now["steps"] if now else 0.0,
            f"{rate:,.0f}" if rate else "",
            entry.state,
            entry.host,
        )


def seconds_left(plan: Plan, entries: Sequence[Entry]) -> float | None:
    """Estimate the time until all points of a grid are finished, on as many workers as train now.

    The work of a point is estimated. How fast this machine does it is measured: on points that it has finished or,
    without any, on those that it trains. None if neither is known.
    """
    here = [(entry, plan.grid[entry.digest]) for entry in entries if entry.host == platform.node() and plan.grid]
    finished = [(e.summary.wall_seconds / e.summary.fused, point) for e, point in here if e.summary]
    running = [
        (point.spec.total_steps * point.spec.config.train.batch_size / rate, point)
        for entry, point in here
        if (rate := entry.progress.get("images_per_second"))
    ]
    ratios = [seconds / point.estimated_seconds for seconds, point in finished or running if seconds]
    if not ratios:
        return None
    open_ = [entry for entry in entries if entry.state in ("waiting", "running")]
    left = [
        plan.grid[entry.digest].estimated_seconds * (1 - entry.progress.get("step", 0) / entry.progress.get("steps", 1))
        for entry in open_
    ]
    workers = max(1, sum(entry.state == "running" for entry in open_))
    return sum(left) * statistics.median(ratios) / workers


class LiveTable:
    """The display of a sweep."""

    def __init__(self):
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last = time.monotonic()
        self._shown = ""

    def line(self, text: str) -> None:
        """Print a line above the live table."""
        if self._live is not None:
            with self._terminal():
                self._live.console.print(text, markup=False)
        else:
            console.say(text)
        self._last = time.monotonic()

    def show(self, view: View) -> None:
        """Show the points and their totals."""
        count = Counter(row.state for row in view.rows)
        totals = ", ".join(f"{count[state]} {state}" for state in reversed(_ORDER) if count[state])
        if count["running"] + count["waiting"]:
            left = view.seconds_left
            totals += ", ETA " + ("unknown until the first point is done" if left is None else console.clock(left))
        if not self._console.is_terminal:
            running = [(row, " ".join(map(" ".join, zip(view.names, row.values, strict=True)))) for row in view.rows]
            text = totals + "".join(f"; {name} {row.done:.0%}" for row, name in running if row.done)
            if time.monotonic() - self._last > _LINE_SECONDS and text != self._shown:
                self._shown = text
                self.line(text)
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            with self._terminal():
                self._live.start()
        table = Table(
            *view.names, "mult-adds", "accuracy", "", "images/s", "state", "machine", box=None, pad_edge=False
        )
        room = max(3, self._console.height - 4)
        for row in sorted(view.rows, key=lambda row: _ORDER.index(row.state))[:room]:
            bar = ProgressBar(total=1.0, completed=row.done, width=12) if row.state == "running" else ""
            table.add_row(*row.values, row.mult_adds, row.accuracy, bar, row.rate, row.state, row.host)
        with self._terminal():
            self._live.update(Group(table, totals), refresh=True)

    def close(self) -> None:
        """Remove the table; the lines above it remain."""
        if self._live is not None:
            with self._terminal():
                self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the terminal was closed
            console.mute()
