"""A sweep file, in the words of W&B's own, read and checked; what its points are is `grid`'s."""

import dataclasses
import difflib
import math
import pathlib
import re
import reprlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NoReturn

import yaml

from mobilenet_jax import config
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


class _Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word."""

    def construct_mapping(self, node, deep=False):
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        seen = set()
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {_shown(key.value)} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# What is refused below is told without the file's name, which `read` puts before it.


def _sweep(tree: Any, name: str) -> Sweep:
    if not isinstance(tree, dict):
        raise InputError("must be a mapping of program, method, parameters and command")
    for key in tree:
        if key == "early_terminate":
            raise InputError("early_terminate is not supported: every point trains to its last epoch")
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            raise InputError(f"unknown key {_shown(key)}; {hint}")
    program = tree.get("program")
    if not isinstance(program, str) or pathlib.PurePosixPath(program).name != "launch.py":
        raise InputError(f"program={_shown(program)}: must be launch.py")
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
        raise InputError(f"run_cap={_shown(run_cap)}: must be a whole number from 1{needed}")
    arguments = _arguments(tree["command"]) if "command" in tree else ()
    for p in parameters:
        if any(argument.startswith(f"--config.{p.key}=") for argument in arguments):
            raise InputError(f"config.{p.key} stands in command and in parameters: once is allowed")
    return Sweep(name, method, parameters, metric, goal, run_cap, arguments)


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring = 3, 8, 8, 100


def _shown(value: Any) -> str:
    """A value as a sentence shows it: a few aliases can stand for more than there is memory for."""
    return _brief.repr(value)


def _one_of(where: str, value: Any, allowed: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{where}={_shown(value)}: allowed are {', '.join(allowed)}")
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
        raise InputError(f"metric={_shown(metric)}: must be a mapping of name and goal, such as {_METRIC_EXAMPLE}")
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
            f"parameter {_shown(name)} is nested, and W&B would replace the whole sub-config: write flat keys, such as "
            "config.model.alpha"
        )
    if not isinstance(name, str) or not name.startswith("config."):
        raise InputError(f"parameter {_shown(name)}: must be named config.KEY, with a key of configs/default.py")
    key = name.removeprefix("config.")
    config.check_keys([key])
    if not isinstance(given, dict):
        raise InputError(
            f"parameter {name}={_shown(given)}: must be a mapping, such as {{values: [...]}} or {{value: ...}}"
        )
    distribution = given.get("distribution", _inferred(given))
    allowed = tuple(_DISTRIBUTIONS) if method != "grid" else _OF_A_GRID
    if distribution is None:
        raise InputError(f"parameter {name}: must have value, values, or min and max")
    if not isinstance(distribution, str) or distribution not in allowed:
        raise InputError(
            f"parameter {name}: a {method} sweep has no distribution {_shown(distribution)}; allowed are "
            f"{', '.join(allowed)}"
        )
    needed = _DISTRIBUTIONS[distribution]
    may = {"distribution", *needed, *(["q"] if distribution == "q_uniform" else [])}
    if not set(needed) <= given.keys() <= may:
        extra = sorted(map(str, given.keys() - may))
        said = f"may not have {', '.join(extra)}" if extra else f"must have {' and '.join(needed)}"
        raise InputError(f"parameter {name}: {distribution} {said}")
    if needed == ("min", "max"):
        try:
            return _range(name, key, distribution, given, method)
        except ArithmeticError:
            raise InputError(f"parameter {name}: min, max and q are too large or too small for each other") from None

    values = [given["value"]] if "value" in given else given["values"]
    if not isinstance(values, list) or not values:
        raise InputError(f"parameter {name}: values must be a list that is not empty")
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"parameter {name}: {_shown(value)} must be a number, text, true or false")
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
            if type(ends[end]) not in (int, float) or not config.finite(ends[end]):
                raise InputError(f"parameter {name}: {end}={_shown(ends[end])} must be a number")
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
    raise InputError(f"parameter {name}: {_shown(value)} is text to YAML; write {mantissa}")


def _arguments(command: Any) -> tuple[str, ...]:
    """The literal arguments of a command, each as --config=FILE or --config.KEY=VALUE."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise InputError("command must be a list of texts")
    if "${program}" not in command:
        raise InputError("command must have ${program}")
    at = command.index("${program}")
    for word in command[:at]:
        if word not in ("${env}", "${interpreter}"):
            raise InputError(
                f"command: {_shown(word)} stands before ${{program}}; allowed are ${{env}} and ${{interpreter}}"
            )
    words = iter(command[at + 1 :])
    arguments, brought = [], 0
    for word in words:
        if word == "${args}":
            brought += 1
        elif "${" in word:
            why = " (it drops what is false)" if word == "${args_no_boolean_flags}" else ""
            raise InputError(
                f"command: {_shown(word)} is not supported{why}; allowed are ${{env}}, ${{interpreter}}, ${{program}} "
                "and ${args}"
            )
        else:
            arguments.append(_argument(word, words))
    if brought != 1:
        raise InputError("command must have ${args} once, after ${program}: it stands for a point's values")
    return tuple(arguments)


def _argument(word: str, following: Iterable[str]) -> str:
    def refuse(problem: str) -> NoReturn:
        raise InputError(f"command: {_shown(word)} {problem}")

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
