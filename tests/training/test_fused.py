"""Runs that train at the same time as one program: each has the result that it has alone."""

import contextlib
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import TINY, rows_of, spec_of, summary_of
from training_helpers import after, one_block, send

from mobilenet_jax import console
from mobilenet_jax.records.directory import RunDirectory
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import compile_runs
from mobilenet_jax.training.progress import Display
from mobilenet_jax.training.run import TrainingRun

RUNS = [TINY | {"seed": 0}, TINY | {"seed": 1, "optim.lr": 0.1, "optim.weight_decay": 1e-3}, TINY | {"seed": 2}]


@pytest.fixture(scope="module", autouse=True)
def small_networks(settings) -> Iterator[None]:
    with one_block():
        yield


def together(directory: pathlib.Path, overrides: list[dict[str, Any]]) -> int:
    """Train runs as a sweep's worker does; return the exit code of the signal, or 0."""
    specs = [spec_of(each) for each in overrides]
    records = [RunDirectory(directory / spec.run_name) for spec in specs]
    program = compile_runs(specs, loop.prepare(specs[0]))
    runs = [
        TrainingRun(
            spec,
            record,
            Display(),
            program.layout,
            "cpu",
            lambda: 60.0,
            program.compile_seconds / len(specs),
            len(specs),
        )
        for spec, record in zip(specs, records, strict=True)
    ]
    with contextlib.ExitStack() as held, console.signals() as asked:
        for record in records:
            held.enter_context(record.locked())
        try:
            loop.train(program, runs, asked)
        except loop.Interrupted as e:
            return e.exit_code
    return 0


def found(directory: pathlib.Path, overrides: dict[str, Any]) -> dict[str, Any]:
    return summary_of(directory / spec_of(overrides).run_name)


def rows(directory: pathlib.Path, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    return rows_of(directory / spec_of(overrides).run_name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("alone")
    for overrides in RUNS:
        assert loop.run(spec_of(overrides), directory / spec_of(overrides).run_name) == 0
    return directory


def assert_as_alone(directory: pathlib.Path, alone: pathlib.Path, overrides: dict[str, Any]) -> None:
    """Rows are equal except for rounding, which 66 steps amplify."""
    ours, theirs = rows(directory, overrides), rows(alone, overrides)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-2)
        assert one["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=0.02)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6)
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-5)
    assert found(directory, overrides)["status"] == "finished"


def test_each_run_has_the_result_that_it_has_alone(alone, tmp_path):
    assert together(tmp_path, RUNS) == 0
    for overrides in RUNS:
        assert_as_alone(tmp_path, alone, overrides)
        summary, single = found(tmp_path, overrides), found(alone, overrides)
        assert (summary["fused"], single["fused"]) == (3, 1)
        assert summary.keys() == single.keys()
        assert summary["train_images_per_second"] == pytest.approx(3 * 22 * 64 / summary["train_seconds"])
        left = {path.name for path in (tmp_path / spec_of(overrides).run_name).iterdir()}
        assert left == {
            ".lock",
            "config.json",
            "env.json",
            "metrics.jsonl",
            "checkpoints",
            "weights.safetensors",
            "summary.json",
        }
    losses = {rows(tmp_path, overrides)[0]["train_loss"] for overrides in RUNS}
    assert len(losses) == 3


def test_a_run_that_diverges_does_not_disturb_the_others(alone, tmp_path):
    wild = TINY | {"seed": 3, "optim.lr": 1e30}
    assert together(tmp_path, [RUNS[0], wild, RUNS[1]]) == 0
    summary = found(tmp_path, wild)
    assert (summary["status"], summary["test_accuracy"]) == ("diverged", None)
    assert summary["steps"] < 66 and rows(tmp_path, wild)[-1]["step"] == summary["steps"]
    for overrides in RUNS[:2]:
        assert_as_alone(tmp_path, alone, overrides)


@pytest.mark.slow
def test_stopped_runs_resume_alone_and_in_other_groups(alone, tmp_path):
    """A signal comes in the second epoch. Then one run resumes alone, and the others together with a new one."""
    stops = iter([send(signal.SIGTERM)])  # at the first of the runs that reach the step
    with after(30, lambda: next(stops, lambda: None)()):
        assert together(tmp_path, RUNS) == 143
    assert loop.run(spec_of(RUNS[0]), tmp_path / spec_of(RUNS[0]).run_name) == 0
    new = TINY | {"seed": 3}
    assert together(tmp_path, [*RUNS[1:], new]) == 0
    for overrides in RUNS:
        assert_as_alone(tmp_path, alone, overrides)
        assert found(tmp_path, overrides)["resumed_from"] == 32
    assert (found(tmp_path, new)["status"], found(tmp_path, new)["resumed_from"]) == ("finished", 0)
