"""One run among those that are trained together: its record, its figures, and how far it is."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobilenet_jax import config
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays as data
from mobilenet_jax.networks import cost
from mobilenet_jax.records import directory as writer
from mobilenet_jax.training import step as steps
from mobilenet_jax.training import wandb_logger
from mobilenet_jax.training.checkpoint import Checkpoints, tree_digest

SUMS = ("loss", "correct", "count")  # over images


class Member:
    """A run that `train` takes from step to step; it is over once it has a `status`."""

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
        self.closed = False
        self.step = self.resumed_from = self.saved = 0
        self.tally: dict[str, float] = dict.fromkeys(SUMS, 0.0)  # of the epoch so far
        self.seconds: dict[str, float] = dict.fromkeys(("train", "eval", "compile", "wall"), 0.0)
        self.compile_seconds = compile_seconds  # in this process
        self.first_step_seconds = 0.0
        self.images = 0.0  # seen in seconds['train']
        self.figures: dict[str, float] = {}  # of the last step
        self.rows: list[dict[str, Any]] = []  # of metrics.jsonl
        self.record.begin(spec.config.to_dict(), device, lambda stored: not config.differences(spec, stored))
        self.checkpoints = Checkpoints(record.path / "checkpoints")
        self.tracker = track(spec, record.path)
        self.order = (-1, np.empty(0))  # an epoch, and the order in which it visits the images

    def restore(self, state: steps.TrainState) -> Any:
        """The state of the newest checkpoint that is whole; `state` where there is none."""
        found = self.checkpoints.restore(state, self.display.line)
        if found is not None:
            self.step, state, notes = found
            self.tally, self.images, self.figures = notes["tally"], notes["images"], notes["figures"]
            self.seconds, self.rows = notes["seconds"], notes["rows"]
            self.resumed_from = self.saved = self.step
            self.display.line(f"resumed        from step {self.step:,} of {self.spec.total_steps:,}")
        self.record.rewrite(self.rows)  # those of later steps will be made again
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
        return self.at_epoch_end and (not self.rows or self.rows[-1]["step"] < self.step)

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
            self.tally = dict.fromkeys(SUMS, 0.0)  # that was the epoch before
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
            self.record.check_held()
            notes = {"tally": self.tally, "images": self.images, "figures": self.figures, "rows": self.rows}
            self.checkpoints.save(self.step, state, notes | {"seconds": self._all_seconds()})
            self.saved = self.step

    def diverged(self, step: int) -> None:
        """Ends the run at `step`, whose loss is not finite."""
        self.step = step
        self._log({"train_loss": math.nan, "learning_rate": self.figures["learning_rate"]})
        self.display.line(f"diverged: the loss of step {step:,} is not finite")
        self.finish("diverged")

    def finish(self, status: str, state: Any = None) -> None:
        """Writes the summary, last; `state` is that of a finished run, as what a diverged one leaves tells nothing.

        Raises:
          InputError: it, or the checkpoint before it, cannot be written.
        """
        self.display.close()
        self.checkpoints.close()
        digest = None if state is None else tree_digest({"params": state.params, "batch_stats": state.batch_stats})
        summary = self._summary(status, digest)
        self.record.finish(summary, self.rows)
        self.tracker.finish(summary)
        self.status, self.closed = status, True

    def close(self) -> None:
        """Lets go of a run that is not over, once its checkpoint is written.

        Raises:
          InputError: the checkpoint cannot be written.
        """
        if not self.closed:
            self.closed = True
            try:
                self.checkpoints.close()  # first: W&B may take its time, and who asked to stop may not wait for that
            finally:
                self.tracker.finish({})
                self.display.close()

    def _log(self, metrics: dict[str, float]) -> None:
        row = {"step": self.step, "epoch": self.step / self.spec.steps_per_epoch, **metrics}
        self.rows.append(row)
        self.record.append(row)
        self.display.log(row)
        self.tracker.log(row)

    def _all_seconds(self) -> dict[str, float]:
        return self.seconds | {"wall": self.seconds["wall"] + self.elapsed()}

    def _summary(self, status: str, digest: str | None) -> dict[str, Any]:
        spec, row, seconds = self.spec, self.rows[-1] if self.rows else {}, self._all_seconds()
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
            "train_images_per_second": self.images_per_second,
            **{f"{what}_seconds": seconds[what] for what in ("compile", "train", "eval", "wall")},
            "first_step_seconds": self.first_step_seconds,
            "device": self.device,
            "fused": self.fused,
            "resumed_from": self.resumed_from,
            "params_sha256": digest,
        }


def track(spec: RunSpec, directory: pathlib.Path) -> wandb_logger.Tracker:
    """The run's page at W&B, where it is wanted."""
    w, keys = spec.config.wandb, {**spec.identity, **_knobs(spec)}
    return wandb_logger.Tracker(w.mode, w.project, spec.run_name, spec.digest, directory, keys)


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
