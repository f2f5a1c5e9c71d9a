"""A process that trains a sweep: claim a point, train it, record the result, take the next one, until none is open.

`supervisor` starts it as the same command with `--worker`. All state is in the database and in the run directories, so
that a worker may be killed at any moment. Only training catches signals, to save. Lines for the user go to standard
output. The end of standard input, which is also that of a command that was killed, acts as SIGTERM does.
"""

import contextlib
import importlib
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mobilenet_jax import config, console
from mobilenet_jax.errors import Busy, InputError, first_line, is_unwritable
from mobilenet_jax.records.directory import RunDirectory
from mobilenet_jax.sweeps import tables
from mobilenet_jax.sweeps.database import Damaged, Unavailable, Unwritable
from mobilenet_jax.sweeps.points import Plan, Point
from mobilenet_jax.sweeps.queue import Entry, Queue
from mobilenet_jax.training import devices, host
from mobilenet_jax.training.progress import Display

DRAWS = 100  # draws outside the budget per point of a search, after which the search gives up
PATIENCE = 600.0  # seconds that a worker with nothing to train waits for its database
HEARTBEAT = 3.0  # seconds between two heartbeats
_LOOK = 2.0  # seconds between two looks for an open point
_BUSY = 5.0  # seconds until a point that another process trains is tried again
DONE, CANNOT_TRAIN, START_AGAIN = 0, 3, 4  # exit codes; after any other one, the process has died
T = TypeVar("T")


class Job:
    """A point that this process has claimed, its run directory and the last figures of its run."""

    def __init__(self, claim: Entry, point: Point, record: RunDirectory):
        self.claim, self.point, self.record, self.name = claim, point, record, point.spec.run_name
        self.figures: dict[str, Any] = {}
        self.display = Display(self.figures.update)
        started = time.monotonic() - host.compiled_before()
        self.elapsed = lambda: time.monotonic() - started  # seconds since the claim, and of compiling before a restart


def run(plan: Plan, place: str) -> int:
    """Train points of a sweep; return the exit code of this process. CANNOT_TRAIN follows a line 'error: SENTENCE'."""
    number, _, command, study = place.split("/", 3)  # from the command that started this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which ends a worker, even if its command ignores it
    try:
        if study != plan.study:  # this worker and its command would train different sweeps
            raise InputError(f"sweep {plan.sweep.name}: its file, config or data changed while it ran; start it again")
        return Worker(plan, f"{command}/{number}/").run()
    except InputError as e:  # about this machine: no device, no data, a full disk, no database
        console.say(f"error: {e}")
        return CANNOT_TRAIN
    except Exception as e:
        _log(e)
        return 1


def _guard(action: Callable[[], None]) -> None:
    """Run the action of a thread; a bug in it acts as SIGTERM does."""
    try:
        action()
    except Exception as e:
        _log(e)
        os.kill(os.getpid(), signal.SIGTERM)


def _log(error: Exception) -> None:
    """Write all lines of a bug to the log."""
    with contextlib.suppress(OSError):  # its disk may be full
        traceback.print_exception(error)


class Worker:
    """The loop of one process. `owner` names it in the database."""

    def __init__(self, plan: Plan, owner: str):
        self.plan, self.queue = plan, Queue(plan.storage, plan.study, plan.sweep, owner)
        self.jobs: list[Job] = []  # all points that this process has claimed
        self.asked: list[int] = []  # signals that came during the training
        self.code = DONE  # once it is another one, this process ends after the training
        self.over = False  # whether `run` has ended
        self.busy: dict[str, float] = {}  # digest -> when to try the point again, by `time.monotonic`
        self.outside = 0  # drawn points outside the budget
        self.silent, self.silent_at = False, time.monotonic()  # whether the database is silent; when it was

    def run(self) -> int:
        """Train until no point is open or a signal comes; return the exit code; InputError is about this machine."""
        for action in (self._watch, self._beat):
            threading.Thread(target=_guard, args=(action,), daemon=True).start()
        try:
            devices.find_devices()  # before a claim, as some settings end this process
            importlib.import_module("mobilenet_jax.training.loop")  # which takes seconds that are no point's
            self._reach(self.queue.connect)
            self._requeue(self.queue.owner)  # the claims of the process before this one
            while not (self.asked or self.code) and (group := self._next()):
                self._train(group)
        except (Damaged, Unavailable) as e:
            how = f"has not answered for {PATIENCE / 60:.0f} minutes"
            raise InputError(str(self.queue.explain(e, how))) from e
        finally:
            self._release()
            self.over = True
        return self.code or (128 + self.asked[0] if self.asked else DONE)

    def _release(self) -> None:
        """Give all points back, if the database answers; else they are requeued as those of a dead process."""
        while self.jobs:
            with contextlib.suppress(Unavailable, Damaged):
                self.queue.release(self.jobs.pop().claim)

    def _trained(self) -> int:
        """Return how many points are in the training loop."""
        return sum(bool(job.figures) for job in self.jobs)

    def _watch(self) -> None:
        """Show that this process lives; act as SIGTERM does when standard input ends; runs in a thread."""
        while not self.over:  # then silence, so that the command kills a process that hangs at its end
            with contextlib.suppress(OSError):
                os.write(1, b"\n")  # not by `print`, whose lock Python needs to end
            if select.select([0], [], [], 0.5)[0]:  # nobody writes to it: it has ended
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _beat(self) -> None:
        """Send heartbeats, which may take long to be answered; runs in a thread."""
        while True:
            for job in [*self.jobs]:
                with contextlib.suppress(Unavailable, Damaged):
                    self._report(job)
            time.sleep(HEARTBEAT)

    def _report(self, job: Job) -> None:
        """Send a heartbeat with the figures of a run; stop the training if another process has taken over the point."""
        figures = {**job.figures}
        if "images_per_second" in figures:
            figures["images_per_second"] /= max(1, self._trained())
        holds = self._reach(self.queue.heartbeat, job.claim, figures, patience=0)
        if not holds and figures and job in self.jobs and not self.asked:
            console.say(f"taken over by another machine  {job.name}")
            self.code = START_AGAIN
            self.asked.append(signal.SIGTERM)

    def _reach(self, action: Callable[..., T], *arguments: Any, patience: float | None = None) -> T:
        """Return what an action on the database returns; raise Unavailable if it is full or silent for `patience`."""
        until = time.monotonic() + (PATIENCE if patience is None else patience)
        while True:
            try:
                result = action(*arguments)
                self.silent = False
                return result
            except Unavailable as e:
                if not self.silent:
                    how = "cannot be written" if isinstance(e, Unwritable) else "does not answer"
                    console.say(f"the database {how}{', training goes on' if self._trained() else ''} ({e})")
                self.silent, self.silent_at = True, time.monotonic()
                if isinstance(e, Unwritable) or self.asked or time.monotonic() >= until:
                    raise
                time.sleep(1.0)

    def _next(self) -> list[Job]:
        """Return points of one program to train together, none if no point is open."""
        while True:
            while len(self.jobs) < self.plan.fuse and self._claim():
                pass
            if self.jobs:
                group = self.jobs[0].point.spec.group_key
                return [job for job in self.jobs if job.point.spec.group_key == group]
            if not any(entry.is_open for entry in self._reach(self.queue.entries)):
                return []
            time.sleep(_LOOK)

    def _claim(self) -> bool:
        """Claim a point without a result; return whether there was one."""
        if time.monotonic() > self.silent_at + 4 * HEARTBEAT:  # an outage silences all heartbeats
            self._requeue()
        grid, draws = self.plan.grid, 0 if self.plan.grid else self.plan.sweep.run_cap or 0
        group = self.jobs[0].point.spec.group_key if self.jobs else None

        def fits(digest: str) -> bool:
            other = group and digest in grid and grid[digest].spec.group_key != group
            return not other and self.busy.get(digest, 0) < time.monotonic()

        while claim := self._reach(self.queue.claim, fits, draws):
            if (point := self._point(claim)) is not None:
                if not grid:
                    claim = self._reach(self.queue.set_digest, claim, point.spec.digest)
                self.jobs.append(job := Job(claim, point, RunDirectory(self.plan.workdir / point.spec.run_name)))
                if not self._finish(job):
                    return True
        return False

    def _requeue(self, *names: str) -> None:
        for known in map(self.plan.grid.get, self._reach(self.queue.requeue_dead, *names)):
            console.say(f"requeued  {known.spec.run_name if known else 'a point'}  (its worker died)")

    def _point(self, claim: Entry) -> Point | None:
        """Return the claimed point; None if it is a drawn one that cannot be trained."""
        if claim.digest in self.plan.grid:
            return self.plan.grid[claim.digest]
        try:
            point = self.plan.draw(claim.values)
            if self.plan.budget.holds(point.mult_adds):
                return point
            self.outside += 1
            enough = self.outside > DRAWS * (self.plan.sweep.run_cap or 1)
            error = "outside the budget, like most draws" if enough else ""
        except InputError as e:
            error = str(e)
            console.say(f"failed    {tables.assignment(claim.values)}: {e}")
        self._reach(self.queue.release, claim, error)
        return None

    def _finish(self, job: Job) -> bool:
        """Record the result of a point; return whether it has one. Training reports a damaged result."""
        summary = None
        with contextlib.suppress(InputError):
            summary = config.finished(job.point.spec, job.record.path)
        if summary:
            score = getattr(summary, self.plan.sweep.metric)
            figure = f"  {self.plan.sweep.metric} {score:.4f}" if score is not None else ""
            how = f"{job.elapsed():.1f} s" if job.figures else "(its run directory has the result)"
            self._leave(job, f"{summary.status:<8}  {job.name}{figure}  {how}", self.queue.finish, summary)
        return summary is not None

    def _leave(self, job: Job, line: str, action: Callable[..., None], *arguments: Any) -> None:
        """End a claim by an action on the database, and print a line."""
        self.jobs.remove(job)  # first, as `_beat` must not see a claim that has ended
        self._reach(action, job.claim, *arguments)
        console.say(line)

    def _train(self, group: Sequence[Job]) -> None:
        """Train points until each has a result, has failed, or is busy; raise InputError if this machine cannot."""
        from mobilenet_jax.training import loop  # here, as it imports JAX

        try:
            inputs = loop.prepare(group[0].point.spec)
        except Exception as e:
            raise InputError(_reason(e)) from e
        with contextlib.ExitStack() as held:
            jobs = []
            for job in group:
                try:
                    config.finished(job.point.spec, job.record.path)  # raises if the directory holds another run
                    held.enter_context(job.record.locked())
                    jobs += [] if self._finish(job) else [job]
                except Busy:
                    line = f"waiting   {job.name}  (another process trains it)"
                    self._leave(job, "" if job.claim.digest in self.busy else line, self.queue.release)
                    self.busy[job.claim.digest] = time.monotonic() + _BUSY
                except InputError as e:
                    self._fail(job, e)
            if not jobs:
                return
            try:
                starts = [loop.Start(job.point.spec, job.record, job.display, job.elapsed) for job in jobs]
                program, runs = loop.compile_all(starts, inputs, [], self._release)  # a fresh process claims them again
                with console.signals(again=True) as self.asked, contextlib.suppress(loop.Interrupted):
                    loop.train(program, runs, self.asked)
            except Exception as e:
                if len(jobs) > 1 and not is_unwritable(e):
                    raise RuntimeError("a fresh process trains these points one at a time") from e
                self._fail(jobs[0], e)
        for job in [job for job in jobs if job in self.jobs]:
            self._finish(job)

    def _fail(self, job: Job, error: Exception) -> None:
        """Record that the point cannot be trained; raise InputError if the machine is the reason."""
        reason = _reason(error)
        if is_unwritable(error) or isinstance(error, OSError | ImportError | MemoryError):
            raise InputError(reason) from error
        if not self._finish(job):
            self._leave(job, f"failed    {job.name}: {reason}", self.queue.release, reason)
        if not isinstance(error, InputError):  # a bug may have left this process in any state
            self.code = START_AGAIN


def _reason(error: Exception) -> str:
    """Return the error in one line; all lines of a bug go to the log."""
    if isinstance(error, InputError):
        return str(error)
    _log(error)
    return f"{type(error).__name__}: {first_line(error)}"
