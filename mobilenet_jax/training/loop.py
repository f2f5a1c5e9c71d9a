"""The loop: runs from their newest checkpoint to their summary."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mobilenet_jax import config, console
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays as data
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import cost
from mobilenet_jax.records import directory as writer
from mobilenet_jax.training import compile as program
from mobilenet_jax.training import host, wandb_logger
from mobilenet_jax.training.run import SUMS, Member, track

_IN_FLIGHT = 2  # steps that the host may be ahead: the device stays busy, and a signal is answered at once


class Interrupted(Exception):
    """A signal asked the runs to stop; their checkpoints are written."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclasses.dataclass(frozen=True)
class Spent:
    """Seconds that went into the runs before `train` is called: since the start, and of these in compiling."""

    wall: float = 0.0
    compile: float = 0.0


def run(spec: RunSpec, directory: pathlib.Path) -> int:
    """Trains the run that `spec` describes in `directory`, or resumes it, or says that it is finished.

    Returns:
      The exit code: 0 once the run's result is recorded (a diverged loss is one); 128 + its number after a signal.

    Raises:
      InputError: the run cannot be started, and nothing was written; or it cannot go on, as what it leaves cannot be
        written, and the same command resumes from its last checkpoint.
    """
    if summary := finished(spec, directory):
        if wandb_logger.under_agent():  # which has a page for it
            track(spec, directory).finish(summary)
        return _report(directory, "already ")
    inputs = prepare(spec)
    record, compiled = writer.RunDirectory(directory), host.compiled_before()
    with record.locked(), console.signals() as asked:
        if finished(spec, directory):  # by the process that held the lock a moment ago
            return _report(directory, "already ")
        if not compiled:  # else this process has said so already, before it started itself anew
            sums = cost.totals(spec.arch, spec.resolution)
            console.say(f"{spec.title}\nmult-adds      {sums.mult_adds:,}\nparams         {sums.params:,}")
            console.say(f"run            {directory}")
        try:
            spent = Spent(host.process_seconds(), compiled)
            compiled_now = functools.partial(host.start_anew, asked=asked)
            train([spec], inputs, [record], [writer.Display()], asked, spent, compiled_now)
        except Interrupted as e:
            console.say(f"stopped by {e}; the same command resumes")
            return e.exit_code
    return _report(directory, "")


def finished(spec: RunSpec, directory: pathlib.Path) -> dict[str, Any] | None:
    """The summary of the run; None where it is not finished.

    Raises:
      InputError: the directory is not this run's, or its record is damaged.
    """
    named = directory.name.endswith(f"-{spec.digest}")  # as only this run's is, whatever became of config.json
    writer.check_directory(directory, named)
    stored = None if named else writer.read_json(directory / "config.json")
    if stored is not None and (found := config.differences(spec, stored)):
        raise InputError(f"{directory} holds another run: {'; '.join(found)}; name another directory")
    return writer.read_summary(directory)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run takes from its machine."""

    splits: dict[str, data.Split]
    devices: Sequence[Any]


def prepare(spec: RunSpec) -> Inputs:
    """Looks for the devices and loads the data set, which is prepared first where that is needed.

    Raises:
      InputError: one of them does not do for this run.
    """
    host.use_compilation_cache()
    devices, c = jax.devices(), spec.config
    if c.train.batch_size % len(devices):
        raise InputError(
            f"config.train.batch_size={c.train.batch_size}: must be a multiple of the {len(devices)} devices"
        )
    return Inputs(data.load(spec.dataset, c.data.dir, c.data.archive), devices)


def train(
    specs: Sequence[RunSpec],
    inputs: Inputs,
    records: Sequence[writer.RunDirectory],
    displays: Sequence[writer.Display],
    asked: list[int],
    spent: Spent,
    compiled: Callable[[float], None],
) -> None:
    """Trains one run, or several with the same `program_key` side by side, to their ends.

    Args:
      specs: of the runs.
      inputs: see `prepare`.
      records: of the runs, each held by the caller (`RunDirectory.locked`).
      displays: of the runs.
      asked: signals that have come, see `process.signals`.
      spent: before this call.
      compiled: called with the seconds that compiling took, before anything is recorded; may leave by an exception,
        or with the process, for a fresh one in which the programs are loaded.

    Raises:
      Interrupted: a signal came.
      InputError: what the runs leave cannot be written, or is of an earlier version.
    """
    started = time.perf_counter()
    built = program.build(specs, inputs.splits, inputs.devices)
    if not asked:  # else the runs stop here, and a fresh process would not know
        compiled(built.compile_seconds)
    compile_seconds = spent.compile + built.compile_seconds
    device, share = device_name(inputs.devices), compile_seconds / len(specs)

    def elapsed() -> float:
        return spent.wall + time.perf_counter() - started

    with contextlib.ExitStack() as opened:
        members = []
        for spec, record, display in zip(specs, records, displays, strict=True):
            members.append(Member(spec, record, display, device, len(specs), share, elapsed))
            opened.callback(_let_go, members[-1])
        _Group(members, built, asked).train()


def _let_go(member: Member) -> None:
    """Closes a run that an error leaves open; what its checkpoint then says is not the news."""
    with contextlib.suppress(InputError):
        member.close()


def _report(directory: pathlib.Path, prefix: str) -> int:
    """Prints the result of the finished run in `directory`."""
    summary = writer.read_summary(directory)
    if summary is None:
        raise InputError(f"{directory}: the run has finished, but its summary is gone; the same command starts it anew")
    lines = [f"{prefix}{summary['status']}: {summary['title']}"]
    if summary["status"] == "finished":
        lines.append(
            f"test accuracy  {summary['test_accuracy']:.4f}  (epoch {summary['epochs']}, seed {summary['seed']})"
        )
    lines += [
        f"mult-adds      {summary['mult_adds']:,}",
        f"params         {summary['params']:,}",
        f"training       {summary['train_images_per_second']:,.0f} images/s on {summary['device']}",
        f"time           {summary['wall_seconds']:.1f} s, {summary['compile_seconds']:.1f} s of it compiling",
        f"run            {directory}",
    ]
    console.say("\n".join(lines))
    return 0


def device_name(devices: Sequence[Any]) -> str:
    """What trains, as summaries say it."""
    kind, cores = devices[0].device_kind, host.cores()
    name = f"{kind} ({cores} core{'s' * (cores > 1)})" if devices[0].platform == "cpu" else kind
    return name if len(devices) == 1 else f"{len(devices)} x {name}"


class _Group:
    """The runs that one program trains, each at a step of its own.

    A run that is over, as it diverged or had been ahead of the others, keeps its place in the program; what comes out
    there is not looked at.
    """

    def __init__(self, members: Sequence[Member], built: program.Program, asked: list[int]):
        self.members, self.program, self.asked = members, built, asked
        self.state = built.join([m.restore(state) for m, state in zip(members, built.states, strict=True)])
        built.states = []  # the state is donated from step to step: no other holds its memory
        self.in_flight: collections.deque[Any] = collections.deque()  # metrics
        for m in members:
            m.begin()

    def train(self) -> None:
        """Trains every run to its end and writes its summary."""
        try:
            self._finish_epochs()  # a signal may have come between an epoch's last step and its evaluation
            while self._active:
                self._step()
                self._finish_epochs()
        except Interrupted:
            for m in self.members:
                m.close()  # a signal's checkpoint that cannot be written is not to be passed over
            raise

    @property
    def _active(self) -> list[Member]:
        return [m for m in self.members if not m.status]

    def _step(self) -> None:
        with self._timed("train"):
            indices = self.program.batch([m.next_batch(self.program.sizes["train"]) for m in self.members])
            self.state, metrics = self.program.train_on(self.state, indices, self.program.hyper)
            for m in self._active:
                m.step += 1
            self.in_flight.append(metrics)
            self._settle(0 if any(m.at_epoch_end for m in self._active) else _IN_FLIGHT)
        self._stop_if_asked()
        self._save([m for m in self._active if m.save_due and not m.at_epoch_end])

    def _settle(self, allowed: int) -> None:
        """Takes in the metrics of all but the last `allowed` steps; a run whose loss is not finite is over."""
        while len(self.in_flight) > allowed:
            figures = {name: np.atleast_1d(each) for name, each in jax.device_get(self.in_flight.popleft()).items()}
            for i, m in enumerate(self.members):
                if not m.status and not m.take_in({name: float(each[i]) for name, each in figures.items()}):
                    m.diverged(m.step - len(self.in_flight))

    def _finish_epochs(self) -> None:
        """Evaluates the runs that are at the end of an epoch, adds their rows, saves."""
        due = [m for m in self._active if m.epoch_due]
        found = {split: self._evaluate(split) for split in dict.fromkeys(split for m in due for split in m.judges)}
        for m in due:
            m.finish_epoch({split: found[split][self.members.index(m)] for split in m.judges})
        self._save([m for m in due if m.save_due or m.at_end])
        ended = [m for m in self._active if m.at_end]  # also one that was killed before its summary was written
        if ended:
            for m, state in zip(self.members, self.program.split(self.state), strict=True):
                if m in ended:
                    m.finish("finished", state)

    def _evaluate(self, split: str) -> list[dict[str, float]]:
        """Top-1 accuracy and mean cross-entropy of each run over every image of a split, once."""
        sums = {name: np.zeros(len(self.members)) for name in SUMS}
        size, batch = self.program.sizes[split], self.members[0].spec.config.train.batch_size
        with self._timed("eval"):
            for indices, mask in data.eval_batches(size, batch):
                one = jax.device_put((indices, mask.astype(np.float32)), self.program.shared)
                found = jax.device_get(self.program.eval_on[split](self.state.evaluated, *one))
                sums = {name: sums[name] + found[name] for name in sums}
                self._stop_if_asked()
        assert (sums["count"] == size).all()
        return [
            {f"{split}_accuracy": float(correct) / size, f"{split}_loss": float(loss) / size}
            for correct, loss in zip(sums["correct"], sums["loss"], strict=True)
        ]

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """The runs share the time: over all of them, it adds up to the machine's."""
        started, active = time.perf_counter(), self._active
        try:
            yield
        finally:
            for m in active:
                m.seconds[what] += (time.perf_counter() - started) / len(active)

    def _stop_if_asked(self) -> None:
        if self.asked and self._active:
            self._save(self._active)
            raise Interrupted(self.asked[0])

    def _save(self, members: Sequence[Member]) -> None:
        if any(m.saved != m.step for m in members):
            self._settle(0)  # the notes are of the same steps as the state
            for m, state in zip(self.members, self.program.split(self.state), strict=True):
                if m in members and not m.status:
                    m.save(state)
