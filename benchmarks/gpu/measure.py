"""What the sections share: a record that is complete when the time is over, timing, and facts about the machine."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import adapter

TINY = bool(os.environ.get("TINY"))  # sizes at which a CPU can try the scripts
WINDOWS, WINDOW = (5, 0.02) if TINY else (7, 0.3)  # timed after the warm-up; seconds per window
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "optax", "numpy", "torch", "triton", "nvidia-cudnn-cu13")
# Compiler options without autotuning: a training step compiles in seconds instead of minutes, and runs slower.
UNTUNED = {"xla_gpu_autotune_level": 0, "xla_gpu_experimental_enable_fusion_autotuner": False}
Row = dict[str, Any]


class Record:
    """The rows of a section, written to a JSON file after each change.

    Rows are planned first and measured one by one. When the time is over, `close` adds the missing ones as failed or
    skipped and ends the process, because a compilation cannot be interrupted.
    """

    def __init__(self, path: pathlib.Path, device: str, seconds: float, **more: Any):
        self.path, self.rows = path, []
        self._head = {"device": device, **environment(), "seconds": seconds, **more}
        self._planned: list[Row] = []
        self._begun: dict[int, float] = {}  # id of a row -> when
        self._started, self._seconds = time.monotonic(), seconds
        self._lock = threading.RLock()
        self._timer = threading.Timer(seconds, self.close)
        self._timer.daemon = True
        self._timer.start()
        print(f"\n== {path.stem} on {device}", flush=True)

    def plan(self, rows: Sequence[Row]) -> None:
        self._planned += rows

    def left(self) -> float:
        """Return the seconds until the time is over."""
        return self._seconds - (time.monotonic() - self._started)

    @contextlib.contextmanager
    def measuring(self, row: Row) -> Iterator[None]:
        """Add a planned row once the caller has put its figures into it; an exception becomes its 'failed'."""
        self._begun[id(row)] = time.monotonic()
        try:
            yield
        except Exception as e:  # out of memory, a kernel that does not compile: the other rows can still succeed
            row["failed"] = " ".join([f"{type(e).__name__}: {e}", *getattr(e, "__notes__", ())])
        with self._lock:
            self._planned.remove(row)
            self.add(row)

    def add(self, row: Row) -> None:
        with self._lock:
            self.rows.append(row)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps({**self._head, "rows": self.rows}, indent=1) + "\n")
            os.replace(partial, self.path)
            print("  " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)

    def close(self) -> None:
        """Add the planned rows that are missing, and end this process with exit code 0."""
        with self._lock:
            for row in self._planned:
                if begun := self._begun.get(id(row)):
                    doing = "measured" if "compile_seconds" in row else "compiled"
                    self.add({**row, "failed": f"not {doing} in {time.monotonic() - begun:.0f} s"})
                else:
                    self.add({**row, "skipped": "no time left"})
            self.add({"took": time.monotonic() - self._started})
            sys.stdout.flush()
            os._exit(0)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(str(value).split())[:400]


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the JSON record")
    parser.add_argument("--seconds", type=float, default=120.0)
    return parser


def record_for(args: argparse.Namespace, **more: Any) -> Record:
    """Return a record for JAX's first device; exit if that is a CPU, which JAX uses without an error if CUDA fails."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu" and not TINY:
        sys.exit("JAX has no GPU here: see its warnings above (TINY=1 tries these scripts on a CPU)")
    return Record(args.out, device.device_kind, args.seconds, platform=device.platform, **more)


def environment() -> dict[str, Any]:
    """Return the versions, the GPU as its driver names it, and the flags that decide what XLA does."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
        "nvidia_smi": _output("nvidia-smi", query, "--format=csv,noheader"),
        "commit": _output("git", "rev-parse", "HEAD"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "windows": WINDOWS,
        "window_seconds": WINDOW,
    }


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def windows(call: Callable[[], Any], wait: Callable[[Any], Any]) -> dict[str, float]:
    """Time a function that starts work on the device.

    Args:
      call: starts the work.
      wait: waits for what `call` returned.

    Returns:
      Seconds per call: the median of the windows, the least and the most; and 'host_seconds', until `call` returns.
    """
    for _ in range(3):
        wait(call())

    def seconds(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait(last)
        return time.perf_counter() - started

    calls = 1
    while (took := seconds(calls)) < WINDOW / 4 and calls < 4096:
        calls *= 2
    calls = max(1, round(calls * WINDOW / took))
    found = [seconds(calls) / calls for _ in range(WINDOWS)]
    started = time.perf_counter()
    for _ in range(8):  # few enough for every queue
        last = call()
    host = (time.perf_counter() - started) / 8
    wait(last)
    return {"seconds": statistics.median(found), "least": min(found), "most": max(found), "host_seconds": host}


def throughput(network: str, px: int, images: int, found: dict[str, float]) -> dict[str, float]:
    """Return images/s of a step, and the bytes/s that it would move if batch norm were fused with nothing.

    Per convolution and image, a bfloat16 step then moves 11 Y + 3 X values. Forward: the convolution reads its input X
    and writes its output Y, the statistics read Y, the activation reads and writes Y. Backward: batch norm reads Y
    and its gradient twice and writes one gradient, both gradients of the convolution read that, one reads X, the other
    writes its gradient (not for the first layer).
    """
    convolutions = [row for row in adapter.layers(network, px)[0] if row.kind not in ("pool", "dense")]
    values = sum(11 * row.written + (2 if row.kind == "conv" else 3) * row.read for row in convolutions)
    rate = images / found["seconds"]
    return {"images_per_second": rate, **found, "unfused_terabytes_per_second": 2 * values * rate / 1e12}
