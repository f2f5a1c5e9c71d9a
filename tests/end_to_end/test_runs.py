"""Whole runs of whole networks, through `launch.py`."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers import TINY, flags_of, result, summary_of

from mobilenet_jax.data import datasets


def launched(settings: dict[str, str], *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `launch.py` with XLA's optimisations."""
    variables = os.environ | settings | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"} | env
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_two_devices(settings, tmp_path):
    overrides = TINY | {"train.epochs": 1, "optim.warmup_epochs": 0, "train.devices": 2}
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = launched(settings, f"--run_dir={tmp_path}/run", *flags_of(overrides), **devices)
    assert (done.returncode, done.stderr) == (0, "")
    summary = summary_of(tmp_path / "run")
    assert summary["device"].startswith("2 x cpu") and summary["status"] == "finished"
    assert summary["test_accuracy"] * 360 == pytest.approx(round(summary["test_accuracy"] * 360))


@pytest.mark.slow
def test_killed_anywhere(settings, tmp_path):
    """At four random moments of a run that writes a checkpoint nearly all the time."""
    overrides = TINY | {"train.epochs": 6, "train.batch_size": 16, "train.checkpoint_epochs": 0.2}
    assert launched(settings, f"--run_dir={tmp_path}/whole", *flags_of(overrides)).returncode == 0
    seconds = summary_of(tmp_path / "whole")["train_seconds"]
    draw = random.Random(0)
    for name in ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM"):
        directory = tmp_path / f"{name}{draw.random()}"
        command = [sys.executable, str(ROOT / "launch.py"), f"--run_dir={directory}", *flags_of(overrides)]
        environment = os.environ | settings | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while not list(directory.glob("checkpoints/*.safetensors")):
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(draw.uniform(0, seconds / 2))
            process.send_signal(getattr(signal, name))
        assert process.returncode == (143 if name == "SIGTERM" else -9)
        assert launched(settings, f"--run_dir={directory}", *flags_of(overrides)).returncode == 0
        assert summary_of(directory)["resumed_from"] > 0
        assert result(directory) == result(tmp_path / "whole")


@pytest.mark.slow
def test_the_default_command_learns_the_digits(settings, tmp_path):
    done = launched(settings, f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = (summary_of(path) for path in tmp_path.iterdir())
    assert summary["test_accuracy"] >= 0.98
    assert f"test accuracy  {summary['test_accuracy']:.4f}" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(datasets.prepared("cifar10") is None, reason=f"CIFAR-10 is not prepared in {datasets.data_root()}")
def test_real_cifar10(settings, tmp_path):
    overrides = {"model.alpha": 0.25, "model.rho": 0.25, "model.bn_decay": 0.9}
    overrides |= {"train.epochs": 1, "train.batch_size": 256}
    done = launched(settings, f"--workdir={tmp_path}", f"--config={ROOT}/configs/cifar_v1.py", *flags_of(overrides))
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = (summary_of(path) for path in tmp_path.iterdir())
    assert (summary["dataset"], summary["steps"]) == ("cifar10", 195)
    assert summary["test_accuracy"] > 0.2
