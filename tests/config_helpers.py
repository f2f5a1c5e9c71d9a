"""The default config with other values, and what it resolves to."""

from typing import Any

from ml_collections import ConfigDict

from configs import default
from mobilenet_jax import config
from mobilenet_jax.config import RunSpec

V2 = {"model.version": "v2"}
STREAMED = {"data.name": "imagenet2012", "augment.pad": 0}


def changed(**overrides) -> ConfigDict:
    """Return the default config with other values, of any type: `changed(**{"model.alpha": 0.5})`."""
    tree = defaults()
    for key, value in overrides.items():
        group, _, leaf = key.rpartition(".")
        (tree[group] if group else tree)[leaf] = value
    return ConfigDict(tree)


def resolve(**overrides) -> RunSpec:
    return config.resolve(changed(**overrides))


def defaults() -> dict[str, Any]:
    return default.get_config().to_dict()
