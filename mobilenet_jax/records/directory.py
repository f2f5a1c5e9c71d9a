"""One run directory: its files, who may write there, and what is read back.

config.json          the resolved config, and facts of a data set that its name does not fix
env.json             command, commit, versions, JAX's settings, device and precision of each process on the run
metrics.jsonl        a row per evaluation
checkpoints/         see `training/checkpoint.py`
weights.safetensors  the final weights, see `records/weights.py`
summary.json         the result, written last: a run is finished when it exists
"""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mobilenet_jax import files
from mobilenet_jax.errors import Busy, InputError
from mobilenet_jax.records import identity
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.records.summary import Summary

CONFIG, ENV, METRICS, SUMMARY = "config.json", "env.json", "metrics.jsonl", "summary.json"
CHECKPOINTS = "checkpoints"
_PACKAGES = ("mobilenet_jax", "jax", "jaxlib", "flax", "optax", "safetensors", "numpy", "tensorflow-datasets", "libtpu")
_PACKAGES += ("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


class DamagedFile(Exception):
    """A file of a run that cannot be used. The message names the file and can start a sentence."""


class MissingFile(DamagedFile):
    """A file of a run that does not exist."""


class UnreadableFile(DamagedFile):
    """A file of a run that the system does not let us read now."""


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{path.name} is missing") from None
    except OSError as e:
        raise UnreadableFile(f"{path.name} cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise DamagedFile(f"{path.name} is damaged: {e}") from None


def load(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises MissingFile or DamagedFile."""
    with _reading(path):
        return files.read_json_object(path)


def load_metrics(directory: pathlib.Path) -> bytes:
    """Return what `metrics.jsonl` holds; raises MissingFile or DamagedFile."""
    with _reading(directory / METRICS):
        return files.read_regular_file(directory / METRICS)


def load_summary(directory: pathlib.Path, sealed: bool = False) -> Summary:
    """Return the result of the run in `directory`; raises MissingFile or DamagedFile. See `summary.unseal`."""
    stored = load(directory / SUMMARY)
    try:
        return summaries.unseal(stored, sealed)
    except (ValueError, RecursionError) as e:
        raise DamagedFile(f"{SUMMARY} is damaged, or another version wrote it: {e}") from None


def read_summary(directory: pathlib.Path) -> Summary | None:
    """Return the result of the run in `directory`, None if it is not finished.

    Raises:
      InputError: a file is damaged, or `metrics.jsonl` is not what the summary was written over.
    """
    path, again = directory / SUMMARY, "again from the last checkpoint"
    try:
        summary = load_summary(directory, sealed=True)
    except MissingFile:
        return None
    except DamagedFile as e:
        raise _refusal(path, e, f"move it away, and the same command makes it {again}") from None
    try:
        metrics = load_metrics(directory)
    except MissingFile:
        metrics = b""
    except DamagedFile as e:
        raise _refusal(directory / METRICS, e, "") from None
    if not summaries.metrics_match(summary, metrics):
        remedy = f"move {path} away, and the same command makes both {again}"
        raise InputError(f"{directory / METRICS} is missing or damaged; {remedy}")
    return summary


def _refusal(path: pathlib.Path, error: DamagedFile, remedy: str) -> InputError:
    hint = "once it can, the same command resumes" if isinstance(error, UnreadableFile) else remedy
    return InputError(f"{path}: {error}; {hint}")


def read_config(directory: pathlib.Path, named: bool = False) -> dict[str, Any] | None:
    """Return the config of a run, None without one; raises InputError if it is damaged, unless the run is `named`."""
    try:
        return load(directory / CONFIG)
    except DamagedFile as e:
        if named or isinstance(e, MissingFile):
            return None
        raise _refusal(directory / CONFIG, e, "move it away") from None


def check(directory: pathlib.Path, named: bool = False) -> None:
    """Raise InputError unless `directory` may hold a run: it is new, empty, or holds one already.

    If it is `named`, its name ends with the run's digest: any file of a run identifies it, otherwise only the config.
    """
    try:
        others = [p.name for p in directory.iterdir() if not p.name.startswith(".")] if directory.exists() else []
    except NotADirectoryError:
        raise InputError(f"{directory}: is a file, and a run needs a directory") from None
    except OSError as e:
        raise InputError(f"{directory} cannot be read ({e.strerror})") from None
    known = {CONFIG, ENV, METRICS, SUMMARY, CHECKPOINTS} if named else {CONFIG}
    if others and not known.intersection(others):
        raise InputError(f"{directory} is not empty and holds no run (no {CONFIG}); name another directory")


class RunDirectory:
    """The writer of one run directory. Only the process that holds its lock may write."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = path / ".lock"
        self._held: int | None = None  # inode of the lock file while it is held

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and hold its lock, which the kernel releases when the process ends.

        Raises:
          Busy: another process holds the lock.
          InputError: the directory cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.lock(self._lock, timeout=0))
            except TimeoutError:
                raise Busy(f"{self.path}: another process is on this run; wait for it or stop it first") from None
            except OSError as e:
                reason = f"the run directory cannot be written ({e.strerror})"
                raise InputError(f"{self.path}: {reason}; once it can, the same command goes on") from None
            self._held = _inode(self._lock) or -1  # -1: removed already, so no longer held
            held.callback(setattr, self, "_held", None)
            yield

    def check_held(self) -> None:
        """Raise InputError if the lock file was removed: another process may then work on the run."""
        with writing(self._lock):
            held = self._held in (None, _inode(self._lock))
        if not held:
            remedy = "this process stops, and the same command starts or resumes the run"
            raise InputError(f"{self.path}: its lock was removed while this process worked on the run; {remedy}")

    def begin(self, config: dict[str, Any], facts: Mapping[str, str], same: Callable[[dict[str, Any]], bool]) -> None:
        """Write `config.json` unless it holds the `same` run's, and add this process to `env.json`.

        Args:
          facts: of the process's device, added to those of its machine and its software.
        """
        if not same(_load_or_empty(self.path / CONFIG)):
            self._write_json(CONFIG, config)
        before = _load_or_empty(self.path / ENV)
        older = before.pop("earlier", [])
        earlier = older if isinstance(older, list) else []
        earlier += [before] if before else []
        self._write_json(ENV, {**_environment(), **facts, "earlier": earlier})

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to `metrics.jsonl`; numbers that are not finite become null."""
        self.check_held()
        path = self.path / METRICS
        with writing(path), path.open("a") as file:
            file.write(_line(row))

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Replace `metrics.jsonl` by these rows; return its text."""
        text = "".join(map(_line, rows))
        self._write(METRICS, text)
        return text

    def finish(self, summary: Summary, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write these rows, then `summary.json`, whole or not at all: from then on the run is finished."""
        metrics = self.rewrite(rows)
        self._write_json(SUMMARY, summaries.seal(summary, metrics.encode()))

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self._write(name, json.dumps(value, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        self.check_held()
        with writing(self.path / name):
            files.write_atomically(self.path / name, text)


def _load_or_empty(path: pathlib.Path) -> dict[str, Any]:
    try:
        return load(path)
    except DamagedFile:
        return {}


def _inode(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Raise InputError about `path` if the block cannot write it."""
    try:
        yield
    except OSError as e:
        raise InputError(f"{path} cannot be written ({e.strerror}); once it can, the same command resumes") from None


def _line(row: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"


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
        "settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith(identity.SETTINGS)},
    }


def _git(*arguments: str) -> str | None:
    """Return git's answer about the code that runs, not about the working directory."""
    root = pathlib.Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
