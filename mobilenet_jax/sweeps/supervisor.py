"""Run a sweep: open its queue, enqueue its points, train them with a few processes, print the results.

This process imports no JAX. Workers that die are started again and resume from their last checkpoints.
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import platform
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.sweeps import connection, tables
from mobilenet_jax.sweeps.coordinator import Coordinator
from mobilenet_jax.sweeps.database import Damaged, Unavailable, Unwritable
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.points import Budget, Point
from mobilenet_jax.sweeps.processes import Worker, visible_gpus
from mobilenet_jax.sweeps.queue import Entry, Queue


def run(
    sweep: Sweep,
    points: Sequence[Point],
    draw: Callable[[Mapping[str, Any]], Point],
    budget: Budget,
    workdir: pathlib.Path,
    storage: str = "",
    workers: int = 0,
    fuse: int = 1,
) -> int:
    """Train every unfinished point of a sweep, together with all other commands on the same database.

    Args:
      sweep: the checked sweep file.
      points: all points of a grid, or the corners of a search.
      draw: resolves one point of a search.
      budget: bounds on the mult-adds of drawn points.
      workdir: holds the run directories.
      storage: URL of the database; '' is SQLite in `workdir`.
      workers: number of training processes; 0 is one per GPU, or one.
      fuse: largest number of points to train as one program.

    Returns:
      The exit code: 0 if every point has a result, 1 if some failed, 128 + the signal's number after a signal.

    Raises:
      InputError: the database or the directory cannot be used, or a result in it is damaged; nothing was started. Or
        the database was damaged or lost later, or the disk is full; the workers have saved.
    """
    grid_points = {point.spec.digest: point for point in points} if sweep.method == "grid" else {}
    if not storage:  # with another database, no directory is made before the database answers
        _make_directories(workdir)
    url = storage or f"sqlite:///{workdir / 'sweeps.db'}"
    queue = Queue.open(url, study_name(sweep, points, budget), sweep)
    with _explained(queue, "does not answer"):
        if grid_points:
            queue.enqueue({digest: _varied(sweep, grid_points[digest]) for digest in order(points, fuse)})
        else:  # the failed points of a search
            failed = [entry for entry in queue.entries() if entry.state == "failed" and entry.resolved]
            queue.enqueue({entry.digest: entry.values for entry in failed})
        queue.reopen(_lost_results(queue, lambda entry: grid_points.get(entry.digest) or draw(entry.values), workdir))
        _make_directories(workdir)
    gpus = visible_gpus()
    count = workers or len(gpus) or 1
    log = workdir / "logs" / f"{queue.name}-{platform.node()}"
    processes = [Worker(i, count, gpus, pathlib.Path(f"{log}-{i}.log")) for i in range(count)]
    silence = f"has not answered for {connection.PATIENCE / 60:.0f} minutes"
    with console.signals(again=True) as signals, _explained(queue, silence):
        training = Coordinator(sweep, grid_points, draw, budget, workdir, queue, processes, fuse, bool(gpus), signals)
        training.run()
        _print_results(sweep, grid_points, training.connection.entries, workdir, queue)
        if training.stopping:
            console.say(f"stopped by {signal.Signals(signals[0]).name}; the same command resumes")
            return 128 + signals[0]
        return 1 if any(entry.state == "failed" for entry in training.connection.entries) else 0


@contextlib.contextmanager
def _explained(queue: Queue, silence: str) -> Iterator[None]:
    """Raise the errors of a database as InputError; `silence` describes one that does not answer."""
    try:
        yield
    except Damaged as e:
        raise InputError(f"--storage={queue.shown_url}: is damaged ({e}); {queue.remedy}") from None
    except Unavailable as e:
        how, can = ("cannot be written", "can") if isinstance(e, Unwritable) else (silence, "does")
        raise InputError(f"--storage={queue.shown_url}: {how} ({e}); once it {can}, the same command resumes") from None


def _make_directories(workdir: pathlib.Path) -> None:
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--workdir={workdir}: cannot be written ({e.strerror})") from None


def _lost_results(
    queue: Queue, point_of: Callable[[Entry], Point], workdir: pathlib.Path
) -> dict[str, Mapping[str, Any]]:
    """Return the points, `{digest: values}`, that finished in `workdir` but have lost their summary.

    Raises:
      InputError: a summary or its metrics are damaged.
    """
    lost = {}
    for entry in queue.entries():
        if entry.summary:
            spec = point_of(entry).spec
            path = workdir / spec.run_name
            last = path / "checkpoints" / str(spec.total_steps)
            if directory.read_summary(path) is None and last.exists():  # otherwise another machine trained it
                lost[entry.digest] = entry.values
    return lost


def study_name(sweep: Sweep, points: Iterable[Point], budget: Budget) -> str:
    """Return the sweep's name in a database: equal on all machines for the same file, base config and budget."""
    identity = [sweep.method, sweep.metric, sweep.goal, repr(sweep.parameters), sorted(p.spec.digest for p in points)]
    identity += [] if sweep.method == "grid" else [repr(budget)]
    return f"{sweep.name}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def _varied(sweep: Sweep, point: Point) -> dict[str, Any]:
    return {p.key: point.assignment[p.key] for p in sweep.parameters if p.varies}


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


def _print_results(
    sweep: Sweep, points: Mapping[str, Point], entries: Sequence[Entry], workdir: pathlib.Path, queue: Queue
) -> None:
    """Print the table of all points, the failures, and where the runs and the database are."""
    failed = [entry for entry in entries if entry.state == "failed"]
    place = {digest: i for i, digest in enumerate(points)}
    console.say(tables.results(sweep, sorted(entries, key=lambda entry: place.get(entry.digest, 0))))
    with_result = sum(entry.state in ("finished", "diverged") for entry in entries)
    console.say(f"\n{with_result} of {len(points) or len(entries)} points have a result; {len(failed)} failed")
    for entry in failed:
        console.say(f"failed    {tables.assignment(entry.values)}: {entry.error}")
    console.say(f"runs      {workdir}  (python -m mobilenet_jax.report {workdir})")
    console.say(f"database  {queue.shown_url}")
