"""What the tests of foreign weights share: seeded tensors, recorded references, the logits of what was read."""

import json
import lzma
import os
import pathlib
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

DATA = pathlib.Path(__file__).parent / "transfer" / "data"


def tensor(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return a random tensor that its name determines, of a size that keeps activations near 1.

    With weights of twice the variance, v2's linear layers grow, and two libraries differ by 5e-4 in float32.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:  # OIHW, or [outputs, inputs]
        return rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape).astype(np.float32)
    low, high = {"weight": (0.8, 1.4), "running_var": (0.5, 1.5)}.get(name.rpartition(".")[2], (-0.2, 0.2))
    return rng.uniform(low, high, shape).astype(np.float32)


def images(count: int, side: int) -> np.ndarray:
    """Return random images, uint8 `[count, side, side, 3]`, of large blocks: pixels alone would average out."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, -(-side // 8), -(-side // 8), 3), np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)[:, :side, :side]


def torch_references() -> dict[str, Any]:
    """Return what `make_references.py torch` recorded: by network its tensors' shapes, `config.json` and logits."""
    return json.loads(lzma.decompress((DATA / "torch.json.xz").read_bytes()))


def unpacked(name: str, directory: pathlib.Path) -> pathlib.Path:
    """Unpack an archive of `data/` into a directory, and return the directory."""
    with tarfile.open(DATA / name) as archive:
        archive.extractall(directory, filter="data")
    return directory


def shared() -> pathlib.Path:
    """Return the directory of real weights and images, or skip the test."""
    found = os.environ.get("MOBILENET_JAX_TEST_DATA")
    if not found or not pathlib.Path(found, "weights").is_dir():
        pytest.skip("MOBILENET_JAX_TEST_DATA names no directory with official weights")
    return pathlib.Path(found)


def logits(source: Any, pictures: np.ndarray, **changes: Any) -> np.ndarray:
    """Return the logits of a source; `changes` are fields of it that are set to something else first."""
    import dataclasses

    import jax

    from mobilenet_jax.model import mobilenet
    from mobilenet_jax.transfer import recognise

    variables, network = recognise.convert(dataclasses.replace(source, **changes), resolution=pictures.shape[1])
    loaded = mobilenet.assemble(variables, network, "test")
    return np.asarray(jax.jit(loaded.module.apply)(variables, loaded.preprocess(jax.numpy.asarray(pictures))))


def with_relu(source: Any) -> dict[str, Any]:
    """Return the change of a source whose ReLU6 all become ReLU."""
    import dataclasses

    parts = [dataclasses.replace(part, activation=part.activation and "relu") for part in source.parts]
    return {"parts": tuple(parts)}


def slim_tensors(version: str) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of TF-slim's variables at the smallest width, with 5 classes."""
    from mobilenet_jax.networks import arch

    pairs = [f"Conv2d_{i}_{kind}" for i in range(1, 14) for kind in ("depthwise", "pointwise")]
    blocks = [f"expanded_conv_{i}/{name}" for i in range(1, 17) for name in ("expand", "depthwise", "project")]
    inner = ["expanded_conv/depthwise", "expanded_conv/project", *blocks]
    names = ["Conv2d_0", *pairs] if version == "v1" else ["Conv", *inner, "Conv_1"]
    top, shapes = f"Mobilenet{version.upper()}", {}
    layers = [layer for layer in arch.mobilenet(version, 8 / 1024, num_classes=5).layers if layer.norm]
    for name, layer in zip(names, layers, strict=True):
        height, width, inputs, outputs = layer.kernel_shape
        if layer.kind == "depthwise":
            shapes[f"{top}/{name}/depthwise_weights"] = (height, width, outputs, 1)
        else:
            shapes[f"{top}/{name}/weights"] = (height, width, inputs, outputs)
        for norm in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{top}/{name}/BatchNorm/{norm}"] = (outputs,)
    classifier = f"{top}/Logits/Conv2d_1c_1x1"
    return shapes | {f"{classifier}/weights": (1, 1, layers[-1].out_channels, 5), f"{classifier}/biases": (5,)}


def slim_value(number: int, kind: int, shape: Sequence[int]) -> np.ndarray:
    """Return values that differ between tensors, between a tensor and its average, and within each; they compress."""
    count = int(np.prod(shape))
    return (number + np.arange(count) % 31 / 32 + kind / 4096).reshape(shape).astype(np.float32)
