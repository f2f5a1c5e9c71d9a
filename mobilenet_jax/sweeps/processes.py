"""The worker processes of a command, each with its share of the machine."""

import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from mobilenet_jax.errors import InputError
from mobilenet_jax.training import host


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:  # CUDA ignores what follows -1
        return [*itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(",")))]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in lines))]


def device_settings(number: int, count: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that give worker `number` of `count` its share of the GPUs."""
    if not gpus:
        return {}
    shared = -(-count // len(gpus))  # workers per GPU
    settings = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number::count]) or gpus[number % len(gpus)]}
    if "JAX_PLATFORMS" not in os.environ:  # else JAX would silently train on the CPU if it cannot use the GPU
        settings["JAX_PLATFORMS"] = "cuda"
    if shared > 1 and not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        # By default, each JAX process takes three quarters of the memory. A process needs some outside its share.
        settings["XLA_CLIENT_MEM_FRACTION"] = f"{(90 - shared) // shared / 100:.2f}"
    return settings


class WorkerProcess:
    """A process that runs the same command as this one, as worker `number` of `count`.

    Args:
      number: from 0.
      count: workers of this command.
      gpus: names of the GPUs that the workers share.
      study: the sweep's name in its database, which the worker must find too.
      log: takes the process's errors. The process touches it every second.
    """

    def __init__(self, number: int, count: int, gpus: Sequence[str], study: str, log: pathlib.Path):
        self.number, self.log = number, log
        self.process: subprocess.Popen[str] | None = None
        self.silence, self._touched = 0.0, 0  # seconds without a touch of the log; when it was touched last
        # A program given with -c is part of `sys.orig_argv` too.
        self._command = [sys.executable, *sys.orig_argv[1:], f"--worker={number}/{count}/{study}"]
        self._env = device_settings(number, count, gpus) | host.kept_memory()
        self._cores: set[int] = set()
        if not gpus and hasattr(os, "sched_getaffinity"):  # XLA takes as many threads as there are cores
            cores = sorted(os.sched_getaffinity(0))
            n = len(cores)
            self._cores = {*cores[number * n // count : (number + 1) * n // count]} or {cores[number % n]}

    def start(self) -> subprocess.Popen[str]:
        """Start the process. It inherits the cores of this thread, which should be of this worker only.

        Raises:
          InputError: the log cannot be written.
        """
        if self._cores:
            os.sched_setaffinity(0, self._cores)
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,  # its end, which is also that of a command that was killed, ends the worker
                    stdout=subprocess.PIPE,  # lines for the user
                    stderr=log,
                    env=os.environ | self._env,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C goes to the command alone, which stops its workers
                )
        except OSError as e:
            can = "once it can, the same command resumes"
            raise InputError(f"{self.log}: a worker cannot be started with this log ({e.strerror}); {can}") from None
        self.silence = 0.0
        return self.process

    def listen(self, passed: float) -> float:
        """Return the seconds without a sign of life; `passed` is the time since the last call."""
        before, self._touched = self._touched, self.log.stat().st_mtime_ns if self.log.exists() else 0
        self.silence = self.silence + passed if before == self._touched else 0.0
        return self.silence

    def send(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)
