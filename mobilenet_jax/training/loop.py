"""Train runs from their newest checkpoints to their summaries."""

import collections
import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from mobilenet_jax import config, console
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays, crops, images
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory as directories
from mobilenet_jax.records.directory import RunDirectory
from mobilenet_jax.training import evaluate, host, wandb_logger
from mobilenet_jax.training.compile import Inputs, Program, compile_runs
from mobilenet_jax.training.devices import choose_devices, device_name, find_devices
from mobilenet_jax.training.progress import Display
from mobilenet_jax.training.run import TrainingRun, logger_of

_IN_FLIGHT = 2  # calls that the host may be ahead: the device stays busy, and a signal acts within three calls
_STREAMED_IN_FLIGHT = 1  # steps of a streamed set: each holds a batch and, on a CPU, memory of its own
_FETCHED = 64  # steps of a streamed set whose metrics are fetched together; each fetch makes the host wait
_FETCH_SECONDS = 1.0  # or as many as take so long
_POLL_SECONDS = 0.005  # while the host waits for a batch


class Interrupted(Exception):
    """A signal asked the runs to stop. Their checkpoints are written."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def run(spec: RunSpec, directory: pathlib.Path) -> int:
    """Train the run that `spec` describes in `directory`, resume it, or report that it is finished.

    Returns:
      The exit code: 0 when the result is recorded (a diverged loss is a result), 128 + the number of a signal.

    Raises:
      InputError: the run cannot start, and nothing was written; or its files cannot be written, and the same command
        resumes from the last checkpoint.
    """
    if summary := config.finished(spec, directory):
        if wandb_logger.under_agent():  # the agent has started a W&B run for it
            logger = logger_of(spec, RunDirectory(directory))
            logger.start()
            logger.finish(summary.model_dump())
        return _report(directory, "already ")
    inputs = prepare(spec)
    record = RunDirectory(directory)
    with record.locked(), console.signals() as asked:
        if config.finished(spec, directory):  # the process that held the lock a moment ago finished the run
            return _report(directory, "already ")
        if not host.compiled_before():  # else this process printed these lines before it restarted
            sums = spec.totals
            console.say(f"{spec.title}\nmult-adds      {sums.mult_adds:,}\nparams         {sums.params:,}")
            if spec.weights:
                classifier = "its" if spec.same_classes else "a new"
                console.say(f"starts from    {spec.weights}, with {classifier} classifier")
            console.say(f"run            {directory}")
        try:
            program, runs = compile_all([Start(spec, record, Display(), host.process_seconds)], inputs, asked)
            train(program, runs, asked)
        except Interrupted as e:
            console.say(f"stopped by {e}; the same command resumes")
            return e.exit_code
    return _report(directory, "")


def prepare(spec: RunSpec) -> Inputs:
    """Choose devices and load the data set, preparing it first if needed; raise InputError if that is impossible."""
    devices, data = choose_devices(spec, find_devices()), spec.config.data
    if not spec.dataset.streamed:
        return Inputs(arrays.load(spec.dataset, data.dir, data.archive), devices)
    if data.archive:
        raise InputError(f"config.data.archive={data.archive!r}: can be given for 'cifar10' only")
    crops.check_installed()
    return Inputs(images.load(spec.dataset, data.dir), devices)


class Start(NamedTuple):
    """A run to start: its directory, which is locked, its display, and a function that returns its wall time so far."""

    spec: RunSpec
    record: RunDirectory
    display: Display
    elapsed: Callable[[], float]


def compile_all(
    runs: Sequence[Start], inputs: Inputs, asked: Sequence[int], before_restart: Callable[[], object] = lambda: None
) -> tuple[Program, list[TrainingRun]]:
    """Compile runs of one program; return what `train` takes.

    Before a long training, a long compilation ends in a restart of this process, which then has to come here again.
    """
    before, program = host.compiled_before(), compile_runs([run.spec for run in runs], inputs)
    one_image = runs[0].spec.totals.mult_adds
    images = sum(run.spec.total_steps * run.spec.config.train.batch_size for run in runs)
    host.restart_after_compiling(program.compile_seconds, asked, before_restart, one_image * images)
    os.environ.pop(host.COMPILED, None)  # the next program of this process is another one
    share, name = (before + program.compile_seconds) / len(runs), device_name(inputs.devices)
    return program, [TrainingRun(*run[:3], program.layout, name, run.elapsed, share, len(runs)) for run in runs]


def train(program: Program, runs: Sequence[TrainingRun], asked: list[int]) -> None:
    """Train the runs that `program` was compiled for to their ends, each with its directory locked.

    Raises:
      Interrupted: a signal came.
      InputError: files of the runs cannot be written, or another version wrote them.
    """

    def close(run: TrainingRun) -> None:
        with contextlib.suppress(InputError):  # during error handling, a second error must not hide the first
            run.close()

    with contextlib.ExitStack() as opened:
        if program.streamed:
            opened.callback(program.streamed.close)
        for each in runs:
            each.open()
            opened.callback(close, each)
        _Loop(program, runs, asked).train()


def _report(directory: pathlib.Path, prefix: str) -> int:
    """Print the result of the finished run in `directory`; return 0."""
    summary = directories.read_summary(directory)
    if summary is None:
        raise InputError(f"{directory}: the run has finished, but its summary is gone; the same command starts again")
    lines = [f"{prefix}{summary.status}: {summary.title}"]
    if summary.status == "finished":
        lines.append(f"test accuracy  {summary.test_accuracy:.4f}  (epoch {summary.epochs}, seed {summary.seed})")
    lines += [
        f"mult-adds      {summary.mult_adds:,}",
        f"params         {summary.params:,}",
        f"training       {summary.train_images_per_second:,.0f} images/s on {summary.device}",
        f"time           {summary.wall_seconds:.1f} s, {summary.compile_seconds:.1f} s of it compiling",
        f"run            {directory}",
    ]
    console.say("\n".join(lines))
    return 0


class _Loop:
    """Takes the runs of one program from step to step, each run at a step of its own.

    A run that is over keeps its place in the program; what the program computes there is ignored.
    """

    def __init__(self, program: Program, runs: Sequence[TrainingRun], asked: list[int]):
        self.runs, self.program, self.asked = runs, program, asked
        states = [run.restore(state) for run, state in zip(runs, program.states, strict=True)]
        self.state = program.join(states)
        program.states = []  # the state is donated from step to step: nothing else may hold its memory
        self.in_flight: collections.deque[Any] = collections.deque()  # metrics of started calls
        self.epochs: list[int] = []  # of the runs, whose batches are in `order`
        self.order: Any = None
        self.stream = program.streamed and program.streamed.training(runs[0].step)
        self.fetched_at = 0.0
        for run in runs:
            spec, display = run.spec, run.display
            if run.resumed_from:
                display.line(f"resumed        from step {run.step:,} of {spec.total_steps:,}")
            display.begin(spec.total_steps, run.step, spec.steps_per_epoch, spec.config.train.batch_size)
            display.line(f"compiled       in {run.compile_seconds:.1f} s for {run.device}")

    def train(self) -> None:
        """Train every run to its end and write its summary."""
        try:
            self._finish_epochs()  # an earlier signal may have come between an epoch's last step and its evaluation
            while self._active:
                self._steps()
                self._finish_epochs()
        except Interrupted:
            for run in self.runs:
                run.close()  # raises if the checkpoint that the signal asked for cannot be written
            raise

    @property
    def _active(self) -> list[TrainingRun]:
        return [run for run in self.runs if not run.status]

    def _steps(self) -> None:
        """Take the steps of one call, the longest that fits into the epochs; save the runs that are due."""
        per_epoch, active = self.runs[0].spec.steps_per_epoch, self._active
        left = min(per_epoch - run.step % per_epoch for run in active)
        steps = max((n for n in self.program.lengths if n <= left), default=1)
        with self._timed("compile"):
            call = self.program.call(steps)
        with self._timed("train"):
            given = self._pictures(self.stream) if self.stream else self._order()
            self.state, metrics = call(self.state, given, self.program.hyper)
            for run in active:
                run.step += steps
            self.in_flight.append(metrics)
            due = [run for run in active if run.save_due and not run.at_epoch_end]
            if due or any(run.at_epoch_end for run in active):
                self._fetch(0)
            else:
                self._keep_pace()
        self._stop_if_asked()
        self._save(due)

    def _keep_pace(self) -> None:
        """Wait until the device is at most a few calls behind, and fetch metrics: those of a stream now and then."""
        seconds = time.monotonic() - self.fetched_at
        if not self.stream or len(self.in_flight) >= _FETCHED or seconds > _FETCH_SECONDS:
            self._fetch(_IN_FLIGHT)
        if self.stream and len(self.in_flight) > _STREAMED_IN_FLIGHT:  # not fetched, but waited for
            self.in_flight[-1 - _STREAMED_IN_FLIGHT].block_until_ready()

    def _order(self) -> tuple[jax.Array, ...]:
        """Return the runs' batches of this epoch on the devices."""
        if self.epochs != (epochs := [run.epoch for run in self.runs]):
            self.epochs = epochs
            self.order = self.program.order([run.order(self.program.sizes["train"]) for run in self.runs])
        return self.order

    def _pictures(self, stream: images.Stream) -> tuple[jax.Array, ...]:
        """Return the next batch on the devices, and count the time for which they have nothing else to do."""
        started = time.perf_counter()
        while not stream.ready(_POLL_SECONDS):
            if self.in_flight and not self.in_flight[-1].is_ready():
                started = time.perf_counter()
        batch = next(stream)
        self.runs[0].seconds["input"] += time.perf_counter() - started
        return self.program.pictures(batch)

    def _fetch(self, allowed: int) -> None:
        """Fetch the metrics of all but the last `allowed` calls; end runs whose loss is not finite."""
        self.fetched_at = time.monotonic()
        for fetched in jax.device_get([self.in_flight.popleft() for _ in range(len(self.in_flight) - allowed)]):
            metrics = self.program.split(fetched)
            for run, found in zip(self.runs, metrics, strict=True):
                if run.status:
                    continue
                if not run.add(found):
                    self._diverged(run)
                elif not run.first_step_seconds:
                    run.first_step_seconds = run.elapsed()
                    run.display.line(f"first step     {run.first_step_seconds:.1f} s after the start")

    def _diverged(self, run: TrainingRun) -> None:
        run.step = run.display.step + 1  # the steps before it had a finite loss
        run.log({"train_loss": float("nan"), "learning_rate": run.metrics["learning_rate"]})
        run.display.line(f"diverged: the loss of step {run.step:,} is not finite")
        run.finish("diverged")

    def _finish_epochs(self) -> None:
        """Evaluate the runs that are at the end of an epoch, log their rows, save, and finish those at their end."""
        due = [run for run in self._active if run.epoch_due]
        splits = dict.fromkeys(split for run in due for split in run.splits_due)
        with self._timed("eval"):
            vectors, stop = self.state.evaluated, self._stop_if_asked
            found = {split: evaluate.evaluate(self.program, vectors, split, stop) for split in splits}
        for run in due:
            self._log_epoch(run, {split: found[split][self.runs.index(run)] for split in run.splits_due})
        self._save([run for run in due if run.save_due or run.at_end])
        ended = [run for run in self._active if run.at_end]  # also one that was killed before its summary was written
        if ended:
            for run, state in zip(self.runs, self.program.split(self.state), strict=True):
                if run in ended:
                    run.finish("finished", state)

    def _log_epoch(self, run: TrainingRun, evaluated: dict[str, dict[str, float]]) -> None:
        """Log an epoch's row and print its line; `evaluated` holds the figures of each split."""
        spec, epochs, rate = run.spec, run.spec.config.train.epochs, run.images_per_second
        row: dict[str, float] = {}
        text = f"epoch {run.step // spec.steps_per_epoch:>{len(str(epochs))}}/{epochs}"
        means = dict(zip(("loss", "accuracy"), run.means, strict=True))
        for split, figures in {"train": means, **evaluated}.items():
            row |= {f"{split}_{name}": value for name, value in figures.items()}
            text += f"  {split} " + " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        run.log(row | {"learning_rate": run.metrics["learning_rate"], "images_per_second": rate})
        left = (spec.total_steps - run.step) * spec.config.train.batch_size * run.fused / rate
        run.display.line(f"{text}  {rate:,.0f} images/s" + ("" if run.at_end else f"  ETA {console.clock(left)}"))

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Share the time among the active runs, so that the sum over all of them is the machine's."""
        started, active = time.perf_counter(), self._active
        try:
            yield
        finally:
            for run in active:
                run.seconds[what] += (time.perf_counter() - started) / len(active)

    def _stop_if_asked(self) -> None:
        if self.asked and self._active:
            self._save(self._active)
            raise Interrupted(self.asked[0])

    def _save(self, runs: Sequence[TrainingRun]) -> None:
        if self.program.streamed:
            self.runs[0].undecodable |= self.program.streamed.undecodable
        if any(run.saved != run.step for run in runs):
            self._fetch(0)  # a checkpoint's metrics are of the same step as its state
            for run, state in zip(self.runs, self.program.split(self.state), strict=True):
                if run in runs and not run.status:
                    run.save(state)
