"""The run directory and its lock, what is shown, and W&B as a view that may fail."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import pytest
from conftest import on_a_terminal

from mobilenet_jax import summary, writer
from mobilenet_jax.errors import InputError
from mobilenet_jax.writer import Display, RunDirectory, Tracker

ROOT = pathlib.Path(writer.__file__).parent.parent


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's variables with changes; None takes one away."""
    merged = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture
def record(tmp_path):
    return RunDirectory(tmp_path)


def rows(record: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (record.path / "metrics.jsonl").read_text().splitlines()]


# The lock.

HOLD = """
import pathlib, sys, time
from mobilenet_jax.writer import RunDirectory
with RunDirectory(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.terminate])
def test_the_lock_goes_with_its_process(end, record):
    with subprocess.Popen(python(HOLD, record.path), env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(InputError, match=f"{record.path}: another process is on this run"), record.locked():
                pytest.fail("held twice")
        finally:
            end(holder)
    with record.locked():
        pass


def test_the_lock_is_released_and_the_directory_made(tmp_path):
    record = RunDirectory(tmp_path / "a" / "b")
    for _ in range(2):
        with pytest.raises(KeyError), record.locked():
            assert record.path.is_dir()
            with pytest.raises(InputError), RunDirectory(record.path).locked():
                pytest.fail("held twice")
            raise KeyError


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(InputError, match=f"{path}: the run directory cannot be written"),
            RunDirectory(path).locked(),
        ):
            pytest.fail("made it")


# What is in the directory.


@pytest.mark.parametrize("held", [(), (".lock",), (".lock", ".config.json.tmp"), ("config.json", "x")])
def test_a_directory_that_a_run_may_use(held, tmp_path):
    writer.check_directory(tmp_path / "absent")
    for name in held:
        (tmp_path / name).touch()
    writer.check_directory(tmp_path)


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        writer.check_directory(tmp_path)
    with pytest.raises(InputError, match="a file stands where the run directory should be"):
        writer.check_directory(tmp_path / "notes.txt")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_named(content, tmp_path):
    path = tmp_path / "summary.json"
    assert writer.read_json(path) is None
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is damaged"):
        writer.read_json(path)
    path.write_text('{"a": 1}')
    assert writer.read_json(path) == {"a": 1}


def test_begin_writes_the_config_once_and_the_environment_of_every_start(record):
    for device in ("one", "two", "three"):
        record.begin({"seed": device}, device)
    assert writer.read_json(record.path / "config.json") == {"seed": "one"}
    env = writer.read_json(record.path / "env.json")
    assert env is not None
    assert [env["device"], *(e["device"] for e in env["earlier"])] == ["three", "one", "two"]
    assert env.keys() >= {"command", "git_commit", "git_dirty", "python", "packages", "host", "cores"}
    assert env["packages"].keys() >= {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert not any("earlier" in e for e in env["earlier"])


def test_metrics_are_lines_of_strict_json(record):
    record.append({"step": 1, "train_loss": float("nan"), "lr": float("-inf"), "x": 0.1, "n": None})
    record.append({"step": 2})
    assert (record.path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train_loss": null, "lr": null, "x": 0.1, "n": null}\n{"step": 2}\n'
    )


@pytest.mark.parametrize("damage", ["", '{"step": 40, "loss": 0.1', b"\xff\xfe", "[1]\n7\n"])
def test_rewrite(damage, record):
    for n in (10, 20, 30):
        record.append({"step": n, "loss": 1 / n})
    with (record.path / "metrics.jsonl").open("ab") as f:
        f.write(damage if isinstance(damage, bytes) else damage.encode())
    record.rewrite([{"step": 10, "loss": 0.1}])
    record.append({"step": 50})
    assert rows(record) == [{"step": 10, "loss": 0.1}, {"step": 50}]


def test_a_damaged_environment_is_no_reason_to_stop(record):
    record.begin({}, "one")
    for damage in ("{", '{"device": "x", "earlier": 3}'):
        (record.path / "env.json").write_text(damage)
        record.begin({}, "two")
    env = writer.read_json(record.path / "env.json")
    assert env and env["device"] == "two" and env["earlier"] == [{"device": "x"}]


def test_what_cannot_be_written_is_named(record, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"config.json cannot be written \(No space left on device\); once it can"):
        record.begin({}, "one")
    (record.path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be written \(Is a directory\); once it can, the same"):
        record.append({"step": 1})


def test_the_summary_is_whole_or_not_there(record, monkeypatch):
    """A crash before the rename leaves no summary, and one while writing it leaves the old file."""
    path = record.path / "summary.json"
    replace, seen = os.replace, []

    def crash(source, target):
        seen.append((json.loads(pathlib.Path(source).read_text()), path.exists()))
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(InputError, match="no space left"):
        record.finish({"status": "finished", "test_loss": float("nan")})
    assert not path.exists()
    assert seen == [(summary.sealed({"status": "finished", "test_loss": None}), False)]
    monkeypatch.setattr(os, "replace", replace)
    record.finish({"status": "finished"})
    assert writer.read_summary(record.path) == summary.sealed({"status": "finished"})


def test_a_changed_summary_is_noticed(record):
    assert writer.read_summary(record.path) is None
    record.finish({"status": "finished", "test_accuracy": 0.5})
    path = record.path / "summary.json"
    whole = path.read_text()
    for damage in (whole.replace("0.5", "0.6"), whole.replace('"schema": 1', '"schema": 3'), whole[:-9], ""):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"summary.json is damaged.*; move it away"):
            writer.read_summary(record.path)
    path.write_text('{"schema": 1, "status": "finished"}')  # of an earlier version, or another program
    assert writer.read_summary(record.path) == {"schema": 1, "status": "finished"}


# Progress.

SHOW = """
import sys
from mobilenet_jax.writer import Display
display = Display()
display.begin(total_steps=8, step=0, steps_per_epoch=4, batch_size=16)
for step in range(8):
    display.advance(1 / (step + 1), step / 8, 1234.5)
    if step == 3:
        display.line("epoch 1 done")
display.close()
"""


def test_a_bar_on_a_terminal():
    code, text = on_a_terminal(python(SHOW), environment(TQDM_MININTERVAL="0"))
    assert code == 0
    assert re.search(r"epoch 2/2 100%\|█+\| 00:\d\d<00:\d\d, loss 0\.1250  accuracy 0\.8750  1,234 images/s", text)
    assert "epoch 1/2" in text
    assert "\repoch 1 done\r\n" in text  # on a line of its own, above the bar


def test_plain_lines_when_piped():
    done = subprocess.run(python(SHOW), env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("epoch 1 done\n", "")


def test_plain_lines_come_now_and_then_inside_a_long_epoch(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    display = Display()
    display.begin(total_steps=100, step=40, steps_per_epoch=50, batch_size=10)
    for _ in range(10):
        now[0] += 11
        display.advance(0.5, 0.25, 20.0)
    display.close()
    assert capsys.readouterr().out.splitlines() == [
        "  step 43/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:28",
        "  step 46/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:27",
        "  step 49/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:25",
    ]


# W&B.


class FakeRun:
    """Keeps what it is given; the named method fails."""

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
    """A stand-in for the package: `wandb.calls` are the arguments of `init`, `wandb.run` is what it returns."""
    fake = types.SimpleNamespace(calls=[], run=FakeRun(), logged_in=False, Settings=dict)
    fake.login = lambda prompt: fake.logged_in
    fake.init = lambda **kwargs: fake.calls.append(kwargs) or fake.run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return fake


def track(directory: pathlib.Path, mode: str) -> Tracker:
    return Tracker(mode, "project", "name", "0123abcd", directory, {"alpha": 0.5, "mult_adds": 7})


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
    track(tmp_path, mode)
    assert [call["mode"] for call in wandb.calls] == ([used] if used else [])


def test_wandb_gets_flat_keys_rows_and_the_summary(wandb, tmp_path, monkeypatch, capsys):
    tracker = track(tmp_path, "online")
    tracker.log({"epoch": 1.0, "train_loss": 0.5})
    tracker.finish({"test_accuracy": 0.9, "alpha": 0.5})
    (call,) = wandb.calls
    assert (call["project"], call["name"], call["id"], call["dir"]) == ("project", "name", "0123abcd", tmp_path)
    assert call["config"] == {"alpha": 0.5, "mult_adds": 7}
    assert wandb.run.rows == [{"epoch": 1.0, "train_loss": 0.5}]
    assert (wandb.run.summary, wandb.run.finished) == ({"test_accuracy": 0.9, "alpha": 0.5}, 1)
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    track(tmp_path, "online")
    assert wandb.calls[-1]["id"] == "of-the-agent"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_wandb_failing_is_said_once_and_stops_nothing(failing, wandb, tmp_path, capsys):
    def fail(**_):
        raise RuntimeError(f"{failing} failed\nand more")

    if failing == "init":
        wandb.init = fail
    wandb.run = FakeRun(failing)
    tracker = track(tmp_path, "online")
    for step in range(3):
        tracker.log({"step": step})
    tracker.finish({})
    assert capsys.readouterr() == ("", f"W&B failed and is left out of this run: {failing} failed\n")


@pytest.mark.parametrize("failing", ["login", "init"])
def test_a_machine_without_a_network_keeps_its_record_for_later(failing, wandb, tmp_path, capsys):
    def fail(**call):
        if call.get("mode") != "offline":
            raise RuntimeError(f"{failing} failed")
        return wandb.run

    wandb.logged_in = True
    setattr(wandb, failing, fail)
    track(tmp_path, "auto").log({"epoch": 1.0})
    assert wandb.run.rows == [{"epoch": 1.0}]
    said = capsys.readouterr().err
    assert said == f"W&B does not answer, so this run is logged offline, for `wandb sync`: {failing} failed\n"


TRACK = """
import pathlib, sys, time
from mobilenet_jax.writer import Tracker
mode, directory = sys.argv[1:]
tracker = Tracker(mode, "project", "name", "0123abcd", pathlib.Path(directory), {"alpha": 0.5, "mult_adds": 7})
tracker.log({"step": 1, "epoch": 1.0, "train_loss": 0.25})
tracker.finish({"test_accuracy": 0.75})
print("wandb" in sys.modules)
"""


def real_wandb(
    mode: str, directory: pathlib.Path, first: str = "", **env: str | None
) -> subprocess.CompletedProcess[str]:
    """A run's tracking in a process of its own, after the lines of `first`."""
    variables: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("WANDB_"))
    variables |= {"HOME": str(directory / "home"), "WANDB_ERROR_REPORTING": "false"} | env
    command = python(first + TRACK, mode, directory)
    return subprocess.run(
        command, cwd=directory, env=environment(**variables), capture_output=True, text=True, timeout=90
    )


@pytest.mark.parametrize(("mode", "env"), [("disabled", {}), ("online", {"WANDB_MODE": "disabled"})])
def test_disabled_never_imports_wandb(mode, env, tmp_path):
    done = real_wandb(mode, tmp_path, **env)
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_without_a_login_the_real_wandb_logs_into_the_run_directory(mode, tmp_path):
    done = real_wandb(mode, tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")
    (log,) = tmp_path.glob("wandb/offline-run-*-0123abcd/run-0123abcd.wandb")
    content = log.read_bytes()
    assert all(name in content for name in (b"alpha", b"mult_adds", b"train_loss", b"test_accuracy"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "auto"])
def test_a_dead_server_costs_one_line_and_half_a_minute(mode, tmp_path):
    started = time.monotonic()
    done = real_wandb(mode, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert time.monotonic() - started < 45
    assert (done.returncode, done.stdout) == (0, "True\n")
    said = "W&B failed and is left out of this run: " if mode == "online" else "W&B does not answer, so this run is"
    assert done.stderr.count("\n") == done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr
    assert bool([*tmp_path.glob("wandb/offline-run-*/*.wandb")]) == (mode == "auto")


@pytest.mark.slow
def test_a_service_that_never_ends_is_left_behind(tmp_path):
    """W&B waits for its service without a limit when it is torn down, and now and then the service goes on."""
    never = "import time\nfrom wandb.sdk.lib.service import service_process\n"
    never += "service_process.ServiceProcess.join = lambda self: time.sleep(1000)\n"
    done = real_wandb("online", tmp_path, never, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr.count("W&B failed and is left out of this run: ") == 1
