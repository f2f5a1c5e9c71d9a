"""Show a sweep while it runs: a live table on a terminal, plain lines otherwise; and estimate the time left."""

import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mobilenet_jax import console
from mobilenet_jax.records.identity import KNOBS
from mobilenet_jax.render.tables import cell
from mobilenet_jax.sweeps.points import Plan
from mobilenet_jax.sweeps.queue import Entry
from mobilenet_jax.sweeps.tables import millions

_LINE_SECONDS = 30.0  # between two plain lines of progress
_ORDER = ("running", "waiting", "failed", "diverged", "finished")


def seconds_left(plan: Plan, entries: Sequence[Entry]) -> float | None:
    """Estimate the time until all points of a grid are finished, on as many workers as train now.

    How fast this machine is, is measured: on points that it has finished or, without any, on those that it trains.
    None if it has trained nothing.
    """
    finished, running, left, workers = [], [], 0.0, 0
    for entry in entries if plan.grid else ():
        point, here = plan.grid[entry.digest], entry.host == platform.node()
        if entry.summary and here:
            finished.append(entry.summary.wall_seconds / point.work)
        elif entry.is_open:
            left += point.work * (1 - _done(entry))
            workers += entry.state == "running"
            if (rate := entry.progress.get("images_per_second")) and here:
                images = point.spec.total_steps * point.spec.config.train.batch_size
                running.append(images / rate / point.work)
    return left * statistics.median(finished or running) / max(1, workers) if finished or running else None


def _done(entry: Entry) -> float:
    return entry.progress["step"] / entry.progress["steps"] if entry.progress else 0.0


class Screen:
    """The terminal of a sweep: lines, with the table of its points below them; without a terminal, lines only."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._names = {p.key: KNOBS.get(p.key, p.key.rpartition(".")[2]) for p in plan.sweep.parameters if p.varies}
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last, self._line = time.monotonic(), ""

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._last = time.monotonic()
        if self._live.is_started:
            console.draw(lambda: self._console.print(text, markup=False))
        else:
            console.say(text)

    def show(self, entries: Sequence[Entry]) -> None:
        """Show as many points as fit on a terminal; without one, print the totals once in a while."""
        totals = self._totals(entries)
        if self._console.is_terminal:
            console.draw(self._live.start)
            console.draw(lambda: self._live.update(Group(self._table(entries), totals), refresh=True))
        elif time.monotonic() - self._last > _LINE_SECONDS and totals != self._line:
            self._line = totals
            self.say(totals)

    def close(self) -> None:
        """Remove the table; the lines above it remain."""
        console.draw(self._live.stop)

    def _totals(self, entries: Sequence[Entry]) -> str:
        count = Counter(entry.state for entry in entries)
        text = ", ".join(f"{count[state]} {state}" for state in reversed(_ORDER) if count[state])
        if not self._plan.grid or not count["running"] + count["waiting"]:
            return text  # nobody knows the points of a search
        left = seconds_left(self._plan, entries)
        return f"{text}, ETA {'unknown until the first point is done' if left is None else console.clock(left)}"

    def _table(self, entries: Sequence[Entry]) -> Table:
        columns = ("mult-adds", "accuracy", "progress", "images/s", "state", "machine")
        table = Table(*self._names.values(), *columns, box=None, pad_edge=False)
        room, metric = max(3, self._console.height - 4), self._plan.sweep.metric
        for entry in sorted(entries, key=lambda entry: _ORDER.index(entry.state))[:room]:
            summary, now, known = entry.summary, entry.progress, self._plan.grid.get(entry.digest) or entry.summary
            accuracy = getattr(summary, metric) if summary else now.get(metric, now.get("train_accuracy"))
            rate = summary.train_images_per_second if summary else now.get("images_per_second")
            table.add_row(
                *(cell(entry.values.get(key)) for key in self._names),
                millions(known.mult_adds) if known else "",
                "" if accuracy is None else f"{accuracy:.4f}",
                ProgressBar(total=1.0, completed=_done(entry), width=12) if entry.state == "running" else "",
                f"{rate:,.0f}" if rate else "",
                entry.state,
                entry.host,
            )
        return table
