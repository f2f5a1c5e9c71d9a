"""The child that reads foreign files: it may hang, crash or lack a package, and the caller gets one sentence."""

import pathlib
import stat
import sys

import pytest
from transfer_helpers import unpacked

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer import formats, sandbox


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Return a function that has a shell script take the place of the child."""

    def install(script: str) -> pathlib.Path:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))
        return tmp_path / "some.h5"

    return install


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -KILL $$", "SIGKILL"),
        ("exit 3", "code 3"),
        ("echo 'error: a sentence' >&2; exit 1", "some.h5: a sentence$"),
        ("echo traceback >&2; exit 1", "code 1"),
    ],
)
def test_a_child_that_ends_badly(script, reason, child):
    with pytest.raises(InputError, match=reason):
        sandbox.read(child(script))


def test_limits_that_are_lower_already(child):
    script = f'ulimit -t 30; exec {sys.executable} "$@"'
    path = child(script).with_name("whole.h5")
    unpacked("tiny.tar.xz", path.parent)
    assert sandbox.read(path).resolution == 64


def test_a_child_that_hangs(child, monkeypatch):
    monkeypatch.setattr(sandbox, "_SECONDS", 0.2)
    with pytest.raises(InputError, match="within"):
        sandbox.read(child("exec sleep 30"))


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "h5py.py").write_text("raise ModuleNotFoundError(\"No module named 'h5py'\", name='h5py')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = unpacked("tiny.tar.xz", tmp_path) / "whole.h5"
    with pytest.raises(InputError, match=r"'h5py'.*pip install .*\[weights\]"):
        sandbox.read(path)


def test_memory_is_limited(tmp_path, monkeypatch):
    """A header may announce a tensor that no memory holds."""
    (tmp_path / "h5py.py").write_text("def File(*_): bytearray(5 * 2**30)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = unpacked("tiny.tar.xz", tmp_path) / "whole.h5"
    with pytest.raises(InputError, match="MemoryError"):
        sandbox.read(path)


def test_a_pickle_of_torch_is_named(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(InputError, match="pickle"):
        formats.reader(tmp_path / "x.pth")
