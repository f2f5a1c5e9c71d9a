"""The processes that train a sweep's points: each with its share of the machine, started when there is work for it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import points as grid
from mobilenet_jax.sweeps import queue as ledger

SILENT = 120.0  # seconds without a sign of life, after which a worker stands still for good
_END = 30.0  # seconds that a worker may take to end


@dataclasses.dataclass
class Job:
    """A claimed point."""

    claim: ledger.Claim
    point: grid.Point
    directory: pathlib.Path
    deaths: int = 0
    again: float = 0.0  # not before, by `time.monotonic`
    row: dict[str, Any] = dataclasses.field(default_factory=dict)  # the last figures
    started: float = dataclasses.field(default_factory=time.monotonic)


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(done.stdout.splitlines())] if done.returncode == 0 else []


class Worker:
    """A process that trains, started when it is needed, and again after it ends."""

    def __init__(self, number: int, count: int, devices: Sequence[str], log: pathlib.Path):
        self.log = log
        self.jobs: list[Job | None] = []  # in the order in which the process has them; None once over
        self.busy = False  # until the process says that it is through with them
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe = -1
        self.silent = 0.0  # seconds since the process was last heard of
        self.anew = 0.0  # seconds for which this process compiled, for a fresh one to train
        self._text = b""
        self._env = {}
        if devices:
            self._env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
            if count > len(devices):  # JAX would take three quarters of the memory for each
                self._env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-count // len(devices)):.2f}"
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        n = len(cores)
        self._cores = cores[number * n // count : (number + 1) * n // count] or [cores[number % n]]

    @property
    def active(self) -> list[Job]:
        return [job for job in self.jobs if job is not None]

    def give(self, jobs: Sequence[Job]) -> None:
        """Has the process train a group of points."""
        self.jobs = [*jobs]
        self.send()

    def send(self, compile_seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
        """Hands what is left of the group over, to a new process where there is none."""
        self.jobs = [*self.active]
        self.anew, self.busy = 0.0, True
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        points = [
            {"name": j.point.spec.name, "config": j.point.spec.config.to_dict(), "directory": str(j.directory)}
            for j in self.active
        ]
        spent = {"compile_seconds": compile_seconds, "wall_seconds": wall_seconds}
        with contextlib.suppress(BrokenPipeError):  # it died: its pipe's end says so as well
            self.process.stdin.write(json.dumps({"points": points, **spent}).encode() + b"\n")
            self.process.stdin.flush()

    @property
    def stopped(self) -> bool:
        """Whether the process was asked to end, and has not yet."""
        return self.process is not None and self.process.stdin is not None and self.process.stdin.closed

    def _start(self) -> None:
        ours, theirs = os.pipe()
        root = str(pathlib.Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-m", "mobilenet_jax.sweeps.worker", str(theirs), ",".join(map(str, self._cores))]
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs],
                    env={**os.environ, **self._env, "PYTHONPATH": path},
                    start_new_session=True,  # a terminal's Ctrl-C is for the sweep, which stops its workers itself
                )
        except OSError as e:
            os.close(ours)
            raise InputError(
                f"{self.log}: a worker cannot be started with this log ({e.strerror}); once it can, the same command "
                "goes on"
            ) from None
        finally:
            os.close(theirs)
        self.pipe, self.silent, self._text = ours, 0.0, b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The events that have come, and whether the process is at its end."""
        data, self.silent = os.read(self.pipe, 1 << 16), 0.0
        *lines, self._text = (self._text + data).split(b"\n")
        return [json.loads(line) for line in lines], not data

    def stop(self) -> None:
        """Asks the process to save and end."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def ended(self) -> int:
        """Clears up after the process; returns its exit code."""
        assert self.process is not None
        self.stop()
        os.close(self.pipe)
        try:
            code = self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process, self.pipe, self.busy = None, -1, False
        return code
