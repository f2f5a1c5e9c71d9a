"""The points of a sweep -> runs: a few processes that train, one after another or several together, until all are done.

This process only hands out points and keeps the books; it knows neither JAX nor a run's insides. A worker that dies is
started again and goes on with its points from their last checkpoints.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import platform
import selectors
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory as writer
from mobilenet_jax.render.tables import cell
from mobilenet_jax.sweeps import processes as crew
from mobilenet_jax.sweeps import queue as ledger
from mobilenet_jax.sweeps import tables as listing
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.points import Point
from mobilenet_jax.sweeps.processes import Job, Worker
from mobilenet_jax.sweeps.progress import Board, Line

DEATHS = 5  # of workers, over which a point has failed
DRAWS = 100  # for each point of a search within the budget
PATIENCE = 600.0  # seconds for which a database may not answer while nothing is trained
_TICK = 0.5  # seconds between two looks at everything
_BUSY = 5.0  # seconds until a point that another process is on is tried again
# On a CPU, runs side by side gain where a step is little work for its many operations (results/bench/cpu_fused.json:
# 1.09 times with four runs of v1, alpha 0.25, at 32 images; 0.97 with two at 64), and lose where their maps push each
# other out of the cache (0.8 with four at 128). So many mult-adds of a step in all, and only where four runs fit.
_FUSED_ON_CPU = 5e8


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds of a point's mult-adds."""

    low: int | None = None
    high: int | None = None

    def holds(self, mult_adds: int) -> bool:
        return (self.low is None or mult_adds >= self.low) and (self.high is None or mult_adds <= self.high)


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
    """Trains every point of a sweep that is not done yet, together with all who have opened the same one.

    Args:
      sweep: what was read.
      points: of a grid, all; of a search, its corners.
      draw: resolves one point of a search.
      budget: that drawn points keep to.
      workdir: holds the run directories.
      storage: URL of the database; '' is SQLite in `workdir`.
      workers: processes that train; 0 is one for each GPU, or one.
      fuse: up to so many points are trained as one program.

    Returns:
      The exit code: 0 once every point has a result, 1 where some failed, 128 + its number where a signal came.

    Raises:
      InputError: the database or the directory cannot be used, or a result in it is damaged, and nothing was started;
        or the database was damaged or gone meanwhile, or the disk is full, and the workers have saved.
    """
    grid_points = {point.digest: point for point in points} if sweep.method == "grid" else {}
    url = storage or f"sqlite:///{workdir / 'sweeps.db'}"
    if not storage:  # else nothing is made before the database is known to answer
        _make_directories(workdir)
    book = ledger.Ledger(url, _name(sweep, points, budget), _parameters(sweep), sweep.metric, sweep.goal, sweep.method)
    try:
        if not grid_points:
            book.retry()
        else:
            book.enqueue({digest: _varied(sweep, grid_points[digest]) for digest in _order(points, fuse)})
        book.reopen(_lost_results(book, lambda entry: grid_points.get(entry.digest) or draw(entry.values), workdir))
        _make_directories(workdir)
    except ledger.Lost as e:
        raise _lost(book, e, "does not answer") from None
    except ledger.Damaged as e:
        raise _damaged(book, e) from None
    with console.signals(again=True) as asked:
        try:
            return _Coordinator(sweep, grid_points, draw, budget, workdir, book, workers, fuse, asked).run()
        except ledger.Damaged as e:
            raise _damaged(book, e) from None
        except ledger.Lost as e:
            raise _lost(book, e, f"has not answered for {PATIENCE / 60:.0f} minutes") from None


def _make_directories(workdir: pathlib.Path) -> None:
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"--workdir={workdir}: cannot be written ({e.strerror})") from None


def _lost_results(
    book: ledger.Ledger, point_of: Callable[[ledger.Entry], Point], workdir: pathlib.Path
) -> dict[str, Mapping[str, Any]]:
    """Points, `{digest: values}`, that are done by the books, and here but for their summary: it is made anew.

    Raises:
      InputError: a summary, or what it was written over, is damaged.
    """
    lost = {}
    for entry in book.entries():
        if entry.summary:
            point = point_of(entry)
            directory = workdir / point.run_name
            last = directory / "checkpoints" / str(point.spec.total_steps)
            if writer.read_summary(directory) is None and last.exists():  # else it was trained elsewhere
                lost[entry.digest] = entry.values
    return lost


def _lost(book: ledger.Ledger, error: ledger.Lost, how: str) -> InputError:
    how, can = ("cannot be written", "can") if isinstance(error, ledger.Unwritable) else (how, "does")
    return InputError(f"--storage={book.shown_url}: {how} ({error}); once it {can}, the same command goes on")


def _damaged(book: ledger.Ledger, error: ledger.Damaged) -> InputError:
    return InputError(f"--storage={book.shown_url}: is damaged ({error}); {book.remedy}")


def _name(sweep, points, budget):
    """The same file with the same base config and budget is the same sweep, on every machine."""
    of = [sweep.method, sweep.metric, sweep.goal, repr(sweep.parameters), sorted(p.digest for p in points)]
    of += [] if sweep.method == "grid" else [repr(budget)]
    return f"{sweep.name}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:8]}"


def _varied(sweep, point):
    return {p.key: point.assignment[p.key] for p in sweep.parameters if p.varies}


def _parameters(sweep):
    made = []
    for p in (p for p in sweep.parameters if p.varies):
        if p.kind == "values":
            made.append(ledger.categorical(p.key, p.values))
        elif p.kind == "int":
            made.append(ledger.integer(p.key, int(p.low), int(p.high), int(p.step or 1)))
        else:
            made.append(ledger.real(p.key, p.low, p.high, p.step, p.log))
    return made


def _order(points, fuse):
    """One point of each program first, so that two workers do not compile the same; or those to fuse side by side."""
    seen: dict[Any, int] = {}
    ranks = []
    for point in points:
        nth = seen[point.program] = seen.get(point.program, -1) + 1
        ranks.append((list(seen).index(point.program), nth) if fuse > 1 else (nth, list(seen).index(point.program)))
    return [point.digest for _, point in sorted(zip(ranks, points, strict=True), key=lambda pair: pair[0])]


class _Coordinator:
    """One command's share of a sweep."""

    def __init__(self, sweep, points, draw, budget, workdir, book, workers, fuse, asked):
        self.sweep, self.points, self.draw, self.budget, self.workdir = sweep, points, draw, budget, workdir
        self.book, self.fuse, self.asked = book, fuse, asked
        self.devices = crew.gpus()
        count = workers or len(self.devices) or 1
        log = workdir / "logs" / f"{book.name}-{platform.node()}"
        self.workers = [Worker(i, count, self.devices, pathlib.Path(f"{log}-{i}.log")) for i in range(count)]
        self.selector = selectors.DefaultSelector()
        self.held: list[Job] = []  # claimed, for no worker yet
        self.outbox: list[Callable[[], None]] = []  # what the database has yet to be told
        self.lost: ledger.Lost | None = None  # why the database does not answer
        self.idle_from = time.monotonic()  # since when it does not, and no worker has anything to do
        self.unwritable = ""  # why nothing can be trained here
        self.ratios: list[float] = []  # of the time that points took to the estimate
        self.entries: list[ledger.Entry] = []
        self.next_beat = self.next_look = 0.0
        self.listened = time.monotonic()
        self.reap_from = time.monotonic() + 2 * ledger.HEARTBEAT
        self.stopping = self.heard = self.exhausted = False
        self.open = 1  # trials waiting or running, here and elsewhere
        self.outside = 0  # points drawn that the budget does not hold
        self.board = Board()

    def run(self) -> int:
        total = len(self.points) or self.sweep.run_cap
        cap = f"{total} points" if self.points else f"up to {total} points"
        shares = f"{len(self.workers)} worker" + "s" * (len(self.workers) > 1)
        self.board.line(
            f"sweep {self.sweep.name}: {cap}, {shares}, runs in {self.workdir}, database {self.book.shown_url}"
        )
        try:
            while not self._over():
                answers = self._attempt(self._keep_books)
                self._stop_if_due()
                if not self.stopping:
                    answers &= self._attempt(self._assign)
                self._listen()
                self._show()
                self._wait_for_database(answers)
        finally:
            self._end_workers()
            self.board.close()
        if self.unwritable and not self.asked:
            raise InputError(self.unwritable)
        return self._conclude()

    def _over(self) -> bool:
        if self.stopping:
            return len(self.asked) > 1 or not any(w.process for w in self.workers)
        return self.exhausted and not (self._jobs() or self.outbox or self.open or self.lost)

    # The database.

    def _attempt(self, what: Callable[[], Any]) -> bool:
        """Whether it could be done; what the database cannot be told or asked now is tried again at the next tick."""
        try:
            what()
        except ledger.Lost as e:
            if not self.lost:
                how = "cannot be written" if isinstance(e, ledger.Unwritable) else "does not answer"
                meanwhile = ", training goes on" if self._busy() else ""
                self.board.line(f"the database {how}{meanwhile} ({e})")
            self.lost = e
            # Others could not send their heartbeats either: they first have the time to.
            self.reap_from = time.monotonic() + 2 * ledger.HEARTBEAT
            return False
        return True

    def _wait_for_database(self, answers: bool) -> None:
        """Raises ledger.Lost where nothing is to be done without it, and it is full, or has been silent for long."""
        now = time.monotonic()
        if answers:
            self.lost = None
        if not self.lost or self._busy() or self.stopping or self.asked or self.unwritable:
            self.idle_from = now
        elif isinstance(self.lost, ledger.Unwritable) or now - self.idle_from > PATIENCE:
            raise self.lost

    def _busy(self) -> bool:
        return any(worker.busy for worker in self.workers)

    def _keep_books(self) -> None:
        now = time.monotonic()
        if now >= self.next_beat:
            jobs = self._jobs()
            lost = self.book.beat([job.claim for job in jobs])
            for job in jobs:
                if job.claim in lost:
                    self._drop(job)
            self.book.reap(stale=now >= self.reap_from)
            self.next_beat = now + ledger.HEARTBEAT
        while self.outbox:
            self.outbox[0]()
            self.outbox.pop(0)
        if now >= self.next_look or self.lost:
            self.entries, self.open = self.book.entries(), self.book.open()
            self.next_look = now + (1.0 if self._jobs() else 2.0)

    def _tell(self, what: Callable[[], None]) -> None:
        self.outbox.append(what)
        self.next_look = min(self.next_look, time.monotonic())

    def _drop(self, job: Job) -> None:
        """Another machine has taken the point: this one was silent for too long."""
        self.board.line(f"taken over by another machine  {job.point.run_name}")
        self.held = [j for j in self.held if j is not job]
        for worker in self.workers:
            if job in worker.active:
                worker.jobs = [None if j is job else j for j in worker.jobs]
                worker.stop()  # the rest of its group goes on in a new process

    # Handing out.

    def _jobs(self) -> list[Job]:
        return [*self.held, *(job for w in self.workers for job in w.active)]

    def _assign(self) -> None:
        idle = [w for w in self.workers if not w.busy and not w.stopped]
        for i, worker in enumerate(idle):
            group = self._group(len(idle) - i)
            if not group:
                return
            for job in group:
                job.started = time.monotonic()
            starting = worker.process is None
            worker.give(group)
            if starting:
                self.selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _group(self, idle: int) -> list[Job]:
        """The next points that one worker trains together; `idle` workers share what is waiting."""
        now = time.monotonic()
        first = next((job for job in self.held if job.again <= now), None)
        if first is not None:
            self.held.remove(first)
            if first.again:
                return [first]
        elif not self.points or any(entry.state == "waiting" for entry in self.entries):
            first = self._claim()
        else:
            self.exhausted = True
        if first is None:
            return []
        waiting = 1 + sum(entry.state == "waiting" for entry in self.entries) if self.points else self.fuse
        size = min(self.fuse, -(-waiting // idle))
        if not self.devices:
            step = first.point.mult_adds * first.point.spec.config.train.batch_size
            fit = int(_FUSED_ON_CPU / step)
            size = min(size, fit if fit >= 4 else 1)
        group = [first]
        try:
            while len(group) < size and (job := self._claim(first.point.program)) is not None:
                if job.point.program != first.point.program:
                    self.held.append(job)  # drawn, so not known before
                    break
                group.append(job)
        except ledger.Lost:
            self.held += group
            raise
        return group

    def _claim(self, program: Any = None) -> Job | None:
        """A point that has no result yet."""

        def fits(digest):
            return program is None or digest not in self.points or self.points[digest].program == program

        draws = 0 if self.points else self.sweep.run_cap or 0
        while not self.asked and time.monotonic() < self.next_beat:
            claim = self.book.claim(fits, draws)
            self.exhausted = claim is None and program is None
            if claim is None:
                return None
            job = self._resolve(claim)
            if job is None:
                continue
            summary = self._summary(job)
            if summary is None:
                return job
            self._done(job, summary)
        return None

    def _resolve(self, claim: ledger.Claim) -> Job | None:
        point = self.points.get(claim.digest)
        if point is None:
            try:
                point = self.draw(claim.values)
            except InputError as e:
                error = str(e)
                self.board.line(f"failed  {_show(claim.values)}: {error}")
                self._tell(lambda: self.book.fail(claim, error))
                return None
            if not self.budget.holds(point.mult_adds):
                self.outside += 1
                if self.outside > DRAWS * (self.sweep.run_cap or 1):
                    self._tell(lambda: self.book.fail(claim, "outside of the budget, as nearly all that is drawn"))
                else:
                    self._tell(lambda: self.book.reject(claim))
                return None
            resolved = self.book.resolved(claim, point.digest)
            if resolved is None:
                return None  # this machine slept, and another has it
            claim = resolved
        return Job(claim, point, self.workdir / point.run_name)

    # Workers.

    def _listen(self) -> None:
        for key, _ in self.selector.select(_TICK):
            worker = key.data
            events, ended = worker.read()
            for event in events:
                self._handle(worker, event)
            if ended:
                self.selector.unregister(key.fd)
                self._ended(worker)
        now = time.monotonic()
        passed, self.listened = min(now - self.listened, 2 * _TICK), now  # of a pause of this process, none heard
        for worker in self.workers:
            worker.silent += passed
            if worker.process is not None and worker.silent > crew.SILENT:
                self.board.line(f"killed  a worker that stood still for {crew.SILENT:.0f} s (see {worker.log})")
                worker.process.kill()  # its end is heard of, as that of any other
                worker.silent = 0.0

    def _handle(self, worker: Worker, event: dict[str, Any]) -> None:
        if event["event"] == "idle":
            for job in worker.active:
                self._failed(job, f"its worker left it (see {worker.log})")
            worker.jobs, worker.busy = [], False
            return
        kind, job = event["event"], worker.jobs[event["point"]] if "point" in event else None
        if kind == "anew":
            worker.anew = event["compile_seconds"]
        elif job is not None and kind == "row":
            job.row |= event["row"]
            value, epoch = event["row"].get(self.sweep.metric), event["row"].get("epoch")
            if value is not None and epoch is not None:
                self._tell(lambda: self.book.report(job.claim, value, round(epoch)))
        elif job is not None:
            worker.jobs[event["point"]] = None
            if kind == "done":
                self._done(job, event["summary"])
            elif kind == "unwritable":
                self.unwritable = event["error"]
                self.board.line(f"left    {job.point.run_name}: {self.unwritable}")
                self.held.append(job)  # given back at the end
            elif kind == "failed" and len(worker.jobs) > 1:
                job.again = time.monotonic()  # alone: the fault may be another's
                self.held.append(job)
            elif kind == "failed":
                self._failed(job, f"{event['error']} (see {worker.log})")
            elif kind == "busy":
                if not job.again:
                    self.board.line(f"waits   {job.point.run_name}  (another process is on it)")
                job.again = time.monotonic() + _BUSY
                self.held.append(job)

    def _ended(self, worker: Worker) -> None:
        """A worker's process is over: asked to stop, for a fresh one, or dead."""
        asked, compile_seconds = worker.stopped, worker.anew
        code = worker.ended()
        for i, job in enumerate(worker.jobs):
            if job is not None and (summary := self._summary(job)):
                worker.jobs[i] = None
                self._done(job, summary)
        if not asked and not compile_seconds:
            how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
            for i, job in enumerate(worker.jobs):
                if job is not None:
                    job.deaths += 1
                    if job.deaths > DEATHS:
                        worker.jobs[i] = None
                        self._failed(job, f"{job.deaths} workers died over it, the last {how} (see {worker.log})")
                    else:
                        self.board.line(f"again   {job.point.run_name}  (its worker died, {how})")
        if worker.active and not self.stopping:
            worker.send(compile_seconds, time.monotonic() - worker.active[0].started if compile_seconds else 0.0)
            self.selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _summary(self, job: Job) -> dict[str, Any] | None:
        """The run's summary, if it is one; whatever else stands there, the worker that gets the point speaks of."""
        try:
            return writer.read_summary(job.directory)
        except InputError:
            return None

    def _done(self, job: Job, summary: dict[str, Any]) -> None:
        took = time.monotonic() - job.started
        if summary["wall_seconds"] and job.row:
            self.ratios.append(took / summary.get("fused", 1) / job.point.estimated_seconds)
        self._tell(lambda: self.book.finish(job.claim, summary))
        score = summary.get(self.sweep.metric)
        figure = f"{self.sweep.metric} {score:.4f}" if score is not None else summary["status"]
        self.board.line(
            f"done    {job.point.run_name}  {figure}" + (f"  {took:.1f} s" if job.row else "  (it was already)")
        )

    def _failed(self, job: Job, error: str) -> None:
        self._tell(lambda: self.book.fail(job.claim, error))
        self.board.line(f"failed  {job.point.run_name}: {error}")

    def _stop_if_due(self) -> None:
        """Has the workers save and end after a signal, or where one cannot write; later ones could not either."""
        if self.asked and not self.heard:
            self.heard = True
            name = signal.Signals(self.asked[0]).name
            self.board.line(f"stopping ({name}): the workers save; once more to kill them")
        if (self.asked or self.unwritable) and not self.stopping:
            self.stopping = True
            for worker in self.workers:
                worker.stop()

    def _end_workers(self) -> None:
        """At the end, or on the way out of an error: nobody trains on, and no claim is left behind."""
        for worker in self.workers:
            if worker.process is not None:
                if len(self.asked) > 1:
                    worker.process.kill()
                worker.ended()
        for job in self._jobs():
            self._tell(lambda claim=job.claim: self.book.give_back(claim))
        for worker in self.workers:
            worker.jobs = []
        self.held = []
        with contextlib.suppress(ledger.Lost, ledger.Damaged):
            self._keep_books()
            self.entries = self.book.entries()

    # Showing.

    def _show(self) -> None:
        running = {job.point.digest: job for w in self.workers for job in w.active}
        lines = []
        for entry in self.entries:
            job = running.get(entry.digest)
            row = job.row if job else entry.summary or {}
            known = self.points.get(entry.digest) or (job and job.point)
            accuracy = row.get(self.sweep.metric, row.get("train_accuracy"))
            left = ""
            if job and row.get("step") and row.get("steps"):
                left = f"{row['step'] / row['steps']:.0%}"
            lines.append(Line(entry.state, known.run_name if known else str(entry.values), accuracy, left, entry.host))
        self.board.show(lines, self._eta())

    def _eta(self) -> float | None:
        """Seconds until all is done, from the estimate, corrected by how long points took here."""
        if not self.points:
            return None
        waiting = [self.points[e.digest].estimated_seconds for e in self.entries if e.state == "waiting"]
        going = [
            job.point.estimated_seconds * (1 - job.row.get("step", 0) / (job.row.get("steps") or 1))
            for job in self._jobs()
        ]
        ratio = statistics.median(self.ratios) if self.ratios else 1.0
        return ratio * (sum(waiting) + sum(going)) / len(self.workers)

    def _conclude(self) -> int:
        """The table of all points, wherever they were trained, and where everything is."""
        failed = [entry for entry in self.entries if entry.state == "failed"]
        order = {digest: i for i, digest in enumerate(self.points)}
        console.say(listing.results(self.sweep, sorted(self.entries, key=lambda entry: order.get(entry.digest, 0))))
        done = sum(entry.state in ("done", "diverged") for entry in self.entries)
        console.say(f"\n{done} of {len(self.points) or len(self.entries)} points have a result; {len(failed)} failed")
        for entry in failed:
            console.say(f"failed  {_show(entry.values)}: {entry.error}")
        console.say(f"runs      {self.workdir}  (python -m mobilenet_jax.report {self.workdir})")
        console.say(f"database  {self.book.shown_url}")
        if self.stopping:
            console.say(f"stopped by {signal.Signals(self.asked[0]).name}; the same command resumes")
            return 128 + self.asked[0]
        return 1 if failed else 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _show(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={cell(value)}" for key, value in values.items())
