"""A sweep, in the words of W&B's sweep files, as points: each resolved and costed, none of them run."""

import dataclasses
import difflib
import functools
import itertools
import json
import math
import pathlib
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

import yaml
from ml_collections import ConfigDict

from mobilenet_jax import config, cost
from mobilenet_jax.errors import InputError

METHODS = ("grid", "random", "bayes")
METRICS = {
    f"{split}_{figure}": goal
    for split in ("test", "val", "train")
    for figure, goal in (("accuracy", "maximize"), ("loss", "minimize"))
}
# The keys of a file; the last four are for W&B's pages alone.
KEYS = ("program", "method", "metric", "parameters", "command", "run_cap", "name", "description", "project", "entity")
LARGEST_GRID = 10_000  # points

# Distribution -> the keys that it must have; W&B's others draw what no key here is for.
_DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
}
_OF_A_GRID = ("constant", "categorical", "int_uniform", "q_uniform")
_LITERAL = re.compile(r"--?(?P<no>no)?config(\.(?P<key>[^=]*))?(=(?P<value>.*))?", re.DOTALL)
_METRIC_EXAMPLE = "{name: val_accuracy, goal: maximize}"

# Training on two CPU cores, in seconds: a least-squares fit to the six networks of results/bench/cpu.json (32x32,
# batches of 128), within 4 % of each. What a step costs whatever its size is taken such that batches of 32 (v1, alpha
# 0.25) train at the 1,711 images/s of the README's run. An evaluated image takes 0.18 to 0.22 of a trained one there.
SECONDS_PER_MULT_ADD = 2.18e-11
SECONDS_PER_ACTIVATION = 3.15e-9
SECONDS_PER_STEP = 6e-3
EVALUATION = 0.2
SECONDS_TO_START = 10.0  # compiling included


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What one key may be: one of `values`, or, in a search, a number from `low` to `high`, both included."""

    key: str  # without the 'config.' before it
    kind: str  # 'values' (a constant is one value), 'int' or 'float'
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None  # between two numbers that may be drawn
    log: bool = False  # drawn uniformly in its logarithm

    @property
    def varies(self) -> bool:
        """Whether it is more than a constant."""
        return self.kind != "values" or len(self.values) > 1

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values, or the two ends of the range."""
        return self.values if self.kind == "values" else (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file, checked. `parameters` are sorted by key, as W&B enumerates them."""

    name: str  # of the file, without its ending
    method: str  # one of METHODS
    parameters: tuple[Parameter, ...]
    metric: str  # one of METRICS
    goal: str  # 'maximize' or 'minimize'
    run_cap: int | None  # how many points at most
    arguments: tuple[str, ...]  # of its command, as --config=FILE and --config.KEY=VALUE


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep. `spec` is what `config.resolve` returned for `assignment`, which is `{key: value}`."""

    assignment: dict[str, Any]
    spec: Any

    @property
    def digest(self) -> str:
        """Eight hex digits; equal for points that are the same run."""
        return self.spec.digest

    @property
    def run_name(self) -> str:
        """Of the run directory."""
        return self.spec.run_name

    @property
    def resolution(self) -> int:
        """Side of the network's input, in pixels."""
        return self.spec.resolution

    @functools.cached_property
    def _layers(self) -> tuple[cost.LayerCost, ...]:
        return cost.layer_costs(self.spec.arch, self.spec.resolution)

    @property
    def mult_adds(self) -> int:
        """Of one image."""
        return sum(row.mult_adds for row in self._layers)

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(row.params for row in self._layers)

    @functools.cached_property
    def estimated_seconds(self) -> float:
        """Training and evaluation of the whole run on two CPU cores."""
        spec, train, data = self.spec, self.spec.config.train, self.spec.dataset
        image = SECONDS_PER_MULT_ADD * self.mult_adds
        image += SECONDS_PER_ACTIVATION * sum(row.out_activations for row in self._layers)
        evaluations = -(-train.epochs // train.eval_epochs)
        held_out = data.train_size - spec.train_size
        evaluated = evaluations * held_out + data.test_size if held_out else evaluations * data.test_size
        trained = spec.total_steps * train.batch_size
        return SECONDS_TO_START + SECONDS_PER_STEP * spec.total_steps + image * (trained + EVALUATION * evaluated)

    @property
    def program(self) -> tuple[tuple[str, Any], ...]:
        """Hashable; equal for points that share a compiled program."""
        return self.spec.program_key


def read(path: pathlib.Path) -> Sweep:
    """Reads a sweep file: W&B's own grammar, in the parts that mean the same here and there.

    Raises:
      InputError: the file cannot be read, is not YAML, or says something that W&B or this program would not do.
    """
    try:
        return _sweep(yaml.load(path.read_text(encoding="utf-8"), _Loader), path.stem)
    except InputError as e:
        raise InputError(f"{path}: {e}") from None
    except OSError as e:
        raise InputError(f"{path}: the sweep file cannot be read ({e.strerror})") from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: is not YAML: {e.problem or e.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InputError(f"{path}: is not YAML: {' '.join(str(e).split())}") from None


def points(
    sweep: Sweep,
    base: ConfigDict,
    name: str,
    overridden: Collection[str] = (),
    min_mult_adds: int | None = None,
    max_mult_adds: int | None = None,
) -> list[Point]:
    """The points of a grid, in W&B's order; of those that are the same run, the first.

    Args:
      sweep: of method 'grid'.
      base: the config with the overrides of the sweep's command and of the user.
      name: of that config, for the runs' names.
      overridden: the keys, such as 'train.epochs', that were overridden in it.
      min_mult_adds: of one image; points with less are left out.
      max_mult_adds: of one image; points with more are left out.

    Raises:
      InputError: an overridden key is one of the sweep's own; some point cannot be run; none is within the bounds.
    """
    _check_overrides(sweep, overridden)
    keys = [p.key for p in sweep.parameters]
    product = itertools.product(*(p.values for p in sweep.parameters))
    assignments = [dict(zip(keys, values, strict=True)) for values in itertools.islice(product, sweep.run_cap)]
    found = _resolve_all(sweep, base, name, assignments)
    low, high = min_mult_adds or 0, math.inf if max_mult_adds is None else max_mult_adds
    within = [point for point in found if low <= point.mult_adds <= high]
    if not within:
        bounds = [f"at least {low:,}"] * (low > 0) + [f"at most {high:,}"] * (high < math.inf)
        costs = [point.mult_adds for point in found]
        raise InputError(
            f"sweep {sweep.name}: no point has {' and '.join(bounds)} mult-adds; they have {min(costs):,} to "
            f"{max(costs):,}"
        )
    return within


def draw(sweep: Sweep, base: ConfigDict, name: str, assignment: Mapping[str, Any]) -> Point:
    """One point of a search. Constants need not be in `assignment`.

    Raises:
      InputError: these values do not go together.
    """
    values = {p.key: assignment[p.key] if p.varies else p.values[0] for p in sweep.parameters}
    return _point(base.to_dict(), name, values)


def check_search(sweep: Sweep, base: ConfigDict, name: str, overridden: Collection[str] = ()) -> list[Point]:
    """The corners of a search: every parameter at each of its ends, the others at their first.

    Args and errors are those of `points`; also, a search that is judged on held-out images needs some.
    """
    _check_overrides(sweep, overridden)
    first = {p.key: p.ends[0] for p in sweep.parameters}
    return _resolve_all(sweep, base, name, [first | {p.key: end} for p in sweep.parameters for end in p.ends])


def describe(sweep: Sweep, points: Sequence[Point], output_format: str = "text") -> str:
    """The points of a grid, or the ranges of a search and the cost of its corners, as text or as JSON."""
    costs = [point.mult_adds for point in points]
    seconds = [point.estimated_seconds for point in points]
    totals = {
        "points": len(points),
        "programs": len({point.program for point in points}),
        "mult_adds_min": min(costs),
        "mult_adds_max": max(costs),
        "estimated_seconds": sum(seconds),
    }
    if sweep.method != "grid":
        totals |= {"points": sweep.run_cap, "estimated_seconds": (sweep.run_cap or 0) * statistics.fmean(seconds)}
        del totals["programs"]
    if output_format == "json":
        head = {"sweep": sweep.name, "method": sweep.method, "metric": sweep.metric, "goal": sweep.goal}
        rows = {"points": [_record(point) for point in points]}
        if sweep.method != "grid":
            rows = {"parameters": [dataclasses.asdict(p) for p in sweep.parameters], "run_cap": sweep.run_cap}
        return json.dumps({**head, **rows, "totals": totals}, indent=1)

    table = _table_of_points(sweep, points) if sweep.method == "grid" else _table_of_ranges(sweep)
    cap = "" if sweep.method == "grid" else "up to "
    total = [
        ("points", f"{cap}{totals['points']}"),
        *([("programs", f"{totals['programs']} to compile")] if "programs" in totals else []),
        ("mult-adds", f"{_millions(min(costs))} to {_millions(max(costs))}"),
        ("time", f"about {_duration(totals['estimated_seconds'])} on two CPU cores, by estimate"),
    ]
    title = f"sweep {sweep.name}: {sweep.method}, {sweep.goal} {sweep.metric}"
    return "\n".join([title, "", *columns(table, 0 if sweep.method == "grid" else 3), "", *columns(total, 2)])


def columns(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Aligns the cells of each row: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class _Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word."""

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        seen = set()
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# The grammar. What is refused here is told without the file's name, which `read` puts before it.


def _sweep(tree: Any, name: str) -> Sweep:
    if not isinstance(tree, dict):
        raise InputError("must be a mapping of program, method, parameters and command")
    for key in tree:
        if key == "early_terminate":
            raise InputError("early_terminate is not supported: every point trains to its last epoch")
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            raise InputError(f"unknown key {key!r}; {hint}")
    program = tree.get("program")
    if not isinstance(program, str) or pathlib.PurePosixPath(program).name != "launch.py":
        raise InputError(f"program={program!r}: must be launch.py")
    method = _one_of("method", tree.get("method"), METHODS)
    metric, goal = _metric(tree, method)

    named = tree.get("parameters")
    if not isinstance(named, dict) or not named:
        raise InputError("parameters must be a mapping such as {config.model.alpha: {values: [0.5, 1.0]}}")
    parameters = tuple(sorted((_parameter(n, given, method) for n, given in named.items()), key=lambda p: p.key))
    size = math.prod(len(p.values) for p in parameters)
    if size > LARGEST_GRID:
        raise InputError(f"a grid of {size:,} points: at most {LARGEST_GRID:,} are allowed")
    if method != "grid" and not any(p.varies for p in parameters):
        raise InputError(f"no parameter varies, so method {method} has nothing to draw")

    run_cap = tree.get("run_cap")
    if ("run_cap" in tree or method != "grid") and (type(run_cap) is not int or run_cap < 1):
        needed = "" if "run_cap" in tree else f" (method {method} has no end of its own)"
        raise InputError(f"run_cap={run_cap!r}: must be a whole number from 1{needed}")
    arguments = _arguments(tree["command"]) if "command" in tree else ()
    for p in parameters:
        if any(argument.startswith(f"--config.{p.key}=") for argument in arguments):
            raise InputError(f"config.{p.key} stands in command and in parameters: once is allowed")
    return Sweep(name, method, parameters, metric, goal, run_cap, arguments)


def _one_of(where: str, value: Any, allowed: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{where}={value!r}: allowed are {', '.join(allowed)}")
    return value


def _metric(tree: dict[str, Any], method: str) -> tuple[str, str]:
    if "metric" not in tree:
        if method != "grid":
            raise InputError(f"method {method} needs a metric, such as {_METRIC_EXAMPLE}")
        return "test_accuracy", "maximize"
    metric = tree["metric"]
    if isinstance(metric, dict) and "target" in metric:
        raise InputError("metric.target is not supported: every point of a sweep is trained")
    if not isinstance(metric, dict) or not {"name"} <= metric.keys() <= {"name", "goal"}:
        raise InputError(f"metric={metric!r}: must be a mapping of name and goal, such as {_METRIC_EXAMPLE}")
    name = _one_of("metric.name", metric["name"], METRICS)
    goal = _one_of("metric.goal", metric.get("goal", "minimize"), ("maximize", "minimize"))
    if goal != METRICS[name]:
        default = "" if "goal" in metric else " (W&B's default)"
        raise InputError(f"metric.goal={goal}{default}: for {name} it must be {METRICS[name]}")
    if method != "grid" and name.startswith("test_"):
        raise InputError(
            f"metric.name={name}: a search may not choose by the test images that it is reported on; allowed are "
            "val_accuracy and val_loss, with config.data.holdout above 0, and train_accuracy and train_loss"
        )
    return name, goal


def _parameter(name: Any, given: Any, method: str) -> Parameter:
    if isinstance(given, dict) and "parameters" in given:
        raise InputError(
            f"parameter {name!r} is nested, and W&B would replace the whole sub-config: write flat keys, such as "
            "config.model.alpha"
        )
    if not isinstance(name, str) or not name.startswith("config."):
        raise InputError(f"parameter {name!r}: must be named config.KEY, with a key of configs/default.py")
    key = name.removeprefix("config.")
    config.check_keys([key])
    if not isinstance(given, dict):
        raise InputError(f"parameter {name}={given!r}: must be a mapping, such as {{values: [...]}} or {{value: ...}}")
    distribution = given.get("distribution", _inferred(given))
    allowed = tuple(_DISTRIBUTIONS) if method != "grid" else _OF_A_GRID
    if distribution is None:
        raise InputError(f"parameter {name}: must have value, values, or min and max")
    if not isinstance(distribution, str) or distribution not in allowed:
        raise InputError(
            f"parameter {name}: a {method} sweep has no distribution {distribution!r}; allowed are {', '.join(allowed)}"
        )
    needed = _DISTRIBUTIONS[distribution]
    may = {"distribution", *needed, *(["q"] if distribution == "q_uniform" else [])}
    if not set(needed) <= given.keys() <= may:
        extra = sorted(map(str, given.keys() - may))
        said = f"may not have {', '.join(extra)}" if extra else f"must have {' and '.join(needed)}"
        raise InputError(f"parameter {name}: {distribution} {said}")
    if needed == ("min", "max"):
        return _range(name, key, distribution, given, method)

    values = [given["value"]] if "value" in given else given["values"]
    if not isinstance(values, list) or not values:
        raise InputError(f"parameter {name}: values must be a list that is not empty")
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"parameter {name}: {value!r} must be a number, text, true or false")
        if config.RULES[key].kind in (int, float):
            _check_not_text(name, value)
    return Parameter(key, "values", tuple({(type(value), value): value for value in values}.values()))


def _inferred(given: dict[str, Any]) -> str | None:
    """The distribution that W&B takes where none is written."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if not {"min", "max"} <= given.keys():
        return None
    return "int_uniform" if type(given["min"]) is type(given["max"]) is int else "uniform"


def _range(name: str, key: str, distribution: str, given: dict[str, Any], method: str) -> Parameter:
    ends = {"q": 1.0, **given} if distribution == "q_uniform" else given
    for end in ("min", "max", "q"):
        if end in ends:
            _check_not_text(f"{name}.{end}", ends[end])
            if type(ends[end]) not in (int, float) or not math.isfinite(ends[end]):
                raise InputError(f"parameter {name}: {end}={ends[end]!r} must be a number")
    low, high, step = ends["min"], ends["max"], ends.get("q")
    if low >= high:
        raise InputError(f"parameter {name}: min={low} must be below max={high}")
    whole = all(type(end) is int for end in (low, high, step or 1))
    if distribution == "int_uniform" and not whole:
        raise InputError(f"parameter {name}: min and max of int_uniform must be whole numbers")
    if step is not None and step <= 0:
        raise InputError(f"parameter {name}: q={step} must be above 0")
    if method == "grid":
        step = step or 1
        stop = high + 1 if distribution == "int_uniform" else high
        size = math.ceil((stop - low) / step)
        if size > LARGEST_GRID:
            raise InputError(f"parameter {name}: has {size:,} values; at most {LARGEST_GRID:,} are allowed")
        return Parameter(key, "values", _arange(low, stop, step))

    if step is not None and any(Decimal(str(end)) % Decimal(str(step)) for end in (low, high)):
        raise InputError(f"parameter {name}: min and max must be multiples of q={step}, as W&B draws such multiples")
    if distribution in ("int_uniform", "q_uniform") and whole:
        return Parameter(key, "int", low=low, high=high, step=step)
    if distribution == "log_uniform":
        low, high = _exp(name, low), _exp(name, high)
    elif distribution == "log_uniform_values" and low <= 0:
        raise InputError(f"parameter {name}: min={low} of log_uniform_values must be above 0")
    return Parameter(key, "float", low=float(low), high=float(high), step=step, log=distribution.startswith("log_"))


def _arange(start: float, stop: float, step: float) -> tuple[float, ...]:
    """The values of `np.arange`, which W&B lists, to the last bit and without waiting for NumPy."""
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return tuple(range(start, stop, step))
    first, second = float(start), float(start + step)
    values = [first, second, *(first + i * (second - first) for i in range(2, math.ceil((stop - start) / step)))]
    return tuple(values[: math.ceil((stop - start) / step)])


def _exp(name: str, exponent: float) -> float:
    """A bound of log_uniform, which W&B writes as an exponent of e."""
    if abs(exponent) > 700:
        raise InputError(
            f"parameter {name}: e to the {exponent} is too large or small; log_uniform_values has the values"
        )
    return math.exp(exponent)


def _check_not_text(name: str, value: Any) -> None:
    """YAML has a narrow idea of a number: '3e-4' and '3.0e4' are text."""
    try:
        if not isinstance(value, str) or not math.isfinite(float(value)):
            return
    except ValueError:
        return
    mantissa, e, exponent = value.strip().lower().partition("e")
    if e:
        point = "" if "." in mantissa else ".0"
        sign = "" if exponent[0] in "+-" else "+"
        mantissa = f"{mantissa}{point}e{sign}{exponent}"
    raise InputError(f"parameter {name}: {value!r} is text to YAML; write {mantissa}")


def _arguments(command: Any) -> tuple[str, ...]:
    """The literal arguments of a command, each as --config=FILE or --config.KEY=VALUE."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise InputError("command must be a list of texts")
    if "${program}" not in command:
        raise InputError("command must have ${program}")
    at = command.index("${program}")
    for word in command[:at]:
        if word not in ("${env}", "${interpreter}"):
            raise InputError(f"command: {word!r} stands before ${{program}}; allowed are ${{env}} and ${{interpreter}}")
    words = iter(command[at + 1 :])
    arguments, brought = [], 0
    for word in words:
        if word == "${args}":
            brought += 1
        elif "${" in word:
            why = " (it drops what is false)" if word == "${args_no_boolean_flags}" else ""
            raise InputError(
                f"command: {word!r} is not supported{why}; allowed are ${{env}}, ${{interpreter}}, ${{program}} and "
                "${args}"
            )
        else:
            arguments.append(_argument(word, words))
    if brought != 1:
        raise InputError("command must have ${args} once, after ${program}: it stands for a point's values")
    return tuple(arguments)


def _argument(word: str, following: Iterable[str]) -> str:
    def refuse(problem: str) -> NoReturn:
        raise InputError(f"command: {word!r} {problem}")

    match = _LITERAL.fullmatch(word)
    if match is None or (match["no"] and match["key"] is None):
        refuse("is not allowed; --config=FILE and --config.KEY=VALUE are, the rest is for those who start the sweep")
    key, value = match["key"], match["value"]
    if key is not None:
        config.check_keys([key])
    switch = key is not None and config.RULES[key].kind is bool
    if match["no"]:
        if not switch or value is not None:
            refuse("does not switch a key off that is True or False")
        value = "False"
    elif value is None:
        value = "True" if switch else next(iter(following), None)
        if value is None or value.startswith("${"):
            refuse("lacks its value")
    return f"--config{'' if key is None else '.' + key}={value}"


# From assignments to points.


def _check_overrides(sweep: Sweep, overridden: Collection[str]) -> None:
    for p in sweep.parameters:
        if p.key in overridden:
            raise InputError(f"config.{p.key} cannot be overridden: the sweep {sweep.name} sets it for every point")


def _resolve_all(sweep: Sweep, base: ConfigDict, name: str, assignments: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The runs that these are, each once; raises InputError with the first reason if one of them cannot be run."""
    tree, found, reasons = base.to_dict(), {}, []
    for assignment in assignments:
        try:
            point = _point(tree, name, assignment)
            if sweep.metric.startswith("val_") and not point.spec.config.data.holdout:
                raise InputError(f"{sweep.metric} needs config.data.holdout above 0")
            found.setdefault(point.digest, point)
        except InputError as e:
            values = ", ".join(f"{p.key}={cell(assignment[p.key])}" for p in sweep.parameters if p.varies)
            reasons.append(f"{e} (at {values})" if values else str(e))
    if reasons:
        count = f"{len(reasons)} of {len(assignments)}"
        raise InputError(f"sweep {sweep.name}: {count} points cannot be run, the first because of {reasons[0]}")
    return list(found.values())


def _point(tree: Mapping[str, Any], name: str, assignment: Mapping[str, Any]) -> Point:
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for key, value in assignment.items():
        group, _, leaf = key.rpartition(".")
        branch = tree.setdefault(group, {}) if group else tree
        if isinstance(branch, dict):  # else `resolve` says what is wrong with it
            branch[leaf] = value
    spec = config.resolve(ConfigDict(tree), name)
    for key, value in assignment.items():
        if spec.identity.get(key, value) != value:
            raise InputError(f"config.point={tree['point']!r}: sets config.{key} too")
    return Point(dict(assignment), spec)


# The dry run.


def _record(point: Point) -> dict[str, Any]:
    return {
        "run": point.run_name,
        "digest": point.digest,
        "assignment": point.assignment,
        "resolution": point.resolution,
        "mult_adds": point.mult_adds,
        "params": point.params,
        "estimated_seconds": point.estimated_seconds,
    }


def _table_of_points(sweep: Sweep, points: Sequence[Point]) -> list[tuple[str, ...]]:
    keys = [p.key for p in sweep.parameters if p.varies]
    rows = [
        (
            *(cell(point.assignment[key]) for key in keys),
            str(point.resolution),
            _millions(point.mult_adds),
            _millions(point.params),
            _duration(point.estimated_seconds),
        )
        for point in points
    ]
    return [(*(key.rpartition(".")[2] for key in keys), "resolution", "mult-adds", "params", "time"), *rows]


def _table_of_ranges(sweep: Sweep) -> list[tuple[str, ...]]:
    rows = []
    for p in sweep.parameters:
        if p.kind == "values":
            rows.append((p.key, ", ".join(map(cell, p.values)), "one of them" if p.varies else "constant"))
        else:
            steps = f", in steps of {cell(p.step)}" if p.step else ""
            how = "whole numbers" if p.kind == "int" else "in the logarithm" if p.log else "uniform"
            rows.append((p.key, f"{cell(p.low)} to {cell(p.high)}{steps}", how))
    return rows


def cell(value: Any) -> str:
    """A value as tables show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
