"""Show a sweep while it runs: a live table on a terminal, plain lines otherwise; and estimate the time left."""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mobilenet_jax import console
from mobilenet_jax.sweeps.points import Point
from mobilenet_jax.sweeps.processes import Job
from mobilenet_jax.sweeps.queue import Entry

_LINE_SECONDS = 30.0  # between two plain lines of progress
_ORDER = ("running", "waiting", "failed", "diverged", "finished")


@dataclasses.dataclass(frozen=True)
class Status:
    """One row of the live table."""

    state: str
    run: str
    accuracy: float | None
    progress: str
    host: str


def statuses(
    entries: Iterable[Entry], points: Mapping[str, Point], jobs: Iterable[Job], metric: str
) -> Iterator[Status]:
    """Yield the status of each entry, with the progress of those that `jobs` train here.

    Until there is a figure of `metric`, the training accuracy is shown. `points` maps digest -> point of a grid.
    """
    running = {job.point.spec.digest: job for job in jobs}
    for entry in entries:
        job = running.get(entry.digest)
        row = job.row if job else entry.summary.model_dump() if entry.summary else {}
        point = job.point if job else points.get(entry.digest)
        share = _share(job) if job else 0
        name = point.spec.run_name if point else str(entry.values)
        accuracy = row.get(metric, row.get("train_accuracy"))
        yield Status(entry.state, name, accuracy, f"{share:.0%}" if share else "", entry.host)


def seconds_left(
    entries: Iterable[Entry], points: Mapping[str, Point], jobs: Iterable[Job], ratios: Sequence[float], workers: int
) -> float:
    """Estimate the time until a grid is finished: the estimates of the points, scaled by the median of `ratios`.

    `ratios` are measured over estimated times of points that were trained here.
    """
    left = sum(points[e.digest].estimated_seconds for e in entries if e.state == "waiting")
    for job in jobs:
        left += job.point.estimated_seconds * (1 - _share(job))
    return left * (statistics.median(ratios) if ratios else 1.0) / workers


def _share(job: Job) -> float:
    """Return the finished part of a run, from 0 to 1; a row of metrics alone has no total."""
    return job.row.get("step", 0) / job.row["steps"] if job.row.get("steps") else 0.0


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

    def show(self, rows: Sequence[Status], eta: float | None) -> None:
        """Show the points and their totals; `eta` is in seconds."""
        count = Counter(row.state for row in rows)
        totals = ", ".join(f"{count[state]} {state}" for state in reversed(_ORDER) if count[state])
        if eta is not None and count["running"] + count["waiting"]:
            totals += f", ETA {console.clock(eta)}"
        if not self._console.is_terminal:
            text = totals + "".join(f"; {row.run} {row.progress}" for row in rows if row.progress)
            if time.monotonic() - self._last > _LINE_SECONDS and text != self._shown:
                self._shown = text
                self.line(text)
            return
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            with self._terminal():
                self._live.start()
        table = Table("state", "run", "accuracy", "progress", "machine", box=None, pad_edge=False)
        room = max(3, self._console.height - 4)
        for row in sorted(rows, key=lambda row: _ORDER.index(row.state))[:room]:
            accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
            table.add_row(row.state, row.run, accuracy, row.progress, row.host)
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
