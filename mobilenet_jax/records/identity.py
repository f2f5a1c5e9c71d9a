"""The keys of a config that make a run what it is, and how a config becomes flat keys and a digest."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from mobilenet_jax.networks.arch import ALIASES

KNOBS = {"model.alpha": "α", "model.rho": "ρ", "model.expansion": "t"}
KNOB_NAMES = {
    "model.alpha": "width multiplier",
    "model.rho": "resolution multiplier",
    "model.expansion": "expansion ratio t",
}
ONLY_V2 = ("model.expansion", "model.bottleneck", "model.shortcut")  # of no meaning for v1
ONLY_RMSPROP = ("optim.decay", "optim.epsilon")  # of no meaning for SGD
# Where the data lie, what computes, who watches, and how often a run is evaluated and saved do not change the run.
_HOW_OFTEN = {"train.eval_epochs": 1, "train.checkpoint_epochs": 1.0}  # digests hold these defaults, as they used to
NOT_IDENTITY = ("data.dir", "data.archive", "train.devices", "wandb.mode", "wandb.project", "point", *_HOW_OFTEN)
NOT_CONFIGURATION = (*NOT_IDENTITY, "seed")  # runs that differ in these only are repetitions of one configuration
# Variables that may change a result, and are recorded with it.
SETTINGS = ("JAX_", "XLA_FLAGS", "NVIDIA_TF32", "LIBTPU_INIT_ARGS")
_VARIANT = "model.variant"  # older records and all digests use the former names of `ALIASES`


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys: `{"model": {"alpha": 1}}` gives `{"model.alpha": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {sys.intern(prefix + key): value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with keys of at most one dot as nested dicts."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree


def renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored flat config with today's name of its variant."""
    variant = flat.get(_VARIANT)
    return {**flat, _VARIANT: ALIASES.get(variant, variant)} if isinstance(variant, str) else dict(flat)


def digest(identity: Mapping[str, Any]) -> str:
    """Return eight hex digits of a run's identity, as earlier versions made them of runs with `_HOW_OFTEN`."""
    former = {now: before for before, now in ALIASES.items()}
    named = {**_HOW_OFTEN, **identity, _VARIANT: former.get(identity[_VARIANT], identity[_VARIANT])}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
