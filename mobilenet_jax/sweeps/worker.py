"""A process that trains a sweep: claim a point, train it, record the result, take the next one, until none is open.

`supervisor` starts it as the same command with `--worker`. All state is in the database and in the run directories, so
that a worker may be killed at any moment. Its lines for the user go to standard output. The end of standard input,
which is also that of a command that was killed, makes it save and stop.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mobilenet_jax import console
from mobilenet_jax.errors import InputError, first_line, is_unwritable
from mobilenet_jax.records.directory import Busy, RunDirectory, read_summary
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.sweeps import connection, queue, tables
from mobilenet_jax.sweeps.connection import Connection
from mobilenet_jax.sweeps.database import Damaged, Unavailable, sqlite_url
from mobilenet_jax.sweeps.points import Plan, Point
from mobilenet_jax.sweeps.processes import visible_gpus
from mobilenet_jax.sweeps.queue import Claim, Queue
from mobilenet_jax.training import host
from mobilenet_jax.training.progress import Display

DRAWS = 100  # draws outside the budget per point of a search, after which the search gives up
_LOOK = 2.0  # seconds between two looks for an open point
_BUSY = 5.0  # seconds until a point that another process trains is tried again
# Mult-adds of a fused step on a CPU. Four small runs train 1.09 times as fast, and large ones 0.8 times, as their maps
# do not fit into the cache (results/bench/cpu_fused.json). Where fewer than four runs fit, none are fused.
_FUSED_ON_CPU = 5e8


class CannotTrain(Exception):
    """This machine cannot train, whatever the point: no device, no data, a full disk. The message is a sentence."""


class Job(Display):
    """A point that this process has claimed. It collects the figures of its run; lines about it go to the log."""

    def __init__(self, claim: Claim, point: Point, record: RunDirectory):
        super().__init__(self._note)
        self.claim, self.point, self.record, self.name = claim, point, record, point.spec.run_name
        self.started = time.monotonic() - claim.age
        self.retry_at = 0.0  # earliest time to train it, by `time.monotonic`; 0 unless another process was on it
        self.lost = False  # whether another machine took it over
        self.figures: dict[str, Any] = {}  # the last ones
        self.reported: dict[str, Any] = {}  # those that the database has

    def _note(self, row: Mapping[str, Any]) -> None:
        self.figures = {**self.figures, **row}

    def line(self, text: str) -> None:
        """Print a line to the log."""
        console.warn(text)

    def elapsed(self) -> float:
        """Return the seconds since the claim."""
        return time.monotonic() - self.started

    def result(self) -> Summary | None:
        """Return the run's summary if it is valid; training reports a damaged one."""
        with contextlib.suppress(InputError):
            return read_summary(self.record.path)
        return None


def run(plan: Plan, place: str) -> NoReturn:
    """Train points of a sweep, and end this process.

    Its exit code is 0 when no point is open, 3 when this machine cannot go on, after a line 'error: SENTENCE', and
    128 + the number of a signal.

    Args:
      plan: the sweep.
      place: 'NUMBER/COUNT/STUDY', from the command that started this process.
    """
    _, count, study = place.split("/", 2)
    threading.excepthook = lambda args: _die(args.exc_value)  # without its heartbeats, a worker must not train
    try:
        os._exit(Worker(plan, int(count)).run(study))  # what other libraries would still do has no use, and may hang
    except Exception as e:
        _die(e)


def _die(error: BaseException | None) -> NoReturn:
    """End this process because of a bug; the command starts another worker."""
    with contextlib.suppress(OSError):
        traceback.print_exception(error)
    os._exit(1)


class Worker:
    """The loop of one process; `count` processes share the points of this command."""

    def __init__(self, plan: Plan, count: int):
        self.plan, self.count = plan, count
        self.asked: list[int] = []  # signals that came
        self.training: list[Job] = []  # the points that are being trained
        self.queue = Queue(plan.storage or sqlite_url(plan.workdir / "sweeps.db"), plan.study, plan.sweep)
        self.connection = Connection(lambda: bool(self.asked), lambda: bool(self.training))
        self.jobs: list[Job] = []  # all points that this process has claimed
        self.stop: list[int] = []  # ends the training
        self.compiling = False  # or preparing data: there is nothing to save
        self.damage: Damaged | None = None
        self.outside = 0  # drawn points outside the budget

    def run(self, study: str) -> int:
        """Train until no point is open, a signal comes, or this machine cannot go on; return the exit code.

        Args:
          study: the sweep's name in the database, as the command knows it.
        """
        with console.signals(again=True) as self.asked:
            try:
                if study != self.plan.study:  # this worker and its command would train different sweeps
                    raise CannotTrain(
                        f"the sweep {self.plan.sweep.name} or its config changed while it was trained; start it again"
                    )
                self.connection.reach(self.queue.connect)
                for claim in self.connection.reach(self.queue.mine):  # before this process was restarted
                    self._resolve(claim)
                threading.Thread(target=self._beat, daemon=True).start()
                while group := self._next():
                    self._train(group)
            except (Damaged, Unavailable, CannotTrain) as e:
                silence = f"has not answered for {connection.PATIENCE / 60:.0f} minutes"
                if not self.asked:
                    console.say(f"error: {e if isinstance(e, CannotTrain) else self.queue.explain(e, silence)}")
                    return 3
            finally:
                self._release()
        return 128 + self.asked[0] if self.asked else 0

    def _release(self) -> None:
        """Give all points back, if the database answers; else they are requeued as those of a dead process."""
        for job in self.jobs:
            with contextlib.suppress(Unavailable, Damaged):
                self.queue.release(job.claim)

    def _beat(self) -> None:
        """Show that this process lives, report figures, and end the training when it has to; runs in a thread."""
        next_heartbeat = 0.0
        while True:
            with contextlib.suppress(OSError):
                os.utime(sys.stderr.fileno())  # the log, which the command looks at
            if self.asked:
                self.stop.append(self.asked[0])
                if self.compiling:
                    self._release()
                    os._exit(128 + self.asked[0])
                time.sleep(1)
            elif select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
                self.asked.append(signal.SIGTERM)
            jobs, due = [*self.jobs], time.monotonic() >= next_heartbeat
            try:
                if due:
                    lost = self.connection.call(self.queue.heartbeat, [job.claim for job in jobs])
                    next_heartbeat = time.monotonic() + queue.HEARTBEAT
                    for job in jobs:
                        job.lost = job.claim in lost
                for job in [*self.training]:
                    self._report(job)
                    if job.lost:
                        self.stop.append(signal.SIGTERM)
            except Unavailable:
                pass
            except Damaged as e:
                self.damage = e
                self.stop.append(signal.SIGTERM)

    def _report(self, job: Job) -> None:
        now, metric = job.figures, self.plan.sweep.metric
        if now and now is not job.reported:
            steps = {"step": now["step"], "steps": job.point.spec.total_steps}
            rate = now.get("images_per_second", 0.0) / max(1, len(self.training))
            steps |= {"accuracy": now.get(metric, now.get("train_accuracy")), "images_per_second": rate}
            self.connection.call(self.queue.report, job.claim, steps, round(now.get("epoch", 0)), now.get(metric))
            job.reported = now

    def _next(self) -> list[Job]:
        """Return points of one program to train together, none if no point is open or a signal came."""
        while not self.asked:
            if self.damage:
                raise self.damage
            for job in [job for job in self.jobs if job.lost]:
                console.say(f"taken over by another machine  {job.name}")
                self.jobs.remove(job)
            due = [job for job in self.jobs if job.retry_at <= time.monotonic()] or self._claim()
            if due:
                return self._group(due)
            if not self.jobs and not any(self.connection.reach(self.queue.count_open)):
                break
            self.connection.pause(_LOOK)
        return []

    def _group(self, due: list[Job]) -> list[Job]:
        """Return the first point and up to `--fuse` of the same program: those that are due and others that wait."""
        fuse, first = self.plan.fuse, due[0].point
        group = [job for job in due if job.point.spec.program_key == first.spec.program_key][:fuse]
        if fuse > 1:
            waiting, _ = self.connection.reach(self.queue.count_open)
            size = min(fuse, -(-(len(group) + waiting) // self.count)) if self.plan.grid else fuse
            fit = int(_FUSED_ON_CPU / (first.mult_adds * first.spec.config.train.batch_size))
            if not visible_gpus():
                size = min(size, fit if fit >= 4 else 1)
            while len(group) < size and (more := self._claim(first.spec.program_key)):
                if more[0].point.spec.program_key != first.spec.program_key:
                    break  # a drawn point, which waits in `self.jobs`
                group += more
        return group

    def _claim(self, program: Any = None) -> list[Job]:
        """Claim a point without a result, of this program if one is given; [] if none waits."""

        def fits(digest: str) -> bool:
            return program is None or digest not in grid or grid[digest].spec.program_key == program

        grid, draws = self.plan.grid, 0 if self.plan.grid else self.plan.sweep.run_cap or 0
        for digest in self.connection.reach(self.queue.requeue_dead, time.monotonic() >= self.connection.requeue_from):
            console.say(f"requeued  {grid[digest].spec.run_name if digest in grid else 'a point'}  (its worker died)")
        while not self.asked and (claim := self.connection.reach(self.queue.claim, fits, draws)) is not None:
            job = self._resolve(claim)
            if job and (summary := job.result()):
                self._finish(job, summary)
            elif job:
                return [job]
        return []

    def _resolve(self, claim: Claim) -> Job | None:
        """Return the claimed point as a job; None if it is a drawn point that cannot be trained."""
        point = self.plan.grid.get(claim.digest)
        if point is None:
            try:
                point = self.plan.draw(claim.values)
            except InputError as e:
                console.say(f"failed    {tables.assignment(claim.values)}: {e}")
                self.connection.reach(self.queue.fail, claim, str(e))
                return None
            if not self.plan.budget.holds(point.mult_adds):
                self.outside += 1
                enough = self.outside > DRAWS * (self.plan.sweep.run_cap or 1)
                self.connection.reach(self.queue.fail, claim, "outside the budget, like most draws" if enough else "")
                return None
            claim = self.connection.reach(self.queue.set_digest, claim, point.spec.digest)
        self.jobs.append(Job(claim, point, RunDirectory(self.plan.workdir / point.spec.run_name)))
        return self.jobs[-1]

    def _finish(self, job: Job, summary: Summary) -> None:
        self.connection.reach(self.queue.finish, job.claim, summary)
        self.jobs.remove(job)
        score = getattr(summary, self.plan.sweep.metric)
        figure = f"  {self.plan.sweep.metric} {score:.4f}" if score is not None else ""
        how = f"{job.elapsed():.1f} s" if job.figures else "(its run directory has the result)"
        console.say(f"{summary.status:<8}  {job.name}{figure}  {how}")

    def _fail(self, job: Job, error: str) -> None:
        self.connection.reach(self.queue.fail, job.claim, error)
        self.jobs.remove(job)
        console.say(f"failed    {job.name}: {error}")

    def _train(self, group: Sequence[Job]) -> None:
        """Train points until each has a result, has failed, or is claimed no longer.

        Raises:
          CannotTrain: this machine can train no point.
        """
        from mobilenet_jax.training import loop  # imports JAX

        with contextlib.ExitStack() as held:
            left = [job for job in group if self._lock(job, held)]
            try:
                if left:
                    self._run(left)
            except loop.Interrupted:
                pass
            except Exception as e:
                self._handle(e, left)
            finally:
                self.compiling, self.training = False, []
                self.stop.clear()  # `_beat` repeats a signal
        for job in left:
            if job in self.jobs and (summary := job.result()):
                self._finish(job, summary)

    def _lock(self, job: Job, held: contextlib.ExitStack) -> bool:
        """Lock the run directory until `held` ends; return whether the point has to be trained."""
        from mobilenet_jax.training import loop

        try:
            loop.finished(job.point.spec, job.record.path)  # raises if the directory holds another run
            held.enter_context(job.record.locked())
            summary = loop.finished(job.point.spec, job.record.path)
        except Busy:
            if not job.retry_at:
                console.say(f"waiting   {job.name}  (another process trains it)")
            job.retry_at = time.monotonic() + _BUSY
            return False
        except InputError as e:
            self._handle(e, [job])
            return False
        if summary:
            self._finish(job, summary)
        return not summary

    def _run(self, jobs: Sequence[Job]) -> None:
        """Compile and train the points, whose directories are locked."""
        from mobilenet_jax.training import loop
        from mobilenet_jax.training.compile import compile_runs
        from mobilenet_jax.training.run import TrainingRun

        self.compiling = True
        specs = [job.point.spec for job in jobs]
        try:
            inputs = loop.prepare(specs[0])
        except Exception as e:
            raise CannotTrain(_reason(e)) from e
        program, before = compile_runs(specs, inputs), host.compiled_before()
        if not before:
            host.restart_after_compiling(program.compile_seconds, self.asked)  # `run` finds its claims again
        os.environ.pop(host.COMPILED, None)  # the next program is another one
        share, device = (before + program.compile_seconds) / len(jobs), loop.device_name(inputs.devices)
        runs = [TrainingRun(j.point.spec, j.record, j, device, j.elapsed, share, len(jobs)) for j in jobs]
        self.compiling, self.training = False, [*jobs]
        loop.train(program, runs, self.stop)

    def _handle(self, error: Exception, jobs: Sequence[Job]) -> None:
        """Fail the point that cannot be trained; train the points of a fused program again, one at a time."""
        if isinstance(error, CannotTrain):
            raise error
        if is_unwritable(error):
            raise CannotTrain(_reason(error)) from error
        if len(jobs) == 1 and not jobs[0].result():
            self._fail(jobs[0], _reason(error))
        if len(jobs) > 1 or not isinstance(error, InputError):  # a bug may have left this process in any state
            host.restart(self.asked, ["--fuse=1"] if len(jobs) > 1 else [])


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    with contextlib.suppress(OSError):  # the log's disk may be full
        traceback.print_exception(error)
    return f"{type(error).__name__}: {first_line(error)}"
