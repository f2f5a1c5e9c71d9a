"""Run a sweep: enqueue its points, keep the workers alive, show the table, print the results.

This process trains nothing and decides nothing about a point. All state is in the database and the run directories.
"""

import contextlib
import itertools
import pathlib
import platform
import select
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.sweeps import progress, tables
from mobilenet_jax.sweeps.database import Damaged, Unavailable
from mobilenet_jax.sweeps.points import Plan, Point
from mobilenet_jax.sweeps.processes import WorkerProcess, visible_gpus
from mobilenet_jax.sweeps.queue import Entry, Queue

MAX_SILENCE = 120.0  # seconds without a sign of life after which a worker is killed
DEATHS = 8  # of a worker in a row that printed nothing; then it is not started again
_TICK = 0.25  # seconds between two rounds of the loop
_LOOK = 2.0  # seconds between two looks at the database


def run(plan: Plan, workers: int = 0) -> int:
    """Train every unfinished point of a sweep, together with all other commands on the same database.

    Args:
      plan: the sweep.
      workers: number of training processes; 0 is one per GPU, or one.

    Returns:
      The exit code: 0 if every point has a result, 1 if some failed, 128 + the signal's number after a signal.

    Raises:
      InputError: the database or the directory cannot be used, or a result in it is damaged; nothing was started. Or
        a worker could not go on, as its machine cannot train, or the database was damaged or lost.
    """
    if not plan.storage:  # with another database, no directory is made before the database answers
        _make_directories(plan.workdir)
    queue = Queue.of(plan)
    queue.open()
    try:
        if plan.grid:
            varied = [p.key for p in plan.sweep.parameters if p.varies]
            ordered = order(plan.points, plan.fuse)
            queue.enqueue({digest: {k: plan.grid[digest].assignment[k] for k in varied} for digest in ordered})
        else:  # the failed points of a search
            failed = [entry for entry in queue.entries() if entry.state == "failed" and entry.resolved]
            queue.enqueue({entry.digest: entry.values for entry in failed})
        queue.reopen(_lost_results(queue, plan))
        _make_directories(plan.workdir)
        finished = bool(plan.grid) and not any(queue.count_open())
        entries = queue.entries()
    except (Damaged, Unavailable) as e:
        raise queue.explain(e) from None
    gpus = visible_gpus()
    count = workers or len(gpus) or 1
    total = len(plan.grid) or f"up to {plan.sweep.run_cap}"
    console.say(
        f"sweep {plan.sweep.name}: {total} points, {count} worker{'s' * (count > 1)}, runs in {plan.workdir}, "
        f"database {queue.shown_url}"
    )
    log = plan.workdir / "logs" / f"{queue.name}-{platform.node()}"
    processes = [WorkerProcess(i, count, gpus, queue.name, pathlib.Path(f"{log}-{i}.log")) for i in range(count)]
    with console.signals(again=True) as signals:
        supervisor = Supervisor(plan, queue, entries, [] if finished else processes, signals)
        supervisor.run()
    _print_results(plan, supervisor.entries, queue)
    if signals:
        console.say(f"stopped by {signal.Signals(signals[0]).name}; the same command resumes")
        return 128 + signals[0]
    if supervisor.errors:
        raise InputError(supervisor.errors[0])
    return 1 if any(entry.state == "failed" for entry in supervisor.entries) else 0


class Supervisor:
    """Starts workers, restarts those that die, passes signals on, and shows what the database says."""

    def __init__(
        self, plan: Plan, queue: Queue, entries: list[Entry], workers: Sequence[WorkerProcess], signals: list[int]
    ):
        """`entries` are the points as they are now; `signals` grows as signals arrive."""
        self.plan, self.queue, self.entries, self.workers, self.signals = plan, queue, entries, workers, signals
        self.errors: list[str] = []  # why workers gave up
        self._table = progress.LiveTable()
        self._last_line = ""
        self._passed_on = 0  # signals that the workers got
        self._over = threading.Event()

    def run(self) -> None:
        """Return when all workers have ended and shall not start again."""
        reader = threading.Thread(target=self._read, daemon=True)  # a database may take long to answer
        reader.start()
        before = time.monotonic()
        try:
            while any(worker.process or not (worker.done or self.signals) for worker in self.workers):
                now = time.monotonic()
                passed = min(now - before, 2 * _TICK)  # while this process was paused, it saw no sign of life
                before = now
                for worker in self.workers:
                    self._attend(worker, passed)
                self._pass_signals_on()
                self._table.show(progress.view(self.plan, self.entries))
                pipes = [worker.process.stdout for worker in self.workers if worker.process]
                select.select(pipes, [], [], _TICK)
        finally:
            for worker in self.workers:
                worker.send(signal.SIGKILL)  # only on the way out of an error
            self._over.set()
            reader.join(_LOOK)
            self._table.close()
        with contextlib.suppress(Unavailable, Damaged):
            self.queue.requeue_dead(stale=False)  # of workers that were killed
            self.entries = self.queue.entries()

    def _read(self) -> None:
        while not self._over.wait(_LOOK):
            with contextlib.suppress(Unavailable, Damaged):  # the workers say so; show the last known state
                self.entries = self.queue.entries()

    def _attend(self, worker: WorkerProcess, passed: float) -> None:
        """Start a worker that is due, print its lines, and see whether it has ended or hangs."""
        if worker.process is None:
            if not (worker.done or self.signals) and time.monotonic() >= worker.start_at:
                worker.start()
            return
        how = worker.ended()
        for line in worker.lines():
            worker.deaths = 0
            if line.startswith("error: "):
                self.errors.append(line.removeprefix("error: "))
            else:
                self._line(line)
        if how is None:
            if worker.listen(passed) > MAX_SILENCE:
                self._line(f"killed    a worker that was silent for {MAX_SILENCE:.0f} s (see {worker.log})")
                worker.send(signal.SIGKILL)
                worker.silence = 0.0
            return
        worker.close()
        if how in ("exit code 0", "exit code 3"):
            worker.done = True
            if how == "exit code 3" and not all(each.done for each in self.workers):
                self._line(f"ended     worker {worker.number}: {self.errors[-1]}")
        elif not self.signals:
            worker.deaths += 1
            worker.start_at = time.monotonic() + 2 ** (worker.deaths - 1) - 1
            self._line(f"died      worker {worker.number} ({how}; see {worker.log})")
            if worker.deaths == DEATHS:
                worker.done = True
                self.errors.append(f"a worker died {DEATHS} times, the last time {how} (see {worker.log})")

    def _pass_signals_on(self) -> None:
        if len(self.signals) > self._passed_on:
            if not self._passed_on:
                name = signal.Signals(self.signals[0]).name
                self._line(f"stopping ({name}): the workers save; a second signal kills them")
            for worker in self.workers:
                worker.send(signal.SIGKILL if len(self.signals) > 1 else signal.SIGTERM)
            self._passed_on = len(self.signals)

    def _line(self, text: str) -> None:
        if text != self._last_line:  # all workers see an outage of the database
            self._table.line(text)
        self._last_line = text


def _make_directories(workdir: pathlib.Path) -> None:
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--workdir={workdir}: cannot be written ({e.strerror})") from None


def _lost_results(queue: Queue, plan: Plan) -> dict[str, Mapping[str, Any]]:
    """Return the points, `{digest: values}`, that finished in `workdir` but have lost their summary.

    Raises:
      InputError: a summary or its metrics are damaged.
    """
    lost = {}
    for entry in queue.entries():
        if entry.summary:
            spec = (plan.grid.get(entry.digest) or plan.draw(entry.values)).spec
            path = plan.workdir / spec.run_name
            last = path / "checkpoints" / str(spec.total_steps)
            if directory.read_summary(path) is None and last.exists():  # otherwise another machine trained it
                lost[entry.digest] = entry.values
    return lost


def order(points: Iterable[Point], fuse: int) -> list[str]:
    """Return the digests in training order.

    Without fusing, the first points of all programs come first, so that two workers do not compile the same program.
    With fusing, points of one program come next to one another.
    """
    by_program: dict[Any, list[str]] = {}
    for point in points:
        by_program.setdefault(point.spec.program_key, []).append(point.spec.digest)
    if fuse > 1:
        return [digest for digests in by_program.values() for digest in digests]
    rounds = itertools.zip_longest(*by_program.values())
    return [digest for digests in rounds for digest in digests if digest is not None]


def _print_results(plan: Plan, entries: Sequence[Entry], queue: Queue) -> None:
    """Print the table of all points, the failures, and where the runs and the database are."""
    failed = [entry for entry in entries if entry.state == "failed"]
    place = {digest: i for i, digest in enumerate(plan.grid)}
    console.say(tables.results(plan.sweep, sorted(entries, key=lambda entry: place.get(entry.digest, 0))))
    with_result = sum(entry.state in ("finished", "diverged") for entry in entries)
    console.say(f"\n{with_result} of {len(plan.grid) or len(entries)} points have a result; {len(failed)} failed")
    for entry in failed:
        console.say(f"failed    {tables.assignment(entry.values)}: {entry.error}")
    console.say(f"runs      {plan.workdir}  (python -m mobilenet_jax.report {plan.workdir})")
    console.say(f"database  {queue.shown_url}")
