"""The loop of a sweep: claim points, hand them to workers, record the results."""

import contextlib
import pathlib
import selectors
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.sweeps import processes, progress, tables
from mobilenet_jax.sweeps.connection import Connection
from mobilenet_jax.sweeps.database import Damaged, Unavailable
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.points import Budget, Point
from mobilenet_jax.sweeps.processes import Job, Worker
from mobilenet_jax.sweeps.queue import Claim, Queue

DEATHS = 5  # workers that may die while training a point; at the next one, the point fails
DRAWS = 100  # draws outside the budget per point of a search, after which the search gives up
_TICK = 0.5  # seconds between two rounds of the loop
_BUSY = 5.0  # seconds until a point that another process trains is tried again
# On a CPU, fusing pays where a step is many small operations (results/bench/cpu_fused.json: 1.09 times as fast with
# four runs of v1, alpha 0.25, at 32 images; 0.97 with two at 64), and costs where the maps no longer fit into the cache
# (0.8 with four at 128). This limits the mult-adds of a fused step; where fewer than four runs fit, none are fused.
_FUSED_ON_CPU = 5e8


class Coordinator:
    """One command's share of a sweep."""

    def __init__(
        self,
        sweep: Sweep,
        points: Mapping[str, Point],
        draw: Callable[[Mapping[str, Any]], Point],
        budget: Budget,
        workdir: pathlib.Path,
        queue: Queue,
        workers: Sequence[Worker],
        fuse: int,
        on_gpu: bool,
        signals: list[int],
    ):
        """See `supervisor.run`; `points` maps digest -> point of a grid, and `signals` grows as signals arrive."""
        self.sweep, self.points, self.draw, self.budget, self.workdir = sweep, points, draw, budget, workdir
        self.queue, self.workers, self.fuse, self.on_gpu, self.signals = queue, workers, fuse, on_gpu, signals
        self.selector = selectors.DefaultSelector()
        self.held: list[Job] = []  # claimed, and with no worker
        self.unwritable = ""  # why nothing can be trained here
        self.ratios: list[float] = []  # measured over estimated time, of points trained here
        self.listened = time.monotonic()
        self.stopping = self.announced = self.exhausted = False
        self.outside = 0  # drawn points outside the budget
        self.table = progress.LiveTable()
        self.connection = Connection(queue, self.table.line)

    def run(self) -> None:
        """Train until every point has a result, a signal arrives, or the disk is full.

        Raises:
          Unavailable: the database was silent for too long, or cannot be written, and nothing is left to train.
          Damaged: the database is damaged.
          InputError: a run directory cannot be written.
        """
        total = len(self.points) or self.sweep.run_cap
        cap = f"{total} points" if self.points else f"up to {total} points"
        workers = f"{len(self.workers)} worker" + "s" * (len(self.workers) > 1)
        self.table.line(
            f"sweep {self.sweep.name}: {cap}, {workers}, runs in {self.workdir}, database {self.queue.shown_url}"
        )
        try:
            while not self._over():
                answers = self.connection.attempt(self._synchronize, self._busy())
                self._stop_if_due()
                if not self.stopping:
                    answers &= self.connection.attempt(self._assign, self._busy())
                self._listen()
                self._show()
                idle = not (self._busy() or self.stopping or self.signals or self.unwritable)
                self.connection.check(answers, idle)
        finally:
            self._end_workers()
            self.table.close()
        if self.unwritable and not self.signals:
            raise InputError(self.unwritable)

    def _over(self) -> bool:
        if self.stopping:
            return len(self.signals) > 1 or not any(w.process for w in self.workers)
        return self.exhausted and not self._jobs() and self.connection.settled

    def _jobs(self) -> list[Job]:
        return [*self.held, *(job for w in self.workers for job in w.active)]

    def _busy(self) -> bool:
        return any(worker.busy for worker in self.workers)

    def _synchronize(self) -> None:
        self.connection.synchronize(self._jobs(), self._drop)

    def _drop(self, job: Job) -> None:
        """Leave a point to another machine, which claimed it because this one was silent for too long."""
        self.table.line(f"taken over by another machine  {job.point.spec.run_name}")
        self.held = [j for j in self.held if j is not job]
        for worker in self.workers:
            if job in worker.active:
                worker.jobs = [None if j is job else j for j in worker.jobs]
                worker.stop()  # a new process trains the rest of the group

    # Handing out.

    def _assign(self) -> None:
        idle = [w for w in self.workers if not w.busy and not w.stopping]
        for i, worker in enumerate(idle):
            group = self._next_group(len(idle) - i)
            if not group:
                return
            for job in group:
                job.started = time.monotonic()
            self._give(worker, group)

    def _give(self, worker: Worker, group: list[Job], compile_seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
        starting = worker.process is None
        worker.give(group, compile_seconds, wall_seconds)
        if starting:
            self.selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _next_group(self, idle: int) -> list[Job]:
        """Claim the points that one worker trains together; `idle` workers share the waiting points."""
        now = time.monotonic()
        waiting = sum(entry.state == "waiting" for entry in self.connection.entries)
        first = next((job for job in self.held if job.retry_at <= now), None)
        if first is not None:
            self.held.remove(first)
            if first.retry_at:
                return [first]
        elif not self.points or waiting:
            first = self._claim()
        else:
            self.exhausted = True
        if first is None:
            return []
        available = 1 + waiting if self.points else self.fuse
        size = min(self.fuse, -(-available // idle))
        if not self.on_gpu:
            fit = int(_FUSED_ON_CPU / (first.point.mult_adds * first.point.spec.config.train.batch_size))
            size = min(size, fit if fit >= 4 else 1)
        group, program = [first], first.point.spec.program_key
        try:
            while len(group) < size and (job := self._claim(program)) is not None:
                if job.point.spec.program_key != program:
                    self.held.append(job)  # a drawn point's program is known only now
                    break
                group.append(job)
        except Unavailable:
            self.held += group
            raise
        return group

    def _claim(self, program: Any = None) -> Job | None:
        """Claim a point without a result, of this program if one is given."""

        def fits(digest: str) -> bool:
            return program is None or digest not in self.points or self.points[digest].spec.program_key == program

        draws = 0 if self.points else self.sweep.run_cap or 0
        while not self.signals and time.monotonic() < self.connection.next_heartbeat:
            claim = self.queue.claim(fits, draws)
            self.exhausted = claim is None and program is None
            if claim is None:
                return None
            job = self._resolve(claim)
            if job is None:
                continue
            summary = self._read_summary(job)
            if summary is None:
                return job
            self._finish(job, summary)
        return None

    def _resolve(self, claim: Claim) -> Job | None:
        point = self.points.get(claim.digest)
        if point is None:
            try:
                point = self.draw(claim.values)
            except InputError as e:
                error = str(e)
                self._line("failed", f"{tables.assignment(claim.values)}: {error}")
                self.connection.update(lambda: self.queue.fail(claim, error))
                return None
            if not self.budget.holds(point.mult_adds):
                self.outside += 1
                given_up = self.outside > DRAWS * (self.sweep.run_cap or 1)
                reason = "outside the budget, like most draws" if given_up else ""
                self.connection.update(lambda: self.queue.fail(claim, reason))
                return None
            resolved = self.queue.set_digest(claim, point.spec.digest)
            if resolved is None:  # this machine slept, and another one has the point
                return None
            claim = resolved
        return Job(claim, point, self.workdir / point.spec.run_name)

    # Workers.

    def _listen(self) -> None:
        for key, _ in self.selector.select(_TICK):
            worker = key.data
            events, ended = worker.read()
            for event in events:
                self._handle(worker, event)
            if ended:
                self.selector.unregister(key.fd)
                self._restart(worker)
        now = time.monotonic()
        passed = min(now - self.listened, 2 * _TICK)  # while this process was paused, it heard no worker
        self.listened = now
        for worker in self.workers:
            worker.silence += passed
            if worker.process is not None and worker.silence > processes.MAX_SILENCE:
                seconds = f"{processes.MAX_SILENCE:.0f} s"
                self._line("killed", f"a worker that was silent for {seconds} (see {worker.log})")
                worker.process.kill()  # the end of its pipe reports it
                worker.silence = 0.0

    def _handle(self, worker: Worker, event: dict[str, Any]) -> None:
        kind, job = event["event"], worker.jobs[event["point"]] if "point" in event else None
        if kind == "idle":
            for left in worker.active:
                self._fail(left, f"its worker left it (see {worker.log})")
            worker.jobs, worker.busy = [], False
        elif kind == "restart":
            worker.compile_seconds = event["compile_seconds"]
        elif job is not None and kind == "row":
            job.row |= event["row"]
            value, epoch = event["row"].get(self.sweep.metric), event["row"].get("epoch")
            if value is not None and epoch is not None:
                self.connection.update(lambda: self.queue.report(job.claim, value, round(epoch)))
        elif job is not None:
            worker.jobs[event["point"]] = None
            if kind == "done":
                self._finish(job, summaries.parse(event["summary"]))
            elif kind == "unwritable":
                self.unwritable = event["error"]
                self._line("requeued", f"{job.point.spec.run_name}: {self.unwritable}")
                self.held.append(job)  # released at the end
            elif kind == "failed" and len(worker.jobs) > 1:
                job.retry_at = time.monotonic()  # alone: another point of the group may have caused the error
                self.held.append(job)
            elif kind == "failed":
                self._fail(job, f"{event['error']} (see {worker.log})")
            elif kind == "busy":
                if not job.retry_at:
                    self._line("waiting", f"{job.point.spec.run_name}  (another process trains it)")
                job.retry_at = time.monotonic() + _BUSY
                self.held.append(job)

    def _restart(self, worker: Worker) -> None:
        """Give the rest of the group of an ended process to a new process."""
        stopped, compile_seconds = worker.stopping, worker.compile_seconds
        code = worker.close()
        died = not stopped and not compile_seconds
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        group = []
        for job in worker.active:
            job.deaths += died
            if summary := self._read_summary(job):
                self._finish(job, summary)
            elif job.deaths > DEATHS:
                self._fail(job, f"{job.deaths} workers died while training it, the last {how} (see {worker.log})")
            else:
                group.append(job)
                if died:
                    self._line("requeued", f"{job.point.spec.run_name}  (its worker died, {how})")
        worker.jobs = [*group]
        if group and not self.stopping:
            wall_seconds = time.monotonic() - group[0].started if compile_seconds else 0.0
            self._give(worker, group, compile_seconds, wall_seconds)

    def _read_summary(self, job: Job) -> Summary | None:
        """Return the run's summary if there is a valid one; the point's worker reports a damaged one."""
        try:
            return directory.read_summary(job.directory)
        except InputError:
            return None

    def _finish(self, job: Job, summary: Summary) -> None:
        took = time.monotonic() - job.started
        if summary.wall_seconds and job.row:
            self.ratios.append(took / summary.fused / job.point.estimated_seconds)
        self.connection.update(lambda: self.queue.finish(job.claim, summary))
        score = getattr(summary, self.sweep.metric)
        figure = f"  {self.sweep.metric} {score:.4f}" if score is not None else ""
        how = f"{took:.1f} s" if job.row else "(its run directory has the result)"
        self._line(summary.status, f"{job.point.spec.run_name}{figure}  {how}")

    def _fail(self, job: Job, error: str) -> None:
        self.connection.update(lambda: self.queue.fail(job.claim, error))
        self._line("failed", f"{job.point.spec.run_name}: {error}")

    def _stop_if_due(self) -> None:
        """Have the workers save and end after a signal, or when one cannot write, as the others soon could not."""
        if self.signals and not self.announced:
            self.announced = True
            name = signal.Signals(self.signals[0]).name
            self.table.line(f"stopping ({name}): the workers save; a second signal kills them")
        if (self.signals or self.unwritable) and not self.stopping:
            self.stopping = True
            for worker in self.workers:
                worker.stop()

    def _end_workers(self) -> None:
        """End all processes and release all claims, also on the way out of an error."""
        for worker in self.workers:
            if worker.process is not None:
                if len(self.signals) > 1:
                    worker.process.kill()
                worker.close()
        for job in self._jobs():
            self.connection.update(lambda claim=job.claim: self.queue.release(claim))
        for worker in self.workers:
            worker.jobs = []
        self.held = []
        with contextlib.suppress(Unavailable, Damaged):
            self._synchronize()
            self.connection.entries = self.queue.entries()

    def _line(self, state: str, text: str) -> None:
        self.table.line(f"{state:<8}  {text}")

    def _show(self) -> None:
        entries, jobs = self.connection.entries, [job for worker in self.workers for job in worker.active]
        rows = [*progress.statuses(entries, self.points, jobs, self.sweep.metric)]
        eta = None
        if self.points:
            eta = progress.seconds_left(entries, self.points, self._jobs(), self.ratios, len(self.workers))
        self.table.show(rows, eta)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
