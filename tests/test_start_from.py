"""A config that names weights to start from: what it takes over, what identifies the run, what is refused."""

import json
import pathlib

import numpy as np
import pytest
from config_helpers import resolve
from safetensors import numpy as safetensors
from safetensors import safe_open

from mobilenet_jax import config
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import weights

ARCHITECTURE = {"version": "v1", "num_classes": 7, "alpha": 0.5, "strides": "cifar", "activation": "relu"}


def written(path: pathlib.Path, value: float = 0.0, **changes) -> str:
    """Write weights of a network with other classes; the path as a config takes it."""
    architecture = ARCHITECTURE | changes.pop("architecture", {})
    network = weights.Network(architecture, changes.pop("input_range", (-1.0, 1.0)), 32, 32, **changes)
    weights.write(path, {"params": {"stem": {"kernel": np.full(3, value, np.float32)}}}, network)
    return str(path)


def start(path: str, **overrides) -> config.RunSpec:
    return resolve(**{"model.weights": path, "model.alpha": 0.5, **overrides})


def test_a_run_from_random_weights_has_no_such_key():
    spec = resolve()
    assert "model.weights" not in spec.identity
    assert "weights" not in spec.config.model


def test_the_content_identifies_them(tmp_path: pathlib.Path):
    path, copy, other = (written(tmp_path / name, value) for name, value in (("a.st", 0), ("b.st", 0), ("c.st", 1)))
    spec = start(path)
    assert spec.weights == path
    assert spec.digest == start(copy).digest
    assert len({spec.digest, start(other).digest, resolve(**{"model.alpha": 0.5}).digest}) == 3
    assert spec.identity["model.weights"] == weights.identify(pathlib.Path(path))[0]
    written(tmp_path / "a.st", 2)
    assert start(path).digest not in (spec.digest, start(other).digest)


def test_a_protocol_does_not_change_the_digest(tmp_path: pathlib.Path):
    """Files of earlier versions lack it."""
    path = pathlib.Path(written(tmp_path / "a.st", protocol="torch"))
    digest, network = weights.identify(path)
    assert (digest, network.protocol) == ("4c997ab7", "torch")
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    del metadata["protocol"]
    safetensors.save_file(safetensors.load_file(path), path, metadata)
    digest, network = weights.identify(path)
    assert (digest, network.protocol) == ("4c997ab7", "")


def test_the_input_and_the_padding_are_those_of_the_weights(tmp_path: pathlib.Path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    given = {"input_range": (0.0, 1.0), "mean": mean, "std": std, "architecture": {"padding": "symmetric"}}
    network = start(written(tmp_path / "a.st", **given)).arch
    assert (network.input_range, network.mean, network.std) == ((0.0, 1.0), mean, std)
    assert {layer.padding for layer in network.layers if layer.norm} == {"symmetric"}
    assert network.num_classes == 10


@pytest.mark.parametrize(
    ("architecture", "overrides", "words"),
    [
        ({}, {"model.alpha": 1.0}, ["with --config.model.alpha=0.5"]),
        ({"activation": "relu6"}, {}, ["with --config.model.activation=relu6"]),
        ({"bn_epsilon": 1e-5}, {}, ["with --config.model.bn_epsilon=1e-05"]),
        ({"activation": "relu6"}, {"model.version": "v2"}, ["model.version=v1 --config.model.activation=relu6"]),
        ({"size": 3}, {}, ["no network has its architecture", "size"]),
        ({"strides": ["cifar"]}, {}, ["no network has its architecture"]),
        ({"strides": "mnist"}, {}, ["no network has its architecture", "mnist"]),
    ],
)
def test_another_network_is_refused(tmp_path: pathlib.Path, architecture, overrides, words):
    path = written(tmp_path / "a.st", architecture=architecture)
    with pytest.raises(InputError) as e:
        start(path, **overrides)
    assert all(word in str(e.value) for word in ["config.model.weights=", path, *words])


def test_folded_batch_norm_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="TensorFlow Lite"):
        start(written(tmp_path / "a.st", source="TensorFlow Lite"))


@pytest.mark.parametrize("content", [None, b"", b"nothing"])
def test_files_that_hold_no_weights_are_refused(tmp_path: pathlib.Path, content):
    if content is not None:
        (tmp_path / "a.st").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.st: no weights can be read"):
        start(str(tmp_path / "a.st"))


def test_a_directory_with_another_start_is_another_run(tmp_path: pathlib.Path):
    random, trained = resolve(**{"model.alpha": 0.5}), start(written(tmp_path / "a.st"))
    digest = trained.identity["model.weights"]
    for here, there, text in (
        (random, trained, f"{digest!r} there and '' here"),
        (trained, random, f"'' there and {digest!r} here"),
    ):
        stored = json.loads(json.dumps(there.config.to_dict()))
        assert config.differences(there, stored) == []
        assert config.differences(here, stored) == [f"config.model.weights is {text}"]
