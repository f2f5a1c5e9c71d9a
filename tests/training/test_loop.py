"""Whole runs on small images: what they leave behind, and that stopping one anywhere changes nothing in the end."""

import contextlib
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import TINY, after, send, spec_of, summary_of

from mobilenet_jax.data import arrays as data
from mobilenet_jax.data import augment, datasets
from mobilenet_jax.errors import InputError
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.records import directory as writer
from mobilenet_jax.training import loop as train
from mobilenet_jax.training import step as steps
from mobilenet_jax.training import wandb_logger
from mobilenet_jax.training.checkpoint import Checkpoints, tree_digest

pytestmark = pytest.mark.usefixtures("settings")

# 8x8 images, 22 steps an epoch, 66 in all, a checkpoint every 11.
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
SPEEDS = {"images_per_second", "train_images_per_second", "resumed_from"}
SPEEDS |= {"sha256", "metrics_sha256"}  # over these too

SUMMARY = {
    **dict.fromkeys(("schema", "resolution", "num_classes", "seed", "epochs", "steps"), int),
    **dict.fromkeys(("params", "mult_adds", "resumed_from"), int),
    **dict.fromkeys(("status", "config_name", "version", "variant", "dataset", "device", "params_sha256"), str),
    **dict.fromkeys(("alpha", "rho", "test_accuracy", "test_loss", "train_images_per_second"), float),
    **dict.fromkeys(("compile_seconds", "first_step_seconds", "train_seconds", "eval_seconds", "wall_seconds"), float),
}


def flags_of(overrides: dict[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


STOPPING = """
import os, signal, sys
import launch
from mobilenet_jax import writer
name, step = os.environ["STOP"].split()
advance = writer.Display.advance
def stop(self, *figures):
    advance(self, *figures)
    if self._step == int(step):
        os.kill(os.getpid(), getattr(signal, name))
writer.Display.advance = stop
sys.exit(launch.run())
"""


@pytest.fixture(scope="module")
def start(settings):
    """Runs the command line in a process of its own, if asked one that sends itself a signal after some step."""

    def run(directory: pathlib.Path, overrides: dict[str, Any], stop: str = "", **env: str):
        program = ["-c", STOPPING] if stop else [str(ROOT / "launch.py")]
        return subprocess.run(
            [sys.executable, *program, f"--run_dir={directory}", *flags_of(overrides)],
            cwd=directory.parent,
            env=os.environ | settings | {"PYTHONPATH": str(ROOT), "STOP": stop} | env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A run that nothing disturbed: its process and its directory."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return start(directory, TINY), directory


def rows_of(directory: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def result(directory: pathlib.Path) -> tuple[Any, Any]:
    """All that a run found out, its speeds apart."""

    def kept(row):
        return {k: v for k, v in row.items() if k not in SPEEDS and not k.endswith("_seconds")}

    return kept(summary_of(directory)), [kept(row) for row in rows_of(directory)]


# A run from start to end.


def test_a_run_says_what_it_found(finished):
    done, directory = finished
    assert (done.returncode, done.stderr) == (0, "")
    summary = summary_of(directory)
    lines = done.stdout.splitlines()
    assert lines[0] == "MobileNet v1, alpha 0.25, rho 0.25, shallow, cifar strides, 8x8 digits (10 classes)"
    assert lines[-1] == f"run            {directory}"
    assert f"test accuracy  {summary['test_accuracy']:.4f}" in done.stdout
    assert f"mult-adds      {summary['mult_adds']:,}" in done.stdout
    assert f"params         {summary['params']:,}" in done.stdout
    assert f"{summary['train_images_per_second']:,.0f} images/s" in lines[-3]
    assert sum(line.startswith("epoch ") for line in lines) == 3


def test_a_run_leaves_its_record(finished):
    _, directory = finished
    left = {path.name for path in directory.iterdir()}
    assert left == {".lock", "config.json", "env.json", "metrics.jsonl", "checkpoints", "summary.json"}
    spec = spec_of(TINY)
    assert json.loads((directory / "config.json").read_text()) == spec.config.to_dict()
    assert json.loads((directory / "env.json").read_text())["earlier"] == []
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["55", "66"]


def test_the_summary(finished):
    _, directory = finished
    summary, row, spec = summary_of(directory), rows_of(directory)[-1], spec_of(TINY)
    assert {name: type(summary.get(name)) for name in SUMMARY} == SUMMARY
    totals = cost.totals(arch.mobilenet_v1(0.25, 10, "cifar", "shallow"), 8)
    assert (summary["params"], summary["mult_adds"]) == (totals.params, totals.mult_adds)
    expected = {"schema": 1, "status": "finished", "config_name": "digits_v1", "version": "v1", "variant": "shallow"}
    expected |= {"alpha": 0.25, "rho": 0.25, "expansion": None, "resolution": 8, "dataset": "digits", "seed": 0}
    expected |= {"num_classes": 10, "epochs": 3, "steps": 66, "resumed_from": 0}
    assert {name: summary[name] for name in expected} == expected
    assert all(summary[name] == row[name] for name in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"))
    assert not {"val_accuracy", "val_loss"} & summary.keys()
    parts = [summary[f"{part}_seconds"] for part in ("compile", "train", "eval")]
    assert min(parts) > 0 and sum(parts) < summary["wall_seconds"]
    assert summary["train_images_per_second"] == pytest.approx(3 * 22 * 64 / summary["train_seconds"])
    assert spec.total_steps == summary["steps"]


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
    """Against one pass over all 360 images, in no batches, from the last checkpoint's parameters."""
    _, directory = finished
    spec = spec_of(TINY)
    model = MobileNet(spec.arch, bn_decay=0.9)
    template = jax.eval_shape(functools.partial(steps.init_state, model, "sgd", 8, False), jax.random.key(0))
    checkpoints = Checkpoints(directory / "checkpoints")
    found = checkpoints.restore(template)
    checkpoints.close()
    assert found is not None and found[0] == 66
    state = found[1]
    split = data.load(spec.dataset)["test"]
    inputs = augment.evaluation_view(jax.numpy.asarray(split.images), 32, 8, spec.arch.input_range)
    logits = np.asarray(jax.jit(model.apply)(state.evaluated, inputs), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(360), split.labels]
    summary = summary_of(directory)
    assert summary["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert summary["test_accuracy"] == (logits.argmax(-1) == split.labels).mean()
    assert summary["params_sha256"] == tree_digest({"params": state.params, "batch_stats": state.batch_stats})


def test_the_same_command_again_says_so_and_changes_nothing(finished, start):
    first, directory = finished
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
    again = start(directory, TINY)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("already finished: MobileNet v1")
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()[-6:]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")} == before


def test_a_run_goes_where_its_name_says(launch, tmp_path):
    """`--workdir` and the run's name; the lock is held by someone else, so nothing is trained."""
    directory = tmp_path / "runs" / spec_of(TINY).run_name
    with writer.RunDirectory(directory).locked():
        done = launch(*flags_of(TINY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {directory}: another process is on this run; wait for it or stop it first\n"
    assert [path.name for path in directory.iterdir()] == [".lock"]


# Runs that are stopped.


class Crash(BaseException):
    """Stands for whatever ends a process at once."""


def crash():
    raise Crash


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_a_signal_ends_the_process_and_the_same_command_resumes(name, code, finished, start, tmp_path):
    stopped = start(tmp_path / "run", TINY, stop=f"{name} 30")
    assert (stopped.returncode, stopped.stderr) == (code, "")
    assert stopped.stdout.endswith(f"stopped by {name}; the same command resumes\n") == (code > 0)
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = start(tmp_path / "run", TINY)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    step = summary_of(tmp_path / "run")["resumed_from"]
    assert step in ((30, 31, 32, 33) if code > 0 else (11, 22))
    assert f"resumed        from step {step} of 66\n" in resumed.stdout
    assert result(tmp_path / "run") == result(finished[1])
    assert len(json.loads((tmp_path / "run" / "env.json").read_text())["earlier"]) == 1


@pytest.mark.parametrize("step", [1, 66])
def test_sigterm_after_the_first_and_the_last_step(step, finished, tmp_path):
    """The first, before there is any checkpoint, and the last."""
    with after(step, send(signal.SIGTERM)):
        assert train.run(spec_of(TINY), tmp_path) == 143
    assert train.run(spec_of(TINY), tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] >= step
    assert result(tmp_path) == result(finished[1])


@pytest.mark.parametrize("evaluation", [1, 3])
def test_sigint_during_an_evaluation(evaluation, finished, tmp_path, monkeypatch):
    batches, begun = data.eval_batches, []

    def interrupted(size, batch_size):
        begun.append(size)
        for i, batch in enumerate(batches(size, batch_size)):
            if len(begun) == evaluation and i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(data, "eval_batches", interrupted)
    assert train.run(spec_of(TINY), tmp_path) == 130
    assert len(rows_of(tmp_path) if evaluation > 1 else []) == evaluation - 1
    assert train.run(spec_of(TINY), tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] == 22 * evaluation
    assert result(tmp_path) == result(finished[1])


def test_stopped_again_and_again(finished, tmp_path):
    """A checkpoint inside an epoch, a crash; a signal at an epoch's end; a crash before the next checkpoint."""
    for step, what in ((16, crash), (22, send(signal.SIGTERM)), (27, crash), (40, crash)):
        with contextlib.suppress(Crash), after(step, what):
            assert train.run(spec_of(TINY), tmp_path) == 143
    assert train.run(spec_of(TINY), tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] == 33
    assert result(tmp_path) == result(finished[1])


def test_a_signals_checkpoint_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(self):
        raise InputError("no room for the checkpoint")

    finished_with = []
    monkeypatch.setattr(Checkpoints, "close", full)
    monkeypatch.setattr(wandb_logger.Tracker, "finish", lambda self, summary: finished_with.append(summary))
    with after(30, send(signal.SIGTERM)), pytest.raises(InputError, match="no room for the checkpoint"):
        train.run(spec_of(TINY), tmp_path)
    assert finished_with == [{}]  # W&B is told that it is over


def test_a_summary_that_cannot_be_written_leaves_nothing_open(tmp_path, monkeypatch):
    def full(self, summary, rows):
        raise InputError("no room for the summary")

    finished_with = []
    monkeypatch.setattr(writer.RunDirectory, "finish", full)
    monkeypatch.setattr(wandb_logger.Tracker, "finish", lambda self, summary: finished_with.append(summary))
    with pytest.raises(InputError, match="no room for the summary"):
        train.run(spec_of(TINY), tmp_path)
    assert finished_with == [{}]


@pytest.mark.parametrize("what", ["the lock", "everything"])
def test_a_run_that_is_swept_away_is_left_to_whoever_comes(what, finished, tmp_path):
    """Its process writes nothing more there, as another may be on it."""

    def sweep():
        while {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} != {"22", "33"}:
            time.sleep(0.01)  # it is written in the background
        if what == "the lock":
            (tmp_path / "run" / ".lock").unlink()
        else:
            shutil.rmtree(tmp_path / "run")
            with writer.RunDirectory(tmp_path / "run").locked():  # by another process
                pass
        before.extend(sorted((tmp_path / "run").rglob("*")))

    before: list[pathlib.Path] = []
    with after(40, sweep), pytest.raises(InputError, match="run: its lock was removed while this process was on"):
        train.run(spec_of(TINY), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert train.run(spec_of(TINY), tmp_path / "run") == 0
    assert result(tmp_path / "run") == result(finished[1])


@pytest.mark.parametrize("damage", ["removed", "cut", "another run's"])
def test_a_lost_config_costs_nothing_where_the_directory_has_the_runs_own_name(damage, crashed, finished, tmp_path):
    spec = spec_of(TINY)
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / spec.run_name))
    path = directory / "config.json"
    whole = path.read_text()
    path.unlink() if damage == "removed" else path.write_text(
        whole[:-9] if damage == "cut" else whole.replace("0.25", "0.5")
    )
    assert train.run(spec, directory) == 0
    assert path.read_text() == whole and summary_of(directory)["resumed_from"] == summary_of(directory)["steps"] - 22
    assert result(directory) == result(finished[1])


def test_killed_before_its_summary(finished, tmp_path):
    """All steps and rows are there, the summary is not: it is written, and no step is added."""
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    (run / "summary.json").unlink()
    with after(67, crash):  # a step too many
        assert train.run(spec_of(TINY), run) == 0
    assert summary_of(run)["resumed_from"] == 66
    assert result(run)[1] == result(finished[1])[1]
    assert summary_of(run)["params_sha256"] == summary_of(finished[1])["params_sha256"]


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), after(5, twice):
        train.run(spec_of(TINY), tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """A run that ended at step 50, after the checkpoints of 33 and 44; to be copied, not changed."""
    directory = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.raises(Crash), after(50, crash):
        train.run(spec_of(TINY), directory)
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["33", "44"]
    return directory


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, crashed, finished, start, tmp_path):
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / "run"))
    files = (path for path in (directory / "checkpoints" / "44").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    done = start(directory, TINY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "checkpoint of step 44 is damaged and dropped (" in done.stdout
    assert "resumed        from step 33 of 66\n" in done.stdout
    assert result(directory) == result(finished[1])


@pytest.mark.parametrize("tail", ["torn", "lost"])
def test_metrics_that_lag_behind_the_checkpoint_are_written_again(tail, crashed, finished, tmp_path):
    """As after a power cut: the checkpoint of an epoch's end is on disk, its row is not."""
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / "run"))
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text(lines[0] + (lines[1][:-9] if tail == "torn" else ""))
    assert train.run(spec_of(TINY), directory) == 0
    assert summary_of(directory)["resumed_from"] == 44
    assert result(directory) == result(finished[1])


def test_every_part_of_a_recipe_resumes_exactly(tmp_path, monkeypatch):
    """Moving average, RMSprop, dropout, smoothing, clipping, crops, and a holdout that spares the test split."""
    batches, evaluated = data.eval_batches, []

    def counted(size, batch_size):
        evaluated.append(size)
        return batches(size, batch_size)

    monkeypatch.setattr(data, "eval_batches", counted)
    spec = spec_of(EVERYTHING)
    assert (spec.resolution, spec.train_size, spec.steps_per_epoch) == (7, 1293, 20)
    assert train.run(spec, tmp_path / "whole") == 0
    assert evaluated == [144, 144, 144, 360]

    with pytest.raises(Crash), after(13, crash):
        train.run(spec, tmp_path / "stopped")
    with after(37, send(signal.SIGTERM)):
        assert train.run(spec, tmp_path / "stopped") == 143
    assert train.run(spec, tmp_path / "stopped") == 0
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")

    summary, rows = summary_of(tmp_path / "whole"), rows_of(tmp_path / "whole")
    judged = ("val_accuracy", "val_loss")
    assert all(name in row for row in rows for name in judged)
    assert [("test_accuracy" in row, "test_loss" in row) for row in rows] == [(False, False)] * 2 + [(True, True)]
    assert all(summary[name] == rows[-1][name] for name in (*judged, "test_accuracy", "test_loss"))
    assert summary["val_accuracy"] * 144 == pytest.approx(round(summary["val_accuracy"] * 144))


# Other runs.


def test_a_run_that_diverges(start, tmp_path):
    overrides = TINY | {"optim.lr": 1e30}
    done = start(tmp_path / "run", overrides)
    assert (done.returncode, done.stderr) == (0, "")
    assert "diverged: the loss of step " in done.stdout
    summary, row = summary_of(tmp_path / "run"), rows_of(tmp_path / "run")[-1]
    assert (summary["status"], summary["test_accuracy"], summary["test_loss"]) == ("diverged", None, None)
    assert summary.keys() >= SUMMARY.keys() and 0 < summary["steps"] < 66
    assert summary["params_sha256"] is None
    assert row["train_loss"] is None and row["step"] == summary["steps"]
    again = start(tmp_path / "run", overrides)
    assert again.returncode == 0 and again.stdout.startswith("already diverged: MobileNet v1")
    assert "test accuracy" not in again.stdout


def test_evaluations_now_and_then_and_another_seed(finished, tmp_path):
    assert train.run(spec_of(TINY | {"train.eval_epochs": 2, "seed": 1}), tmp_path) == 0
    assert [("test_loss" in row, "train_loss" in row) for row in rows_of(tmp_path)] == [
        (False, True),
        (True, True),
        (True, True),
    ]
    assert summary_of(tmp_path)["params_sha256"] != summary_of(finished[1])["params_sha256"]


def test_wandb_gets_the_knobs_and_the_costs_as_flat_keys(tmp_path, monkeypatch):
    class Run:
        def __init__(self):
            self.rows, self.summary, self.finished = [], {}, 0
            self.define_metric = lambda *_, **__: None
            self.log = self.rows.append

        def finish(self):
            self.finished += 1

    logged, given = Run(), {}
    init = types.SimpleNamespace(init=lambda **kwargs: given.update(kwargs) or logged, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", init)
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = spec_of(TINY)
    assert train.run(spec, tmp_path) == 0
    summary = summary_of(tmp_path)
    for name in ("alpha", "rho", "expansion", "params", "mult_adds", "version", "resolution"):
        assert given["config"][name] == summary[name] == logged.summary[name]
    assert given["config"].items() >= spec.identity.items()
    assert not any(isinstance(value, dict) for value in given["config"].values())
    assert (given["mode"], given["name"], given["id"]) == ("offline", spec.run_name, spec.digest)
    assert logged.summary["test_accuracy"] == summary["test_accuracy"]
    assert (logged.rows, logged.finished) == (rows_of(tmp_path), 1)


@pytest.mark.slow
def test_two_devices(start, tmp_path):
    done = start(
        tmp_path / "run",
        TINY | {"train.epochs": 1, "optim.warmup_epochs": 0},
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = summary_of(tmp_path / "run")
    assert summary["device"].startswith("2 x cpu") and summary["status"] == "finished"
    assert summary["test_accuracy"] * 360 == pytest.approx(round(summary["test_accuracy"] * 360))


@pytest.mark.slow
def test_v2_in_bfloat16(tmp_path):
    overrides = TINY | {"model.version": "v2", "model.variant": "paper", "model.expansion": 2.0, "train.epochs": 1}
    overrides |= {"optim.warmup_epochs": 0}
    assert train.run(spec_of(overrides | {"train.dtype": "bfloat16"}), tmp_path) == 0
    summary = summary_of(tmp_path)
    assert (summary["version"], summary["expansion"], summary["status"]) == ("v2", 2.0, "finished")
    assert rows_of(tmp_path)[-1]["train_loss"] < 3


@pytest.mark.slow
def test_killed_anywhere(start, settings, tmp_path):
    """At four random moments of a run that writes a checkpoint nearly all the time."""
    overrides = TINY | {"train.epochs": 6, "train.batch_size": 16, "train.checkpoint_epochs": 0.2}
    assert start(tmp_path / "whole", overrides).returncode == 0
    seconds = summary_of(tmp_path / "whole")["train_seconds"]
    draw = random.Random(0)
    for name in ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM"):
        directory = tmp_path / f"{name}{draw.random()}"
        command = [sys.executable, str(ROOT / "launch.py"), f"--run_dir={directory}", *flags_of(overrides)]
        environment = os.environ | settings
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while not list(directory.glob("checkpoints/*/commit_success.txt")):
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(draw.uniform(0, seconds / 2))
            process.send_signal(getattr(signal, name))
        assert process.returncode == (143 if name == "SIGTERM" else -9)
        assert start(directory, overrides).returncode == 0
        assert summary_of(directory)["resumed_from"] > 0
        assert result(directory) == result(tmp_path / "whole")


@pytest.mark.slow
def test_the_default_command_learns_the_digits(launch, settings, tmp_path):
    done = launch(timeout=400, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = (summary_of(path) for path in (tmp_path / "runs").iterdir())
    assert summary["test_accuracy"] >= 0.98
    assert f"test accuracy  {summary['test_accuracy']:.4f}" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(datasets.prepared("cifar10") is None, reason=f"CIFAR-10 is not prepared in {datasets.data_root()}")
def test_real_cifar10(launch, settings, tmp_path):
    overrides = {"model.alpha": 0.25, "model.rho": 0.25, "model.bn_decay": 0.9}
    overrides |= {"train.epochs": 1, "train.batch_size": 256}
    done = launch(f"--config={ROOT}/configs/cifar_v1.py", *flags_of(overrides), timeout=300, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = (summary_of(path) for path in (tmp_path / "runs").iterdir())
    assert (summary["dataset"], summary["steps"]) == ("cifar10", 195)
    assert summary["test_accuracy"] > 0.2
