"""Every key of a config, what it may be, and which keys have a meaning where.

A new key gets a rule in `RULES` and a line in `configs/default.py`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch


@dataclasses.dataclass(frozen=True)
class Rule:
    """A constraint on the value of a key. Numbers must be finite, too."""

    kind: type
    allowed: str  # in words, for messages
    test: Callable[[Any], bool]


def _one_of(*values: str) -> Rule:
    return Rule(str, "one of " + ", ".join(map(repr, values)), lambda v: v in values)


def finite(value: float) -> bool:
    """Return whether a number is finite, and fits into 64 bits if it is whole."""
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


_FLAG = Rule(bool, "True or False", lambda v: True)
_TEXT = Rule(str, "text", lambda v: True)
_BELOW_ONE = Rule(float, "at least 0 and below 1", lambda v: 0 <= v < 1)
_UP_TO_ONE = Rule(float, "above 0 and at most 1", lambda v: 0 < v <= 1)
_POSITIVE = Rule(float, "above 0", lambda v: v > 0)
_NOT_NEGATIVE = Rule(float, "0 or more", lambda v: v >= 0)
_COUNT = Rule(int, "a whole number from 1", lambda v: v >= 1)
_COUNT_OR_ZERO = Rule(int, "a whole number from 0", lambda v: v >= 0)

# Every key of a config. Limits of the keys that describe layers are those of `networks/arch.py`.
RULES: dict[str, Rule] = {
    "model.version": _one_of(*arch.VERSIONS),
    "model.alpha": _POSITIVE,
    "model.rho": _UP_TO_ONE,
    "model.expansion": _POSITIVE,
    "model.strides": _one_of(*arch.STRIDES),
    "model.variant": _one_of(*arch.VARIANTS),
    "model.activation": _one_of(*arch.ACTIVATIONS),
    "model.bottleneck": _one_of(*arch.BOTTLENECKS),
    "model.shortcut": _one_of(*arch.SHORTCUTS),
    "model.dropout": _BELOW_ONE,
    "model.bn_decay": _BELOW_ONE,
    "model.bn_epsilon": _POSITIVE,
    "model.depthwise": _one_of("auto", "shift", "taps", "conv"),
    "model.weights": _TEXT,
    "data.name": _TEXT,
    "data.dir": _TEXT,
    "data.archive": _TEXT,
    "data.holdout": _BELOW_ONE,
    "data.protocol": _one_of("slim", "torch"),
    "augment.pad": _COUNT_OR_ZERO,
    "augment.crop": _COUNT_OR_ZERO,
    "augment.scale": Rule(float, "from 0 to 1", lambda v: 0 <= v <= 1),
    "augment.ratio": Rule(float, "at least 1", lambda v: v >= 1),
    "augment.resize": _COUNT_OR_ZERO,
    "augment.flip": _FLAG,
    "optim.name": _one_of("rmsprop", "sgd"),
    "optim.lr": _POSITIVE,
    "optim.momentum": _BELOW_ONE,
    "optim.decay": _BELOW_ONE,
    "optim.epsilon": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.decay_depthwise": _FLAG,
    "optim.schedule": _one_of("constant", "cosine", "exponential", "one_cycle"),
    "optim.lr_decay": _UP_TO_ONE,
    "optim.lr_decay_epochs": _POSITIVE,
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "train.epochs": _COUNT,
    "train.batch_size": _COUNT,
    "train.dtype": _one_of("float32", "bfloat16"),
    "train.label_smoothing": _BELOW_ONE,
    "train.ema_decay": _BELOW_ONE,
    "train.eval_epochs": _COUNT,
    "train.checkpoint_epochs": _NOT_NEGATIVE,
    "train.devices": _COUNT_OR_ZERO,
    "point": _TEXT,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": _TEXT,
    "seed": Rule(int, "a whole number from 0 to 4294967295", lambda v: 0 <= v < 2**32),
}

# The training step takes these as traced scalars (`Hyper` in `training/step.py`): runs that differ only in them share
# a compiled program.
TRACED = (
    *("optim.lr", "optim.momentum", "optim.decay", "optim.epsilon", "optim.weight_decay", "optim.decay_depthwise"),
    *("optim.clip_norm", "optim.warmup_epochs", "optim.lr_decay", "optim.lr_decay_epochs"),
    *("train.epochs", "train.label_smoothing", "train.ema_decay", "seed"),
)
# These keys have no meaning for the other version: only their default is allowed there.
ONLY_V1 = {"model.variant": "paper"}
ONLY_V2 = {"model.expansion": 6.0, "model.bottleneck": "linear", "model.shortcut": "bottleneck"}
# These keys have no meaning for sets in memory: only their default is allowed there, and a record does not hold it.
ONLY_STREAMED = {"data.protocol": "slim", "augment.scale": 0.08, "augment.ratio": 4 / 3, "augment.resize": 0}
WEIGHTS = "model.weights"  # a path in a config, a digest in an identity and in a record, which lack it if it is ''


def check_keys(keys: Iterable[str]) -> None:
    """Raise InputError for the first unknown key, naming the nearest known one."""
    for key in keys:
        if key not in RULES:
            near = difflib.get_close_matches(key, RULES, n=1)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            raise InputError(f"unknown key config.{key}{hint} (configs/default.py lists every key)")


def typed(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the keys in the order of `RULES`, each of its type. A whole number becomes a float where needed."""
    check_keys(flat)
    flat = {WEIGHTS: ""} | ONLY_STREAMED | flat  # configs of earlier versions lack these
    found = {}
    for key, rule in RULES.items():
        if key not in flat:
            raise InputError(f"the config has no key config.{key} (configs/default.py lists every key)")
        value = flat[key]
        if rule.kind is float and type(value) is int and finite(value):
            value = float(value)
        if type(value) is not rule.kind:
            raise InputError(f"config.{key}={value!r}: is of type {type(value).__name__}; allowed is {rule.allowed}")
        found[key] = value
    return found
