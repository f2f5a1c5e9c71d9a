"""The state of one run while it trains: its record, its figures, how far it is, and its summary."""

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobilenet_jax import config
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays, datasets
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.records import weights
from mobilenet_jax.records.directory import CHECKPOINTS, RunDirectory, writing
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.training import devices
from mobilenet_jax.training.checkpoint import Checkpoints, tree_digest
from mobilenet_jax.training.progress import Display
from mobilenet_jax.training.state import Layout, TrainState
from mobilenet_jax.training.step import METRICS
from mobilenet_jax.training.wandb_logger import WandbLogger

SUMS = ("loss", "correct", "count")  # over images
_SAVE_SECONDS = 60.0  # between two checkpoints, if the config does not say


class TrainingRun:
    """A run that the loop takes from step to step. It is over when it has a `status`.

    Args:
      record: its directory, locked by the caller.
      layout: of the states.
      elapsed: returns the seconds that this process has spent on the run so far.
      compile_seconds: this run's share of the time for compiling in this process.
      fused: number of runs that the program trains at the same time.
    """

    def __init__(
        self,
        spec: RunSpec,
        record: RunDirectory,
        display: Display,
        layout: Layout,
        device: str,
        elapsed: Callable[[], float],
        compile_seconds: float,
        fused: int = 1,
    ):
        self.spec, self.record, self.display, self.layout = spec, record, display, layout
        self.device, self.elapsed, self.compile_seconds, self.fused = device, elapsed, compile_seconds, fused
        self.status = ""  # 'finished' or 'diverged' when the run is over
        self.closed = False
        self.step = self.resumed_from = self.saved = 0
        self.sums = dict.fromkeys(SUMS, 0.0)  # of the epoch so far
        self.seconds: dict[str, float] = dict.fromkeys(("train", "eval", "compile", "wall", "input"), 0.0)
        self.undecodable: set[str] = set()  # names of pictures
        self.first_step_seconds = 0.0
        self.images = 0.0  # trained on in seconds['train']
        self.metrics: dict[str, float] = {}  # of the last step
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl
        self._saved_at = time.monotonic()

    def open(self) -> None:
        """Write config and environment, and open the checkpoints; InputError if that is impossible."""
        spec = self.spec
        stored = spec.config.to_dict() | ({"dataset": vars(spec.dataset)} if spec.dataset.fingerprint else {})
        facts = {"device": self.device, **devices.device_facts()}
        self.record.begin(stored, facts, lambda before: not config.differences(spec, before))
        self.checkpoints = Checkpoints(self.record.path / CHECKPOINTS)
        self.wandb = logger_of(spec, self.record)  # `restore` starts it

    def restore(self, state: TrainState) -> TrainState:
        """Return the state of the newest checkpoint that is whole, `state` without one; forget rows of later steps."""
        found = self.checkpoints.restore(state, self.display.line)
        if found is not None:
            self.step, state, notes = found
            if other := config.other_data(self.spec, notes):  # config.json may be lost
                raise InputError(f"{self.record.path} holds another run: {other[0]}; move it away")
            self.sums, self.images, self.metrics = notes["tally"], notes["images"], notes["figures"]
            self.seconds, self.rows = {"input": 0.0, **notes["seconds"]}, notes["rows"]
            self.undecodable = {*notes.get("undecodable", ())}
            self.resumed_from = self.saved = self.step
        self.record.rewrite(self.rows)
        self.wandb.start(self.rows)
        self.seconds["compile"] += self.compile_seconds
        return state

    @property
    def at_end(self) -> bool:
        return self.step == self.spec.total_steps

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.spec.steps_per_epoch == 0

    @property
    def epoch_due(self) -> bool:
        """Whether an epoch has ended that is not evaluated and recorded yet."""
        return self.at_epoch_end and (not self.rows or self.rows[-1]["step"] < self.step)

    @property
    def save_due(self) -> bool:
        epochs = self.spec.config.train.checkpoint_epochs
        if not epochs:
            return self.step > self.saved and time.monotonic() - self._saved_at > _SAVE_SECONDS
        return self.step - self.saved >= max(1, round(epochs * self.spec.steps_per_epoch))

    @property
    def splits_due(self) -> list[str]:
        """The splits to evaluate at the end of this epoch; 'test' only at the end of the run where 'val' exists."""
        c, epoch = self.spec.config, self.step // self.spec.steps_per_epoch
        judge = "val" if c.data.holdout else "test"
        splits = [judge] if self.at_end or epoch % c.train.eval_epochs == 0 else []
        return splits + (["test"] if self.at_end and judge != "test" else [])

    @property
    def images_per_second(self) -> float:
        """The rate at which the program trains, all its runs together."""
        return self.images / self.seconds["train"] if self.seconds["train"] else 0.0

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.step // self.spec.steps_per_epoch

    def order(self, size: int) -> np.ndarray:
        """Return the batches of this epoch as indices among `size` images, int32 `[steps per epoch, B]`."""
        shape = self.spec.steps_per_epoch, self.spec.config.train.batch_size
        return arrays.epoch_order(size, self.spec.config.seed, self.epoch)[: shape[0] * shape[1]].reshape(shape)

    def add(self, metrics: np.ndarray) -> bool:
        """Add the metrics `[steps, 5]` of steps, up to the first loss that is not finite; return whether all are."""
        finite = np.isfinite(metrics[:, METRICS.index("loss")])
        good = len(metrics) if finite.all() else int(finite.argmin())
        of = {name: metrics[:good, i].astype(np.float64) for i, name in enumerate(METRICS)}
        self.metrics = dict(zip(METRICS, metrics[min(good, len(metrics) - 1)].tolist(), strict=True))
        if good:
            if self.sums["count"] >= self.spec.steps_per_epoch * self.spec.config.train.batch_size:
                self.sums = dict.fromkeys(SUMS, 0.0)  # a new epoch begins
            for name in SUMS:
                self.sums[name] += float((of[name] * of["count"] if name == "loss" else of[name]).sum())
            self.images += float(of["count"].sum())
            self.display.advance(good, *self.means, self.images_per_second)
        return good == len(metrics)

    @property
    def means(self) -> tuple[float, float]:
        """Training loss and accuracy of the epoch so far."""
        return self.sums["loss"] / self.sums["count"], self.sums["correct"] / self.sums["count"]

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add a row to `metrics.jsonl`, to W&B and to the display's listener."""
        row = {"step": self.step, "epoch": self.step / self.spec.steps_per_epoch, **metrics}
        self.rows.append(row)
        self.record.append(row)
        self.display.log(row)
        self.wandb.log(row)

    def save(self, state: TrainState) -> None:
        """Write `state`, on the host, as a checkpoint."""
        if self.step != self.saved:
            self.record.check_held()
            notes = {"tally": self.sums, "images": self.images, "figures": self.metrics, "rows": self.rows}
            notes |= {"seconds": self._all_seconds(), "dataset": vars(self.spec.dataset)}
            notes |= {"undecodable": sorted(self.undecodable)}
            self.checkpoints.save(self.step, state, notes)
            self.saved, self._saved_at = self.step, time.monotonic()

    def finish(self, status: str, state: TrainState | None = None) -> None:
        """Write the summary as 'finished', with the digest of `state`, or as 'diverged'; InputError if it is lost."""
        self.display.close()
        self.checkpoints.close()
        digest = None if state is None else tree_digest(self.layout.variables(state.vectors))
        summary = self._summary(status, digest)
        if state is not None:
            self.record.check_held()
            path, network = self.record.path / weights.FILE, self._network(summary)
            with writing(path):
                weights.write(path, self.layout.variables(state.evaluated), network)
        self.record.finish(summary, self.rows)
        self.wandb.finish(summary.model_dump())
        self.status, self.closed = status, True

    def close(self) -> None:
        """Wait for the last checkpoint of a run that is not over, and end its W&B run; InputError if it is lost."""
        if not self.closed:
            self.closed = True
            try:
                self.checkpoints.close()  # first: W&B may take its time, and a user who pressed Ctrl-C waits
            finally:
                self.wandb.finish({})
                self.display.close()

    def _network(self, summary: Summary) -> weights.Network:
        spec, model = self.spec, self.spec.config.model
        build = arch.VERSIONS[model.version]
        options = {key: model[key] for key in inspect.signature(build).parameters if key in model}
        first = spec.arch.layers[0].padding
        padding = {} if first == "same" else {"padding": first}
        return weights.Network(
            architecture={"version": model.version, "num_classes": spec.dataset.num_classes, **options, **padding},
            input_range=spec.arch.input_range,
            mean=spec.arch.mean,
            std=spec.arch.std,
            image_size=spec.resolution if spec.dataset.streamed else spec.image_size,  # a protocol's view has it
            resolution=spec.resolution,
            class_names=datasets.class_names(spec.dataset, spec.config.data.dir),
            dataset=spec.dataset.name,
            test_accuracy=summary.test_accuracy,
            protocol=spec.config.data.protocol if spec.dataset.streamed else "",
        )

    def _all_seconds(self) -> dict[str, float]:
        return self.seconds | {"wall": self.seconds["wall"] + self.elapsed()}

    def _summary(self, status: str, digest: str | None) -> Summary:
        measured = self.rows[-1] if self.rows and status == "finished" else {}
        figures = [f"{split}_{figure}" for split in ("test", "val", "train") for figure in ("accuracy", "loss", "top5")]
        streamed = {}
        if self.spec.dataset.streamed:
            wait = self.seconds["input"] / self.seconds["train"] if self.seconds["train"] else None
            streamed = {"protocol": self.spec.config.data.protocol, "undecodable": len(self.undecodable)}
            streamed["input_wait_share"] = wait
        fields = {
            "status": status,
            "title": self.spec.title,
            "config_name": self.spec.name,
            **knobs(self.spec),
            "seed": self.spec.config.seed,
            "epochs": self.spec.config.train.epochs,
            "steps": self.step,
            **{key: measured.get(key) for key in figures},
            "train_images_per_second": self.images_per_second,
            **{f"{what}_seconds": seconds for what, seconds in self._all_seconds().items()},
            "first_step_seconds": self.first_step_seconds,
            "device": self.device,
            "fused": self.fused,
            "resumed_from": self.resumed_from,
            "params_sha256": digest,
            **streamed,
        }
        return Summary.model_validate(fields)


def logger_of(spec: RunSpec, record: RunDirectory) -> WandbLogger:
    """Return the logger of a run, not started yet."""
    w, keys = spec.config.wandb, {**spec.identity, **knobs(spec)}
    return WandbLogger(w.mode, w.project, spec.run_name, spec.digest + spec.dataset.fingerprint, record.path, keys)


def knobs(spec: RunSpec) -> dict[str, Any]:
    """Return what is varied and what it costs, under the flat names that summaries, tables and W&B plots use."""
    m, sums = spec.config.model, spec.totals
    return {
        **{key: m[key] for key in ("version", "variant", "alpha", "rho")},
        "expansion": m.expansion if m.version == "v2" else None,
        "resolution": spec.resolution,
        **{"dataset": spec.dataset.name, "num_classes": spec.dataset.num_classes},
        **{"params": sums.params, "mult_adds": sums.mult_adds},
    }
