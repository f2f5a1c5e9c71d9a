"""TF-slim's checkpoints: every variable of a checkpoint that TensorFlow wrote arrives bit by bit."""

import pathlib

import numpy as np
import pytest
from transfer_helpers import slim_tensors, slim_value, unpacked

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer import bundle, recognise, sandbox, slim

NORM = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return unpacked("slim.tar.xz", tmp_path_factory.mktemp("slim"))


@pytest.mark.parametrize(
    ("version", "variables", "kind"),
    [("v1", "auto", 0), ("v2", "auto", 1), ("v1", "averaged", 1), ("v2", "raw", 0), ("v1", "raw", 0)],
)
def test_every_variable_arrives(version, variables, kind, checkpoints):
    """`kind` is that of the values of weights: 0 raw, 1 averaged. Running statistics are raw."""
    source = sandbox.read(checkpoints / f"{version}.ckpt", variables)
    assert ("averaged" if kind else "raw") in source.notes[0]
    found, network = recognise.convert(source)
    assert (network.architecture["version"], network.architecture["num_classes"]) == (version, 5)
    assert (network.architecture["activation"], network.architecture["padding"]) == ("relu6", "same")
    layers, layer, seen = iter(found["params"]), "", 0
    for number, (name, shape) in enumerate(slim_tensors(version).items()):
        value, leaf = slim_value(number, 0 if "moving" in name else kind, shape), name.rpartition("/")[2]
        layer = next(layers) if leaf.endswith("weights") else layer
        if leaf == "depthwise_weights":
            arrived = found["params"][layer]["kernel"]
            value = value.transpose(0, 1, 3, 2)
        elif leaf == "weights":
            arrived = found["params"][layer]["kernel"].reshape(value.shape)
        elif leaf == "biases":
            arrived = found["params"][layer]["bias"]
        else:
            tree = found["batch_stats" if "moving" in leaf else "params"][layer]["bn"]
            arrived = tree[NORM[leaf]]
        np.testing.assert_array_equal(arrived, value, strict=True)
        seen += 1
    assert next(layers, None) is None and seen == len(slim_tensors(version))


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_by_any_of_its_files(suffix, checkpoints):
    path = checkpoints / f"v1.ckpt{suffix}"
    assert bundle.prefix(path) == checkpoints / "v1.ckpt"
    assert bundle.prefix(checkpoints / "v3.ckpt") is None


def copied(checkpoints: pathlib.Path, out: pathlib.Path, change) -> pathlib.Path:
    """Copy the v1 checkpoint with the contents of its index and data changed; return its prefix."""
    names = [f"v1.ckpt{suffix}" for suffix in (".index", ".data-00000-of-00001")]
    contents = change(*((checkpoints / name).read_bytes() for name in names))
    for name, content in zip(names, contents, strict=True):
        (out / name).write_bytes(content)
    return out / "v1.ckpt"


def _far(index: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Set the size of the first block to 2^63 - 1."""
    at = len(index) - 48
    for _ in range(2):
        _, at = bundle._varint(index, at)
    return index[:at] + b"\xff" * 8 + b"\x7f" + b"\xff" * 8 + b"\x7f" + index[at + 18 :], data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index, data: (index, data[:-1]), "do(es)? not lie in the files"),
        (lambda index, data: (index, b""), "not lie in the files"),
        (lambda index, data: (index[:-1], data), "cut off"),
        (lambda index, data: (index[100:], data), "damaged|outside|compressed"),
        (lambda index, data: (b"", data), "cut off"),
        (_far, "outside itself"),
    ],
)
def test_damaged_checkpoints(change, reason, checkpoints, tmp_path):
    with pytest.raises(InputError, match=reason):
        sandbox.read(copied(checkpoints, tmp_path, change))


def test_a_missing_data_file(checkpoints, tmp_path):
    (tmp_path / "v1.ckpt.index").write_bytes((checkpoints / "v1.ckpt.index").read_bytes())
    with pytest.raises(InputError, match="No such file"):
        sandbox.read(tmp_path / "v1.ckpt")


@pytest.mark.parametrize("name", ["InceptionV1/Conv2d_0/weights", "MobilenetV1/Conv2d_14/weights"])
def test_a_variable_of_no_layer(name, checkpoints, monkeypatch):
    tensors = bundle.read(checkpoints / "v1.ckpt") | {name: np.zeros(3, np.float32)}
    monkeypatch.setattr(bundle, "read", lambda where: tensors)
    with pytest.raises(InputError, match=f"'{name}' belongs to no layer"):
        slim.read(checkpoints / "v1.ckpt")


def test_averages_of_some_variables(checkpoints, monkeypatch):
    name = "MobilenetV2/expanded_conv_3/project/BatchNorm/gamma"
    tensors = bundle.read(checkpoints / "v2.ckpt")
    del tensors[f"{name}/ExponentialMovingAverage"]
    monkeypatch.setattr(bundle, "read", lambda where: tensors)
    with pytest.raises(InputError, match=f"'{name}' has no moving average.*raw"):
        slim.read(checkpoints / "v2.ckpt")
    assert "raw" in slim.read(checkpoints / "v2.ckpt", "raw").notes[0]


def test_averages_that_are_not_there(checkpoints, monkeypatch):
    tensors = {k: v for k, v in bundle.read(checkpoints / "v2.ckpt").items() if "Exponential" not in k}
    monkeypatch.setattr(bundle, "read", lambda where: tensors)
    assert "raw" in slim.read(checkpoints / "v2.ckpt").notes[0]
    with pytest.raises(InputError, match="averaged.*no moving averages"):
        slim.read(checkpoints / "v2.ckpt", "averaged")
