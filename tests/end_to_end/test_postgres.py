"""Sweeps whose machines share a PostgreSQL database, here one of the distribution's, started for these tests alone."""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy
from conftest import ROOT
from helpers import TINY
from sweep_helpers import command, gone, results, run, table, training, wait, workers, write

PASSWORD = "s3cr3t-of-the-tests"
HEARTBEAT, GRACE = 1, 5  # seconds, in machines started with `hasty`

# Machines that are one in truth: what dies is known by its heartbeat only, which is soon.
HASTY = f"""
import sys
import launch
from mobilenet_jax import ledger
ledger.HEARTBEAT, ledger.GRACE = {HEARTBEAT}, {GRACE}
ledger._owner = lambda pid: ""
sys.exit(launch.run())
"""

# Claims until nothing is left, and says what it got; starts when it is told to.
CLAIMER = """
import json, sys
from mobilenet_jax import ledger
print("ready", flush=True)
sys.stdin.readline()
points = {f"{seed:08x}": {"seed": seed} for seed in range(20)}
book = ledger.Ledger(sys.argv[1], "race", [ledger.categorical("seed", range(20))], "test_accuracy", "maximize", "grid")
book.enqueue(points)
claimed = []
while claim := book.claim():
    assert claim.values == points[claim.digest]
    claimed.append(claim.digest)
    book.finish(claim, {"status": "finished", "test_accuracy": 0.5})
print(json.dumps(claimed))
"""


@dataclasses.dataclass(frozen=True)
class Server:
    """PostgreSQL with its data in `directory`, for `account` where that is not the one we are."""

    binaries: pathlib.Path
    directory: pathlib.Path
    port: int
    account: str | None

    def call(self, program: str, *arguments: str) -> None:
        as_account: dict[str, Any] = {}
        if self.account:
            as_account = {"user": self.account, "group": pwd.getpwnam(self.account).pw_gid, "extra_groups": []}
        arguments = (str(self.binaries / program), "-D", str(self.directory / "data"), *arguments)
        subprocess.run(
            arguments, cwd=self.directory, check=True, capture_output=True, text=True, timeout=120, **as_account
        )

    def create(self) -> None:
        (self.directory / "password").write_text(PASSWORD)
        if self.account:
            for path in (self.directory, self.directory / "password"):
                shutil.chown(path, self.account)
        with_password = ("--username=tester", "--auth=scram-sha-256", f"--pwfile={self.directory / 'password'}")
        self.call("initdb", *with_password, "--encoding=UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self.call("pg_ctl", "start", "--wait", f"--log={self.directory / 'log'}", f"--options={options}")

    def stop(self) -> None:
        self.call("pg_ctl", "stop", "--wait", "--mode=immediate")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://tester:{password}@127.0.0.1:{self.port}/{database}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def installed() -> pathlib.Path | None:
    """Where PostgreSQL's programs are: on the path, or where Debian hides them, the newest."""
    found = [pathlib.Path(path).resolve() for path in [shutil.which("pg_ctl")] if path]
    found += sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: -float(p.parts[-3]))
    return next((path.parent for path in found if (path.parent / "initdb").exists()), None)


def unprivileged() -> str | None:
    """The account that runs the server, which refuses to be root."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in accounts)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed", exc_type=ImportError)
    binaries = installed()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="mobilenet_jax-postgres-", ignore_cleanup_errors=True) as directory:
        found = Server(binaries, pathlib.Path(directory), free_port(), unprivileged())
        try:
            found.create()
            found.start()
        except (OSError, subprocess.SubprocessError) as e:
            pytest.skip(f"PostgreSQL cannot be started: {e} {getattr(e, 'stderr', '')}")
        try:
            yield found
        finally:
            found.stop()


@pytest.fixture
def database(server) -> str:
    """The URL of an empty database."""
    name = f"sweeps_{uuid.uuid4().hex[:8]}"
    engine = sqlalchemy.create_engine(
        server.url("postgres"), poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    return server.url(name)


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.pool.NullPool})
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def states(url: str) -> list[str]:
    return sorted(trial.state.name for trial in trials(url))


@dataclasses.dataclass(frozen=True)
class Machine:
    """A directory of its own, and the command that runs in it."""

    directory: pathlib.Path
    process: subprocess.Popen[str]

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    def kill(self) -> None:
        """As a power cut would."""
        held = [self.process.pid, *workers(self.process.pid)]
        for pid in held:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until = time.monotonic() + 30
        while not all(gone(pid) for pid in held):
            assert time.monotonic() < until
            time.sleep(0.05)

    def ended(self, seconds: float = 300) -> str:
        """What it said, once it is through, without a complaint."""
        code = self.process.wait(seconds)
        errors = (self.directory / "err").read_text()
        logs = [path.read_text() for path in self.directory.glob("runs/logs/*")]
        assert (code, errors) == (0, ""), errors + self.out
        assert not any("Traceback" in text or PASSWORD in text for text in (self.out, *logs))
        return self.out


@pytest.fixture
def machine(tmp_path, database) -> Iterator[Callable[..., Machine]]:
    """Starts the command in a directory of its own on the shared database."""
    started: list[Machine] = []

    def start(parameters: dict[str, Any], *arguments: str, hasty: bool = False) -> Machine:
        directory = tmp_path / f"machine{len(started)}"
        directory.mkdir()
        write(directory, parameters)
        asked = command(directory, f"--storage={database}", *arguments)
        if hasty:
            asked[1:2] = ["-c", HASTY]
        with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(asked, cwd=directory, stdout=out, stderr=err, text=True, env=environment)
        started.append(Machine(directory, process))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


def one_each(url: str, *machines: Machine) -> None:
    """Every trial's point has one result, in the database and in one of the directories."""
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
    assert states(database) == ["COMPLETE"] * 6
    one_each(database, *machines)
    assert all(results(each.directory) for each in machines)
    rows = [table(out) for out in outputs]
    assert [row[-1] for row in rows[0]] == ["done"] * 6
    assert rows[0] == rows[1]
    found = {name: summary for each in machines for name, summary in results(each.directory).items()}
    accuracies = {summary["seed"]: f"{summary['test_accuracy']:.4f}" for summary in found.values()}
    assert [row[-3] for row in rows[0]] == [accuracies[seed] for seed in range(6)]


@pytest.mark.slow
def test_a_machine_loses_its_power(machine, database):
    """Nobody but the clock says so: another one trains its point, from the start, as it has not its directory."""
    parameters = TINY | {"train.epochs": 20, "seed": [0, 1, 2]}
    first, second = machine(parameters, hasty=True), machine(parameters, hasty=True)
    wait(lambda: training(second.process.pid) or results(second.directory), second.process)
    (lost,) = wait(lambda: training(first.process.pid), first.process).values()
    killed = datetime.datetime.now()
    first.kill()
    assert not (lost / "summary.json").exists()
    out = second.ended()
    assert [row[-1] for row in table(out)] == ["done"] * 3
    assert lost.name in results(second.directory)
    assert states(database) == ["COMPLETE"] * 3 + ["FAIL"]
    (dead,) = [trial for trial in trials(database) if trial.state.name == "FAIL"]
    assert lost.name.endswith(dead.user_attrs["digest"])
    assert dead.datetime_complete is not None
    assert GRACE - 2 * HEARTBEAT < (dead.datetime_complete - killed).total_seconds() < GRACE + 20


@pytest.mark.slow
def test_the_database_goes_away_for_some_seconds(machine, database, server):
    away = machine(TINY | {"train.epochs": 20, "seed": [0, 1, 2]})
    wait(lambda: training(away.process.pid), away.process)
    finished = len(results(away.directory))
    server.stop()
    try:
        wait(lambda: "the database does not answer, training goes on" in away.out, away.process)
        wait(lambda: len(results(away.directory)) > finished, away.process)
        time.sleep(3)  # with a result that cannot be told, and no point to go on with
    finally:
        server.start()
    assert states(database) != ["COMPLETE"] * 3
    out = away.ended()
    assert [row[-1] for row in table(out)] == ["done"] * 3
    assert out.count("the database does not answer") == 1
    assert states(database) == ["COMPLETE"] * 3
    one_each(database, away)


@pytest.mark.slow
def test_the_database_goes_away_for_longer_than_a_heartbeat_may(machine, database, server):
    """No machine could send one, so that the first to come back must not take the others for dead."""
    parameters = TINY | {"train.epochs": 60, "seed": [0, 1]}
    machines = [machine(parameters, hasty=True), machine(parameters, hasty=True)]
    held = [pid for each in machines for pid in wait(lambda each=each: training(each.process.pid), each.process)]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)  # lest they finish before the database is back
    server.stop()
    try:
        time.sleep(GRACE + 2)
    finally:
        server.start()
    time.sleep(3 * HEARTBEAT)
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    for each in machines:
        assert "taken over" not in each.ended()
    assert states(database) == ["COMPLETE"] * 2
    one_each(database, *machines)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["port", "password", "database", "driver", "dialect"])
def test_a_database_that_cannot_be_opened(wrong, server, database, tmp_path):
    url = {
        "port": database.replace(f":{server.port}/", f":{free_port()}/"),
        "password": server.url("postgres", PASSWORD + "x"),
        "database": server.url("absent"),
        "driver": database.replace("+psycopg:", "+absent:"),
        "dialect": database.replace("postgresql+psycopg:", "oracle:"),
    }[wrong]
    write(tmp_path, TINY | {"seed": [0, 1]})
    done = run(tmp_path, f"--storage={url}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --storage=") and done.stderr.count("\n") == 1
    assert PASSWORD not in done.stderr


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_four_processes_claim_every_point_once(kind, request, tmp_path):
    """They also make the tables and enqueue the points all at once."""
    url = f"sqlite:///{tmp_path / 'sweeps.db'}" if kind == "sqlite" else request.getfixturevalue("database")
    asked = [sys.executable, "-c", CLAIMER, url]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    digests = [f"{seed:08x}" for seed in range(20)]
    with contextlib.ExitStack() as held:
        processes = [
            held.enter_context(
                subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
            for _ in range(4)
        ]
        assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        claimed = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(digest for each in claimed for digest in each) == digests
    assert states(url) == ["COMPLETE"] * 20
    assert sorted(trial.user_attrs["digest"] for trial in trials(url)) == digests
