"""Run directories -> runs; what is wrong with the others.

A run directory is read as `writer.py` leaves it, whoever wrote it. What cannot be used is listed, never dropped.
"""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from mobilenet_jax.errors import InputError
from mobilenet_jax.records.summary import SCHEMA, intact, of
from mobilenet_jax.render.tables import Table, plain

_MARKS = {"config.json", "summary.json", "metrics.jsonl"}  # any of them makes a directory a run's
_NOT_RUNS = ("checkpoints", "wandb")  # what a run directory holds besides: many files, and no run

# No part of a configuration: the seed, where the data lie, who watches, how often a run is evaluated or saved.
_NOT_RECIPE = (
    *("seed", "point", "data.dir", "data.archive", "wandb.mode", "wandb.project"),
    *("train.eval_epochs", "train.checkpoint_epochs"),
)
# The summary says these, also where the config is lost.
_FROM_SUMMARY = {
    **{f"model.{key}": key for key in ("version", "variant", "alpha", "rho", "expansion")},
    **{"data.name": "dataset", "train.epochs": "epochs"},
}
_ONLY_V2 = ("model.expansion", "model.bottleneck", "model.shortcut")


def _is_number(value: Any, low: float = 0, high: float = 1e18) -> TypeGuard[float]:
    """Whether it is a number in these bounds; NaN and True are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


# What a finished run's summary must hold: what is allowed, in words, and the test.
_TEXT = ("text", lambda v: isinstance(v, str))
_COUNT = ("a whole number from 1", lambda v: isinstance(v, int) and _is_number(v, 1))
_POSITIVE = ("a number above 0", lambda v: _is_number(v, 1e-9))
_NOT_NEGATIVE = ("a number from 0", _is_number)
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "status": ("'finished' or 'diverged'", lambda v: v == "finished"),  # diverged ones are not looked at
    "version": ("'v1' or 'v2'", lambda v: v in ("v1", "v2")),
    **dict.fromkeys(("variant", "dataset", "device"), _TEXT),
    **dict.fromkeys(("alpha", "rho"), _POSITIVE),
    "expansion": ("a number above 0, or null", lambda v: v is None or _is_number(v, 1e-9)),
    **dict.fromkeys(("epochs", "resolution", "params", "mult_adds"), _COUNT),
    "seed": ("a whole number from 0", lambda v: isinstance(v, int) and _is_number(v)),
    "test_accuracy": ("a number from 0 to 1", lambda v: _is_number(v, 0, 1)),
    **dict.fromkeys(("train_images_per_second", "wall_seconds"), _NOT_NEGATIVE),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run. Keys of `config` are dotted ('model.alpha'); it and `env` are empty where the file is lost."""

    directory: pathlib.Path
    summary: dict[str, Any]  # of the known schema; every key in `_ALLOWED` is there and good
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    env: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: tuple[dict[str, Any], ...] = ()  # the lines of metrics.jsonl, up to the first damaged one

    @property
    def seed(self) -> int:
        return self.summary["seed"]

    @property
    def accuracy(self) -> float:
        """Test top-1 of the last epoch, a fraction."""
        return self.summary["test_accuracy"]

    @property
    def mult_adds(self) -> int:
        return self.summary["mult_adds"]

    @property
    def params(self) -> int:
        """Trainable ones."""
        return self.summary["params"]

    @property
    def device(self) -> str:
        """What trained it, and together with how many others."""
        fused = self.summary.get("fused", 1)
        return self.summary["device"] + (f", {fused} runs at once" if fused != 1 else "")

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the configuration: dotted key -> value, without the seed and what changes no result."""
        # Without a config the recipe is unknown, and these two are the best that is left to tell recipes apart.
        unknown = {f"summary.{key}": self.summary.get(key) for key in ("config_name", "steps")}
        found = {key: value for key, value in (self.config or unknown).items() if key not in _NOT_RECIPE}
        found |= {key: self.summary[name] for key, name in _FROM_SUMMARY.items()}
        if found["model.version"] == "v1":
            found = {key: value for key, value in found.items() if key not in _ONLY_V2} | {"model.expansion": None}
        return {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in sorted(found.items())}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a run directory, and what to do where there is something to do."""

    directory: pathlib.Path
    what: str


def read(directories: Iterable[pathlib.Path]) -> tuple[list[Run], list[Problem]]:
    """Reads every run directory at any depth, through links too; where two hold the same run, the first by path counts.

    Returns:
      The finished runs, and what is wrong with any directory, both by path.

    Raises:
      InputError: one of `directories` is no directory.
    """
    problems: list[Problem] = []
    counted: dict[Any, Run] = {}
    for directory, names in sorted(_run_directories(directories, problems)):
        faults: list[str] = []
        try:
            run = _read_run(directory, names, faults.append)
        except RecursionError:
            run = None
            faults.append("one of its files is nested too deeply: left out")
        if run:
            first = counted.setdefault((hashable(run.identity), run.seed), run)
            if first is not run:
                accuracies = f"{first.accuracy:.2%} there, {run.accuracy:.2%} here"
                faults.append(f"the same run as {first.directory}, which counts ({accuracies}): left out")
        problems += [Problem(directory, what) for what in faults]
    return list(counted.values()), sorted(problems, key=lambda problem: problem.directory)


def problems_table(problems: Iterable[Problem]) -> Table:
    """One row a problem."""
    rows = tuple((str(problem.directory), problem.what) for problem in problems)
    return Table("problems", "Run directories with a problem", ("directory", "problem"), rows)


def compare(a: Run, b: Run) -> Table:
    """The accuracies of two runs, in percent, and what differs between them: cost, config, environment."""
    rows, notes = [], []
    for split in ("test", "val", "train"):
        x, y = (run.summary.get(f"{split}_accuracy") for run in (a, b))
        if _is_number(x) and _is_number(y):
            rows.append((f"{split} top-1, %", f"{100 * x:.2f}", f"{100 * y:.2f}", f"{100 * (y - x):+.2f}"))
    rows += _differences("", *({k: run.summary[k] for k in ("mult_adds", "params", "device")} for run in (a, b)))
    for part, of_a, of_b in (("config", a.config, b.config), ("env", a.env, b.env)):
        if of_a and of_b:
            rows += _differences(f"{part}.", of_a, of_b)
        else:
            notes.append(f"Without {part}.json of both, that part is not compared.")
    names = [run.directory.name for run in (a, b)]
    if names[0] == names[1]:
        names = [str(run.directory) for run in (a, b)]
    if not any(name.startswith(("config.", "env.")) for name, *_ in rows):
        notes.append("What is compared is the same in both.")
    notes.append("The difference of two runs includes what the seed alone changes.")
    return Table("compare", " and ".join(names), ("", *names, "difference"), tuple(rows), " ".join(notes))


class _Damage(Exception):
    """What is wrong with a file, as the start of a sentence."""


def _run_directories(
    directories: Iterable[pathlib.Path], problems: list[Problem]
) -> Iterator[tuple[pathlib.Path, set[str]]]:
    """Run directories and what they hold, each once, however many links and arguments lead there."""

    def unreadable(error: OSError) -> None:
        problems.append(Problem(pathlib.Path(error.filename), f"cannot be read ({error.strerror})"))

    seen = set()
    for top in directories:
        if not top.is_dir():
            raise InputError(f"{top} is not a directory")
        for here, inside, files in os.walk(top, onerror=unreadable, followlinks=True):
            names, real = {*inside, *files}, os.path.realpath(here)
            if real in seen:
                inside.clear()
            elif names & _MARKS:
                inside[:] = [name for name in inside if name not in _NOT_RUNS]
                yield pathlib.Path(here), names
            seen.add(real)


def _read_run(directory: pathlib.Path, names: set[str], tell: Callable[[str], None]) -> Run | None:
    """The run in a directory that holds `names`; None where it cannot be used. Tells each fault in a sentence."""
    config, no_config = _read_config(directory, names)
    metrics, unread = _read_metrics(directory, names)
    rows, damage = _rows(metrics)
    no_curve = unread or damage
    reached = rows[-1]["epoch"] if rows else 0
    if "summary.json" not in names:
        hope = f"{no_config + '; ' if no_config else ''}the same command resumes it"
        tell(f"unfinished, or running: {_progress(reached, config.get('train.epochs'))}; {hope}")
        return None
    try:
        summary = _load(directory / "summary.json")
        if (schema := summary.get("schema", "absent")) is True or schema != SCHEMA:
            known = f"known here is {SCHEMA}"
            tell(f"summary.json: its schema is {str(schema)[:40]}, {known}: left out; read it with what wrote it")
            return None
        if not intact(summary):
            raise _Damage("summary.json is damaged: it is not what was written")
        if summary.get("status") == "diverged":
            tell(f"diverged after {_progress(reached, summary.get('epochs'))}: left out; try a lower config.optim.lr")
            return None
        _check(summary)
    except _Damage as e:
        tell(f"{e}: left out; move it away, and the run's command makes it anew from the last checkpoint")
        return None
    if config and (other := _disagreement(config, summary)):
        config, no_config = {}, other
    if no_config:
        tell(f"{no_config}: its recipe is unknown, so it is kept apart from runs that have one")
    if not no_curve and not of(summary, metrics):
        rows, reached, no_curve = (), 0, "metrics.jsonl is damaged: it is not what was written"
    if no_curve or reached < summary["epochs"]:
        stops = f"counted, but its curve has {_progress(reached, summary['epochs'])}"
        tell(f"{no_curve or 'metrics.jsonl ends early'}: {stops}")
    env: dict[str, Any] = {}
    try:
        if "env.json" not in names:
            raise _Damage("env.json is missing")
        env = _load(directory / "env.json")
    except _Damage as e:
        tell(f"{e}: counted, but without its environment")
    return Run(directory, summary, config, env, rows)


def _load(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in `path`; raises _Damage."""
    try:
        value = _plain(json.loads(_bytes(path).decode(), parse_int=_int))
    except OSError as e:
        raise _Damage(f"{path.name} cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        raise _Damage(f"{path.name} is damaged: it is no JSON") from None
    if not isinstance(value, dict):
        raise _Damage(f"{path.name} is damaged: it holds no JSON object")
    return value


def _bytes(path: pathlib.Path) -> bytes:
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the reader of a pipe waits for ever
        raise OSError(errno.EINVAL, "no plain file")
    return path.read_bytes()


def _int(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError("beyond what a float holds")
    return int(digits)


def _plain(value: Any) -> Any:
    """JSON whose texts, those of its keys too, can be shown anywhere."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {plain(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _check(summary: dict[str, Any]) -> None:
    """Raises _Damage for the first key that is not as it must be."""
    for key, (allowed, good) in _ALLOWED.items():
        if not good(summary.get(key)) or key not in summary:
            value = repr(summary[key])[:40] if key in summary else "absent"
            raise _Damage(f"summary.json is damaged: {key} is {value}, allowed is {allowed}")
    if summary["version"] == "v2" and summary["expansion"] is None:
        raise _Damage("summary.json is damaged: expansion is None, allowed is a number above 0 for v2")


def _read_config(directory: pathlib.Path, names: set[str]) -> tuple[dict[str, Any], str]:
    """The flat config with `point` folded in, or what is wrong with it."""
    if "config.json" not in names:
        return {}, "config.json is missing"
    try:
        config = _flat(_load(directory / "config.json"))
    except _Damage as e:
        return {}, str(e)
    for part in filter(None, str(config.get("point", "")).split(",")):
        name, equals, text = part.partition("=")
        if not equals:
            return {}, f"config.json is damaged: its point is {config['point']!r}"
        config[f"model.{name.strip()}"] = _value(text.strip())
    return config, "" if config else "config.json is damaged: it is empty"


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _disagreement(config: dict[str, Any], summary: dict[str, Any]) -> str:
    """In what a config is not this run's; '' where it is."""
    for key in ("seed", "train.epochs", "model.version", "model.alpha", "model.rho"):
        there, here = config.get(key, "absent"), summary[_FROM_SUMMARY.get(key, key)]
        if there != here:
            return f"config.json is not this run's: {key} is {there} there, and {here} in summary.json"
    return ""


def _read_metrics(directory: pathlib.Path, names: set[str]) -> tuple[bytes, str]:
    """What metrics.jsonl holds, or why it cannot be said."""
    if "metrics.jsonl" not in names:
        return b"", "metrics.jsonl is missing"
    try:
        return _bytes(directory / "metrics.jsonl"), ""
    except OSError as e:
        return b"", f"metrics.jsonl cannot be read ({e.strerror})"


def _rows(metrics: bytes) -> tuple[tuple[dict[str, Any], ...], str]:
    """The rows up to the first damaged line, and what is wrong."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(metrics.split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(_row(line, rows[-1]["epoch"] if rows else 0))
            except (ValueError, RecursionError):
                return tuple(rows), f"metrics.jsonl is damaged from line {number} on"
    return tuple(rows), ""


def _row(line: bytes, after: float) -> dict[str, Any]:
    """A line of metrics past epoch `after`, all numbers, or null for what is not finite; else raises ValueError."""
    row = json.loads(line.decode(), parse_int=_int)
    if not isinstance(row, dict) or not _is_number(row.get("epoch")) or row["epoch"] <= after:
        raise ValueError("no epoch, or an earlier one")
    if not {*map(type, row.values())} <= {int, float, type(None)}:
        raise ValueError("not a number")
    if any(isinstance(value, int | float) and not abs(value) < 1e100 for value in row.values()):
        raise ValueError("beyond what is measured")
    return row


def _progress(reached: float, epochs: Any) -> str:
    return f"{round(reached, 2):g}" + (f" of {epochs}" if _is_number(epochs) else "") + " epochs"


def hashable(identity: Mapping[str, Any], without: str = "") -> tuple[tuple[str, Any], ...]:
    """An identity as a key of a dictionary, less one of its keys."""
    return tuple((key, value) for key, value in identity.items() if key != without)


def _differences(prefix: str, a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row for each key in which they differ; `earlier`, of a resumed run's env.json, is about other processes."""
    a, b = (
        {key: _shown(value) for key, value in _flat(each).items() if key != "earlier" and not key.startswith("wandb.")}
        for each in (a, b)
    )
    cells = [(key, a.get(key, "absent"), b.get(key, "absent")) for key in sorted({*a, *b})]
    return [(f"{prefix}{key}", x, y, "") for key, x, y in cells if x != y]


def _shown(value: Any) -> str:
    """A value as a config file has it."""
    return value if isinstance(value, str) and value else repr(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
