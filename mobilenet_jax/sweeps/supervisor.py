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
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.sweeps import progress, tables
from mobilenet_jax.sweeps.database import Damaged, Unavailable
from mobilenet_jax.sweeps.points import Plan, Point
from mobilenet_jax.sweeps.processes import WorkerProcess
from mobilenet_jax.sweeps.queue import Entry, Queue
from mobilenet_jax.training import host

MAX_SILENCE = 120.0  # seconds without a sign of life after which a worker is killed
_TICK = 0.25  # seconds between two rounds of the loop
_LOOK = 1.0  # seconds between two looks at the database


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
    if plan.storage.startswith("sqlite"):  # with a server, no directory is made before it answers
        _make_directories(plan.workdir)
    queue = Queue(plan.storage, plan.study, plan.sweep)
    queue.open()
    try:
        queue.enqueue(*_points_to_train(plan, queue))
        _make_directories(plan.workdir)
        entries = queue.entries()
    except (Damaged, Unavailable) as e:
        raise queue.explain(e) from None
    gpus = host.visible_gpus()
    count = workers or len(gpus) or 1
    total = len(plan.grid) or f"up to {plan.sweep.run_cap}"
    console.say(
        f"sweep {plan.sweep.name}: {total} points, {count} worker{'s' * (count > 1)}, runs in {plan.workdir}, "
        f"database {queue.shown_url}"
    )
    error = ""
    with console.signals(again=True) as signals:
        if not plan.grid or any(entry.is_open for entry in entries):
            error = _train(plan, queue, count, gpus, signals)
    with contextlib.suppress(Unavailable, Damaged):
        entries = queue.entries()
    _print_results(plan, entries, queue)
    if signals:
        console.say(f"stopped by {signal.Signals(signals[0]).name}; the same command resumes")
        return 128 + signals[0]
    if error:
        raise InputError(error)
    return 1 if any(entry.state == "failed" for entry in entries) else 0


def _train(plan: Plan, queue: Queue, count: int, gpus: Sequence[str], signals: Sequence[int]) -> str:
    """Keep `count` workers alive until they end for good; return why one gave up, '' if none did."""
    screen, over, last = progress.Screen(plan), threading.Event(), [""]

    def say(text: str) -> None:
        if text != last[0]:  # all workers see an outage of the database
            screen.say(text)
        last[0] = text

    def show() -> None:
        while not over.wait(_LOOK):
            with contextlib.suppress(Unavailable, Damaged):  # the last known state stays
                screen.show(queue.entries())

    name, log = uuid.uuid4().hex, plan.workdir / "logs" / f"{queue.name}-{platform.node()}"
    workers = [
        WorkerProcess(f"{i}/{count}/{name}/{queue.name}", gpus, pathlib.Path(f"{log}-{i}.log"), say)
        for i in range(count)
    ]
    for thread in [*(worker.thread for worker in workers), threading.Thread(target=show, daemon=True)]:
        thread.start()
    passed_on, before = 0, time.monotonic()
    while alive := [worker for worker in workers if worker.thread.is_alive()]:
        time.sleep(_TICK)
        passed, before = time.monotonic() - before, time.monotonic()
        came = len(signals)
        if came and not passed_on:
            say(f"stopping ({signal.Signals(signals[0]).name}): the workers save; a second signal kills them")
        for worker in alive:
            worker.silence += min(passed, 2 * _TICK)  # while this process was paused, it heard nothing
            if worker.silence > MAX_SILENCE:
                say(f"killed    a worker that was silent for {MAX_SILENCE:.0f} s (see {worker.log})")
                worker.send(signal.SIGKILL, stop=False)
                worker.silence = 0.0
            if came > passed_on:
                worker.send(signal.SIGKILL if passed_on else signal.SIGTERM, stop=True)
        passed_on = came
    over.set()
    screen.close()
    with contextlib.suppress(Unavailable, Damaged):
        queue.requeue_dead(name)  # the points of workers that were killed
    return next((worker.error for worker in workers if worker.error), "")


def _make_directories(workdir: pathlib.Path) -> None:
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--workdir={workdir}: cannot be written ({e.strerror})") from None


def _points_to_train(plan: Plan, queue: Queue) -> tuple[Mapping[str, Mapping[str, Any]], set[str]]:
    """Return the points as `{digest: values}`, and those that finished in `workdir` but have lost their summary.

    The points of a search are those that have failed or lost their summary. Raises InputError if one is damaged.
    """
    known, lost = {entry.digest: entry for entry in queue.entries()}, set()
    for entry in known.values():
        if entry.summary:
            spec = (plan.grid.get(entry.digest) or plan.draw(entry.values)).spec
            path = plan.workdir / spec.run_name
            last = path / "checkpoints" / str(spec.total_steps)
            if directory.read_summary(path) is None and last.exists():  # otherwise another machine trained it
                lost.add(entry.digest)
    if not plan.grid:
        again = [e for e in known.values() if e.digest in lost or (e.state == "failed" and e.digest[0] != "#")]
        return {entry.digest: entry.values for entry in again}, lost
    varied = [p.key for p in plan.sweep.parameters if p.varies]
    return {d: {key: plan.grid[d].assignment[key] for key in varied} for d in order(plan.points, plan.fuse)}, lost


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
