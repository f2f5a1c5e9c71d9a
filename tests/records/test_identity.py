"""Flat keys and digests."""

import json

import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from configs import default
from mobilenet_jax import config
from mobilenet_jax.records import identity


def test_flatten_and_nest_are_inverse():
    tree = {"model": {"alpha": 0.5, "rho": 1.0}, "seed": 3}
    assert identity.flatten(tree) == {"model.alpha": 0.5, "model.rho": 1.0, "seed": 3}
    assert identity.nest(identity.flatten(tree)) == tree


@pytest.mark.parametrize("directory", sorted((ROOT / "results" / "cifar10").iterdir()), ids=lambda d: d.name)
def test_digests_are_those_of_earlier_versions(directory):
    """Run names end with them: the committed runs, some of the variant `cifar28` under its old name, keep theirs."""
    stored = json.loads((directory / "config.json").read_text())
    now = identity.flatten(default.get_config().to_dict())  # it has keys that the record lacks
    spec = config.resolve(ConfigDict(identity.nest(now | identity.flatten(stored))))
    assert directory.name.endswith(f"-{spec.digest}")
    assert config.differences(spec, stored) == []
    assert spec.config.model.variant in ("paper", "cifar28")
