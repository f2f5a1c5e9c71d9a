"""Run a sweep: enqueue its points, keep the workers alive, show the table, print the results.

This process trains nothing and decides nothing about a point. All state is in the database and the run directories.
"""

import contextlib
import itertools
import pathlib
import platform
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.sweeps import database, progress, tables
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
    queue = Queue(plan.storage or database.sqlite_url(plan.workdir / "sweeps.db"), plan.study, plan.sweep)
    queue.open()
    try:
        queue.enqueue(_points_to_train(plan, queue))
        queue.reopen(_lost_results(plan, queue))
        _make_directories(plan.workdir)
        supervisor = Supervisor(plan, queue)
        finished = bool(plan.grid) and not any(queue.count_open())
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
        if not finished:
            supervisor.run(processes, signals)
    _print_results(plan, supervisor.entries, queue)
    if signals:
        console.say(f"stopped by {signal.Signals(signals[0]).name}; the same command resumes")
        return 128 + signals[0]
    if supervisor.errors:
        raise InputError(supervisor.errors[0])
    return 1 if any(entry.state == "failed" for entry in supervisor.entries) else 0


class Supervisor:
    """Starts workers, restarts those that die, passes signals on, and shows what the database records."""

    def __init__(self, plan: Plan, queue: Queue):
        self.plan, self.queue, self.entries = plan, queue, queue.entries()
        self.errors: list[str] = []  # why workers gave up
        self.signals: list[int] = []
        self._table = progress.LiveTable()
        self._last_line = ""
        self._over = threading.Event()

    def run(self, workers: Sequence[WorkerProcess], signals: list[int]) -> None:
        """Return when all workers have ended and shall not start again; `signals` grows as signals arrive."""
        self.signals, passed_on, before = signals, 0, time.monotonic()
        threads = [threading.Thread(target=self._keep_alive, args=(worker,), daemon=True) for worker in workers]
        for thread in [*threads, threading.Thread(target=self._read, daemon=True)]:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now = time.monotonic()
            for worker in workers:  # while this process was paused, it saw no sign of life
                if worker.listen(min(now - before, 2 * _TICK)) > MAX_SILENCE:
                    self._line(f"killed    a worker that was silent for {MAX_SILENCE:.0f} s (see {worker.log})")
                    worker.send(signal.SIGKILL)
                    worker.silence = 0.0
            before = now
            if len(signals) > passed_on:
                if not passed_on:
                    name = signal.Signals(signals[0]).name
                    self._line(f"stopping ({name}): the workers save; a second signal kills them")
                passed_on = len(signals)
                self._over.set()
                for worker in workers:
                    worker.send(signal.SIGKILL if passed_on > 1 else signal.SIGTERM)
            self._table.show(progress.view(self.plan, self.entries))
            time.sleep(_TICK)
        self._over.set()
        self._table.close()
        with contextlib.suppress(Unavailable, Damaged):
            self.queue.requeue_dead(stale=False)  # of workers that were killed
            self.entries = self.queue.entries()

    def _read(self) -> None:
        """Read the database, which may take long to answer; without an answer, the last known state is shown."""
        while not self._over.wait(_LOOK):
            with contextlib.suppress(Unavailable, Damaged):
                self.entries = self.queue.entries()

    def _keep_alive(self, worker: WorkerProcess) -> None:
        """Start a worker, print its lines, and start it again if it dies."""
        deaths = 0
        while not self.signals:
            try:
                process = worker.start()
            except InputError as e:
                self.errors.append(str(e))
                return
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                deaths = 0
                if line.startswith("error: "):
                    self.errors.append(line.removeprefix("error: "))
                else:
                    self._line(line)
            code = process.wait()
            if code in (0, 3) or self.signals:
                return
            deaths += 1
            how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
            self._line(f"died      worker {worker.number} ({how}; see {worker.log})")
            if deaths == DEATHS:
                self.errors.append(f"a worker died {deaths} times, the last time {how} (see {worker.log})")
                return
            self._over.wait(2 ** (deaths - 1) - 1)

    def _line(self, text: str) -> None:
        if text != self._last_line:  # all workers see an outage of the database
            self._table.line(text)
        self._last_line = text


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _make_directories(workdir: pathlib.Path) -> None:
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--workdir={workdir}: cannot be written ({e.strerror})") from None


def _points_to_train(plan: Plan, queue: Queue) -> dict[str, Mapping[str, Any]]:
    """Return the points of a grid, or those of a search that have failed, as `{digest: values}`."""
    if not plan.grid:
        entries = queue.entries()
        return {e.digest: e.values for e in entries if e.state == "failed" and not e.digest.startswith("#")}
    varied = [p.key for p in plan.sweep.parameters if p.varies]
    return {d: {key: plan.grid[d].assignment[key] for key in varied} for d in order(plan.points, plan.fuse)}


def order(points: Iterable[Point], fuse: int) -> list[str]:
    """Return the digests in training order.

    Without fusing, the first points of all programs come first, so that two workers do not compile the same program.
    With fusing, points of one program come next to one another.
    """
    by_program: dict[Any, list[str]] = {}
    for point in points:
        by_program.setdefault(point.spec.program_key, []).append(point.spec.digest)
    rounds = by_program.values() if fuse > 1 else itertools.zip_longest(*by_program.values())
    return [digest for digests in rounds for digest in digests if digest is not None]


def _lost_results(plan: Plan, queue: Queue) -> dict[str, Mapping[str, Any]]:
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


def _print_results(plan: Plan, entries: Sequence[Entry], queue: Queue) -> None:
    """Print the table of all points, the failures, and where the runs and the database are."""
    failed = [entry for entry in entries if entry.state == "failed"]
    place = {digest: i for i, digest in enumerate(plan.grid)}
    console.say(tables.results(plan.sweep, sorted(entries, key=lambda entry: place.get(entry.digest, 0))))
    with_result = sum(entry.summary is not None for entry in entries)
    console.say(f"\n{with_result} of {len(plan.grid) or len(entries)} points have a result; {len(failed)} failed")
    for entry in failed:
        console.say(f"failed    {tables.assignment(entry.values)}: {entry.error}")
    console.say(f"runs      {plan.workdir}  (python -m mobilenet_jax.report {plan.workdir})")
    console.say(f"database  {queue.shown_url}")
