"""The loop: runs from their newest checkpoint to their summary."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mobilenet_jax import config, cost, data, program, runtime, steps, writer
from mobilenet_jax.checkpoint import Checkpoints, tree_digest
from mobilenet_jax.config import RunSpec
from mobilenet_jax.errors import InputError

_IN_FLIGHT = 2  # steps that the host may be ahead: the device stays busy, and a signal is answered at once
_SUMS = ("loss", "correct", "count")


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
      The exit code: 0 once the run's result is recorded (a diverged loss is one); 143 after SIGTERM, 130 after SIGINT.

    Raises:
      InputError: the run cannot be started; nothing was written.
    """
    if summary := finished(spec, directory):
        if writer.under_agent():  # which has a page for it
            _track(spec, directory).finish(summary)
        return _report(directory, "already ")
    inputs = prepare(spec)
    record, compiled = writer.RunDirectory(directory), runtime.compiled_before()
    with record.locked(), signals() as asked:
        if finished(spec, directory):  # by the process that held the lock a moment ago
            return _report(directory, "already ")
        if not compiled:  # else this process has said so already, before it started itself anew
            sums = cost.totals(spec.arch, spec.resolution)
            print(f"{spec.title}\nmult-adds      {sums.mult_adds:,}\nparams         {sums.params:,}")
            print(f"run            {directory}", flush=True)
        try:
            spent = Spent(runtime.process_seconds(), compiled)
            train([spec], inputs, [record], [writer.Display()], asked, spent, runtime.start_anew)
        except Interrupted as e:
            print(f"stopped by {e}; the same command resumes", flush=True)
            return e.exit_code
    return _report(directory, "")


def finished(spec: RunSpec, directory: pathlib.Path) -> dict[str, Any] | None:
    """The summary of the run; None where it is not finished.

    Raises:
      InputError: the directory is not this run's.
    """
    writer.check_directory(directory)
    stored = writer.read_json(directory / "config.json")
    if stored is not None:
        config.check_same_run(spec, stored, str(directory))
    return writer.read_json(directory / "summary.json")


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
    runtime.use_compilation_cache()
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
      asked: signals that have come, see `signals`.
      spent: before this call.
      compiled: called with the seconds that compiling took, before anything is recorded; may leave by an exception,
        or with the process, for a fresh one in which the programs are loaded.

    Raises:
      Interrupted: a signal came.
    """
    started = time.perf_counter()
    built = program.build(specs, inputs.splits, inputs.devices)
    if not asked:  # else the runs stop here, and a fresh process would not know
        compiled(built.compile_seconds)
    compile_seconds = spent.compile + built.compile_seconds
    device, share = device_name(inputs.devices), compile_seconds / len(specs)
    members = [
        _Member(spec, record, display, device, len(specs), share, lambda: spent.wall + time.perf_counter() - started)
        for spec, record, display in zip(specs, records, displays, strict=True)
    ]
    _Group(members, built, asked).train()


def _report(directory: pathlib.Path, prefix: str) -> int:
    """Prints the result of the finished run in `directory`."""
    summary = writer.read_json(directory / "summary.json")
    assert summary is not None
    print(f"{prefix}{summary['status']}: {summary['title']}")
    if summary["status"] == "finished":
        print(f"test accuracy  {summary['test_accuracy']:.4f}  (epoch {summary['epochs']}, seed {summary['seed']})")
    print(f"mult-adds      {summary['mult_adds']:,}")
    print(f"params         {summary['params']:,}")
    print(f"training       {summary['train_images_per_second']:,.0f} images/s on {summary['device']}")
    print(f"time           {summary['wall_seconds']:.1f} s, {summary['compile_seconds']:.1f} s of it compiling")
    print(f"run            {directory}", flush=True)
    return 0


def device_name(devices: Sequence[Any]) -> str:
    """What trains, as summaries say it."""
    kind, cores = devices[0].device_kind, runtime.cores()
    name = f"{kind} ({cores} core{'s' * (cores > 1)})" if devices[0].platform == "cpu" else kind
    return name if len(devices) == 1 else f"{len(devices)} x {name}"


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it yields; a second one acts as if nothing were caught."""
    asked: list[int] = []

    def restore(handlers):
        for signum, handler in handlers.items():
            signal.signal(signum, handler)

    def note(signum, _):
        asked.append(signum)
        restore(before)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        restore(before)


class _Group:
    """The runs that one program trains, each at a step of its own.

    A run that is over, as it diverged or had been ahead of the others, keeps its place in the program; what comes out
    there is not looked at.
    """

    def __init__(self, members: Sequence["_Member"], built: program.Program, asked: list[int]):
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
        finally:
            for m in self.members:
                m.close()

    @property
    def _active(self) -> list["_Member"]:
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
                    m.diverged(m.step - len(self.in_flight), self.program.split(self.state)[i])

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
        sums = {name: np.zeros(len(self.members)) for name in _SUMS}
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

    def _save(self, members: Sequence["_Member"]) -> None:
        if any(m.saved != m.step for m in members):
            self._settle(0)  # the notes are of the same steps as the state
            for m, state in zip(self.members, self.program.split(self.state), strict=True):
                if m in members and not m.status:
                    m.save(state)


class _Member:
    """One run: its record, its figures, and how far it is."""

    def __init__(
        self,
        spec: RunSpec,
        record: writer.RunDirectory,
        display: writer.Display,
        device: str,
        fused: int,
        compile_seconds: float,
        elapsed: Callable[[], float],
    ):
        self.spec, self.record, self.display = spec, record, display
        self.device, self.fused, self.elapsed = device, fused, elapsed
        self.status = ""  # 'finished' or 'diverged' once it is over
        self.step = self.resumed_from = self.saved = 0
        self.tally: dict[str, float] = dict.fromkeys(_SUMS, 0.0)  # of the epoch so far
        self.seconds: dict[str, float] = dict.fromkeys(("train", "eval", "compile", "wall"), 0.0)
        self.compile_seconds = compile_seconds  # in this process
        self.first_step_seconds = 0.0
        self.images = 0.0  # seen in seconds['train']
        self.figures: dict[str, float] = {}  # of the last step
        self.row: dict[str, Any] | None = None  # the last of metrics.jsonl
        self.record.begin(spec.config.to_dict(), device)
        self.checkpoints = Checkpoints(record.path / "checkpoints")
        self.tracker = _track(spec, record.path)
        self.order = (-1, np.empty(0))  # an epoch, and the order in which it visits the images

    def restore(self, state: steps.TrainState) -> Any:
        """The state of the newest checkpoint that is whole; `state` where there is none."""
        found = self.checkpoints.restore(state, self.display.line)
        if found is not None:
            self.step, state, notes = found
            self.tally, self.images, self.figures = notes["tally"], notes["images"], notes["figures"]
            self.seconds = notes["seconds"]
            self.resumed_from = self.saved = self.step
            self.display.line(f"resumed        from step {self.step:,} of {self.spec.total_steps:,}")
        self.row = self.record.cut_back(self.step)
        self.seconds["compile"] += self.compile_seconds
        return state

    def begin(self) -> None:
        """Shows where the run stands before the next step."""
        spec = self.spec
        self.display.begin(spec.total_steps, self.step, spec.steps_per_epoch, spec.config.train.batch_size)
        self.display.line(f"compiled       in {self.compile_seconds:.1f} s for {self.device}")

    @property
    def at_end(self) -> bool:
        return self.step == self.spec.total_steps

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.spec.steps_per_epoch == 0

    @property
    def epoch_due(self) -> bool:
        """Whether an epoch has ended that is not evaluated and recorded yet."""
        return self.at_epoch_end and (self.row is None or self.row["step"] < self.step)

    @property
    def save_due(self) -> bool:
        every = max(1, round(self.spec.config.train.checkpoint_epochs * self.spec.steps_per_epoch))
        return self.step - self.saved >= every

    @property
    def judges(self) -> list[str]:
        """The splits that are evaluated now, at the end of an epoch."""
        c, epoch = self.spec.config, self.step // self.spec.steps_per_epoch
        judge = "val" if c.data.holdout else "test"
        splits = [judge] if self.at_end or epoch % c.train.eval_epochs == 0 else []
        return splits + (["test"] if self.at_end and judge != "test" else [])

    @property
    def images_per_second(self) -> float:
        """The rate at which the program trains, with all its runs."""
        return self.images / self.seconds["train"] if self.images else 0.0

    def next_batch(self, size: int) -> np.ndarray:
        """The images of the next step, out of `size`, int32 `[B]`."""
        batch = self.spec.config.train.batch_size
        epoch, position = divmod(self.step, self.spec.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, data.epoch_order(size, self.spec.config.seed, epoch)
        return self.order[1][position * batch : (position + 1) * batch]

    def take_in(self, figures: dict[str, float]) -> bool:
        """Adds the figures of a step; False where its loss is not finite."""
        self.figures, loss, count = figures, figures["loss"], figures["count"]
        if not math.isfinite(loss):
            return False
        if self.tally["count"] >= self.spec.steps_per_epoch * self.spec.config.train.batch_size:
            self.tally = dict.fromkeys(_SUMS, 0.0)  # that was the epoch before
        self.tally["loss"] += loss * count
        self.tally["correct"] += figures["correct"]
        self.tally["count"] += count
        self.images += count
        if not self.first_step_seconds:
            self.first_step_seconds = self.elapsed()
            self.display.line(f"first step     {self.first_step_seconds:.1f} s after the start")
        t = self.tally
        self.display.advance(t["loss"] / t["count"], t["correct"] / t["count"], self.images_per_second)
        return True

    def finish_epoch(self, evaluated: Mapping[str, dict[str, float]]) -> None:
        """Adds the epoch's row."""
        epochs, epoch = self.spec.config.train.epochs, self.step // self.spec.steps_per_epoch
        t, speed = self.tally, self.images_per_second
        row = {"train_loss": t["loss"] / t["count"], "train_accuracy": t["correct"] / t["count"]}
        text = f"epoch {epoch:>{len(str(epochs))}}/{epochs}  train {_figures(row, 'train')}"
        for split, found in evaluated.items():
            row |= found
            text += f"  {split} {_figures(row, split)}"
        self._log(row | {"learning_rate": self.figures["learning_rate"], "images_per_second": speed})
        left = (self.spec.total_steps - self.step) * self.spec.config.train.batch_size * self.fused / speed
        self.display.line(f"{text}  {speed:,.0f} images/s" + ("" if self.at_end else f"  ETA {writer.clock(left)}"))

    def save(self, state: Any) -> None:
        """Saves `state`, on the host, as a checkpoint."""
        if self.step != self.saved:
            notes = {"tally": self.tally, "images": self.images, "figures": self.figures}
            self.checkpoints.save(self.step, state, notes | {"seconds": self._all_seconds()})
            self.saved = self.step

    def diverged(self, step: int, state: Any) -> None:
        """Ends the run at `step`, whose loss is not finite."""
        self.step = step
        self._log({"train_loss": math.nan, "learning_rate": self.figures["learning_rate"]})
        self.display.line(f"diverged: the loss of step {step:,} is not finite")
        self.finish("diverged", state)

    def finish(self, status: str, state: Any) -> None:
        """Writes the summary, last."""
        self.status = status
        self.display.close()
        self.checkpoints.close()
        summary = self._summary(state)
        self.record.finish(summary)
        self.tracker.finish(summary)

    def close(self) -> None:
        """Lets go of a run that is not over: a signal came, or an error."""
        if not self.status:
            self.tracker.finish({})
            self.display.close()
            self.checkpoints.close()

    def _log(self, metrics: dict[str, float]) -> None:
        self.row = {"step": self.step, "epoch": self.step / self.spec.steps_per_epoch, **metrics}
        self.record.append(self.row)
        self.display.log(self.row)
        self.tracker.log(self.row)

    def _all_seconds(self) -> dict[str, float]:
        return self.seconds | {"wall": self.seconds["wall"] + self.elapsed()}

    def _summary(self, state: Any) -> dict[str, Any]:
        spec, row, seconds = self.spec, self.row or {}, self._all_seconds()
        measured = row if self.status == "finished" else {}
        judged = ["test", "val"] if spec.config.data.holdout else ["test"]
        keys = [f"{split}_{figure}" for split in judged for figure in ("accuracy", "loss")]
        return {
            "status": self.status,
            "title": spec.title,
            "config_name": spec.name,
            **_knobs(spec),
            "seed": spec.config.seed,
            "epochs": spec.config.train.epochs,
            "steps": self.step,
            **{key: measured.get(key) for key in keys},
            "train_accuracy": measured.get("train_accuracy"),
            "train_loss": measured.get("train_loss"),
            "train_images_per_second": self.images_per_second,
            **{f"{what}_seconds": seconds[what] for what in ("compile", "train", "eval", "wall")},
            "first_step_seconds": self.first_step_seconds,
            "device": self.device,
            "fused": self.fused,
            "resumed_from": self.resumed_from,
            "params_sha256": tree_digest({"params": state.params, "batch_stats": state.batch_stats}),
        }


def _track(spec: RunSpec, directory: pathlib.Path) -> writer.Tracker:
    w, keys = spec.config.wandb, {**spec.identity, **_knobs(spec)}
    return writer.Tracker(w.mode, w.project, spec.run_name, spec.digest, directory, keys)


def _knobs(spec: RunSpec) -> dict[str, Any]:
    """What is varied and what it costs, under the flat names that tables and plots use."""
    m, sums = spec.config.model, cost.totals(spec.arch, spec.resolution)
    return {
        "version": m.version,
        "variant": m.variant,
        "alpha": m.alpha,
        "rho": m.rho,
        "expansion": m.expansion if m.version == "v2" else None,
        "resolution": spec.resolution,
        "dataset": spec.dataset.name,
        "num_classes": spec.dataset.num_classes,
        "params": sums.params,
        "mult_adds": sums.mult_adds,
    }


def _figures(row: dict[str, float], split: str) -> str:
    return f"loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.4f}"
