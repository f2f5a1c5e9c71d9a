"""What a run leaves behind and shows: the run directory and its lock, and progress."""

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import filelock
from tqdm import tqdm

from mobilenet_jax import console
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import summary as summaries

_PACKAGES = ("mobilenet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
_LINE_SECONDS = 30.0  # between plain progress lines inside an epoch
_TELL_SECONDS = 1.0


def read_json(path: pathlib.Path, remedy: str = "move it away") -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is no such file. The `remedy` is what to do where it is damaged.

    Raises:
      InputError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return value


def read_summary(directory: pathlib.Path) -> dict[str, Any] | None:
    """The summary of the run in `directory`; None where there is none.

    Raises:
      InputError: it is damaged, or of another version; or `metrics.jsonl` is not what it was written over.
    """
    path = directory / "summary.json"
    remedy = "move it away, and the same command makes it anew from the last checkpoint"
    found = read_json(path, remedy)
    if found is not None and not (found.get("schema") == summaries.SCHEMA and _sealed(found)):
        raise InputError(f"{path} is damaged, or another version wrote it; {remedy}")
    if found is not None and not summaries.of(found, _metrics(directory)):
        raise InputError(
            f"{directory / 'metrics.jsonl'} is missing or damaged: it is not what the run wrote; move {path} away, and "
            "the same command makes both anew from the last checkpoint"
        )
    return found


def _sealed(summary: dict[str, Any]) -> bool:
    try:
        return "sha256" in summary and summaries.intact(summary)
    except RecursionError:  # nested too deeply for what wrote it
        return False


def _metrics(directory: pathlib.Path) -> bytes:
    path = directory / "metrics.jsonl"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror})") from None


def check_directory(directory: pathlib.Path, named: bool = False) -> None:
    """Raises InputError where `directory` is a file, or cannot be read, or holds something that is no run.

    A run is known by its config, or, where the directory is `named` after it, by any other of its files.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: a file stands where the run directory should be")
        others = [p.name for p in directory.iterdir() if not p.name.startswith(".")] if directory.exists() else []
    except OSError as e:
        raise InputError(f"{directory} cannot be read ({e.strerror})") from None
    known = {"config.json"} | ({"env.json", "metrics.jsonl", "summary.json", "checkpoints"} if named else set())
    if others and not known.intersection(others):
        raise InputError(f"{directory} is not empty and holds no run (no config.json); name another directory")


class Busy(InputError):
    """Another process is on the run."""


class RunDirectory:
    """The record of one run. Only its holder writes there: the lock is the kernel's, and goes with the process."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        self._lock = path / ".lock"
        self._held: int | None = None  # the inode of the lock

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the directory and holds it.

        Raises:
          Busy: another process holds it.
          InputError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self._lock)
            lock.acquire(timeout=0)
            self._held = _inode(self._lock) or -1  # it was removed at once
        except filelock.Timeout:
            raise Busy(f"{self.path}: another process is on this run; wait for it or stop it first") from None
        except OSError as e:
            reason = f"the run directory cannot be written ({e.strerror})"
            raise InputError(f"{self.path}: {reason}; once it can, the same command goes on") from None
        try:
            yield
        finally:
            self._held = None
            lock.release()

    def check_held(self) -> None:
        """Raises InputError where the lock was removed, with the directory maybe: another process may be on the run."""
        with _writing(self._lock):
            held = self._held is None or _inode(self._lock) == self._held
        if not held:
            raise InputError(
                f"{self.path}: its lock was removed while this process was on the run, which it leaves to others; the "
                "same command starts or resumes it"
            )

    def begin(self, config: dict[str, Any], device: str, same: Callable[[dict[str, Any]], bool] = bool) -> None:
        """Writes `config.json`, unless the `same` run's is there, and `env.json` for every process that works on it."""
        stored: dict[str, Any] | None = None
        with contextlib.suppress(InputError):  # damaged
            stored = read_json(self.path / "config.json")
        if stored is None or not same(stored):
            self._write("config.json", config)
        before: dict[str, Any] | None = {"damaged": True}
        with contextlib.suppress(InputError):  # no result hangs on it
            before = read_json(self.path / "env.json")
        older = before.pop("earlier", []) if before else []
        earlier = [*(older if isinstance(older, list) else []), before] if before else []
        self._write("env.json", {**_environment(), "device": device, "earlier": earlier})

    def append(self, row: dict[str, Any]) -> None:
        """Adds one line to `metrics.jsonl`."""
        self.check_held()
        with _writing(self._metrics), self._metrics.open("a") as f:
            f.write(_line(row))

    def rewrite(self, rows: Iterable[dict[str, Any]]) -> str:
        """Makes `metrics.jsonl` hold these rows alone, whatever has become of it; returns its text."""
        text = "".join(map(_line, rows))
        self._replace("metrics.jsonl", text)
        return text

    def finish(self, summary: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
        """Writes `summary.json` over these rows, whole or not at all: it being there means finished."""
        metrics = self.rewrite(rows)
        self._write("summary.json", summaries.sealed(_finite(summary), metrics.encode()))

    def _write(self, name, value):
        self._replace(name, json.dumps(value, indent=1) + "\n")

    def _replace(self, name, text):
        self.check_held()
        temporary = self.path / f".{name}.tmp"
        with _writing(self.path / name):
            with temporary.open("w") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, self.path / name)


def _inode(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Says which file could not be written, and why."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{path} cannot be written ({e.strerror}); once it can, the same command resumes") from None


def _line(row):
    return json.dumps(_finite(row)) + "\n"


def _finite(row):
    """JSON has no NaN: what is not finite becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _environment() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "command": shlex.join(sys.argv),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": packages,
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }


def _git(*arguments: str) -> str | None:
    """Git's answer about the code that runs, not about the directory it was started in."""
    root = pathlib.Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def clock(seconds: float) -> str:
    """Seconds as [hours:]minutes:seconds."""
    return tqdm.format_interval(seconds)


class Display:
    """Progress of one run: a bar on a terminal, plain lines when piped; and for a program, through `tell`."""

    def __init__(self, tell: Callable[[dict[str, Any]], None] | None = None):
        """`tell` gets each row of metrics, and about once a second the step (`step`, `steps`) and the accuracy."""
        self._tell = tell
        self._told = 0.0
        self._bar: Any = None
        self._last_line = time.monotonic()

    def begin(self, total_steps: int, step: int, steps_per_epoch: int, batch_size: int) -> None:
        """The run goes on from `step`."""
        self._total, self._step, self._per_epoch, self._batch = total_steps, step, steps_per_epoch, batch_size
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        if sys.stdout.isatty() and self._tell is None:
            self._bar = tqdm(total=total_steps, initial=step, file=sys.stdout, bar_format=form)

    def advance(self, loss: float, accuracy: float, images_per_second: float) -> None:
        """One step is done; the figures are of the epoch so far."""
        self._step += 1
        if self._tell is not None:
            if time.monotonic() - self._told > _TELL_SECONDS:
                self._told = time.monotonic()
                self._tell({"step": self._step, "steps": self._total, "train_accuracy": accuracy})
            return
        figures = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s"
        epochs = self._total // self._per_epoch
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {(self._step - 1) // self._per_epoch + 1}/{epochs}", refresh=False)
            self._bar.set_postfix_str(figures, refresh=False)
            self._on_terminal(self._bar.update)
        elif time.monotonic() - self._last_line > _LINE_SECONDS:
            left = (self._total - self._step) * self._batch / images_per_second
            self.line(f"  step {self._step:,}/{self._total:,}  {figures}  ETA {clock(left)}")

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._on_terminal(lambda: self._bar.write(text, file=sys.stdout))
        else:
            console.say(text)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics is recorded; what people read of it comes as a line."""
        if self._tell is not None:
            self._tell(row)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._on_terminal(self._bar.close)

    def _on_terminal(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError:  # it was closed
            console.mute()
