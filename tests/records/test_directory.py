"""The run directory: its lock, its files, and what is read back."""

import errno
import importlib.metadata
import json
import os
import pathlib
import subprocess

import pytest
from helpers import SUMMARY, environment
from helpers import python_command as python

from mobilenet_jax.errors import InputError
from mobilenet_jax.records import directory, summary
from mobilenet_jax.records.directory import RunDirectory

RESULT = summary.parse(SUMMARY)


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
    directory.check(tmp_path / "absent")
    for name in held:
        (tmp_path / name).touch()
    directory.check(tmp_path)


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        directory.check(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        directory.check(tmp_path / "notes.txt")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b'{"a": 1', b"\xff\xfe\x00"])
def test_a_damaged_config_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    assert directory.read_config(tmp_path) is None
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}.*damaged"):
        directory.read_config(tmp_path)
    path.write_text('{"a": 1}')
    assert directory.read_config(tmp_path) == {"a": 1}


def begin(record: RunDirectory, device: str) -> dict:
    """Start a process's work on a run; return the environment that is recorded."""
    facts = {"device": device, "matmul_precision": "default"}
    record.begin({"seed": device}, facts, lambda stored: "seed" in stored)
    return json.loads((record.path / "env.json").read_text())


def test_begin_writes_the_config_once_and_the_environment_of_every_process(record):
    env = [begin(record, device) for device in ("one", "two", "three")][-1]
    assert directory.read_config(record.path) == {"seed": "one"}
    assert [env["device"], *(e["device"] for e in env["earlier"])] == ["three", "one", "two"]
    assert env.keys() >= {"command", "git_commit", "git_dirty", "python", "packages", "host", "cores", "settings"}
    assert env["packages"].keys() >= {"jax", "jaxlib", "flax", "optax", "safetensors", "numpy"}
    assert env["matmul_precision"] == "default"
    assert not any("earlier" in e for e in env["earlier"])


@pytest.mark.parametrize("name", ["jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "libtpu"])
def test_what_drives_a_device_is_among_the_packages(name, record, monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: "9.1" if asked == name else version(asked))
    assert begin(record, "one")["packages"][name] == "9.1"


@pytest.mark.parametrize(
    "name", ["XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS"]
)
def test_settings_that_may_change_a_result_are_recorded(name, record, monkeypatch):
    monkeypatch.setenv(name, "some")
    assert begin(record, "one")["settings"][name] == "some"


def test_begin_replaces_a_damaged_config(record):
    (record.path / "config.json").write_text("{")
    begin(record, "one")
    assert directory.read_config(record.path) == {"seed": "one"}


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


def test_a_damaged_environment_stops_nothing(record):
    for damage in ("{", '{"device": "x", "earlier": 3}'):
        (record.path / "env.json").write_text(damage)
        env = begin(record, "two")
    assert env["device"] == "two" and env["earlier"] == [{"device": "x"}]


def test_what_cannot_be_written_is_named(record, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"config.json cannot be written \(No space left on device\)"):
        begin(record, "one")
    (record.path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be written \(Is a directory\)"):
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
        record.finish(RESULT, [])
    assert not path.exists()
    assert seen == [(summary.seal(RESULT, b""), False)]
    monkeypatch.setattr(os, "replace", replace)
    record.finish(RESULT, [])
    assert directory.read_summary(record.path) == summary.unseal(seen[0][0])


def test_a_changed_summary_is_noticed(record):
    assert directory.read_summary(record.path) is None
    record.finish(RESULT, [])
    path = record.path / "summary.json"
    whole = path.read_text()
    for damage in (whole.replace("0.7914", "0.6"), whole.replace('"schema": 1', '"schema": 3'), whole[:-9], ""):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"summary.json.*damaged.*; move it away"):
            directory.read_summary(record.path)


@pytest.mark.parametrize("damage", [b'{"step": 2}\n', b'{"st', None])
def test_changed_metrics_of_a_finished_run_are_noticed(damage, record):
    path = record.path / "metrics.jsonl"
    path.write_text("nonsense")
    record.finish(RESULT, [{"step": 1}])
    assert rows(record) == [{"step": 1}] and directory.read_summary(record.path)
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(InputError, match=r"metrics.jsonl is missing or damaged.*move \S+summary.json away"):
        directory.read_summary(record.path)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_read_now_is_no_damage(name, record):
    """Moving it away would throw away a good result."""
    record.finish(RESULT, [{"step": 1}])
    (record.path / name).unlink()
    (record.path / name).symlink_to(name)  # a link to itself
    with pytest.raises(InputError, match=f"{name}.*cannot be read") as e:
        directory.read_summary(record.path)
    assert "away" not in str(e.value)


def test_a_summary_without_its_digest_is_noticed(record):
    record.finish(RESULT, [])
    stored = json.loads((record.path / "summary.json").read_text())
    (record.path / "summary.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "sha256"}))
    with pytest.raises(InputError, match="damaged"):
        directory.read_summary(record.path)
