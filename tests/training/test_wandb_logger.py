"""W&B shows a run, and may fail."""

import os
import pathlib
import subprocess
import sys
import types

import pytest
from helpers import environment, python_command

from mobilenet_jax.training.wandb_logger import WandbLogger


class FakeRun:
    """A W&B run that keeps its arguments. The named method fails."""

    def __init__(self, failing: str = ""):
        self.failing = failing
        self.rows: list[dict] = []
        self.summary: dict = {}
        self.finished = 0

    def _may_fail(self, name: str) -> None:
        if name == self.failing:
            raise RuntimeError(f"{name} failed\nand more")

    def define_metric(self, *_, **__) -> None:
        self._may_fail("define_metric")

    def log(self, row: dict) -> None:
        self._may_fail("log")
        self.rows.append(row)

    def finish(self) -> None:
        self._may_fail("finish")
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """Replace the package: `wandb.calls` are the arguments of `init`, `wandb.run` is the run that it returns."""
    fake = types.SimpleNamespace(calls=[], run=FakeRun(), logged_in=False, Settings=dict)
    fake.login = lambda prompt: fake.logged_in
    fake.init = lambda **kwargs: fake.calls.append(kwargs) or fake.run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return fake


def started(directory: pathlib.Path, mode: str) -> WandbLogger:
    logger = WandbLogger(mode, "project", "name", "0123abcd", directory, {"alpha": 0.5, "mult_adds": 7})
    logger.start()
    return logger


@pytest.mark.parametrize(
    ("mode", "env", "logged_in", "used"),
    [
        ("online", {}, False, "online"),
        ("offline", {}, True, "offline"),
        ("disabled", {}, True, None),
        ("auto", {}, True, "online"),
        ("auto", {}, False, "offline"),
        ("auto", {"WANDB_SWEEP_ID": "x"}, False, "online"),
        ("online", {"WANDB_MODE": "offline"}, True, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, True, None),
        ("disabled", {"WANDB_MODE": "offline"}, True, "offline"),
        ("auto", {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "x"}, True, "offline"),
        ("offline", {"WANDB_MODE": ""}, True, "offline"),
    ],
)
def test_wandb_mode(mode, env, logged_in, used, wandb, tmp_path, monkeypatch):
    wandb.logged_in = logged_in
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    started(tmp_path, mode)
    assert [call["mode"] for call in wandb.calls] == ([used] if used else [])


def test_wandb_gets_flat_keys_rows_and_the_summary(wandb, tmp_path, monkeypatch, capsys):
    logger = started(tmp_path, "online")
    logger.log({"epoch": 1.0, "train_loss": 0.5})
    logger.finish({"test_accuracy": 0.9, "alpha": 0.5})
    (call,) = wandb.calls
    assert (call["project"], call["name"], call["id"], call["dir"]) == ("project", "name", "0123abcd", tmp_path)
    assert call["config"] == {"alpha": 0.5, "mult_adds": 7}
    assert wandb.run.rows == [{"epoch": 1.0, "train_loss": 0.5}]
    assert (wandb.run.summary, wandb.run.finished) == ({"test_accuracy": 0.9, "alpha": 0.5}, 1)
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    started(tmp_path, "online")
    assert wandb.calls[-1]["id"] == "of-the-agent"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_a_failure_of_wandb_is_reported_once_and_stops_nothing(failing, wandb, tmp_path, capsys):
    def fail(**_):
        raise RuntimeError(f"{failing} failed\nand more")

    if failing == "init":
        wandb.init = fail
    wandb.run = FakeRun(failing)
    logger = started(tmp_path, "online")
    for step in range(3):
        logger.log({"step": step})
    logger.finish({})
    assert capsys.readouterr() == ("", f"W&B failed and is left out of this run: {failing} failed\n")


@pytest.mark.parametrize("failing", ["login", "init"])
def test_without_a_network_the_run_is_logged_offline(failing, wandb, tmp_path, capsys):
    def fail(**call):
        if call.get("mode") != "offline":
            raise RuntimeError(f"{failing} failed")
        return wandb.run

    wandb.logged_in = True
    setattr(wandb, failing, fail)
    started(tmp_path, "auto").log({"epoch": 1.0})
    assert wandb.run.rows == [{"epoch": 1.0}]
    said = capsys.readouterr().err
    assert said == f"W&B does not answer, so this run is logged offline, for `wandb sync`: {failing} failed\n"


LOGGED = """
import pathlib, sys
from mobilenet_jax.training.wandb_logger import WandbLogger
mode, directory = sys.argv[1:]
logger = WandbLogger(mode, "project", "name", "0123abcd", pathlib.Path(directory), {"alpha": 0.5, "mult_adds": 7})
logger.start()
logger.log({"step": 1, "epoch": 1.0, "train_loss": 0.25})
logger.finish({"test_accuracy": 0.75})
print("wandb" in sys.modules)
"""


def real_wandb(
    mode: str, directory: pathlib.Path, first: str = "", **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Log a run in a process of its own, after the lines of `first`."""
    variables: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("WANDB_"))
    variables |= {"HOME": str(directory / "home"), "WANDB_ERROR_REPORTING": "false"} | env
    command = python_command(first + LOGGED, mode, directory)
    return subprocess.run(
        command, cwd=directory, env=environment(**variables), capture_output=True, text=True, timeout=90
    )


@pytest.mark.parametrize(("mode", "env"), [("disabled", {}), ("online", {"WANDB_MODE": "disabled"})])
def test_disabled_never_imports_wandb(mode, env, tmp_path):
    done = real_wandb(mode, tmp_path, **env)
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [pytest.param("offline", marks=pytest.mark.slow), "auto"])
def test_without_a_login_the_real_wandb_logs_into_the_run_directory(mode, tmp_path):
    done = real_wandb(mode, tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")
    (log,) = tmp_path.glob("wandb/offline-run-*-0123abcd/run-0123abcd.wandb")
    content = log.read_bytes()
    assert all(name in content for name in (b"alpha", b"mult_adds", b"train_loss", b"test_accuracy"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "auto"])
def test_a_dead_server_costs_one_line(mode, tmp_path):
    done = real_wandb(mode, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert (done.returncode, done.stdout) == (0, "True\n")
    said = "W&B failed and is left out of this run: " if mode == "online" else "W&B does not answer, so this run is"
    assert done.stderr.count("\n") == done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr
    assert bool([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == (mode == "auto")


@pytest.mark.slow
def test_a_service_that_never_ends_is_abandoned(tmp_path):
    """W&B waits without a limit for its service to end, and the service sometimes does not."""
    never = "import time\nfrom wandb.sdk.lib.service import service_process\n"
    never += "service_process.ServiceProcess.join = lambda self: time.sleep(1000)\n"
    done = real_wandb("online", tmp_path, never, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr.count("W&B failed and is left out of this run: ") == 1
