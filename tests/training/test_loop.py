"""Whole runs on small images: what they print and record, and that each part of a recipe resumes exactly."""

import functools
import json
import signal
import sys
import types

import jax
import numpy as np
import pytest
from helpers import TINY, result, rows_of, spec_of, summary_of
from training_helpers import Crash, after, crash, printed, run, saved, send

from mobilenet_jax.data import arrays, augment
from mobilenet_jax.errors import Busy, InputError
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks import cost
from mobilenet_jax.records import weights
from mobilenet_jax.records.directory import RunDirectory
from mobilenet_jax.training import loop
from mobilenet_jax.training.checkpoint import Checkpoints, tree_digest
from mobilenet_jax.training.state import Layout, init_state

pytestmark = pytest.mark.usefixtures("small_networks")

# 8x8 images, 22 steps per epoch, 66 in all, a checkpoint every 11.
EVERYTHING = TINY | {
    "data.holdout": 0.1,
    "augment.crop": 28,
    "augment.flip": True,
    "model.dropout": 0.2,
    "optim.name": "rmsprop",
    "optim.schedule": "exponential",
    "optim.warmup_epochs": 0.5,
    "optim.clip_norm": 1.0,
    "optim.weight_decay": 1e-3,
    "train.label_smoothing": 0.1,
    "train.ema_decay": 0.99,
}

SUMMARY = {
    **dict.fromkeys(("schema", "resolution", "num_classes", "seed", "epochs", "steps"), int),
    **dict.fromkeys(("params", "mult_adds", "resumed_from", "fused"), int),
    **dict.fromkeys(("status", "config_name", "version", "variant", "dataset", "device", "params_sha256"), str),
    **dict.fromkeys(("alpha", "rho", "test_accuracy", "test_loss", "train_images_per_second"), float),
    **dict.fromkeys(("compile_seconds", "first_step_seconds", "train_seconds", "eval_seconds", "wall_seconds"), float),
    **dict.fromkeys(("expansion", "val_accuracy", "val_loss"), type(None)),
}


def test_a_run_prints_its_result(finished):
    text, directory = finished
    summary = summary_of(directory)
    lines = text.splitlines()
    assert lines[0] == "MobileNet v1, alpha 0.25, rho 0.25, shallow, cifar strides, 8x8 digits (10 classes)"
    assert lines[-1] == f"run            {directory}"
    assert f"test accuracy  {summary['test_accuracy']:.4f}" in text
    assert f"mult-adds      {summary['mult_adds']:,}" in text
    assert f"params         {summary['params']:,}" in text
    assert f"{summary['train_images_per_second']:,.0f} images/s" in lines[-3]
    assert sum(line.startswith("epoch ") for line in lines) == 3


def test_a_run_leaves_its_record(finished):
    _, directory = finished
    left = {path.name for path in directory.iterdir()}
    assert left == {
        ".lock",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints",
        "weights.safetensors",
        "summary.json",
    }
    assert json.loads((directory / "config.json").read_text()) == spec_of(TINY).config.to_dict()
    assert json.loads((directory / "env.json").read_text())["earlier"] == []
    assert saved(directory) == {"55", "66"}


def test_the_summary(finished):
    _, directory = finished
    summary, row, spec = summary_of(directory), rows_of(directory)[-1], spec_of(TINY)
    assert {name: type(summary[name]) for name in SUMMARY} == SUMMARY
    totals = cost.totals(spec.arch, 8)
    assert (summary["params"], summary["mult_adds"]) == (totals.params, totals.mult_adds)
    expected = {"schema": 1, "status": "finished", "config_name": "digits_v1", "version": "v1", "variant": "shallow"}
    expected |= {"alpha": 0.25, "rho": 0.25, "resolution": 8, "dataset": "digits", "num_classes": 10, "seed": 0}
    expected |= {"epochs": 3, "steps": spec.total_steps, "resumed_from": 0, "fused": 1}
    assert {name: summary[name] for name in expected} == expected
    assert all(summary[name] == row[name] for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"))
    parts = [summary[f"{part}_seconds"] for part in ("compile", "train", "eval")]
    assert min(parts) > 0 and sum(parts) < summary["wall_seconds"]
    assert summary["train_images_per_second"] == pytest.approx(3 * 22 * 64 / summary["train_seconds"])


def test_the_metrics(finished):
    _, directory = finished
    rows = rows_of(directory)
    assert [(row["step"], row["epoch"]) for row in rows] == [(22, 1.0), (44, 2.0), (66, 3.0)]
    figures = {f"{split}_{figure}" for split in ("train", "test") for figure in ("loss", "accuracy")}
    for row in rows:
        assert row.keys() == figures | {"step", "epoch", "learning_rate", "images_per_second"}
        assert all(0 <= row[f"{split}_accuracy"] <= 1 for split in ("train", "test"))
        assert row["train_accuracy"] * 22 * 64 == pytest.approx(round(row["train_accuracy"] * 22 * 64))
        assert row["test_accuracy"] * 360 == pytest.approx(round(row["test_accuracy"] * 360))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_test_figures_are_over_every_image_once(finished):
    """They equal one pass over all 360 images, without batches, with the parameters of the last checkpoint."""
    _, directory = finished
    spec = spec_of(TINY)
    model = MobileNet(spec.arch, bn_decay=0.9)
    layout = Layout(model)
    template = jax.eval_shape(functools.partial(init_state, model, layout, "sgd", False), jax.random.key(0))
    checkpoints = Checkpoints(directory / "checkpoints")
    found = checkpoints.restore(template)
    checkpoints.close()
    assert found is not None and found[0] == 66
    state = found[1]
    split = arrays.load(spec.dataset)["test"]
    inputs = augment.evaluation_view(jax.numpy.asarray(split.images), 32, 8, spec.arch.input_range)
    logits = np.asarray(jax.jit(model.apply)(layout.variables(state.evaluated), inputs), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(360), split.labels]
    summary = summary_of(directory)
    assert summary["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert summary["test_accuracy"] == (logits.argmax(-1) == split.labels).mean()
    assert summary["params_sha256"] == tree_digest(layout.variables(state.vectors))

    variables, network = weights.read(directory)
    assert tree_digest(variables) == summary["params_sha256"]
    assert (network.image_size, network.resolution, network.dataset) == (32, 8, "digits")
    assert network.architecture.items() >= {"version": "v1", "alpha": 0.25, "num_classes": 10}.items()
    assert network.class_names == tuple("0123456789") and network.test_accuracy == summary["test_accuracy"]


def test_a_finished_run_is_reported_and_not_changed(finished):
    first, directory = finished
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
    again = printed(TINY, directory)
    assert again.startswith("already finished: MobileNet v1")
    assert again.splitlines()[1:] == first.splitlines()[-6:]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")} == before


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path):
    with RunDirectory(tmp_path).locked(), pytest.raises(Busy, match="another process"):
        run(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(InputError, match="train.devices=2.*has 1"):
        run(TINY | {"train.devices": 2}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_comes_once_a_minute_unless_the_config_says_when(tmp_path, monkeypatch):
    from mobilenet_jax.training import run as runs

    assert run(TINY | {"train.checkpoint_epochs": 0.0}, tmp_path / "short") == 0
    assert saved(tmp_path / "short") == {"66"}
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0.0)
    with pytest.raises(Crash), after(50, crash):
        run(TINY | {"train.checkpoint_epochs": 0.0}, tmp_path / "long")
    assert len(saved(tmp_path / "long")) == 2


AMBIENT = {
    **{"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_ENABLE_X64": "1", "JAX_RANDOM_SEED_OFFSET": "3"},
    **{"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_TRANSFER_GUARD": "disallow"},
    **{"JAX_NO_TRACING": "1", "JAX_NO_EXECUTION": "1", "JAX_DEBUG_NANS": "1"},
}


def test_settings_of_jax_in_the_environment_do_not_change_a_result_and_are_recorded(finished, start, tmp_path):
    done = start(f"--run_dir={tmp_path}/run", TINY, **AMBIENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "run") == result(finished[1])
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert AMBIENT.items() <= env["settings"].items() and env["matmul_precision"] == "default"


# Other recipes.


def test_every_part_of_a_recipe_resumes_exactly(tmp_path, monkeypatch):
    """Moving average, RMSprop, dropout, smoothing, clipping, crops, and a holdout: 'test' is evaluated once."""
    batches, evaluated = arrays.eval_batches, []

    def counted(size, batch_size):
        evaluated.append(size)
        return batches(size, batch_size)

    monkeypatch.setattr(arrays, "eval_batches", counted)
    spec = spec_of(EVERYTHING)
    assert (spec.resolution, spec.train_size, spec.steps_per_epoch) == (7, 1293, 20)
    assert loop.run(spec, tmp_path / "whole") == 0
    assert evaluated == [144, 144, 144, 360]

    with pytest.raises(Crash), after(13, crash):
        loop.run(spec, tmp_path / "stopped")
    with after(37, send(signal.SIGTERM)):
        assert loop.run(spec, tmp_path / "stopped") == 143
    assert loop.run(spec, tmp_path / "stopped") == 0
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")

    summary, rows = summary_of(tmp_path / "whole"), rows_of(tmp_path / "whole")
    judged = ("val_accuracy", "val_loss")
    assert all(name in row for row in rows for name in judged)
    assert [("test_accuracy" in row, "test_loss" in row) for row in rows] == [(False, False)] * 2 + [(True, True)]
    assert all(summary[name] == rows[-1][name] for name in (*judged, "test_accuracy", "test_loss"))
    assert summary["val_accuracy"] * 144 == pytest.approx(round(summary["val_accuracy"] * 144))


def test_a_run_that_diverges(tmp_path):
    overrides = TINY | {"optim.lr": 1e30}
    text = printed(overrides, tmp_path)
    summary, row = summary_of(tmp_path), rows_of(tmp_path)[-1]
    assert f"diverged: the loss of step {summary['steps']} is not finite" in text
    assert (summary["status"], summary["test_accuracy"], summary["test_loss"]) == ("diverged", None, None)
    assert summary.keys() >= SUMMARY.keys() and 0 < summary["steps"] < 66
    assert summary["params_sha256"] is None
    assert row["train_loss"] is None and row["step"] == summary["steps"]
    again = printed(overrides, tmp_path)
    assert again.startswith("already diverged: MobileNet v1") and "test accuracy" not in again


@pytest.mark.parametrize(
    "changes",
    [{"train.batch_size": 1024}, pytest.param({"train.batch_size": 128, "data.holdout": 0.9}, marks=pytest.mark.slow)],
    ids=["batch", "holdout"],
)
def test_an_epoch_of_one_step(changes, tmp_path):
    """No time has passed when the first metrics arrive."""
    assert run(TINY | changes, tmp_path / "run") == 0
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]


def test_evaluations_now_and_then_and_another_seed(finished, tmp_path):
    assert run(TINY | {"train.eval_epochs": 2, "seed": 1}, tmp_path) == 0
    assert [("test_loss" in row, "train_loss" in row) for row in rows_of(tmp_path)] == [
        (False, True),
        (True, True),
        (True, True),
    ]
    assert summary_of(tmp_path)["params_sha256"] != summary_of(finished[1])["params_sha256"]


@pytest.fixture
def wandb_runs(monkeypatch):
    """Replace W&B; return the arguments of its runs, with their rows, their summary and how often they finished."""
    runs = []

    def init(**given):
        runs.append(types.SimpleNamespace(given=given, rows=[], summary={}, finished=0))
        run = runs[-1]
        run.define_metric = lambda *_, **__: None
        run.log = lambda row, **_: run.rows.append(row)
        run.finish = lambda: vars(run).update(finished=run.finished + 1)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return runs


def test_wandb_gets_the_knobs_and_the_costs_as_flat_keys(tmp_path, wandb_runs):
    spec = spec_of(TINY)
    assert loop.run(spec, tmp_path) == 0
    summary, (logged,) = summary_of(tmp_path), wandb_runs
    given = logged.given
    for name in ("alpha", "rho", "expansion", "params", "mult_adds", "version", "resolution"):
        assert given["config"][name] == summary[name] == logged.summary[name]
    assert given["config"].items() >= spec.identity.items()
    assert not any(isinstance(value, dict) for value in given["config"].values())
    assert (given["mode"], given["name"], given["id"]) == ("offline", spec.run_name, spec.digest)
    assert logged.summary["test_accuracy"] == summary["test_accuracy"]
    assert (logged.rows, logged.finished) == (rows_of(tmp_path), 1)


def test_the_newest_offline_log_of_wandb_is_the_whole_run(tmp_path, wandb_runs):
    """After a stop in the third epoch, and after the loss of the summary."""
    with after(48, send(signal.SIGTERM)):
        assert run(TINY, tmp_path) == 128 + signal.SIGTERM
    assert run(TINY, tmp_path) == 0
    (tmp_path / "summary.json").unlink()
    assert run(TINY, tmp_path) == 0
    rows = rows_of(tmp_path)
    assert [each.rows for each in wandb_runs] == [rows[:2], rows, rows]
    assert [each.summary.get("test_accuracy") for each in wandb_runs] == [None] + 2 * [rows[-1]["test_accuracy"]]


@pytest.mark.slow
def test_v2_in_bfloat16(tmp_path):
    overrides = TINY | {"model.version": "v2", "model.variant": "paper", "model.expansion": 2.0, "train.epochs": 1}
    overrides |= {"optim.warmup_epochs": 0}
    assert run(overrides | {"train.dtype": "bfloat16"}, tmp_path) == 0
    summary = summary_of(tmp_path)
    assert (summary["version"], summary["expansion"], summary["status"]) == ("v2", 2.0, "finished")
    assert rows_of(tmp_path)[-1]["train_loss"] < 3
