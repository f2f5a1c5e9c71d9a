"""The keys of a config that make a run what it is, and how a config becomes flat keys and a digest."""

import hashlib
import json
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
# Where the data lie and who watches a run do not change the run.
NOT_IDENTITY = ("data.dir", "data.archive", "wandb.mode", "wandb.project", "point")
# Runs that differ only in these are repetitions of one configuration: the seed varies, and the rest changes no result.
NOT_CONFIGURATION = (*NOT_IDENTITY, "seed", "train.eval_epochs", "train.checkpoint_epochs")
# Former names of values, which older records use and on which digests rest: key -> former name -> name.
_RENAMED = {"model.variant": ALIASES}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys: `{"model": {"alpha": 1}}` gives `{"model.alpha": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with keys of at most one dot as nested dicts."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return tree


def parse_point(text: str) -> dict[str, str]:
    """Return what a config's `point` sets: 'alpha=0.75,rho=0.714' gives `{"model.alpha": "0.75", ...}`.

    Raises:
      ValueError: a part is not 'key=value'.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not 'key=value'")
        found[f"model.{name.strip()}"] = value.strip()
    return found


def renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored flat config with today's names of renamed values."""
    known = {key: names for key, names in _RENAMED.items() if isinstance(flat.get(key), str)}
    return {**flat, **{key: names.get(flat[key], flat[key]) for key, names in known.items()}}


def digest(identity: Mapping[str, Any]) -> str:
    """Return eight hex digits of a run's identity, the same as earlier versions made of it."""
    former = {key: {now: before for before, now in names.items()} for key, names in _RENAMED.items()}
    named = {key: former.get(key, {}).get(value, value) for key, value in identity.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
