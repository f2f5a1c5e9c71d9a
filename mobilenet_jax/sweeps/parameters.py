"""The parameters of a sweep file: which values each config key takes, in W&B's grammar."""

import dataclasses
import math
import reprlib
from decimal import Decimal
from typing import Any

import yaml

from mobilenet_jax import config_keys
from mobilenet_jax.errors import InputError

LARGEST_GRID = 10_000  # points

# Distribution -> the keys it requires. W&B's other distributions draw values that no config key takes.
_REQUIRED = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
}
_GRID_DISTRIBUTIONS = ("constant", "categorical", "int_uniform", "q_uniform")


# NOTE: the name of a sweep in its database is a hash over the `repr` of its parameters. A renamed class or field, or
# another default, makes every sweep start from the beginning.
@dataclasses.dataclass(frozen=True)
class Parameter:
    """The values of one config key: one of `values` or, in a search, a number from `low` to `high`, both included."""

    key: str  # without 'config.'
    kind: str  # 'values' (a constant is one value), 'int' or 'float'
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None  # distance between neighbouring numbers
    log: bool = False  # whether the logarithm is drawn uniformly

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return self.kind != "values" or len(self.values) > 1

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values, or the two ends of the range."""
        return self.values if self.kind == "values" else (self.low, self.high)


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring = 3, 8, 8, 100


def brief(value: Any) -> str:
    """Return a shortened `repr` for messages: a few YAML aliases can expand to more text than fits in memory."""
    return _brief.repr(value)


def check_reading(value: Any, written: Any, rule: config_keys.Rule, where: str = "") -> None:
    """Raise InputError for a value of another type than the rule's, or a number that is not the one that is `written`.

    YAML reads 010 as 8, 1:30 as 90, no as False, 08 and 1e1 as text. The message proposes values that the rule allows.
    """
    try:
        number = float(written)
    except (TypeError, ValueError):
        number = math.nan
    types = (int, float) if rule.kind is float else (rule.kind,)
    if type(value) in types and (rule.kind in (str, bool) or value == number):
        return
    numbers = [n for n in (number, value) if type(n) in (int, float) and config_keys.finite(n)]
    meant = [rule.kind(n) for n in ([written] if rule.kind is str else numbers) if rule.kind(n) == n]
    spelled = [yaml.safe_dump(each, width=math.inf).partition("\n")[0] for each in dict.fromkeys(meant)]
    tried = [text for text in spelled if type(again := yaml.safe_load(text)) is rule.kind and rule.test(again)]
    reading = "text" if isinstance(value, str) else f"{brief(value)} ({type(value).__name__})"
    then = f"write {' or '.join(tried)}" if tried else f"allowed is {rule.allowed}"
    raise InputError(f"{where}{brief(written)} is {reading} to YAML; {then}")


def parse(name: Any, given: Any, written: Any, method: str) -> Parameter:
    """Check one entry of `parameters`, such as 'config.model.alpha': {'values': [0.5, 1.0]}; `written` is its text.

    Raises:
      InputError: the key, the distribution or a value is not allowed.
    """
    if isinstance(given, dict) and "parameters" in given:
        raise InputError(f"parameter {brief(name)} is nested, which W&B misreads: write flat keys, such as config.seed")
    if not isinstance(name, str) or not name.startswith("config."):
        raise InputError(f"parameter {brief(name)}: must be named config.KEY, with a key of configs/default.py")
    key = name.removeprefix("config.")
    config_keys.check_keys([key])
    try:
        return _parameter(key, given, written, method)
    except InputError as e:  # the messages below do not name the parameter
        raise InputError(f"parameter {name}: {e}") from None


def _parameter(key: str, given: Any, written: Any, method: str) -> Parameter:
    if not isinstance(given, dict):
        raise InputError(f"{brief(given)} must be a mapping, such as {{values: [...]}} or {{value: ...}}")
    rule, whole = config_keys.RULES[key], config_keys.RULES[key].kind is int
    bound = config_keys.Rule(int if whole else float, f"a {'whole ' * whole}number", lambda v: True)
    free = rule.kind not in (int, float) or given.get("distribution") == "log_uniform"  # whose bounds are exponents
    for name in [name for name in ("min", "max", "q") if name in given]:
        check_reading(given[name], written[name], bound if free or name == "q" else rule, f"{name}: ")
    distribution = given.get("distribution", _default_distribution(given))
    if distribution is None:
        raise InputError("must have value, values, or min and max")
    allowed = _GRID_DISTRIBUTIONS if method == "grid" else tuple(_REQUIRED)
    if not isinstance(distribution, str) or distribution not in allowed:
        raise InputError(f"a {method} sweep has no distribution {brief(distribution)}, only {', '.join(allowed)}")
    required = _REQUIRED[distribution]
    known = {"distribution", *required, *(["q"] if distribution == "q_uniform" else [])}
    if extra := sorted(map(str, given.keys() - known)):
        raise InputError(f"{distribution} may not have {', '.join(extra)}")
    if not set(required) <= given.keys():
        raise InputError(f"{distribution} must have {' and '.join(required)}")
    if required == ("min", "max"):
        try:
            return _range(key, distribution, given, method)
        except ArithmeticError:
            raise InputError("min, max and q are too large or too small for each other") from None

    values, texts = ([each["value"]] if "value" in given else each["values"] for each in (given, written))
    if not isinstance(values, list) or not values:
        raise InputError("values must be a list that is not empty")
    for value, text in zip(values, texts, strict=True):
        check_reading(value, text, rule)
    return Parameter(key, "values", tuple({(type(value), value): value for value in values}.values()))


def _default_distribution(given: dict[str, Any]) -> str | None:
    """Return the distribution that W&B assumes where none is named."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical"
    if not {"min", "max"} <= given.keys():
        return None
    return "int_uniform" if type(given["min"]) is type(given["max"]) is int else "uniform"


def _range(key: str, distribution: str, given: dict[str, Any], method: str) -> Parameter:
    low, high, step = given["min"], given["max"], given.get("q", 1.0 if distribution == "q_uniform" else None)
    if low >= high:
        raise InputError(f"min={low} must be below max={high}")
    whole = all(type(bound) is int for bound in (low, high, step or 1))
    if distribution == "int_uniform" and not whole:
        raise InputError("min and max of int_uniform must be whole numbers")
    if step is not None and step <= 0:
        raise InputError(f"q={step} must be above 0")
    if method == "grid":
        step = step or 1
        stop = high + 1 if distribution == "int_uniform" else high
        size = math.ceil((stop - low) / step)
        if size > LARGEST_GRID:
            raise InputError(f"has {size:,} values; at most {LARGEST_GRID:,} are allowed")
        import numpy as np  # late: few sweeps have ranges; W&B lists these values, to the last bit

        return Parameter(key, "values", tuple(np.arange(low, stop, step).tolist()))

    if step is not None and any(Decimal(str(bound)) % Decimal(str(step)) for bound in (low, high)):
        raise InputError(f"min and max must be multiples of q={step}, because W&B draws multiples of q")
    if distribution in ("int_uniform", "q_uniform") and whole:
        return Parameter(key, "int", low=low, high=high, step=step)
    if distribution == "log_uniform":  # W&B writes the bounds as exponents of e
        if max(abs(low), abs(high)) > 700:
            raise InputError(f"e to the {low} or {high} is too large or small; log_uniform_values takes plain bounds")
        low, high = math.exp(low), math.exp(high)
    elif distribution == "log_uniform_values" and low <= 0:
        raise InputError(f"min={low} of log_uniform_values must be above 0")
    return Parameter(key, "float", low=float(low), high=float(high), step=step, log=distribution.startswith("log_"))
