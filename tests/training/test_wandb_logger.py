"""W&B shows a run, and may fail."""

import os
import pathlib
import subprocess
import sys
import types

import pytest
from helpers import environment, python_command

from mobilenet_jax.errors import InputError
from mobilenet_jax.training import wandb_logger
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

    def log(self, row: dict, step: int, commit: bool) -> None:
        self._may_fail("log")
        assert commit and step == len(self.rows)
        self.rows.append(row)

    def finish(self) -> None:
        self._may_fail("finish")
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """Replace the package: `wandb.calls` are the arguments of `init`, `wandb.run` is the run that it returns."""
    fake = types.SimpleNamespace(calls=[], run=FakeRun(), logged_in=False)
    fake.login = lambda prompt: fake.logged_in
    fake.init = lambda **kwargs: fake.calls.append(kwargs) or fake.run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")})
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
        ("offline", {"WANDB_MODE": "run"}, True, "run"),
        ("online", {"WANDB_MODE": "dryrun"}, True, "dryrun"),
        ("auto", {"WANDB_MODE": "shared"}, True, "shared"),
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
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("agent", [False, True])
def test_variables_win_over_arguments(agent, wandb, tmp_path, monkeypatch):
    """An agent sets WANDB_DIR to its own working directory."""
    keys = {"project": "WANDB_PROJECT", "name": "WANDB_NAME", "id": "WANDB_RUN_ID", "dir": "WANDB_DIR"}
    for key, name in keys.items():
        monkeypatch.setenv(name, f"other-{key}")
    if agent:
        monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    started(tmp_path, "online")
    given = {key: wandb.calls[0][key] for key in keys}
    assert given == {key: f"other-{key}" for key in keys} | ({"dir": tmp_path} if agent else {})


@pytest.mark.parametrize("sweep", [False, True])
def test_variables_without_a_meaning_are_removed(sweep, wandb, monkeypatch):
    """W&B refuses an empty value, the points of a local sweep are several runs, and checkpoints say what resumes."""
    kept = {"WANDB_MODE": "dryrun", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_TAGS": "t", "OTHER": ""}
    of_one_run = {"WANDB_RUN_ID": "i", "WANDB_NAME": "n"}
    for name, value in {**kept, **of_one_run, "WANDB_RESUME": "must", "WANDB_NOTES": "", "WANDB_DIR": ""}.items():
        monkeypatch.setenv(name, value)
    wandb_logger.check_environment(sweep)
    left = {name: value for name, value in os.environ.items() if name.startswith("WANDB_") or name == "OTHER"}
    assert left == (kept if sweep else kept | of_one_run)


@pytest.mark.parametrize("mode", ["auto", "on", "Online", " offline", "true", "0"])
def test_a_mode_that_wandb_does_not_know_is_refused(mode, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(InputError, match=f"^WANDB_MODE={mode}: .*'online', 'offline', 'disabled', 'shared'"):
        wandb_logger.check_environment(False)


@pytest.mark.parametrize(
    ("mode", "resume"), [("online", "allow"), ("run", "allow"), ("offline", None), ("dryrun", None)]
)
def test_a_resumed_run_starts_with_its_rows(mode, resume, wandb, tmp_path):
    """`wandb sync` would append an offline log that resumes, and its rows would be there twice."""
    logger = WandbLogger(mode, "project", "name", "0123abcd", tmp_path, {})
    logger.start([{"epoch": 1.0}, {"epoch": 2.0}])
    logger.log({"epoch": 3.0})
    started(tmp_path, mode)
    assert [row["epoch"] for row in wandb.run.rows] == [1.0, 2.0, 3.0]
    assert [call["resume"] for call in wandb.calls] == [resume, None]


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
@pytest.mark.parametrize("mode", ["online", "offline", "disabled", "shared", "run", "dryrun", "auto", "", "true"])
def test_the_modes_are_those_of_the_real_wandb(mode):
    """As W&B reads the variable when it starts."""
    code = "from wandb.sdk import wandb_setup; wandb_setup.singleton().settings"
    done = subprocess.run(python_command(code), env=environment(WANDB_MODE=mode), capture_output=True, timeout=60)
    assert (done.returncode == 0) == (mode in wandb_logger._MODES)


@pytest.mark.slow
def test_the_real_wandb_reads_its_other_variables(tmp_path):
    names = ("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_NOTES")
    given = {name: f"other_{name.lower()}" for name in (*names, "WANDB_JOB_TYPE")}
    done = real_wandb("offline", tmp_path, WANDB_DIR=str(tmp_path / "elsewhere"), WANDB_RUN_ID="x", **given)
    assert (done.stdout, done.stderr) == ("True\n", "")
    (log,) = tmp_path.glob("elsewhere/wandb/offline-run-*-x/run-x.wandb")
    assert [value for value in given.values() if value.encode() not in log.read_bytes()] == []


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
