"""Run a sweep: enqueue its points, keep the workers alive, show the table, print the results.

This process trains nothing and decides nothing about a point. All state is in the database and the run directories.
"""

import contextlib
import os
import pathlib
import platform
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.sweeps import progress, tables
from mobilenet_jax.sweeps.database import Damaged, Unavailable
from mobilenet_jax.sweeps.points import Plan
from mobilenet_jax.sweeps.queue import Entry, Queue
from mobilenet_jax.sweeps.worker import CANNOT_TRAIN, DONE, PATIENCE, START_AGAIN
from mobilenet_jax.training import devices, host

MAX_SILENCE = 120.0  # seconds without a sign of life after which a worker is killed
DEATHS = 8  # of a worker in a row, without a result; then it is not started again
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
      InputError: the database, the directory or a result in it cannot be used, or a worker could not go on.
    """
    queue, logs = Queue(plan.storage, plan.study, plan.sweep), plan.workdir / "logs"
    try:
        if plan.storage.startswith("sqlite"):  # with a server, no directory is made before it answers
            logs.mkdir(parents=True, exist_ok=True)
        queue.open()
        queue.enqueue(*_points_to_train(plan, queue))
        entries = queue.entries()
        logs.mkdir(parents=True, exist_ok=True)
    except (Damaged, Unavailable) as e:
        raise queue.explain(e) from None
    except OSError as e:
        raise InputError(f"--workdir={plan.workdir}: cannot be written ({e.strerror})") from None
    gpus = devices.visible_gpus()
    count = workers or len(gpus) or 1
    total, error = len(plan.grid) or f"up to {plan.sweep.run_cap}", ""
    place = f"runs in {plan.workdir}, database {queue.shown_url}"
    console.say(f"sweep {plan.sweep.name}: {total} points, {count} worker{'s' * (count > 1)}, {place}")
    with console.signals(again=True) as signals:
        if not plan.grid or any(entry.is_open for entry in entries):
            error = _train(plan, queue, count, gpus, signals)
    try:
        entries = queue.entries()
        _print_results(plan, entries, queue)
    except (Damaged, Unavailable) as e:
        error = error or str(queue.explain(e))
    if signals:
        console.say(f"stopped by {signal.Signals(signals[0]).name}; the same command resumes")
        return 128 + signals[0]
    if error:
        raise InputError(error)
    return 1 if any(entry.state == "failed" or entry.is_open for entry in entries) else 0


def _train(plan: Plan, queue: Queue, count: int, gpus: Sequence[str], signals: Sequence[int]) -> str:
    """Keep `count` workers alive until they end for good; return why one gave up, '' if none did."""
    screen, over = progress.Screen(plan), threading.Event()

    def show() -> None:
        took = 0.0
        while not over.wait(max(_LOOK, 20 * took)):  # a large sweep takes no core from its workers
            before = time.monotonic()
            with contextlib.suppress(Unavailable, Damaged):  # the last known state stays
                entries = queue.entries()
                if not over.is_set():
                    screen.show(entries)
            took = time.monotonic() - before

    name, log = uuid.uuid4().hex, plan.workdir / "logs" / f"{queue.name}-{platform.node()}"
    workers = [
        WorkerProcess(f"{i}/{count}/{name}/{queue.name}", gpus, pathlib.Path(f"{log}-{i}.log"), screen.say)
        for i in range(count)
    ]
    for thread in [*(worker.thread for worker in workers), threading.Thread(target=show, daemon=True)]:
        thread.start()
    passed_on = 0  # signals
    while any(worker.thread.is_alive() for worker in workers):
        time.sleep(_TICK)
        if len(signals) > passed_on:
            if not passed_on:
                first = signal.Signals(signals[0]).name
                screen.say(f"stopping ({first}): the workers save; a second signal kills them")
            for worker in workers:
                worker.stop(signal.SIGKILL if passed_on else signal.SIGTERM)
            passed_on = len(signals)
    over.set()
    screen.close()
    error = next((worker.error for worker in workers if worker.error), "")
    for tries in range(round(PATIENCE / _LOOK)):  # the workers have waited for the database; it may be away again
        try:
            queue.requeue_dead(f"{name}/", stopped=bool(signals))  # the points of workers that were killed
            break
        except (Unavailable, Damaged) as e:
            if type(e) is not Unavailable or error or signals:
                break
            if not tries:
                console.say(f"waiting for the database, which does not answer ({e})")
            time.sleep(_LOOK)
    return error


def _points_to_train(plan: Plan, queue: Queue) -> tuple[Mapping[str, Mapping[str, Any]], set[str]]:
    """Return points, `{digest: values}` (of a search those to train again), and those that lost their summary."""
    known, lost = {entry.digest: entry for entry in queue.entries()}, set()
    for entry in known.values():
        if entry.summary:
            spec = (plan.grid.get(entry.digest) or plan.draw(entry.values)).spec
            path = plan.workdir / spec.run_name
            last = path / directory.CHECKPOINTS / f"{spec.total_steps}.safetensors"
            if directory.read_summary(path) is None and last.exists():  # otherwise another machine trained it
                lost.add(entry.digest)
    if not plan.grid:
        again = [e for e in known.values() if e.digest in lost or (e.state == "failed" and e.digest[0] != "#")]
        return {entry.digest: entry.values for entry in again}, lost
    varied = [p.key for p in plan.sweep.parameters if p.varies]
    return {digest: {key: plan.grid[digest].assignment[key] for key in varied} for digest in plan.order}, lost


def _print_results(plan: Plan, entries: Sequence[Entry], queue: Queue) -> None:
    """Print the table of all points, the failures, and where the runs and the database are."""
    failed = [entry for entry in entries if entry.state == "failed"]
    place = {digest: i for i, digest in enumerate(plan.grid)}
    console.say(tables.results(plan.sweep, sorted(entries, key=lambda entry: place.get(entry.digest, 0))))
    with_result = sum(entry.summary is not None for entry in entries)
    console.say(f"\n{with_result} of {len(plan.grid) or len(entries)} points have a result; {len(failed)} failed")
    for entry in failed:
        console.say(f"failed    {tables.assignment(entry.values)}: {entry.error}")
    console.say(f"runs      {plan.workdir}  (python -m mobilenet_jax.report {shlex.quote(str(plan.workdir))})")
    console.say(f"database  {queue.shown_url}")


class WorkerProcess:
    """A process that runs the same command as this one, as a worker; a thread starts it again when it dies.

    Args:
      place: for --worker, 'NUMBER/COUNT/...'; it gives the process its share of the GPUs or of the CPU cores.
      gpus: names of the GPUs that the workers share.
      log: takes the process's errors.
      say: prints a line. Empty lines of the process are only a sign of life.
    """

    def __init__(self, place: str, gpus: Sequence[str], log: pathlib.Path, say: Callable[[str], None]):
        self._number, count = map(int, place.split("/")[:2])
        self._log, self._say = log, say
        self.error = ""  # why it ended for good
        # A program given with -c is part of `sys.orig_argv` too.
        self._command = [sys.executable, *sys.orig_argv[1:], f"--worker={place}"]
        self._env = os.environ | (devices.gpu_settings(self._number, count, gpus) if gpus else host.kept_memory())
        self._cores = devices.share_of_cores(self._number, count) if not gpus and devices.trains_on_cpu() else set()
        self._process: subprocess.Popen[bytes] | None = None
        self._over, self.thread = threading.Event(), threading.Thread(target=self._keep_alive, daemon=True)

    def stop(self, number: int) -> None:
        """Send a signal to the process, if it runs, and do not start it again."""
        self._over.set()
        if self._process is not None:
            self._process.send_signal(number)

    def _keep_alive(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread, from which the process inherits them
        deaths = 0
        while not self._over.wait(2 ** (deaths - 1) - 1 if deaths else 0):
            try:
                code, finished = self._run()
            except OSError as e:
                can = "once it can, the same command resumes"
                self.error = f"{self._log}: a worker cannot be started with this log ({e.strerror}); {can}"
                return
            if code in (DONE, CANNOT_TRAIN) or self._over.is_set():
                return
            deaths = 1 if finished else deaths + 1
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            if code != START_AGAIN:
                self._say(f"died      worker {self._number} ({how}; see {self._log})")
                self._command.append("--fuse=1")  # one of the points that were trained together may be the reason
            if deaths == DEATHS:
                self.error = f"a worker ended {deaths} times without a result, the last time {how} (see {self._log})"
                return

    def _run(self) -> tuple[int, bool]:
        """Run the process once and print its lines; return its exit code, and whether it finished a point."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # its end, which is also that of a command that was killed, ends the worker
                stdout=subprocess.PIPE,  # lines for the user
                stderr=log,
                env=self._env,
                start_new_session=True,  # Ctrl-C goes to the command alone, which stops its workers
            )
        with self._process as process:
            if self._over.is_set():  # a signal came while it started
                process.terminate()
            assert process.stdout is not None
            output, rest, finished = process.stdout.fileno(), b"", False
            while True:
                if silent := not select.select([output], [], [], MAX_SILENCE)[0]:
                    self._say(f"killed    a worker that was silent for {MAX_SILENCE:.0f} s (see {self._log})")
                    process.kill()
                if silent or not (read := os.read(output, 1 << 16)):
                    return process.wait(), finished
                *lines, rest = (rest + read).split(b"\n")
                for text in [line.decode(errors="replace") for line in lines if line]:
                    finished |= text.startswith(("finished", "diverged"))
                    if text.startswith("error: "):
                        self.error = text.removeprefix("error: ")
                        text = f"ended     worker {self._number}: {self.error}"
                    self._say(text)
