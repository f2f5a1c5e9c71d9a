"""Helpers of the sweep tests: a small sweep, its command, its workers; a queue with three points."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import optuna
import sqlalchemy
import yaml
from conftest import ROOT
from helpers import SUMMARY, TINY, environment, spec_of

from configs import default
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.parameters import Parameter
from mobilenet_jax.sweeps.points import Budget, Plan, points
from mobilenet_jax.sweeps.queue import Entry, Queue

GRID = """
program: launch.py
method: grid
metric: {name: test_accuracy, goal: maximize}
parameters:
%s
command: ["${env}", "${interpreter}", "${program}", "--config", "configs/digits_v1.py", "${args}"]
"""


def write(directory: pathlib.Path, parameters: dict[str, Any], source: str = GRID) -> pathlib.Path:
    """Write a sweep file; parameters with a list vary."""
    lines = []
    for key, value in parameters.items():
        given = value if isinstance(value, dict) else {"values" if isinstance(value, list) else "value": value}
        lines.append(f"  config.{key}: {yaml.safe_dump(given, default_flow_style=True).strip()}")
    path = directory / "tiny.yaml"
    path.write_text(source % "\n".join(lines))
    return path


def command(directory: pathlib.Path, *arguments: str) -> list[str]:
    """Return the command line that trains the sweep in `directory`."""
    return [
        *(sys.executable, str(ROOT / "launch.py"), f"--sweep={directory / 'tiny.yaml'}"),
        *(f"--workdir={directory / 'runs'}", *arguments),
    ]


def run(directory: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(directory, *arguments), cwd=directory, capture_output=True, text=True, timeout=400)


def results(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return run directory -> summary for the finished runs."""
    return {path.parent.name: json.loads(path.read_text()) for path in (directory / "runs").glob("*/summary.json")}


def table(text: str) -> list[list[str]]:
    """Return the rows of the results table that a sweep printed."""
    head = next(i for i, line in enumerate(text.splitlines()) if line.endswith("  state"))
    rows = text.splitlines()[head + 1 :]
    return [line.split() for line in rows[: rows.index("")]]


def database(directory: pathlib.Path) -> str:
    """Return the URL of a sweep's own database."""
    return f"sqlite:///{directory / 'runs' / 'sweeps.db'}"


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    """Return all trials of the only study in a database."""
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.pool.NullPool})
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def trial_states(url: str) -> list[str]:
    return sorted(trial.state.name for trial in trials(url))


def workers(command: int) -> list[int]:
    """Return the PIDs of a command's children."""
    found = []
    for children in pathlib.Path(f"/proc/{command}/task").glob("*/children"):  # of each thread
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in children.read_text().split()]
    return found


def training(command: int) -> dict[int, pathlib.Path]:
    """Return PID -> run directory of the workers that train and have saved a checkpoint."""
    found = {}
    for pid in workers(command):
        try:
            held = [pathlib.Path(os.readlink(fd)) for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        for path in held:
            directory = path.parent
            saved = directory.glob("checkpoints/[0-9]*.safetensors") if path.name == ".lock" else ()
            if any(saved) and not (directory / "summary.json").exists():
                found[pid] = directory
    return found


def patched(directory: pathlib.Path, *statements: str) -> list[str]:
    """Return the command line of a sweep that first runs these statements, with its modules imported."""
    modules = "database, queue, supervisor, worker"
    program = ["import sys, launch", f"from mobilenet_jax.sweeps import {modules}"]
    return [sys.executable, "-c", "\n".join([*program, *statements, "sys.exit(launch.run())"]), *command(directory)[2:]]


def run_of(directory: pathlib.Path, **changes: float) -> pathlib.Path:
    """Return the run directory of TINY with these values of optim.lr and seed."""
    names = {"lr": "optim.lr", "seed": "seed"}
    return directory / "runs" / spec_of(TINY | {names[key]: value for key, value in changes.items()}).run_name


def start(line: list[str], directory: pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of a sweep to its end."""
    env = environment(**variables)
    return subprocess.run(line, cwd=directory, env=env, capture_output=True, text=True, timeout=200)


def trained(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a sweep printed between its first line and its table."""
    lines = done.stdout.splitlines()
    return lines[1 : next(i for i, line in enumerate(lines) if line.endswith("  state"))]


def wait(what, process: subprocess.Popen[Any], seconds: float = 120) -> Any:
    """Return the first true result of `what`, called until then while the process runs."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    """Return whether a process has ended, as a zombie or altogether."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


POINTS = {"aa": {"x": 1}, "bb": {"x": 2}, "cc": {"x": 3}}
FINISHED = summaries.parse(SUMMARY | {"test_accuracy": 0.5})


def open_queue(url: str, method: str = "grid", owner: str = "", **points: Any) -> Queue:
    """Open a queue with `points`, by default with POINTS; a search starts empty."""
    x = Parameter("x", "values", (1, 2, 3))
    queue = Queue(url, "s", Sweep("s", method, (x,), "test_accuracy", "maximize", None, ()), owner)
    queue.open()
    queue.enqueue(points or POINTS if method == "grid" else {})
    return queue


def claimed(queue: Queue, draws: int = 0) -> Entry:
    claim = queue.claim(draws=draws)
    assert claim is not None
    return claim


def states(queue: Queue) -> dict[str, str]:
    return {entry.digest: entry.state for entry in queue.entries()}


def plan_of(sweep: Sweep, **changes: Any) -> Plan:
    """Return the plan of a grid over the default config, without a database."""
    found = points(sweep, default.get_config(), "x")
    directory, url = pathlib.Path("runs"), "sqlite:///runs/sweeps.db"
    given = {"draw": mock.Mock(), "budget": Budget(), "workdir": directory, "storage": url, "fuse": 1}
    return Plan(sweep, found, **(given | changes))
