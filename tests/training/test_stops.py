"""Runs that are stopped at any moment: the same command resumes to the same result."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import time

import pytest
from helpers import TINY, result, rows_of, spec_of, summary_of
from training_helpers import Crash, after, crash, run, saved, send

from mobilenet_jax.data import arrays
from mobilenet_jax.errors import InputError
from mobilenet_jax.records.directory import RunDirectory
from mobilenet_jax.training.checkpoint import Checkpoints
from mobilenet_jax.training.wandb_logger import WandbLogger

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])  # SLURM's warning
def test_a_signal_ends_the_process_and_the_same_command_resumes(name, finished, start, tmp_path):
    command = f"--workdir={tmp_path}", TINY
    directory = tmp_path / spec_of(TINY).run_name
    stopped = start(*command, stop=f"{name} 30")
    assert (stopped.returncode, stopped.stderr) == (128 + signal.Signals[name], "")
    assert stopped.stdout.endswith(f"stopped by {name}; the same command resumes\n")
    assert not (directory / "summary.json").exists()
    resumed = start(*command)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "resumed        from step 32 of 66\n" in resumed.stdout  # two steps were in flight
    assert summary_of(directory)["resumed_from"] == 32
    assert result(directory) == result(finished[1])
    assert len(json.loads((directory / "env.json").read_text())["earlier"]) == 1


def test_a_killed_process_is_resumed_from_its_last_checkpoint(finished, start, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "22.safetensors"
    killed = start(f"--run_dir={tmp_path}/run", TINY, stop=f"SIGKILL 30 {checkpoint}")
    assert (killed.returncode, killed.stderr) == (-9, "")
    assert run(TINY, tmp_path / "run") == 0
    assert summary_of(tmp_path / "run")["resumed_from"] == 22
    assert result(tmp_path / "run") == result(finished[1])


@pytest.mark.parametrize(("step", "last"), [(1, 3), (66, 66)])
def test_a_signal_after_the_first_and_the_last_step(step, last, finished, tmp_path):
    """The first is before any checkpoint. The last is before the evaluation."""
    with after(step, send(signal.SIGTERM)):
        assert run(TINY, tmp_path) == 143
    assert run(TINY, tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] == last
    assert result(tmp_path) == result(finished[1])


@pytest.mark.parametrize("evaluation", [1, 3])
def test_sigint_during_an_evaluation(evaluation, finished, tmp_path, monkeypatch):
    batches, begun = arrays.eval_batches, []

    def interrupted(size, batch_size):
        begun.append(size)
        for i, batch in enumerate(batches(size, batch_size)):
            if len(begun) == evaluation and i == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(arrays, "eval_batches", interrupted)
    assert run(TINY, tmp_path) == 130
    assert len(rows_of(tmp_path)) == evaluation - 1
    assert run(TINY, tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] == 22 * evaluation
    assert result(tmp_path) == result(finished[1])


def test_stopped_again_and_again(finished, tmp_path):
    """A crash after a checkpoint, a signal at the end of an epoch, a crash before and one after the next checkpoint."""
    for step, action in ((16, crash), (22, send(signal.SIGTERM)), (27, crash), (40, crash)):
        with contextlib.suppress(Crash), after(step, action):
            assert run(TINY, tmp_path) == 143
    assert run(TINY, tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] == 33
    assert result(tmp_path) == result(finished[1])


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), after(5, twice):
        run(TINY, tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize(("owner", "name"), [(Checkpoints, "close"), (RunDirectory, "finish")])
def test_a_file_that_cannot_be_written_is_named_and_wandb_is_ended(owner, name, tmp_path, monkeypatch):
    """The checkpoint of a signal, and the summary."""

    def full(*_):
        raise InputError(f"no room for {name}")

    summaries = []
    monkeypatch.setattr(owner, name, full)
    monkeypatch.setattr(WandbLogger, "finish", lambda self, summary: summaries.append(summary))
    stop = after(30, send(signal.SIGTERM)) if owner is Checkpoints else contextlib.nullcontext()
    with stop, pytest.raises(InputError, match=f"no room for {name}"):
        run(TINY, tmp_path)
    assert summaries == [{}]


@pytest.mark.parametrize("removed", ["lock", "everything"])
def test_a_process_whose_run_was_removed_writes_nothing_more(removed, finished, tmp_path):
    """Another process may work on the run."""
    directory = tmp_path / "run"

    def remove():
        while saved(directory) != {"22", "33"}:
            time.sleep(0.01)  # it is written in the background
        if removed == "lock":
            (directory / ".lock").unlink()
        else:
            shutil.rmtree(directory)
            with RunDirectory(directory).locked():  # by another process
                pass
        before.extend(sorted(directory.rglob("*")))

    before: list[pathlib.Path] = []
    with after(40, remove), pytest.raises(InputError, match="run: its lock was removed"):
        run(TINY, directory)
    assert sorted(directory.rglob("*")) == before
    assert run(TINY, directory) == 0
    assert result(directory) == result(finished[1])
