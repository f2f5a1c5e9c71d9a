"""Sweeps whose machines share a PostgreSQL database. The server is the distribution's, started for these tests."""

import dataclasses
import datetime
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy.exc
from helpers import TINY, environment
from postgres_server import PASSWORD, free_port
from sweep_helpers import (
    command,
    gone,
    patched,
    results,
    run,
    table,
    training,
    trial_states,
    trials,
    wait,
    workers,
    write,
)

from mobilenet_jax.sweeps import database as databases

HEARTBEAT, GRACE = 1, 5  # seconds, in machines started with `hasty`
HASTY = f"worker.HEARTBEAT, queue.GRACE = {HEARTBEAT}, {GRACE}"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A command that runs in its own directory and its own process group."""

    directory: pathlib.Path
    process: subprocess.Popen[str]

    def send(self, number: int) -> list[int]:
        """Send a signal to the command's process group and to its workers; return their PIDs."""
        found = workers(self.process.pid)
        os.killpg(self.process.pid, number)  # first, as it would start its workers again
        for pid in found:
            os.kill(pid, number)
        return [self.process.pid, *found]

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    def kill(self) -> None:
        """Kill the command and its workers at once, like a power cut."""
        held = self.send(signal.SIGKILL)
        self.process.wait()
        until = time.monotonic() + 30
        while not all(gone(pid) for pid in held):
            assert time.monotonic() < until
            time.sleep(0.05)

    def ended(self, seconds: float = 300) -> str:
        """Wait for the end, check that nothing went wrong, return the output."""
        code = self.process.wait(seconds)
        errors = (self.directory / "err").read_text()
        logs = [path.read_text() for path in self.directory.glob("runs/logs/*")]
        assert (code, errors) == (0, ""), errors + self.out
        assert not any("Traceback" in text or PASSWORD in text for text in (self.out, *logs))
        return self.out


@pytest.fixture
def machine(tmp_path, database) -> Iterator[Callable[..., Machine]]:
    """Starts the command in a new directory, on the shared database."""
    started: list[Machine] = []

    def start(parameters: dict[str, Any], *arguments: str, hasty: bool = False) -> Machine:
        directory = tmp_path / f"machine{len(started)}"
        directory.mkdir()
        write(directory, parameters)
        line = [*(patched(directory, HASTY) if hasty else command(directory)), f"--storage={database}", *arguments]
        with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
            process = subprocess.Popen(
                line, cwd=directory, stdout=out, stderr=err, text=True, env=environment(), process_group=0
            )
        started.append(Machine(directory, process))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


def one_each(url: str, *machines: Machine) -> None:
    """Check that every point has one result, in the database and in one of the directories."""
    done = [t for t in trials(url) if t.state.name == "COMPLETE"]
    digests = sorted(trial.user_attrs["digest"] for trial in done)
    assert len(set(digests)) == len(digests)
    assert {trial.user_attrs["digest"] for trial in trials(url)} == set(digests)
    names = [name for each in machines for name in results(each.directory)]
    assert sorted(name.rpartition("-")[2] for name in names) == digests


@pytest.mark.slow
def test_two_machines_share_an_empty_database(machine, database):
    parameters = TINY | {"seed": [0, 1, 2, 3, 4, 5]}
    machines = [machine(parameters), machine(parameters)]
    outputs = [each.ended() for each in machines]
    assert trial_states(database) == ["COMPLETE"] * 6
    one_each(database, *machines)
    assert all(results(each.directory) for each in machines)
    rows = [table(out) for out in outputs]
    assert [row[-1] for row in rows[0]] == ["finished"] * 6
    assert rows[0] == rows[1]
    found = {name: summary for each in machines for name, summary in results(each.directory).items()}
    accuracies = {summary["seed"]: f"{summary['test_accuracy']:.4f}" for summary in found.values()}
    assert [row[-3] for row in rows[0]] == [accuracies[seed] for seed in range(6)]


@pytest.mark.slow
def test_a_machine_loses_its_power(machine, database):
    """Only its heartbeat reveals it. Another machine, without its run directory, trains its point from the start."""
    parameters = TINY | {"train.epochs": 20, "seed": [0, 1, 2]}
    first, second = machine(parameters, hasty=True), machine(parameters, hasty=True)
    wait(lambda: training(second.process.pid) or results(second.directory), second.process)
    (lost,) = wait(lambda: training(first.process.pid), first.process).values()
    killed = datetime.datetime.now()
    first.kill()
    assert not (lost / "summary.json").exists()
    out = second.ended()
    assert [row[-1] for row in table(out)] == ["finished"] * 3
    assert lost.name in results(second.directory)
    assert trial_states(database) == ["COMPLETE"] * 3
    (again,) = [trial for trial in trials(database) if lost.name.endswith(trial.user_attrs["digest"])]
    assert again.user_attrs["deaths"] == 1 and again.datetime_start is not None
    assert (again.datetime_start - killed).total_seconds() > GRACE - 2 * HEARTBEAT


@pytest.mark.slow
def test_the_database_goes_away_for_some_seconds(machine, database, postgres):
    away = machine(TINY | {"train.epochs": 20, "seed": [0, 1, 2]})
    wait(lambda: training(away.process.pid), away.process)
    finished = len(results(away.directory))
    postgres.stop()
    try:
        wait(lambda: "the database does not answer, training goes on" in away.out, away.process)
        wait(lambda: len(results(away.directory)) > finished, away.process)
        time.sleep(3)  # with an unrecorded result, and no point to train
    finally:
        postgres.start()
    assert trial_states(database) != ["COMPLETE"] * 3
    out = away.ended()
    assert [row[-1] for row in table(out)] == ["finished"] * 3
    assert out.count("the database does not answer") == 1
    assert trial_states(database) == ["COMPLETE"] * 3
    one_each(database, away)


@pytest.mark.slow
def test_the_database_goes_away_for_longer_than_the_grace_period(machine, database, postgres):
    """No machine could send heartbeats: one that waits for a point must not take those of the others."""
    parameters = TINY | {"train.epochs": 60, "seed": [0, 1]}
    machines = [machine(parameters, hasty=True) for _ in range(3)]
    pids = [each.process.pid for each in machines]
    wait(lambda: sum(len(training(pid)) for pid in pids) == 2, machines[0].process)
    postgres.stop()
    try:
        time.sleep(GRACE + 2)
    finally:
        postgres.start()
    time.sleep(6 * HEARTBEAT)  # the waiting machine looks for dead ones after 4
    assert trial_states(database) == ["RUNNING"] * 2
    for out in [each.ended() for each in machines]:
        assert out.count("the database does not answer") == 1
        assert "requeued" not in out and "taken over" not in out
    assert [trial.user_attrs.get("deaths", 0) for trial in trials(database)] == [0, 0]
    one_each(database, *machines)


@pytest.mark.slow
def test_three_machines_of_which_one_is_killed_and_one_is_paused(machine, database, monkeypatch):
    """The paused one finds its point taken over, and trains others. All have the grace period of users."""
    parameters = TINY | {"train.epochs": 30, "seed": [0, 1, 2, 3, 4, 5]}
    machines = [machine(parameters) for _ in range(3)]
    killed, paused, unharmed = machines
    monkeypatch.setattr(databases, "_LOCK_SECONDS", 1)

    def caught() -> list[pathlib.Path]:
        """Stop two machines; return what they train. They go on unless all train and the lock is free."""
        if not all(training(each.process.pid) for each in machines):
            return []
        for each in (killed, paused):
            each.send(signal.SIGSTOP)
        found = [path for each in (killed, paused) for path in training(each.process.pid).values()]
        try:
            with databases.lock(database):  # not while one of them holds it
                free = True
        except sqlalchemy.exc.OperationalError:
            free = False
        if len(found) == 2 and free:
            return found
        for each in (killed, paused):
            each.send(signal.SIGCONT)
        return []

    lost = {path.name for path in wait(caught, unharmed.process, seconds=300)}
    killed.kill()
    wait(lambda: unharmed.out.count("requeued") == 2, unharmed.process, seconds=330)  # after the point that it trains
    paused.send(signal.SIGCONT)
    outputs = [each.ended() for each in (paused, unharmed)]
    assert "taken over by another machine" in outputs[0]
    assert {line.split()[1] for line in outputs[1].splitlines() if line.startswith("requeued")} == lost
    assert all([row[-1] for row in table(out)] == ["finished"] * 6 for out in outputs)
    assert trial_states(database) == ["COMPLETE"] * 6
    one_each(database, *machines)
    lines = [line.split() for out in (*outputs, killed.out) for line in out.splitlines()]
    recorded = [line[1] for line in lines if line[:1] == ["finished"]]
    assert len(recorded) == len(set(recorded)) == 6
    deaths = {trial.user_attrs["digest"]: trial.user_attrs.get("deaths", 0) for trial in trials(database)}
    assert {digest for digest, count in deaths.items() if count} == {name.rpartition("-")[2] for name in lost}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["port", "password", "database", "driver", "dialect", "path"])
def test_a_database_that_cannot_be_opened(wrong, postgres, database, tmp_path):
    url = {
        "port": database.replace(f":{postgres.port}/", f":{free_port()}/"),
        "password": postgres.url("postgres", PASSWORD + "x"),
        "database": postgres.url("absent"),
        "driver": database.replace("+psycopg:", "+absent:"),
        "dialect": database.replace("postgresql+psycopg:", "oracle:"),
        "path": "sweeps.db",
    }[wrong]
    write(tmp_path, TINY | {"seed": [0, 1]})
    done = run(tmp_path, f"--storage={url}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --storage=") and done.stderr.count("\n") == 1
    assert all(form in done.stderr for form in ("sqlite:///PATH", "postgresql+psycopg://USER@HOST/DATABASE"))
    assert PASSWORD not in done.stderr
    assert not (tmp_path / "runs").exists()
