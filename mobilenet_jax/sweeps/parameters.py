"""The parameters of a sweep file: which values each config key takes, in W&B's grammar."""

import dataclasses
import math
import reprlib
from decimal import Decimal
from typing import Any

from mobilenet_jax import config
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


def parse(name: Any, given: Any, method: str) -> Parameter:
    """Check one entry of `parameters`, such as 'config.model.alpha': {'values': [0.5, 1.0]}.

    Raises:
      InputError: the key, the distribution or a value is not allowed.
    """
    if isinstance(given, dict) and "parameters" in given:
        raise InputError(
            f"parameter {brief(name)} is nested, and W&B would replace the whole sub-config: write flat keys, such as "
            "config.model.alpha"
        )
    if not isinstance(name, str) or not name.startswith("config."):
        raise InputError(f"parameter {brief(name)}: must be named config.KEY, with a key of configs/default.py")
    key = name.removeprefix("config.")
    config.check_keys([key])
    try:
        return _parameter(key, given, method)
    except InputError as e:  # the messages below do not name the parameter
        raise InputError(f"parameter {name}: {e}") from None


def _parameter(key: str, given: Any, method: str) -> Parameter:
    if not isinstance(given, dict):
        raise InputError(f"{brief(given)} must be a mapping, such as {{values: [...]}} or {{value: ...}}")
    distribution = given.get("distribution", _default_distribution(given))
    if distribution is None:
        raise InputError("must have value, values, or min and max")
    allowed = _GRID_DISTRIBUTIONS if method == "grid" else tuple(_REQUIRED)
    if not isinstance(distribution, str) or distribution not in allowed:
        raise InputError(
            f"a {method} sweep has no distribution {brief(distribution)}; allowed are {', '.join(allowed)}"
        )
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

    values = [given["value"]] if "value" in given else given["values"]
    if not isinstance(values, list) or not values:
        raise InputError("values must be a list that is not empty")
    for value in values:
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{brief(value)} must be a number, text, true or false")
        if config.RULES[key].kind in (int, float):
            _check_not_text(value)
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
    bounds = {"q": 1.0, **given} if distribution == "q_uniform" else given
    for name in ("min", "max", "q"):
        if name in bounds:
            _check_not_text(bounds[name])
            if type(bounds[name]) not in (int, float) or not config.finite(bounds[name]):
                raise InputError(f"{name}={brief(bounds[name])} must be a number")
    low, high, step = bounds["min"], bounds["max"], bounds.get("q")
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


def _check_not_text(value: Any) -> None:
    """Raise InputError for text that looks like a number: YAML reads '3e-4' and '3.0e4' as text."""
    try:
        if not isinstance(value, str) or not math.isfinite(float(value)):
            return
    except ValueError:
        return
    number = f"{float(value):.15g}"
    number = number if "." in number else number.replace("e", ".0e")
    raise InputError(f"{brief(value)} is text to YAML; write {number}")
