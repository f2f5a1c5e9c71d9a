"""The processes that a command keeps alive."""

import shlex
import signal
import sys
import types
from typing import Any

import pytest
from conftest import GRID
from sweep_helpers import plan_of

from mobilenet_jax.sweeps import supervisor
from mobilenet_jax.sweeps.database import Damaged, Unavailable, Unwritable
from mobilenet_jax.sweeps.supervisor import WorkerProcess
from mobilenet_jax.sweeps.worker import CANNOT_TRAIN, DONE, START_AGAIN

COUNT = "import os, sys; path = sys.argv[1]; open(path, 'a').write('x'); n = os.path.getsize(path); "


@pytest.fixture
def pauses() -> list[float]:
    """Return the seconds that a worker would wait before each start."""
    return []


@pytest.fixture
def worker(tmp_path, monkeypatch, pauses):
    """Return a function that runs a program as a worker until it ends for good: its starts, lines and error."""
    monkeypatch.setattr(supervisor, "DEATHS", 3)
    monkeypatch.setattr(supervisor, "MAX_SILENCE", 20.0)

    def run(program: str) -> tuple[int, list[str], str]:
        lines = []
        process = WorkerProcess("0/1/command/study", [], tmp_path / "log", lines.append)
        starts = tmp_path / "starts"
        process._over.wait = lambda timeout=None: pauses.append(timeout) or process._over.is_set()
        process._command = [sys.executable, "-c", COUNT + program, str(starts)]
        process.thread.start()
        process.thread.join(60)
        assert not process.thread.is_alive()
        return starts.stat().st_size, lines, process.error

    return run


@pytest.mark.parametrize("code", [1, START_AGAIN])
def test_a_worker_that_ends_without_a_result_is_given_up(code, worker, pauses):
    """A line, such as that of a requeue, is no result: the machine may be the reason."""
    starts, lines, error = worker(f"print('requeued  a point'); sys.exit({code})")
    assert starts == 3 and "ended 3 times without a result" in error and f"exit code {code}" in error
    assert [line.startswith("died") for line in lines].count(True) == (3 if code == 1 else 0)
    assert pauses == [0, 0, 1]


@pytest.mark.slow
def test_a_result_starts_the_count_again(worker):
    starts, _, error = worker("print('finished  a point' if n in (2, 4) else 'x'); sys.exit(1)")
    assert starts == 6 and "without a result" in error


@pytest.mark.parametrize("code", [DONE, CANNOT_TRAIN])
def test_a_worker_that_ends_for_good_is_not_started_again(code, worker):
    starts, lines, error = worker(f"print(); print('error: no device'); sys.exit({code})")
    assert (starts, error) == (1, "no device") and lines == ["ended     worker 0: no device"]


def test_a_silent_worker_is_killed(worker, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_SILENCE", 2.0)
    starts, lines, _ = worker("import time; time.sleep(60 if n == 1 else 0)")
    assert starts == 2 and lines[0].startswith("killed") and lines[1].startswith("died")


@pytest.mark.parametrize(
    ("error", "signals", "calls"),
    [(Unavailable, [], 3), (Unavailable, [signal.SIGINT], 1), (Unwritable, [], 1), (Damaged, [], 1)],
)
def test_a_command_waits_for_its_database_at_the_end(error, signals, calls, tmp_path, monkeypatch):
    """A database that is down while the last worker ends would hide all results."""
    monkeypatch.setattr(supervisor, "_LOOK", 0.01)
    errors = [error("down"), error("down")]

    class Queue:
        name, entries = "study", list

        def requeue_dead(self, command: str, stopped: bool) -> None:
            assert stopped == bool(signals)
            tried.append(command)
            if errors:
                raise errors.pop()

    tried: list[str] = []
    plan: Any = types.SimpleNamespace(workdir=tmp_path, grid={}, sweep=types.SimpleNamespace(parameters=[]))
    queue: Any = Queue()
    assert supervisor._train(plan, queue, 0, [], signals) == "" and len(tried) == calls


def test_the_proposed_report_can_be_pasted(read_sweep, tmp_path, capsys):
    plan = plan_of(read_sweep(GRID), workdir=tmp_path / "my runs & $HOME's")
    queue: Any = types.SimpleNamespace(shown_url="sqlite:///sweeps.db")
    supervisor._print_results(plan, [], queue)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("runs "))
    proposed = line.partition("(python")[2].removesuffix(")")
    assert shlex.split(proposed) == ["-m", "mobilenet_jax.report", str(plan.workdir)]
