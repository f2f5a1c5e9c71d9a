"""The real `wandb sweep`, `wandb agent` and `wandb sync` with a replacement of their server: tiny runs."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import wandb_server
import yaml
from conftest import ROOT
from helpers import python_command

pytestmark = pytest.mark.slow

PROJECT = "sweeps"
GRID: dict[str, list[Any]] = {"config.model.alpha": [0.25, 0.5], "config.seed": [0, 1]}
TINY = {
    "config.model.rho": 0.25,
    "config.model.variant": "shallow",
    "config.optim.warmup_epochs": 0,
    "config.train.epochs": 1,
}


@pytest.fixture(scope="module")
def server():
    with wandb_server.serving() as server:
        yield server


@pytest.fixture(scope="module")
def variables(server, tmp_path_factory) -> dict[str, str]:
    """Return the environment of a user of the server."""
    home = tmp_path_factory.mktemp("home")
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | {
        "HOME": str(home),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the agent runs `python`
        "PYTHONDONTWRITEBYTECODE": "1",
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": server.url,
        "WANDB_CONFIG_DIR": str(home),
        "WANDB_ERROR_REPORTING": "false",
    }


@pytest.fixture(scope="module")
def wandb(variables):
    """Run `wandb ARGUMENTS` in the repository, as a user does, and return its output."""
    home = pathlib.Path(variables["HOME"])
    unwanted = [ROOT / "wandb", ROOT / "runs"]
    before = [path.exists() for path in unwanted]

    def run(*arguments: str, timeout: float = 60, **env: str) -> str:
        output = home / "output.txt"
        with (
            output.open("w") as out,
            subprocess.Popen(
                ["wandb", *arguments],
                cwd=ROOT,
                env=variables | {"WANDB_DIR": str(home)} | env,
                stdout=out,
                stderr=out,
            ) as process,
        ):
            try:
                process.wait(timeout)
            finally:
                _end(process)
        assert process.returncode == 0, output.read_text()
        assert [path.exists() for path in unwanted] == before
        return output.read_text()

    return run


def _end(process: subprocess.Popen) -> None:
    """End an agent: it waits for its run at the first SIGINT, terminates it at the second, kills it at the third."""
    for seconds in (1, 10, 5):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    process.kill()


@pytest.fixture(scope="module")
def sweep(wandb, server, tmp_path_factory) -> Callable[..., tuple[wandb_server.Sweep, list[str], str]]:
    """Create a sweep and run its agent to the end; return the sweep, its command lines and the agent's output."""
    file = tmp_path_factory.mktemp("file") / "sweep.yaml"

    def run(workdir: pathlib.Path, grid: dict[str, list[Any]], **env: str) -> tuple[wandb_server.Sweep, list[str], str]:
        command = ["${env}", "${interpreter}", "${program}"]
        command += ["--config", "configs/digits_v1.py", f"--workdir={workdir}", "${args}"]
        parameters = {key: {"values": values} for key, values in grid.items()}
        parameters |= {key: {"value": value} for key, value in TINY.items()}
        described = {"program": "launch.py", "method": "grid", "project": PROJECT}
        file.write_text(yaml.safe_dump(described | {"command": command, "parameters": parameters}))
        (agent,) = re.findall(r"Run sweep agent with: (.*)", wandb("sweep", str(file)))
        path = agent.split()[-1]
        assert agent == f"wandb agent {path}" and path.startswith(f"{wandb_server.ENTITY}/{PROJECT}/")
        output = wandb("agent", path, timeout=400, **env)
        return server.sweeps[path.split("/")[-1]], re.findall(r"About to run command: (.*)", output), output

    return run


def command_of(workdir: pathlib.Path, point: dict[str, Any]) -> str:
    flags = [f"--{key}={value}" for key, value in sorted(point.items())]
    return shlex.join(["launch.py", "--config", "configs/digits_v1.py", f"--workdir={workdir}", *flags])


def commands_of(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return finished runs by the command lines in their env.json."""
    assert all((directory / "summary.json").exists() for directory in workdir.iterdir())
    return {read(directory / "env.json")["command"]: directory for directory in workdir.iterdir()}


def sent(server: wandb_server.Server, found: wandb_server.Sweep) -> list[str]:
    """Return the ids of a sweep's runs in the order in which the server got them."""
    return [run_id for run_id, run in server.runs.items() if run.sweep == found.name]


def common(there: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return the expected keys that are there: W&B adds keys of its own."""
    return {key: there[key] for key in expected if key in there}


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def online(sweep, tmp_path_factory):
    """Run a sweep of four runs; return their workdir and the results of `sweep`."""
    workdir = tmp_path_factory.mktemp("online") / "runs"
    return workdir, *sweep(workdir, GRID)


def test_a_sweep_runs_every_point_of_its_grid(online):
    workdir, found, commands, _ = online
    expected = [
        command_of(workdir, TINY | {"config.model.alpha": a, "config.seed": s}) for a in (0.25, 0.5) for s in (0, 1)
    ]
    assert commands == [f"/usr/bin/env python {command}" for command in expected]
    assert expected == [command_of(workdir, point) for point in found.points.values()]
    directories = commands_of(workdir)
    assert sorted(directories) == sorted(expected) and len(set(directories.values())) == 4
    assert {read(directory / "summary.json")["status"] for directory in directories.values()} == {"finished"}


def test_a_sweep_finds_its_runs_at_wandb(online, server):
    workdir, found, _, _ = online
    directories = commands_of(workdir)
    assert sent(server, found) == list(found.points)  # the agent got these ids
    for run_id, point in found.points.items():
        run, directory = server.runs[run_id], directories[command_of(workdir, point)]
        assert (run.project, run.name, run.exit_code) == (PROJECT, directory.name, 0)
        summary = {key: value for key, value in read(directory / "summary.json").items() if value is not None}
        del summary["schema"], summary["sha256"], summary["metrics_sha256"]  # only in the file; W&B drops nulls
        assert common(run.summary, summary) == summary
        assert {"test_accuracy", "mult_adds"} <= summary.keys()
        resolved = {key.removeprefix("config."): value for key, value in point.items()}
        knobs = {key: summary[key] for key in ("alpha", "rho", "resolution", "mult_adds", "params")}
        expected = point | resolved | knobs  # under the sweep's names and under ours
        assert common(run.config, expected) == expected
        (row,) = run.history
        expected = read(directory / "metrics.jsonl")  # one epoch, one line
        assert common(row, expected) == expected


def test_finished_points_are_skipped(online, sweep):
    workdir, _, before, _ = online
    records = {path: path.read_bytes() for path in workdir.glob("*/*.json*")}
    _, commands, output = sweep(workdir, GRID)
    assert commands == before
    assert output.count("already finished: ") == 4 and "epoch 1/1" not in output
    assert {path: path.read_bytes() for path in workdir.glob("*/*.json*")} == records


def test_an_offline_agent_leaves_its_runs_to_be_synced(sweep, wandb, server, tmp_path):
    before = len(server.requests)
    found, commands, _ = sweep(tmp_path, GRID, WANDB_MODE="offline")
    assert len(commands) == 4
    assert set(server.requests[before:]) == {"Viewer", "UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"}
    directories = commands_of(tmp_path)
    logs = []
    for run_id, point in found.points.items():
        (log,) = directories[command_of(tmp_path, point)].glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
        logs.append(str(log.parent))
    wandb("sync", *logs)
    assert sorted(sent(server, found)) == sorted(found.points)
    for run_id, point in found.points.items():
        accuracy = read(directories[command_of(tmp_path, point)] / "summary.json")["test_accuracy"]
        assert (server.runs[run_id].project, server.runs[run_id].summary["test_accuracy"]) == (PROJECT, accuracy)


def test_points_that_cannot_run_do_not_stop_the_agent(sweep, server, tmp_path):
    """The agent stops after three failed runs, so invalid points must not count as failures."""
    found, commands, output = sweep(tmp_path, {"config.model.alpha": [-1, -2, -3, 0.25]})
    assert len(commands) == 4
    for alpha in (-1, -2, -3):
        assert re.search(rf"error: config\.model\.alpha={alpha:.1f}: .*above 0", output)
    (directory,) = tmp_path.iterdir()
    assert (read(directory / "summary.json")["alpha"], directory.name[:16]) == (0.25, "digits_v1-a0.25-")
    statuses = [server.runs[run_id].summary["status"] for run_id in found.points]
    assert statuses == ["invalid", "invalid", "invalid", "finished"]


LOGGED = """
import pathlib, sys
from mobilenet_jax.training.wandb_logger import WandbLogger
mode, directory, id, start, end = sys.argv[1:]
logger = WandbLogger(mode, "project", "name", id, pathlib.Path(directory), {})
rows = [{"step": 10 * i, "epoch": float(i)} for i in range(int(end))]
logger.start(rows[: int(start)])
for row in rows[int(start) :]:
    logger.log(row)
logger.finish({"rows": len(rows)})
"""


@pytest.mark.parametrize("resumed", ["online", "offline"])
@pytest.mark.parametrize("first", ["online", "offline"])
def test_a_resumed_run_has_each_row_once(first, resumed, variables, wandb, server, tmp_path):
    """The second process resumes two rows before the end of the first one."""
    run_id = f"{first}{resumed}"
    for mode, start, end in ((first, 0, 4), (resumed, 2, 6)):
        command = python_command(LOGGED, mode, tmp_path, run_id, start, end)
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logs = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(logs) == (first, resumed).count("offline")
    if resumed == "offline":
        wandb("sync", str(logs[-1]))
    assert [(row["_step"], row["step"]) for row in server.runs[run_id].history] == [(i, 10 * i) for i in range(6)]
    assert server.runs[run_id].summary["rows"] == 6


def test_an_interrupted_offline_run_is_whole_at_wandb(variables, wandb, server, tmp_path):
    """Each sync replaces the one before."""
    stops: list[dict[str, str]] = [{"STOP": "SIGTERM 30"}, {"STOP": "SIGKILL 50"}, {}]
    flags = [f"--{key}={value}" for key, value in (TINY | {"config.train.epochs": 3}).items()]
    command = [sys.executable, str(ROOT / "tests" / "training_helpers.py"), f"--run_dir={tmp_path / 'run'}", *flags]
    env = variables | {"WANDB_MODE": "offline", "WANDB_PROJECT": "other", "PYTHONPATH": str(ROOT)}
    codes = [subprocess.run(command, cwd=tmp_path, env=env | stop, timeout=200).returncode for stop in stops]
    assert codes == [128 + signal.SIGTERM, -signal.SIGKILL, 0]
    logs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    for log in logs:
        wandb("sync", str(log))
    run = server.runs[logs[0].name.split("-")[-1]]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (len(logs), len(rows), run.project) == (3, 3, "other")
    assert [common(there, row) for there, row in zip(run.history, rows, strict=True)] == rows
    assert run.summary["test_accuracy"] == rows[-1]["test_accuracy"]


def test_the_points_of_a_local_sweep_have_their_own_ids_and_names(variables, tmp_path):
    keys = {**{key: {"value": value} for key, value in TINY.items()}, "config.seed": {"values": [0, 1, 2]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"program": "launch.py", "method": "grid", "parameters": keys}))
    command = [sys.executable, str(ROOT / "launch.py"), f"--sweep={tmp_path / 'sweep.yaml'}", "--fuse=2"]
    of_one_run = {"WANDB_RUN_ID": "one", "WANDB_NAME": "name_of_one", "WANDB_RESUME": "must", "WANDB_TAGS": "sometag"}
    env = variables | of_one_run | {"WANDB_MODE": "offline"}
    done = subprocess.run([*command, f"--workdir={tmp_path}"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    directories = [path.parent for path in tmp_path.glob("*/summary.json")]
    assert len(directories) == 3
    for directory in directories:
        digest = directory.name.split("-")[-1]
        (log,) = directory.glob(f"wandb/offline-run-*-{digest}/run-{digest}.wandb")
        content = log.read_bytes()
        assert directory.name.encode() in content and b"sometag" in content and b"name_of_one" not in content


@pytest.mark.parametrize("what", [[], [f"--sweep={ROOT / 'sweeps' / 'digits_demo.yaml'}"]])
def test_an_unknown_mode_is_refused_before_anything_is_written(what, launch, tmp_path):
    done = launch(*what, WANDB_MODE="onlin")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert re.match("error: WANDB_MODE=onlin: .*'online', 'offline'", done.stderr)
    assert list(tmp_path.iterdir()) == []
    assert launch(*what, "--dry_run", WANDB_MODE="onlin").returncode == 0  # it starts no run
