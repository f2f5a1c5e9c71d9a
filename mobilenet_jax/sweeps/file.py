"""Read and check a sweep file: the parts of W&B's grammar that W&B and this program read alike."""

import dataclasses
import difflib
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import yaml

from mobilenet_jax import config_keys
from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import parameters
from mobilenet_jax.sweeps.parameters import LARGEST_GRID, Parameter, brief

METHODS = ("grid", "random", "bayes")
METRICS = {
    f"{split}_{figure}": goal
    for split in ("test", "val", "train")
    for figure, goal in (("accuracy", "maximize"), ("loss", "minimize"))
}
# The keys of a file. Only W&B's pages show the last four.
KEYS = ("program", "method", "metric", "parameters", "command", "run_cap", "name", "description", "project", "entity")
_RULES = dict.fromkeys(KEYS[-4:], config_keys.RULES["wandb.project"]) | {"run_cap": config_keys.RULES["train.epochs"]}
_START = ["${env}", "${interpreter}", "${program}"]  # of a command

_FLAG = re.compile(r"--?(?P<no>no)?config(\.(?P<key>[^=]*))?(=(?P<value>.*))?", re.DOTALL)
_METRIC_EXAMPLE = "{name: val_accuracy, goal: maximize}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A checked sweep file. `parameters` are sorted by key, the order in which W&B enumerates them."""

    name: str  # of the file, without its ending
    method: str  # one of METHODS
    parameters: tuple[Parameter, ...]
    metric: str  # one of METRICS
    goal: str  # 'maximize' or 'minimize'
    run_cap: int | None  # largest number of points
    arguments: tuple[str, ...]  # from `command`, as --config=FILE and --config.KEY=VALUE


def read(path: pathlib.Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
      InputError: the file cannot be read, is not YAML, or asks for something that W&B or this program cannot do.
    """
    name = path.stem.encode(errors="backslashreplace").decode()  # a database refuses surrogates
    try:
        text = path.read_text(encoding="utf-8")
        return _sweep(yaml.load(text, _Loader), yaml.load(text, _TextLoader), name)
    except InputError as e:  # the messages below do not name the file
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
    """W&B's loader, but it refuses repeated keys; PyYAML silently takes the last."""

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {brief(key.value)} is repeated", key.start_mark)
            seen.add(key.value)
        return node


class _TextLoader(_Loader):
    """A loader that leaves numbers, dates, true, false and null as they are written."""

    def construct_object(self, node, deep=False):
        return node.value if isinstance(node, yaml.ScalarNode) else super().construct_object(node, deep)


def _sweep(tree: Any, written: Any, name: str) -> Sweep:
    if not isinstance(tree, dict):
        raise InputError("must be a mapping of program, method, parameters and command")
    for key in tree:
        if key == "early_terminate":
            raise InputError("early_terminate is not supported: every point trains to its last epoch")
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            raise InputError(f"unknown key {brief(key)}; {hint}")
    program = tree.get("program")
    if not isinstance(program, str) or program.rpartition("/")[2] != "launch.py":
        raise InputError(f"program={brief(program)}: must be launch.py")
    method = _one_of("method", tree.get("method"), METHODS)
    metric, goal = _metric(tree, method)

    entries, texts = tree.get("parameters"), written.get("parameters")
    if not isinstance(entries, dict) or not entries:
        raise InputError("parameters must be a mapping such as {config.model.alpha: {values: [0.5, 1.0]}}")
    parsed = [parameters.parse(key, given, texts.get(key), method) for key, given in entries.items()]
    parsed.sort(key=lambda p: p.key)
    size = math.prod(len(p.values) for p in parsed)
    if size > LARGEST_GRID:
        raise InputError(f"a grid of {size:,} points: at most {LARGEST_GRID:,} are allowed")
    if method != "grid" and not any(p.varies for p in parsed):
        raise InputError(f"no parameter varies, so method {method} has nothing to draw")

    for key, rule in _RULES.items():
        if tree.get(key) is not None:
            parameters.check_reading(tree[key], written[key], rule, f"{key}: ")
    run_cap = tree.get("run_cap")
    if ("run_cap" in tree or method != "grid") and (type(run_cap) is not int or run_cap < 1):
        needed = "" if "run_cap" in tree else f" (method {method} never ends by itself)"
        raise InputError(f"run_cap={brief(run_cap)}: must be a whole number from 1{needed}")
    arguments = _arguments(tree["command"], written["command"]) if "command" in tree else ()
    for p in parsed:
        if any(argument.startswith(f"--config.{p.key}=") for argument in arguments):
            raise InputError(f"config.{p.key} is set in command and in parameters; set it in one of them")
    return Sweep(name, method, tuple(parsed), metric, goal, run_cap, arguments)


def _one_of(where: str, value: Any, allowed: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{where}={brief(value)}: allowed are {', '.join(allowed)}")
    return value


def _metric(tree: dict[str, Any], method: str) -> tuple[str, str]:
    """Return the metric's name and goal."""
    if "metric" not in tree:
        if method != "grid":
            raise InputError(f"method {method} needs a metric, such as {_METRIC_EXAMPLE}")
        return "test_accuracy", "maximize"
    metric = tree["metric"]
    if isinstance(metric, dict) and "target" in metric:
        raise InputError("metric.target is not supported: every point of a sweep is trained")
    if not isinstance(metric, dict) or not {"name"} <= metric.keys() <= {"name", "goal"}:
        raise InputError(f"metric={brief(metric)}: must be a mapping of name and goal, such as {_METRIC_EXAMPLE}")
    name = _one_of("metric.name", metric["name"], METRICS)
    goal = _one_of("metric.goal", metric.get("goal", "minimize"), ("maximize", "minimize"))
    if goal != METRICS[name]:
        default = "" if "goal" in metric else " (W&B's default)"
        raise InputError(f"metric.goal={goal}{default}: for {name} it must be {METRICS[name]}")
    if method != "grid" and name.startswith("test_"):
        allowed = ", ".join(metric for metric in METRICS if not metric.startswith("test_"))
        raise InputError(f"metric.name={name}: a search may not choose by the test images; allowed are {allowed}")
    return name, goal


def _arguments(command: Any, written: Any) -> tuple[str, ...]:
    """Return the literal arguments of a command, each as --config=FILE or --config.KEY=VALUE."""
    if not isinstance(command, list):
        raise InputError("command must be a list of texts")
    for word, text in zip(command, written, strict=True):
        parameters.check_reading(word, text, _RULES["name"], "command: ")
    start = _START if command[:1] == _START[:1] else _START[1:]
    if command[: len(start)] != start:  # W&B's agent would start something else, or nothing
        raise InputError(f"command must start with {', '.join(_START)}; ${{env}} may be left out")
    words, macros = iter(command[len(start) :]), [word for word in command[len(start) :] if "${" in word]
    if macros != ["${args}"]:  # the values of a point, each as --config.KEY=VALUE
        raise InputError(f"command must have ${{args}} once after ${{program}}, and no other ${{...}}: {brief(macros)}")
    return tuple(_argument(word, words) for word in words if word != "${args}")


def _argument(word: str, following: Iterable[str]) -> str:
    """Return a --config argument as --config[.KEY]=VALUE; its value may be the first of the `following` words."""

    def refuse(problem: str) -> NoReturn:
        raise InputError(f"command: {brief(word)} {problem}")

    match = _FLAG.fullmatch(word)
    if match is None or (match["no"] and match["key"] is None):
        refuse("is not allowed; allowed are --config=FILE and --config.KEY=VALUE (pass other flags to launch.py)")
    key, value = match["key"], match["value"]
    if key is not None:
        config_keys.check_keys([key])
    switch = key is not None and config_keys.RULES[key].kind is bool
    if match["no"]:
        if not switch or value is not None:
            refuse("does not switch off a key that is True or False")
        value = "False"
    elif value is None:
        value = "True" if switch else next(iter(following), None)
        if value is None or value.startswith("${"):
            refuse("lacks its value")
    return f"--config{'' if key is None else '.' + key}={value}"
