"""The loop, and the one place that wires a `RunSpec` into objects."""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mobilenet_jax import augment, config, cost, data, depthwise, optim, runtime, steps, writer
from mobilenet_jax.checkpoint import Checkpoints, tree_digest
from mobilenet_jax.config import RunSpec
from mobilenet_jax.errors import InputError
from mobilenet_jax.model import MobileNet

_IN_FLIGHT = 2  # steps that the host may be ahead: the device stays busy, and a signal is answered at once


_SUMS = ("loss", "correct", "count")


class Interrupted(Exception):
    """A signal asked the run to stop; the checkpoint is written."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Diverged(Exception):
    """The training loss is not finite."""


def run(spec: RunSpec, directory: pathlib.Path) -> int:
    """Trains the run that `spec` describes in `directory`, or resumes it, or says that it is finished.

    Returns:
      The exit code: 0 once the run's result is recorded (a diverged loss is one); 143 after SIGTERM, 130 after SIGINT.

    Raises:
      InputError: the run cannot be started; nothing was written.
    """
    if _finished(spec, directory):
        return 0
    runtime.use_compilation_cache()
    devices, batch = jax.devices(), spec.config.train.batch_size
    if batch % len(devices):
        raise InputError(f"config.train.batch_size={batch}: must be a multiple of the {len(devices)} devices")
    splits = data.load(spec.dataset, spec.config.data.dir, spec.config.data.archive)
    record = writer.RunDirectory(directory)
    with record.locked(), _signals() as asked:
        if _finished(spec, directory):  # by the process that held the lock a moment ago
            return 0
        if not runtime.compiled_before():  # by this process, which then has done this already
            record.begin(spec.config.to_dict(), _device_name(devices))
            print(f"{spec.title}\n{_costs(spec)}\nrun            {directory}", flush=True)
        try:
            _Run(spec, record, splits, devices, asked).train()
        except Interrupted as e:
            print(f"stopped by {e}; the same command resumes", flush=True)
            return e.exit_code
    _report(directory, "")
    return 0


def _finished(spec: RunSpec, directory: pathlib.Path) -> bool:
    """Whether the run is finished, which it then says.

    Raises:
      InputError: the directory is not this run's.
    """
    writer.check_directory(directory)
    stored = writer.read_json(directory / "config.json")
    if stored is not None:
        config.check_same_run(spec, stored, str(directory))
    return _report(directory, "already ")


def _costs(spec: RunSpec) -> str:
    sums = cost.totals(spec.arch, spec.resolution)
    return f"mult-adds      {sums.mult_adds:,}\nparams         {sums.params:,}"


def _report(directory: pathlib.Path, prefix: str) -> bool:
    """Prints the result of the run in `directory`; False where it has none yet."""
    summary = writer.read_json(directory / "summary.json")
    if summary is None:
        return False
    print(f"{prefix}{summary['status']}: {summary['title']}")
    if summary["status"] == "finished":
        print(f"test accuracy  {summary['test_accuracy']:.4f}  (epoch {summary['epochs']}, seed {summary['seed']})")
    print(f"mult-adds      {summary['mult_adds']:,}")
    print(f"params         {summary['params']:,}")
    print(f"training       {summary['train_images_per_second']:,.0f} images/s on {summary['device']}")
    print(f"time           {summary['wall_seconds']:.1f} s, {summary['compile_seconds']:.1f} s of it compiling")
    print(f"run            {directory}", flush=True)
    return True


def _device_name(devices: Sequence[Any]) -> str:
    kind = devices[0].device_kind
    name = f"{kind} ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else kind
    return name if len(devices) == 1 else f"{len(devices)} x {name}"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
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


@dataclasses.dataclass
class _Program:
    """What is built once from a `RunSpec`: the compiled steps and what they are fed with."""

    train_on: Any  # (state, indices, hyper) -> (state, metrics)
    eval_on: dict[str, Any]  # split -> (variables, indices, mask) -> sums
    state: steps.TrainState
    hyper: steps.Hyper
    sizes: dict[str, int]  # images of each split
    sharding: NamedSharding  # of a batch
    compile_seconds: float


def _build(spec: RunSpec, splits: dict[str, data.Split], devices: Sequence[Any]) -> _Program:
    """Wires the spec into a model, a view, a schedule and compiled steps over all devices."""
    c, size, pixels = spec.config, spec.image_size, spec.arch.input_range
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    if c.data.holdout:
        train, val = data.holdout(splits["train"], c.data.holdout)
        splits = {**splits, "train": train, "val": val}
    resident = {name: jax.device_put((s.images, s.labels), everywhere) for name, s in splits.items()}

    model = MobileNet(
        spec.arch,
        dropout=c.model.dropout,
        bn_decay=c.model.bn_decay,
        dtype=jnp.dtype(c.train.dtype),
        depthwise=depthwise.choose(c.model.depthwise, devices[0].platform),
    )
    init_key, step_key = jax.random.split(jax.random.key(c.seed))
    init = functools.partial(steps.init_state, model, c.optim.name, spec.resolution, c.train.ema_decay > 0)
    state = jax.jit(init, out_shardings=everywhere)(init_key)
    hyper = jax.device_put(_hyper(spec, step_key), everywhere)

    schedule = optim.schedule(
        c.optim.schedule,
        spec.total_steps,
        spec.warmup_steps,
        spec.steps_per_epoch,
        c.optim.lr_decay,
        c.optim.lr_decay_epochs,
    )
    crop = {"crop": size, "resolution": spec.resolution, "input_range": pixels}
    train_view = functools.partial(augment.training_view, pad=c.augment.pad, flip=c.augment.flip, **crop)
    eval_view = functools.partial(augment.evaluation_view, **crop)
    depthwise_layers = frozenset(layer.name for layer in spec.arch.layers if layer.kind == "depthwise")

    def train_on(state, images, labels, indices, hyper):
        batch = steps.Batch(images[indices], labels[indices], jnp.ones(indices.shape))
        return steps.train_step(
            state,
            batch,
            hyper,
            model=model,
            optimizer=c.optim.name,
            schedule=schedule,
            view=train_view,
            depthwise=depthwise_layers,
        )

    def eval_on(variables, images, labels, indices, mask):
        batch = steps.Batch(images[indices], labels[indices], mask)
        return steps.eval_step(variables, batch, model=model, view=eval_view)

    started = time.perf_counter()
    indices, mask = (
        jax.ShapeDtypeStruct((c.train.batch_size,), dtype, sharding=sharded) for dtype in (np.int32, np.float32)
    )
    train_jit = jax.jit(train_on, donate_argnums=0, out_shardings=everywhere)
    eval_jit = jax.jit(eval_on, out_shardings=everywhere)

    def compiling(step, split, first, *rest):
        return pool.submit(step.lower(first, *resident[split], *rest).compile)

    def on(split, future):
        program = future.result()
        return lambda first, *rest: program(first, *resident[split], *rest)

    with ThreadPoolExecutor(1) as pool:  # one step is compiled, or loaded, while the next is traced
        trained = compiling(train_jit, "train", state, indices, hyper)
        judges = [name for name in splits if name != "train"]
        judged = {name: compiling(eval_jit, name, state.evaluated, indices, mask) for name in judges}

    return _Program(
        train_on=on("train", trained),
        eval_on={name: on(name, future) for name, future in judged.items()},
        state=state,
        hyper=hyper,
        sizes={name: len(split) for name, split in splits.items()},
        sharding=sharded,
        compile_seconds=time.perf_counter() - started,
    )


def _hyper(spec: RunSpec, key: jax.Array) -> steps.Hyper:
    o, t = spec.config.optim, spec.config.train
    scalars = {
        "learning_rate": spec.learning_rate,
        "momentum": o.momentum,
        "decay": o.decay,
        "epsilon": o.epsilon,
        "weight_decay": o.weight_decay,
        "depthwise_weight_decay": o.weight_decay if o.decay_depthwise else 0.0,
        "label_smoothing": t.label_smoothing,
        "clip_norm": o.clip_norm,
        "ema_decay": t.ema_decay,
    }
    return steps.Hyper(key=key, **{name: jnp.float32(value) for name, value in scalars.items()})


class _Run:
    """One process's share of a run: from the newest checkpoint to the summary, or to the next signal."""

    def __init__(self, spec, record: writer.RunDirectory, splits, devices, asked: list[int]):
        self.spec, self.record, self.asked = spec, record, asked
        self.started = time.perf_counter()
        self.device = _device_name(devices)
        self.program = _build(spec, splits, devices)
        if not asked:  # else the run stops here, and a new start would not know
            runtime.start_anew(self.program.compile_seconds)
        self.state = self.program.state
        self.tracker = self._track()
        self.checkpoints = Checkpoints(record.path / "checkpoints")

        self.step = self.resumed_from = self.saved = 0
        self.in_flight: collections.deque[dict[str, jax.Array]] = collections.deque()
        self.tally: dict[str, float] = dict.fromkeys(_SUMS, 0.0)  # of the epoch so far
        self.seconds: dict[str, float] = dict.fromkeys(("train", "eval", "compile", "wall"), 0.0)
        self.first_step_seconds = 0.0  # from the start of the process
        self.images = 0.0  # seen in seconds['train']
        self.figures: dict[str, float] = {}  # of the last step
        self.row: dict[str, Any] | None = None  # the last of metrics.jsonl
        self._restore()
        self.seconds["compile"] += self.program.compile_seconds + runtime.compiled_before()
        self.seconds["wall"] += runtime.compiled_before()
        self.display = writer.Display(spec.total_steps, self.step, spec.steps_per_epoch, spec.config.train.batch_size)
        compiled = f"{self.program.compile_seconds + runtime.compiled_before():.1f} s"
        self.display.line(f"compiled       in {compiled} for {self.device}")

    def train(self) -> None:
        """Trains to the end and writes the summary."""
        status = "finished"
        try:
            if self._at_epoch_end and (self.row is None or self.row["step"] < self.step):
                self._finish_epoch()  # a signal came between the epoch's last step and its evaluation
            while self.step < self.spec.total_steps:
                self._train_epoch()
                self._finish_epoch()
        except Diverged:
            status = "diverged"
            self.step -= len(self.in_flight)  # the step whose loss it is
            self._log({"train_loss": math.nan, "learning_rate": self.figures["learning_rate"]})
            self.display.line(f"diverged: the loss of step {self.step:,} is not finite")
        except Interrupted:
            self.tracker.finish({})
            raise
        finally:
            self.display.close()
            self.checkpoints.close()
        summary = self._summary(status)
        self.record.finish(summary)
        self.tracker.finish(summary)

    @property
    def _at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.spec.steps_per_epoch == 0

    def _train_epoch(self) -> None:
        """Trains from where the run stands to the end of the epoch."""
        batch, per_epoch = self.spec.config.train.batch_size, self.spec.steps_per_epoch
        every = max(1, round(self.spec.config.train.checkpoint_epochs * per_epoch))
        epoch, position = divmod(self.step, per_epoch)
        if position == 0:
            self.tally = dict.fromkeys(_SUMS, 0.0)
        order = data.epoch_order(self.program.sizes["train"], self.spec.config.seed, epoch)
        for i in range(position, per_epoch):
            with self._timed("train"):
                indices = jax.device_put(order[i * batch : (i + 1) * batch], self.program.sharding)
                self.state, metrics = self.program.train_on(self.state, indices, self.program.hyper)
                self.step += 1
                self.in_flight.append(metrics)
                self._settle(_IN_FLIGHT if i + 1 < per_epoch else 0)
            self._stop_if_asked()
            if self.step - self.saved >= every and i + 1 < per_epoch:
                self._save()

    def _finish_epoch(self) -> None:
        """Evaluates, adds the epoch's row, saves."""
        c, epoch = self.spec.config, self.step // self.spec.steps_per_epoch
        last = self.step == self.spec.total_steps
        t, speed = self.tally, self._images_per_second
        row = {"train_loss": t["loss"] / t["count"], "train_accuracy": t["correct"] / t["count"]}
        text = f"epoch {epoch:>{len(str(c.train.epochs))}}/{c.train.epochs}  train {_figures(row, 'train')}"
        judge = "val" if c.data.holdout else "test"
        splits = [judge] if last or epoch % c.train.eval_epochs == 0 else []
        splits += ["test"] if last and judge != "test" else []
        for split in splits:
            row |= self._evaluate(split)
            text += f"  {split} {_figures(row, split)}"
        self._log(row | {"learning_rate": self.figures["learning_rate"], "images_per_second": speed})
        left = (self.spec.total_steps - self.step) * c.train.batch_size / speed
        self.display.line(f"{text}  {speed:,.0f} images/s" + ("" if last else f"  ETA {writer.clock(left)}"))
        if last or self.step - self.saved >= c.train.checkpoint_epochs * self.spec.steps_per_epoch:
            self._save()

    def _evaluate(self, split: str) -> dict[str, float]:
        """Top-1 accuracy and mean cross-entropy over every image of a split, once."""
        sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        with self._timed("eval"):
            for indices, mask in data.eval_batches(self.program.sizes[split], self.spec.config.train.batch_size):
                batch = jax.device_put((indices, mask.astype(np.float32)), self.program.sharding)
                found = jax.device_get(self.program.eval_on[split](self.state.evaluated, *batch))
                sums = {name: sums[name] + float(found[name]) for name in sums}
                self._stop_if_asked()
        assert sums["count"] == self.program.sizes[split]
        return {f"{split}_accuracy": sums["correct"] / sums["count"], f"{split}_loss": sums["loss"] / sums["count"]}

    def _settle(self, allowed: int) -> None:
        """Takes in the metrics of all but the last `allowed` steps.

        Raises:
          Diverged: one of them has a loss that is not finite.
        """
        while len(self.in_flight) > allowed:
            self.figures = {name: float(value) for name, value in jax.device_get(self.in_flight.popleft()).items()}
            loss, count = self.figures["loss"], self.figures["count"]
            if not math.isfinite(loss):
                raise Diverged
            self.tally["loss"] += loss * count
            self.tally["correct"] += self.figures["correct"]
            self.tally["count"] += count
            self.images += count
            if not self.first_step_seconds:
                self.first_step_seconds = runtime.process_seconds()
                self.display.line(f"first step     {self.first_step_seconds:.1f} s after the start")
            t = self.tally
            self.display.advance(t["loss"] / t["count"], t["correct"] / t["count"], self._images_per_second)

    @property
    def _images_per_second(self) -> float:
        return self.images / self.seconds["train"] if self.images else 0.0

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    def _stop_if_asked(self) -> None:
        if self.asked:
            self._save()
            raise Interrupted(self.asked[0])

    def _log(self, metrics: dict[str, float]) -> None:
        self.row = {"step": self.step, "epoch": self.step / self.spec.steps_per_epoch, **metrics}
        self.record.append(self.row)
        self.tracker.log(self.row)

    def _save(self) -> None:
        if self.step != self.saved:
            self._settle(0)  # the notes are of the same steps as the state
            notes = {
                "tally": self.tally,
                "images": self.images,
                "figures": self.figures,
                "seconds": self._all_seconds(),
            }
            self.checkpoints.save(self.step, self.state, notes)
            self.saved = self.step

    def _restore(self) -> None:
        found = self.checkpoints.restore(self.state)
        if found is not None:
            self.step, state, notes = found
            self.state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.state))
            self.tally, self.images, self.figures = notes["tally"], notes["images"], notes["figures"]
            self.seconds = notes["seconds"]
            self.resumed_from = self.saved = self.step
            print(f"resumed        from step {self.step:,} of {self.spec.total_steps:,}", flush=True)
        self.row = self.record.cut_back(self.step)

    def _all_seconds(self) -> dict[str, float]:
        return self.seconds | {"wall": self.seconds["wall"] + time.perf_counter() - self.started}

    def _track(self) -> writer.Tracker:
        w, spec = self.spec.config.wandb, self.spec
        keys = {**spec.identity, **_knobs(spec)}
        return writer.Tracker(w.mode, w.project, spec.run_name, spec.digest, self.record.path, keys)

    def _summary(self, status: str) -> dict[str, Any]:
        spec, row, seconds = self.spec, self.row or {}, self._all_seconds()
        measured = row if status == "finished" else {}
        judged = ["test", "val"] if spec.config.data.holdout else ["test"]
        keys = [f"{split}_{figure}" for split in judged for figure in ("accuracy", "loss")]
        return {
            "status": status,
            "title": spec.title,
            "config_name": spec.name,
            **_knobs(spec),
            "seed": spec.config.seed,
            "epochs": spec.config.train.epochs,
            "steps": self.step,
            **{key: measured.get(key) for key in keys},
            "train_accuracy": measured.get("train_accuracy"),
            "train_loss": measured.get("train_loss"),
            "train_images_per_second": self._images_per_second,
            **{f"{what}_seconds": seconds[what] for what in ("compile", "train", "eval", "wall")},
            "first_step_seconds": self.first_step_seconds,
            "device": self.device,
            "resumed_from": self.resumed_from,
            "params_sha256": tree_digest({"params": self.state.params, "batch_stats": self.state.batch_stats}),
        }


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
