"""Runs that are trained side by side as one program: each comes out as it would alone."""

import contextlib
import json
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
from helpers import TINY, after, send, spec_of, summary_of

from configs import cifar_v1
from mobilenet_jax import config, console
from mobilenet_jax.data import arrays as data
from mobilenet_jax.data import datasets
from mobilenet_jax.records import directory as writer
from mobilenet_jax.training import compile as program
from mobilenet_jax.training import loop as train
from mobilenet_jax.training import step as steps

pytestmark = pytest.mark.usefixtures("settings")

RUNS = [TINY | {"seed": 0}, TINY | {"seed": 1, "optim.lr": 0.1, "optim.weight_decay": 1e-3}, TINY | {"seed": 2}]


def together(directory: pathlib.Path, overrides: list[dict[str, Any]]) -> int:
    """As a sweep's worker does it; returns the signal's exit code, or 0."""
    specs = [spec_of(each) for each in overrides]
    records = [writer.RunDirectory(directory / spec.run_name) for spec in specs]
    with contextlib.ExitStack() as held, console.signals() as asked:
        for record in records:
            held.enter_context(record.locked())
        displays = [writer.Display() for _ in specs]
        try:
            train.train(specs, train.prepare(specs[0]), records, displays, asked, train.Spent(), lambda _: None)
        except train.Interrupted as e:
            return e.exit_code
    return 0


def found(directory: pathlib.Path, overrides: dict[str, Any]) -> dict[str, Any]:
    return summary_of(directory / spec_of(overrides).run_name)


def rows(directory: pathlib.Path, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (directory / spec_of(overrides).run_name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    for overrides in RUNS:
        assert train.run(spec_of(overrides), directory / spec_of(overrides).run_name) == 0
    return directory


def close(directory: pathlib.Path, alone: pathlib.Path, overrides: dict[str, Any]) -> None:
    """Equal but for rounding, of which 66 steps make more."""
    ours, theirs = rows(directory, overrides), rows(alone, overrides)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=0.02)
        assert one["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=0.05)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6)
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-3)
    assert found(directory, overrides)["status"] == "finished"


def test_each_run_comes_out_as_alone(alone, tmp_path):
    assert together(tmp_path, RUNS) == 0
    for overrides in RUNS:
        close(tmp_path, alone, overrides)
        summary, single = found(tmp_path, overrides), found(alone, overrides)
        assert (summary["fused"], single["fused"]) == (3, 1)
        assert summary.keys() == single.keys()
        assert summary["train_images_per_second"] == pytest.approx(3 * 22 * 64 / summary["train_seconds"])
        left = {path.name for path in (tmp_path / spec_of(overrides).run_name).iterdir()}
        assert left == {".lock", "config.json", "env.json", "metrics.jsonl", "checkpoints", "summary.json"}
    losses = {rows(tmp_path, overrides)[0]["train_loss"] for overrides in RUNS}
    assert len(losses) == 3


def test_a_run_that_diverges_does_not_disturb_the_others(alone, tmp_path):
    wild = TINY | {"seed": 3, "optim.lr": 1e30}
    assert together(tmp_path, [RUNS[0], wild, RUNS[1]]) == 0
    summary = found(tmp_path, wild)
    assert (summary["status"], summary["test_accuracy"]) == ("diverged", None)
    assert summary["steps"] < 66 and rows(tmp_path, wild)[-1]["step"] == summary["steps"]
    for overrides in RUNS[:2]:
        close(tmp_path, alone, overrides)


def test_members_are_finished_alone_and_in_other_groups(alone, tmp_path):
    """A signal in the second epoch; then one goes on alone, and two others, at different steps, together."""
    once = iter([send(signal.SIGTERM), lambda: None])  # both members come to that step
    with after(30, lambda: next(once)()):
        assert together(tmp_path, RUNS[:2]) == 143
    directory = tmp_path / spec_of(RUNS[0]).run_name
    assert train.run(spec_of(RUNS[0]), directory) == 0
    assert together(tmp_path, RUNS[1:]) == 0
    for overrides, resumed in zip(RUNS, (True, True, False), strict=True):
        close(tmp_path, alone, overrides)
        assert (found(tmp_path, overrides)["resumed_from"] >= 30) == resumed


def test_only_what_is_traced_may_differ():
    key = spec_of(TINY).program_key
    same = {"optim.lr": 0.3, "optim.momentum": 0.5, "optim.weight_decay": 0.1, "optim.decay_depthwise": True, "seed": 9}
    same |= {"train.label_smoothing": 0.1, "optim.clip_norm": 1.0, "optim.decay": 0.5, "optim.epsilon": 0.1}
    assert spec_of(TINY | same).program_key == key
    for name, value in {"model.alpha": 0.5, "train.epochs": 4, "train.ema_decay": 0.9, "data.holdout": 0.1}.items():
        assert spec_of(TINY | {name: value}).program_key != key
    assert spec_of(TINY | {"train.ema_decay": 0.9}).program_key == spec_of(TINY | {"train.ema_decay": 0.99}).program_key


@pytest.mark.slow
@pytest.mark.skipif(datasets.prepared("cifar10") is None, reason=f"CIFAR-10 is not prepared in {datasets.data_root()}")
def test_twenty_steps_on_cifar10_equal_those_of_separate_runs(monkeypatch):
    """The recipe of `cifar_v1` at alpha 0.25 and a tenth of its rate, four seeds, in float64.

    A new v1 without residual paths multiplies rounding errors by ten to a thousand a step: float32 would show that.
    """

    def double(tree):
        return jax.tree.map(lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, tree)

    def doubled(function):
        return lambda *arguments: double(function(*arguments))

    model = program.MobileNet
    monkeypatch.setattr(program, "MobileNet", lambda *a, **k: model(*a, **{**k, "dtype": "float64"}))
    monkeypatch.setattr(steps, "init_state", doubled(steps.init_state))
    monkeypatch.setattr(program, "_hyper", doubled(program._hyper))
    specs = []
    for seed in range(4):
        c = cifar_v1.get_config()
        c.update_from_flattened_dict({"model.alpha": 0.25, "optim.lr": 0.04, "seed": seed})
        specs.append(config.resolve(c, "cifar_v1"))
    inputs = train.prepare(specs[0])

    def losses(specs):
        built = program.build(specs, inputs.splits, jax.devices())
        state, found = built.join(built.states), []
        for step in range(20):
            orders = [data.epoch_order(50_000, spec.config.seed, 0)[step * 32 : (step + 1) * 32] for spec in specs]
            state, metrics = built.train_on(state, built.batch(orders), built.hyper)
            found.append(np.atleast_1d(metrics["loss"]))
        return np.stack(found, axis=1)

    with jax.enable_x64(True):
        separate = np.concatenate([losses([spec]) for spec in specs])
        assert np.ptp(separate, axis=0).min() > 1e-3  # four runs, not one
        np.testing.assert_allclose(losses(specs), separate, rtol=1e-4)
