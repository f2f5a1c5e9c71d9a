"""The run directory and its lock, and what is shown."""

import errno
import json
import os
import pathlib
import re
import subprocess

import pytest
from conftest import on_a_terminal
from helpers import environment
from helpers import python_command as python

from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory as writer
from mobilenet_jax.records import summary
from mobilenet_jax.records.directory import Display, RunDirectory


@pytest.fixture
def record(tmp_path):
    return RunDirectory(tmp_path)


def rows(record: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (record.path / "metrics.jsonl").read_text().splitlines()]


# The lock.

HOLD = """
import pathlib, sys, time
from mobilenet_jax.records.directory import RunDirectory
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

    monkeypatch.setattr(record, "rewrite", lambda rows: "")
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(InputError, match="no space left"):
        record.finish({"status": "finished", "test_loss": float("nan")}, [])
    assert not path.exists()
    assert seen == [(summary.sealed({"status": "finished", "test_loss": None}, b""), False)]
    monkeypatch.setattr(os, "replace", replace)
    record.finish({"status": "finished"}, [])
    assert writer.read_summary(record.path) == summary.sealed({"status": "finished"}, b"")


def test_a_changed_summary_is_noticed(record):
    assert writer.read_summary(record.path) is None
    record.finish({"status": "finished", "test_accuracy": 0.5}, [])
    path = record.path / "summary.json"
    whole, unsealed = path.read_text(), '{"schema": 1, "status": "finished"}'
    for damage in (whole.replace("0.5", "0.6"), whole.replace('"schema": 1', '"schema": 3'), whole[:-9], "", unsealed):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"summary.json is damaged.*; move it away"):
            writer.read_summary(record.path)


@pytest.mark.parametrize("damage", [b'{"step": 2}\n', b'{"st', None])
def test_changed_metrics_of_a_finished_run_are_noticed(damage, record):
    path = record.path / "metrics.jsonl"
    path.write_text("nonsense")
    record.finish({"status": "finished"}, [{"step": 1}])
    assert rows(record) == [{"step": 1}] and writer.read_summary(record.path)
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(InputError, match=r"metrics.jsonl is missing or damaged: .*; move \S+summary.json away"):
        writer.read_summary(record.path)


# Progress.

SHOW = """
import sys
from mobilenet_jax.records.directory import Display
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
