"""Which devices share a batch, which GPUs a process may use, what workers get of them, and what holds on CPUs only."""

import os
import re
import stat
import subprocess
import sys
import types
from typing import Any

import jax
import pytest
from conftest import ROOT
from helpers import TINY, environment, spec_of
from sweep_helpers import command, database, trial_states, write

from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import worker
from mobilenet_jax.sweeps.supervisor import WorkerProcess
from mobilenet_jax.training import devices, host

NVIDIA_SMI = """#!/bin/sh
[ "$1" = --query-gpu=driver_version ] && for i in 0 1 2; do echo 580.65.06; done && exit $CODE
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
    assert devices.visible_gpus() == gpus


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("variables", "plugin", "on_cpu"),
    [
        ({}, "", False),
        ({"JAX_PLATFORMS": "cpu"}, "", True),
        ({"JAX_PLATFORM_NAME": "cpu"}, "", True),
        ({"CODE": "9"}, "", True),  # without a driver that works
        ({"CODE": "9"}, "jax_plugins/xla_cuda12", True),
        ({"CODE": "9"}, "jax_plugins/xla_rocm7", False),
        ({"CODE": "9"}, "jax_plugins/another_plugin", False),
        ({"CODE": "9"}, "libtpu", False),
        ({"JAX_PLATFORMS": "cpu"}, "jax_plugins/xla_rocm7", True),
        ({"JAX_PLATFORMS": "cpu"}, "libtpu", True),
        ({"JAX_PLATFORMS": "tpu"}, "", False),
        ({"JAX_PLATFORMS": "rocm,cpu"}, "", False),
    ],
)
def test_what_helps_a_cpu_is_done_on_cpus_only(variables, plugin, on_cpu, tmp_path, monkeypatch):
    """A process that keeps no memory does not restart after compiling either."""
    (tmp_path / plugin).mkdir(parents=True, exist_ok=True)
    (tmp_path / plugin / "__init__.py").touch()
    for name, value in (variables | {"GLIBC_TUNABLES": ""}).items():
        monkeypatch.setenv(name, value)
    gpus = devices.visible_gpus()
    process = WorkerProcess("0/1/command/study", gpus, tmp_path / "log", print)
    assert host.kept_memory() == {"GLIBC_TUNABLES": host.KEPT_MEMORY if on_cpu else ""}
    assert process._env["GLIBC_TUNABLES"] == host.kept_memory()["GLIBC_TUNABLES"]
    assert bool(process._cores) == on_cpu


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("platform", "variables", "recorded"),
    [
        ("gpu", {}, {"runtime": "PJRT C API cuda 12090", "driver": "580.65.06"}),
        ("gpu", {"CODE": "9"}, {"runtime": "PJRT C API cuda 12090"}),
        ("tpu", {"PATH": "/nowhere"}, {"runtime": "PJRT C API cuda 12090"}),
        ("cpu", {}, {}),
    ],
)
@pytest.mark.parametrize("precision", [None, "highest"])
def test_what_is_recorded_of_a_device(precision, platform, variables, recorded, monkeypatch):
    client = types.SimpleNamespace(platform=platform, platform_version="PJRT C API\ncuda 12090")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(client=client)])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices.device_facts.cache_clear()
    with jax.default_matmul_precision(precision):
        assert devices.device_facts() == {"matmul_precision": precision or "default"} | recorded
    devices.device_facts.cache_clear()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu", "rocm", ""])
def test_fuse_means_the_same_on_every_platform(platform, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    spec = types.SimpleNamespace(group_key="one", config=None)
    one: Any = worker.Worker.__new__(worker.Worker)
    one.plan, one.jobs = types.SimpleNamespace(fuse=3), []
    one._claim = lambda: one.jobs.append(types.SimpleNamespace(point=types.SimpleNamespace(spec=spec))) or True
    assert len(one._next()) == 3


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
    assert devices.visible_gpus() == gpus


@pytest.mark.usefixtures("three_gpus")
def test_no_gpu_without_jaxs_plugin(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert devices.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.visible_gpus() == []


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
    found = [devices.gpu_settings(number, count, [str(i) for i in range(gpus)]) for number in range(count)]
    more = {"JAX_PLATFORMS": "cuda"} | ({"XLA_CLIENT_MEM_FRACTION": memory} if memory else {})
    assert found == [{"CUDA_VISIBLE_DEVICES": share} | more for share in shares]


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_users_own_share_of_memory_stays(name, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "0.2")
    assert devices.gpu_settings(1, 2, ["5"]) == {"CUDA_VISIBLE_DEVICES": "5", "JAX_PLATFORMS": "cuda"}


@pytest.mark.parametrize(
    ("platforms", "error", "sentence"),
    [
        ("cuda", "no GPU (set JAX_PLATFORMS='' to choose)", " with JAX_PLATFORMS=cuda: no GPU; JAX_PLATFORMS=cpu .*"),
        ("cuda", "", " with JAX_PLATFORMS=cuda: no device; JAX_PLATFORMS=cpu .*"),
        ("cpu", "a reason", " with JAX_PLATFORMS=cpu: a reason"),
        ("", "a reason", " with JAX_PLATFORMS=: a reason"),
    ],
)
def test_without_its_device_jax_is_not_left_to_choose(platforms, error, sentence, monkeypatch):
    for name in filter(re.compile("JAX_|XLA_|NVIDIA_").match, [*os.environ]):
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with pytest.raises(InputError) as caught, devices.starting_jax():
        raise RuntimeError(error)
    assert re.fullmatch("JAX does not start on this machine" + sentence, str(caught.value))


@pytest.mark.slow
@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize("platforms", [None, "", "cuda,cpu"])
def test_a_worker_that_has_a_gpu_but_cannot_use_it_ends(platforms, tmp_path):
    """The driver lists GPUs, and JAX finds none of them: no worker trains on the CPU instead."""
    write(tmp_path, TINY | {"seed": [0]})
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    variables = environment(PYTHONPATH=path, JAX_PLATFORMS=platforms)
    done = subprocess.run(command(tmp_path), cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and re.fullmatch("error: JAX does not start.* JAX_PLATFORMS=cuda: .*\n", done.stderr)
    assert "3 workers" in done.stdout and done.stdout.count("ended     worker") == 3  # none is started again
    assert trial_states(database(tmp_path)) == ["WAITING"] and not [*(tmp_path / "runs").glob("digits*")]


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
    assert [devices.share_of_cores(number, len(shares)) for number in range(len(shares))] == shares


@pytest.mark.parametrize(
    ("platform", "count", "name"),
    [("gpu", 1, "Fast"), ("gpu", 8, "8 x Fast"), ("cpu", 1, "Fast (3 cores)"), ("cpu", 2, "2 x Fast (3 cores)")],
)
def test_names_of_devices(platform, count, name, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 3)
    assert devices.device_name([types.SimpleNamespace(platform=platform, device_kind="Fast")] * count) == name


@pytest.mark.parametrize(
    ("batch", "asked", "available", "used"),
    [(128, 0, 8, 1), (256, 0, 8, 2), (1024, 0, 8, 8), (1024, 0, 3, 2), (384, 0, 8, 3), (32, 0, 4, 1), (32, 2, 4, 2)],
)
def test_how_many_devices_share_a_batch(batch, asked, available, used):
    spec = spec_of(TINY | {"train.batch_size": batch, "train.devices": asked})
    assert devices.choose_devices(spec, range(available)) == range(used)
