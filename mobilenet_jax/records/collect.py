"""Read many run directories: the finished runs, and what is wrong with the others."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks.arch import ALIASES
from mobilenet_jax.records import directory as run_directory
from mobilenet_jax.records.directory import CONFIG, ENV, METRICS, SUMMARY, DamagedFile, MissingFile
from mobilenet_jax.records.identity import NOT_CONFIGURATION, ONLY_RMSPROP, ONLY_V2, flatten, renamed
from mobilenet_jax.records.summary import Summary, metrics_match
from mobilenet_jax.render.tables import Table, plain

T = TypeVar("T")
# A row of metrics: numbers in the range of a measurement, or null for what is not finite.
_LIMITS = Field(gt=-(10**100), lt=10**100)
_ROW = TypeAdapter(dict[str, Annotated[int, _LIMITS] | Annotated[float, _LIMITS] | None], config={"strict": True})
_MARKS = {CONFIG, SUMMARY, METRICS}  # any of these files makes a directory a run's
_NOT_RUNS = (run_directory.CHECKPOINTS, "wandb")  # folders inside a run directory that hold many files and no run
# Config keys that the summary holds too, for records whose config is lost.
_IN_SUMMARY = {
    **{f"model.{key}": key for key in ("version", "variant", "alpha", "rho", "expansion")},
    **{"data.name": "dataset", "train.epochs": "epochs"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run as its directory records it."""

    directory: pathlib.Path
    summary: Summary
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # dotted keys; empty if the file is lost
    env: dict[str, Any] = dataclasses.field(default_factory=dict)  # empty if the file is lost
    epochs: tuple[dict[str, Any], ...] = ()  # rows of metrics.jsonl, up to the first damaged one

    @property
    def accuracy(self) -> float:
        """Test top-1 of the last epoch, a fraction."""
        assert self.summary.test_accuracy is not None  # of a finished run
        return self.summary.test_accuracy

    @property
    def device(self) -> str:
        """The device that trained the run, and how many runs it trained at the same time."""
        fused = self.summary.fused
        return self.summary.device + (f", {fused} runs at once" if fused != 1 else "")

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The configuration: dotted key -> value, without the seed and without keys that change no result."""
        # Without a config the recipe is unknown; these two are the best that is left to tell recipes apart.
        unknown = {f"summary.{key}": getattr(self.summary, key) for key in ("config_name", "steps")}
        known = {k: v for k, v in self.config.items() if not k.startswith("dataset.")}  # which `summary.dataset` names
        found = {key: value for key, value in (known or unknown).items() if key not in NOT_CONFIGURATION}
        found |= {key: getattr(self.summary, name) for key, name in _IN_SUMMARY.items()}
        if found.get("optim.name") == "sgd":
            found = {key: value for key, value in found.items() if key not in ONLY_RMSPROP}
        if self.summary.version == "v1":
            found = {key: value for key, value in found.items() if key not in ONLY_V2} | {"model.expansion": None}
        return {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in sorted(found.items())}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a run directory, and what to do about it."""

    directory: pathlib.Path
    what: str


def read(directories: Iterable[pathlib.Path]) -> tuple[list[Run], list[Problem]]:
    """Return the finished runs and the problems of all run directories at any depth, following links, by path.

    Of two directories with the same run, the first counts.

    Raises:
      InputError: one of `directories` is no directory.
    """
    problems: list[Problem] = []
    counted: dict[Any, Run] = {}
    for directory in sorted(_walk(directories, problems)):
        faults: list[str] = []
        if run := _read_run(directory, faults.append):
            first = counted.setdefault((hashable(run.identity), run.summary.seed), run)
            if first is not run:
                accuracies = f"{first.accuracy:.2%} there, {run.accuracy:.2%} here"
                faults.append(f"the same run as {first.directory}, which counts ({accuracies}): left out")
        problems += [Problem(directory, what) for what in faults]
    return list(counted.values()), sorted(problems, key=lambda problem: problem.directory)


def finished(directories: Iterable[pathlib.Path]) -> frozenset[tuple[pathlib.Path, int]]:
    """Return which runs have ended, and when (nanoseconds), without reading them; raises InputError as `read` does."""
    found = set()
    for directory in _walk(directories, []):
        with contextlib.suppress(OSError):
            found.add((directory, (directory / SUMMARY).stat().st_mtime_ns))
    return frozenset(found)


def problems_table(problems: Iterable[Problem]) -> Table:
    """Return a table with one row per problem."""
    rows = tuple((str(problem.directory), problem.what) for problem in problems)
    return Table("problems", "Run directories with a problem", ("directory", "problem"), rows)


def hashable(identity: Mapping[str, Any], without: Collection[str] = ()) -> tuple[tuple[str, Any], ...]:
    """Return an identity as the key of a dictionary, less some of its keys."""
    return tuple((key, value) for key, value in identity.items() if key not in without)


def _walk(directories: Iterable[pathlib.Path], problems: list[Problem]) -> Iterator[pathlib.Path]:
    """Yield each run directory once, however many links and arguments lead there."""

    def unreadable(error: OSError) -> None:
        problems.append(Problem(pathlib.Path(error.filename), f"cannot be read ({error.strerror})"))

    seen = set()
    for top in directories:
        if not top.is_dir():
            raise InputError(f"{top} is not a directory")
        for here, inside, files in os.walk(top, onerror=unreadable, followlinks=True):
            real = os.path.realpath(here)
            if real in seen:
                inside.clear()
            elif not _MARKS.isdisjoint([*inside, *files]):
                inside[:] = [name for name in inside if name not in _NOT_RUNS]
                yield pathlib.Path(here)
            seen.add(real)


def _attempt(read: Callable[[], T], default: T) -> tuple[T, DamagedFile | None]:
    """Return what `read` returns and None, or the default and the fault of the file."""
    try:
        return read(), None
    except DamagedFile as e:
        return default, e


def _read_run(directory: pathlib.Path, report: Callable[[str], None]) -> Run | None:
    """Return the run in a directory, None if it cannot be used; report each fault in a sentence."""
    config, no_config = _attempt(lambda: renamed(flatten(_load(directory / CONFIG))), {})
    env, no_env = _attempt(lambda: _load(directory / ENV), {})
    summary, no_summary = _attempt(lambda: run_directory.load_summary(directory), None)
    metrics, no_metrics = _attempt(lambda: run_directory.load_metrics(directory), b"")  # last, as a run may be writing
    rows, damage = _rows(metrics)
    reached = rows[-1]["epoch"] if rows else 0
    if isinstance(no_summary, MissingFile):
        hope = f"{f'{no_config}; ' if no_config else ''}the same command resumes it"
        report(f"unfinished, or running: {_progress(reached, config.get('train.epochs'))}; {hope}")
        return None
    if summary is None:
        report(f"{no_summary}: left out; move it away, and the run's command makes it again from the last checkpoint")
        return None
    texts = {key: _plain(value) for key, value in summary if isinstance(value, str)}
    summary = summary.model_copy(update=texts | {"variant": ALIASES.get(summary.variant, texts["variant"])})
    if summary.status == "diverged":
        report(f"diverged after {_progress(reached, summary.epochs)}: left out; try a lower config.optim.lr")
        return None
    if fault := no_config or _disagreement(config, summary):
        config = {}
        report(f"{fault}: its recipe is unknown, so it is kept apart from runs that have one")
    if facts := [str(config[key]) for key in ("dataset.version", "dataset.fingerprint") if config.get(key)]:
        summary = summary.model_copy(update={"dataset": f"{summary.dataset} ({', '.join(facts)})"})
    no_curve = str(no_metrics or damage)
    if not no_curve and not metrics_match(summary, metrics):
        rows, reached, no_curve = (), 0, f"{METRICS} is damaged: it is not what was written"
    if no_curve or reached < summary.epochs:
        stops = f"counted, but its curve has {_progress(reached, summary.epochs)}"
        report(f"{no_curve or METRICS + ' ends early'}: {stops}")
    if no_env:
        report(f"{no_env}: counted, but without its environment")
    return Run(directory, summary, config, env, rows)


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        return _plain(run_directory.load(path))
    except RecursionError:
        raise DamagedFile(f"{path.name} is damaged: it is nested too deeply") from None


def _plain(value: Any) -> Any:
    """Return JSON whose texts, keys included, can be shown anywhere."""
    if isinstance(value, str):
        return plain(value).replace("\n", " ")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {plain(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _disagreement(config: dict[str, Any], summary: Summary) -> str:
    """Return how a config is not this run's; '' if it is."""
    if not config:
        return f"{CONFIG} is empty"
    for key in ("seed", "train.epochs", "model.version", "model.alpha", "model.rho"):
        there, here = config.get(key, "absent"), getattr(summary, _IN_SUMMARY.get(key, key))
        if there != here:
            return f"{CONFIG} is not this run's: {key} is {there} there, and {here} in {SUMMARY}"
    return ""


def _rows(metrics: bytes) -> tuple[tuple[dict[str, Any], ...], str]:
    """Return the rows up to the first damaged line, and the fault. The epochs of rows increase."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(metrics.split(b"\n"), 1):
        if line.strip():
            try:
                row = _ROW.validate_json(line)
            except ValueError:
                row = {}
            if (row.get("epoch") or 0) <= (rows[-1]["epoch"] if rows else 0):
                return tuple(rows), f"{METRICS} is damaged from line {number} on"
            rows.append(row)
    return tuple(rows), ""


def _progress(reached: float, epochs: Any) -> str:
    return f"{round(reached, 2):g}" + (f" of {epochs}" if isinstance(epochs, int | float) else "") + " epochs"
