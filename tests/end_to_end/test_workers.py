"""Sweeps whose workers or command are stopped, killed or late: every point still trains once."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from helpers import TINY, environment
from sweep_helpers import (
    command,
    database,
    gone,
    patched,
    results,
    run,
    start,
    trained,
    training,
    trial_states,
    trials,
    wait,
    workers,
    write,
)

pytestmark = pytest.mark.usefixtures("shared_programs")


def ended(pids: list[int]) -> bool:
    """Return whether the processes end within 30 seconds."""
    until = time.monotonic() + 30
    while not all(map(gone, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return all(map(gone, pids))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_the_workers_and_the_rerun_resumes(number, tmp_path):
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0, 1]})
    with subprocess.Popen(command(tmp_path, "--workers=2"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = wait(lambda: found if len(found := training(process.pid)) == 2 else {}, process)
        process.send_signal(number)
        out = process.stdout.read()
    assert process.returncode == 128 + number
    assert out.endswith(f"stopped by {number.name}; the same command resumes\n")
    assert all(gone(pid) for pid in held)
    assert "RUNNING" not in trial_states(database(tmp_path))
    assert not results(tmp_path)
    done = run(tmp_path, "--workers=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [summary["resumed_from"] > 0 for summary in results(tmp_path).values()] == [True, True]


@pytest.mark.slow
def test_the_command_itself_is_killed(tmp_path):
    """Its worker notices, saves, gives the point back and ends."""
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0]})
    with subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        held = wait(lambda: training(process.pid), process)
        process.kill()
    assert ended(list(held))
    assert trial_states(database(tmp_path)) == ["WAITING"]
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [summary["resumed_from"] > 0 for summary in results(tmp_path).values()] == [True]
    assert trial_states(database(tmp_path)) == ["COMPLETE"]


# Data that never load.
LOADING = """
import pathlib, time
from mobilenet_jax.data import arrays
def load(*args):
    pathlib.Path("loading").touch()
    time.sleep(60)
arrays.load = load
"""


@contextlib.contextmanager
def loading(directory: pathlib.Path, ignored: str = "") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a sweep of one point that ignores a signal; yield its command and worker once that loads data."""
    write(directory, TINY | {"seed": [0]})
    trap = f"trap '' {ignored}; " if ignored else ""
    line = ["sh", "-c", trap + 'exec "$@"', "sh", *patched(directory, LOADING)]
    with subprocess.Popen(line, cwd=directory, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        wait((directory / "loading").exists, process)
        yield process, workers(process.pid)


@pytest.mark.slow
def test_a_signal_ends_a_worker_that_does_not_train_at_once(tmp_path):
    """Its point waits again, and this counts as no death."""
    with loading(tmp_path) as (process, (pid,)):
        process.send_signal(signal.SIGTERM)
        assert ended([pid])
        out = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM and "died" not in out
    (trial,) = trials(database(tmp_path))
    assert (trial.state.name, trial.user_attrs["deaths"]) == ("WAITING", 0)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", ["", "TERM"])
def test_the_command_is_killed_before_a_point_trains(ignored, tmp_path):
    """Its worker ends, and the point is free once its heartbeats are missing."""
    with loading(tmp_path, ignored) as (process, found):
        process.kill()
        assert ended(found)
    assert trial_states(database(tmp_path)) == ["RUNNING"]
    done = start(patched(tmp_path, "worker.HEARTBEAT, queue.GRACE = 0.5, 3"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "requeued" in done.stdout
    assert trial_states(database(tmp_path)) == ["COMPLETE"]


def happened(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the first words of the lines that a sweep printed, less those of its progress."""
    return [line.split()[0] for line in trained(done) if not line[0].isdigit()]


# The first heartbeat of a training finds another owner, or a bug.
LATE = """
import pathlib
worker.HEARTBEAT, beat = 0.2, queue.Queue.heartbeat
def heartbeat(self, claim, figures):
    if not figures or pathlib.Path("late").exists():
        return beat(self, claim, figures)
    pathlib.Path("late").touch()
    {then}
queue.Queue.heartbeat = heartbeat
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "line"),
    [("return False", "taken over by another machine"), ("1 / 0", "died      worker 0 (exit code 143")],
    ids=["taken over", "a bug in a thread"],
)
def test_a_heartbeat_ends_the_training(then, line, tmp_path):
    """A fresh process resumes from the checkpoint that this one has saved."""
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0]})
    done = start(patched(tmp_path, LATE.format(then=then)), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert happened(done) == [line.split()[0], "finished"] and line in done.stdout
    (log,) = (tmp_path / "runs" / "logs").iterdir()
    assert ("ZeroDivisionError" in log.read_text()) == (then == "1 / 0")
    assert [summary["resumed_from"] > 0 for summary in results(tmp_path).values()] == [True]
    assert trial_states(database(tmp_path)) == ["COMPLETE"]


@pytest.mark.slow
def test_the_training_process_is_killed_three_times(tmp_path):
    """Twice at a moment of any points, and once while the last point trains."""
    write(
        tmp_path,
        TINY | {"train.epochs": 12, "train.checkpoint_epochs": 0.2, "model.alpha": [0.25, 0.5], "seed": [0, 1, 2, 3]},
    )
    killed = []
    with subprocess.Popen(command(tmp_path, "--workers=2"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for finished in (0, 3, 7):

            def begun(finished=finished):
                return training(process.pid) if len(results(tmp_path)) >= finished else {}

            pid, directory = next(iter(wait(begun, process, 300).items()))
            os.kill(pid, signal.SIGKILL)
            killed.append(directory.name)
        out = process.stdout.read()
    assert process.returncode == 0, out
    found = results(tmp_path)
    assert len(found) == 8 and all(summary["status"] == "finished" for summary in found.values())
    assert all(found[name]["resumed_from"] > 0 for name in killed)
    assert out.count("killed by signal 9") == 3
    assert trial_states(database(tmp_path)) == ["COMPLETE"] * 8


@pytest.mark.slow
def test_a_silent_worker_is_killed(tmp_path):
    """Another process resumes its point from the last checkpoint."""
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0]})
    line = patched(tmp_path, "supervisor.MAX_SILENCE = 12")
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        (pid, *_) = wait(lambda: training(process.pid), process)
        os.kill(pid, signal.SIGSTOP)
        out = process.communicate(timeout=200)[0]
    assert process.returncode == 0
    assert "killed    a worker that was silent for 12 s" in out and "died      worker 0 (killed by signal 9" in out
    (summary,) = results(tmp_path).values()
    assert summary["status"] == "finished" and summary["resumed_from"] > 0
    assert trial_states(database(tmp_path)) == ["COMPLETE"]


# As if a library kept the first worker from ending.
HANGS = """
import atexit, pathlib, time
def hang():
    pathlib.Path("hung").touch()
    time.sleep(300)
if sys.argv[-1].startswith("--worker") and not pathlib.Path("hung").exists():
    atexit.register(hang)
"""


@pytest.mark.slow
def test_a_worker_that_hangs_at_its_end_is_killed(tmp_path):
    write(tmp_path, TINY | {"seed": [0]})
    done = start(patched(tmp_path, HANGS, "supervisor.MAX_SILENCE = 12"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert happened(done) == ["finished", "killed", "died"]


# Kills the worker the first time that it is between two steps. Missing heartbeats reveal nothing within the test.
KILLED_ONCE = """
import os, pathlib, signal
queue.GRACE = 600
def once(action):
    def killing(*args):
        if {after}: result = action(*args)
        if not pathlib.Path("killed").exists() and sys.argv[-1].startswith("--worker"):
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result if {after} else action(*args)
    return killing
queue.Queue.{method} = once(queue.Queue.{method})
"""


@pytest.mark.parametrize(
    ("method", "after"),
    [
        pytest.param("claim", True, id="between claim and start", marks=pytest.mark.slow),
        pytest.param("finish", False, id="between finish and record", marks=pytest.mark.slow),
        pytest.param("finish", True, id="after the record", marks=pytest.mark.slow),
    ],
)
def test_a_worker_killed_between_two_steps(method, after, tmp_path):
    write(tmp_path, TINY | {"seed": [0]})
    done = start(patched(tmp_path, KILLED_ONCE.format(method=method, after=after)), tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("killed by signal 9") == 1
    assert "1 of 1 points have a result; 0 failed" in done.stdout
    lines = [line for line in trained(done) if line.startswith("finished")]
    assert len(lines) == ((method, after) != ("finish", True))
    assert ("its run directory has the result" in done.stdout) == ((method, after) == ("finish", False))
    assert all(summary["resumed_from"] == 0 for summary in results(tmp_path).values())
    assert trial_states(database(tmp_path)) == ["COMPLETE"]
