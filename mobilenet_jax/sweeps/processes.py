"""The worker processes of a command, each with its share of the machine."""

import contextlib
import itertools
import os
import pathlib
import signal
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
        names = itertools.takewhile(lambda name: name and name != "-1", map(str.strip, visible.split(",")))
        return [*names]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    found = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(i) for i in range(found)] if done.returncode == 0 else []


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
        self.log, self.number = log, number
        self.process: subprocess.Popen[bytes] | None = None
        self.done = False  # whether the process shall not start again
        self.start_at = 0.0  # the earliest time of the next start, by `time.monotonic`
        self.deaths = 0  # in a row, without a line
        self.silence, self._touched = 0.0, 0  # seconds without a touch of the log; when it was touched last
        self._text = b""
        # A program given with -c is part of `sys.orig_argv` too.
        self._command = [sys.executable, *sys.orig_argv[1:], f"--worker={number}/{count}/{study}"]
        self._env = device_settings(number, count, gpus) | host.kept_memory()
        self._cores: set[int] = set()
        if not gpus and hasattr(os, "sched_getaffinity"):  # XLA takes as many threads
            cores = sorted(os.sched_getaffinity(0))
            n = len(cores)
            self._cores = {*cores[number * n // count : (number + 1) * n // count]} or {cores[number % n]}

    def start(self) -> None:
        """Start the process, on its share of the cores.

        Raises:
          InputError: the log cannot be written.
        """
        try:
            with self.log.open("ab") as log, _on_cores(self._cores):
                self.process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,  # its end, which is also that of a command that was killed, ends the worker
                    stdout=subprocess.PIPE,  # lines for the user
                    stderr=log,
                    env=os.environ | self._env,
                    start_new_session=True,  # Ctrl-C goes to the command alone, which stops its workers
                )
        except OSError as e:
            can = "once it can, the same command resumes"
            raise InputError(f"{self.log}: a worker cannot be started with this log ({e.strerror}); {can}") from None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.silence, self._text = 0.0, b""

    def lines(self) -> list[str]:
        """Return the lines that the process has printed since the last call."""
        assert self.process is not None and self.process.stdout is not None
        self._text += self.process.stdout.read() or b""
        *lines, self._text = self._text.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def listen(self, passed: float) -> float:
        """Add `passed` to the seconds of silence unless the log was touched, and return them."""
        touched = self._touched
        with contextlib.suppress(OSError):
            self._touched = self.log.stat().st_mtime_ns
        self.silence = 0.0 if touched != self._touched else self.silence + passed
        return self.silence

    def send(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def ended(self) -> str | None:
        """Return how the process ended, None while it runs."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def close(self) -> None:
        """Forget the ended process."""
        assert self.process is not None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process = None


@contextlib.contextmanager
def _on_cores(cores: set[int]):
    """Give processes that start in this block these cores only; all if there are none given."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
