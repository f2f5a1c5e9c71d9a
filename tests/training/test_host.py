"""Memory, restarts, the cache of compiled programs: seen from inside processes that use them. GPUs and their shares."""

import signal
import stat
import sys

import pytest
from helpers import python

from mobilenet_jax.training import host

KEPT = """
import os, sys
from mobilenet_jax.training import host
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
host.keep_memory()
print("on")
"""
RESTARTED = """
import os, sys
from mobilenet_jax.training import host
print(os.getpid(), sys.argv[1:], host.compiled_before())
host.restart_after_compiling(
    float(sys.argv[1]), before=lambda: print("before"), mult_adds=float(sys.argv[2]) * host.cores()
)
"""
CACHED = """
from mobilenet_jax.training import host
host.use_compilation_cache()
import jax
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_compilation_cache_max_size)
jax.jit(lambda x: x + 1)(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_keeping_memory_restarts_the_process_once(before):
    first, second, last = python(KEPT, "an argument", **({"GLIBC_TUNABLES": before} if before else {}))
    pid = first.split()[0]
    assert first == f"{pid} ['an argument'] {before or None}"
    assert second == f"{pid} ['an argument'] {before}{':' if before else ''}{host.KEPT_MEMORY}"
    assert last == "on"


def test_the_users_own_setting_of_huge_pages_wins():
    assert len(python(KEPT, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")) == 2


@pytest.mark.parametrize(
    ("seconds", "mult_adds", "tunables", "printed"),
    [
        ("5.5", "3e11", host.KEPT_MEMORY, ["{} ['5.5', '3e11'] 0.0", "before", "{} ['5.5', '3e11'] 5.5"]),
        ("4.5", "3e11", host.KEPT_MEMORY, ["{} ['4.5', '3e11'] 0.0"]),
        ("5.5", "1e11", host.KEPT_MEMORY, ["{} ['5.5', '1e11'] 0.0"]),
        ("5.5", "3e11", "", ["{} ['5.5', '3e11'] 0.0"]),
    ],
)
def test_a_process_that_compiled_for_long_restarts_once(seconds, mult_adds, tunables, printed):
    lines = python(RESTARTED, seconds, mult_adds, GLIBC_TUNABLES=tunables)
    assert lines == [line.format(lines[0].split()[0]) for line in printed]


SIGNALLED = """
import os, signal, sys
from mobilenet_jax import console
from mobilenet_jax.training import host
print("start", flush=True)
with console.signals() as asked:
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # between the last check and the restart
        os.execve = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    host.restart_after_compiling(6.0, asked)
    print("on", asked)
"""


def test_a_signal_before_a_restart_is_not_lost():
    """A collected signal stops the run. A later one ends the process, which has not begun anything."""
    assert python(SIGNALLED, "before", GLIBC_TUNABLES=host.KEPT_MEMORY) == ["start", f"on [{signal.SIGTERM:d}]"]
    assert python(SIGNALLED, "after", GLIBC_TUNABLES=host.KEPT_MEMORY, code=-signal.SIGTERM) == ["start"]


def test_a_child_of_a_restarted_process_did_not_restart():
    assert python(
        "from mobilenet_jax.training import host; print(host.compiled_before())", MOBILENET_JAX_COMPILED="1:9"
    ) == ["0.0"]


def test_seconds_of_a_process_count_from_its_start():
    (line,) = python(
        "import time; time.sleep(0.5); from mobilenet_jax.training import host; print(host.process_seconds())"
    )
    assert 0.5 <= float(line) < 60


def test_a_small_program_is_cached(tmp_path):
    directory = tmp_path / "mobilenet_jax" / "compiled"
    assert python(CACHED, XDG_CACHE_HOME=str(tmp_path)) == [str(directory), str(1 << 30)]
    assert any("lambda" in path.name for path in directory.iterdir())


MANY = """
import jax
from mobilenet_jax.training import host
host.CACHE_BYTES = 20_000
host.use_compilation_cache()
for i in range(20):
    jax.jit(lambda x: x + i)(1)
"""


def test_the_cache_is_bounded(tmp_path):
    python(MANY, XDG_CACHE_HOME=str(tmp_path))
    kept = [path for path in (tmp_path / "mobilenet_jax" / "compiled").iterdir() if path.name.endswith("-cache")]
    assert 0 < len(kept) < 20 and sum(path.stat().st_size for path in kept) <= 20_000


def test_a_half_written_program_is_removed(tmp_path):
    python(CACHED, XDG_CACHE_HOME=str(tmp_path))
    directory = tmp_path / "mobilenet_jax" / "compiled"
    (program,) = directory.glob("*lambda*-cache")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])  # JAX writes in place, and was killed
    program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
    python(CACHED, XDG_CACHE_HOME=str(tmp_path))  # nothing on stderr
    assert len(program.read_bytes()) == len(whole)


def test_the_users_directory_is_used(tmp_path):
    assert python(CACHED, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=f"{tmp_path}/own") == [
        f"{tmp_path}/own",
        "-1",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_no_cache_without_a_writable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    assert python(CACHED, XDG_CACHE_HOME=f"{tmp_path}/file") == ["None", "-1"]
    assert python(CACHED, JAX_COMPILATION_CACHE_DIR=f"{tmp_path}/file") == ["None", "-1"]


NO_HOME = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
os.chdir(sys.argv[1])
"""


def test_no_cache_without_a_home(tmp_path):
    assert python(NO_HOME + CACHED, str(tmp_path)) == ["None", "-1"]
    assert not [*tmp_path.iterdir()]


NVIDIA_SMI = """#!/bin/sh
echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5a1b)"
echo "  MIG 1g.10gb Device 0: (UUID: MIG-7c2d)"
echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-6b2c)"
echo "GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-6b2f)"
echo "an unknown line about a GPU 3"
exit $CODE
"""
VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES")
VARIABLES += ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture
def three_gpus(tmp_path, monkeypatch):
    """A machine with JAX's plugin for CUDA and a driver with three GPUs."""
    plugin, driver = tmp_path / "jax_cuda12_plugin" / "__init__.py", tmp_path / "bin" / "nvidia-smi"
    for path in (plugin, driver):
        path.parent.mkdir()
    plugin.write_text("")
    driver.write_text(NVIDIA_SMI)
    driver.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PATH", str(driver.parent))
    monkeypatch.setenv("CODE", "0")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({}, ["0", "1", "2"]),
        ({"CODE": "9"}, []),  # without a driver that works
        ({"CODE": "9", "CUDA_VISIBLE_DEVICES": "0"}, []),
        ({"PATH": "/nowhere"}, []),
        ({"PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": "5,GPU-0,MIG-GPU-1/2/3,x,6"}, ["5", "GPU-0", "MIG-GPU-1/2/3"]),
        ({"PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"JAX_PLATFORMS": "cpu"}, []),
        ({"JAX_PLATFORMS": "tpu"}, []),
        ({"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "cpu"}, []),
        ({"JAX_PLATFORMS": "cuda"}, ["0", "1", "2"]),
        ({"JAX_PLATFORMS": "gpu,cpu"}, ["0", "1", "2"]),
    ],
)
def test_gpus_that_can_be_used(variables, gpus, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert host.visible_gpus() == gpus


@pytest.mark.usefixtures("three_gpus")
def test_memory_of_a_gpu_is_left_alone(monkeypatch):
    """A process that keeps none does not restart after compiling either."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert host.kept_memory() == {"GLIBC_TUNABLES": ""}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert (host.kept_memory() == {"GLIBC_TUNABLES": host.KEPT_MEMORY}) == (sys.platform == "linux")
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert host.kept_memory() == {"GLIBC_TUNABLES": ""}


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        ("none", []),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("0,2,-1,1", ["0", "2"]),
        ("1,NoDevFiles,0", ["1"]),
        ("0,3,1", ["0"]),  # a number or UUID of no device ends the list
        ("GPU-5a1b,GPU-9", ["GPU-5a1b"]),
        ("1,1", []),  # a repeated device hides all
        ("GPU-5a1b,GPU-5a1b", []),
        ("GPU-5a1b, MIG-7c2d,-1,0", ["GPU-5a1b", "MIG-7c2d"]),
        ("GPU-6b2c,GPU-5", ["GPU-6b2c", "GPU-5"]),  # the first characters of a UUID are enough
        ("GPU-6b2", []),  # of two GPUs
        ("MIG-GPU-5a1b/1/2", ["MIG-GPU-5a1b/1/2"]),
    ],
)
def test_cudas_list_is_read_as_cuda_reads_it(visible, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert host.visible_gpus() == gpus


@pytest.mark.usefixtures("three_gpus")
def test_no_gpu_without_jaxs_plugin(monkeypatch):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    assert host.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert host.visible_gpus() == []


@pytest.mark.parametrize(
    ("gpus", "shares", "memory"),
    [
        (8, ["0,2,4,6", "1,3,5,7"], None),
        (8, ["0,1,2,3,4,5,6,7"], None),
        (3, ["0,2", "1"], None),
        (2, ["0", "1"], None),
        (2, ["0", "1", "0"], "0.44"),
        (1, ["0", "0", "0"], "0.29"),
    ],
)
def test_workers_share_all_gpus(gpus, shares, memory, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    count = len(shares)
    found = [host.gpu_settings(number, count, [str(i) for i in range(gpus)]) for number in range(count)]
    more = {"JAX_PLATFORMS": "cuda"} | ({"XLA_CLIENT_MEM_FRACTION": memory} if memory else {})
    assert found == [{"CUDA_VISIBLE_DEVICES": share} | more for share in shares]


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_users_own_share_of_memory_stays(name, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "0.2")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert host.gpu_settings(1, 2, ["5"]) == {"CUDA_VISIBLE_DEVICES": "5"}


@pytest.mark.parametrize(
    ("cores", "shares"),
    [
        ({0, 1}, [{0, 1}]),
        ({0, 1, 4, 5, 9}, [{0, 1}, {4, 5, 9}]),
        ({3, 8}, [{3}, {8}]),
        ({3, 8}, [{3}, {3}, {8}]),
        ({3, 8}, [{3}, {8}, {3}, {8}, {8}]),
    ],
)
def test_workers_share_the_cores(cores, shares, monkeypatch):
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: cores, raising=False)
    assert [host.share_of_cores(number, len(shares)) for number in range(len(shares))] == shares
