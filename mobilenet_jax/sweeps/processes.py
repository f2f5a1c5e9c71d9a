"""The processes that train the points of a sweep, each with its share of the machine."""

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
from mobilenet_jax.sweeps.points import Point
from mobilenet_jax.sweeps.queue import Claim

MAX_SILENCE = 120.0  # seconds without a message after which a worker is killed
_END = 30.0  # seconds that a worker has to end


@dataclasses.dataclass
class Job:
    """A claimed point."""

    claim: Claim
    point: Point
    directory: pathlib.Path
    deaths: int = 0  # workers that died while training it
    retry_at: float = 0.0  # earliest time to hand it out again, by `time.monotonic`; 0 for a fresh one
    row: dict[str, Any] = dataclasses.field(default_factory=dict)  # the last figures
    started: float = dataclasses.field(default_factory=time.monotonic)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
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
    """A training process, started when there is work for it, and started again after it ends."""

    def __init__(self, number: int, count: int, gpus: Sequence[str], log: pathlib.Path):
        """Assign worker `number` of `count` its share of the cores and GPUs; `log` takes its output."""
        self.log = log
        self.jobs: list[Job | None] = []  # the group, in the process's order; None once a job is over
        self.busy = False  # whether the process still works on the group
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe = -1
        self.silence = 0.0  # seconds since the process's last message
        self.compile_seconds = 0.0  # set when the process has compiled and asks for a fresh process to train
        self._text = b""
        self._env = {}
        if gpus:
            self._env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            if count > len(gpus):  # by default, each JAX process takes three quarters of the memory
                self._env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-count // len(gpus)):.2f}"
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        n = len(cores)
        self._cores = cores[number * n // count : (number + 1) * n // count] or [cores[number % n]]

    @property
    def active(self) -> list[Job]:
        """The jobs of the group that are not over."""
        return [job for job in self.jobs if job is not None]

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to end and still runs."""
        return self.process is not None and self.process.stdin is not None and self.process.stdin.closed

    def give(self, jobs: list[Job], compile_seconds: float = 0.0, wall_seconds: float = 0.0) -> None:
        """Send a group of points to the process, or to a new one. The seconds were spent by an earlier process."""
        self.jobs = [*jobs]
        self.compile_seconds, self.busy = 0.0, True
        if self.process is None:
            self._start()
        assert self.process is not None and self.process.stdin is not None
        points = [
            {"name": j.point.spec.name, "config": j.point.spec.config.to_dict(), "directory": str(j.directory)}
            for j in jobs
        ]
        spent = {"compile_seconds": compile_seconds, "wall_seconds": wall_seconds}
        with contextlib.suppress(BrokenPipeError):  # it died, which the end of its pipe reports as well
            self.process.stdin.write(json.dumps({"points": points, **spent}).encode() + b"\n")
            self.process.stdin.flush()

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
                    start_new_session=True,  # Ctrl-C goes to the sweep alone, which stops its workers
                )
        except OSError as e:
            os.close(ours)
            raise InputError(
                f"{self.log}: a worker cannot be started with this log ({e.strerror}); once it can, the same command "
                "resumes"
            ) from None
        finally:
            os.close(theirs)
        self.pipe, self.silence, self._text = ours, 0.0, b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the events that have arrived, and whether the process has closed its pipe."""
        data, self.silence = os.read(self.pipe, 1 << 16), 0.0
        *lines, self._text = (self._text + data).split(b"\n")
        return [json.loads(line) for line in lines], not data

    def stop(self) -> None:
        """Ask the process to save and end."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def close(self) -> int:
        """End the process, by force if it takes too long, and return its exit code."""
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
