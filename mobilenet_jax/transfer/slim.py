"""Map the variables of a TF-slim checkpoint of MobileNet v1 or v2.

Source: tensorflow/models `research/slim/nets/mobilenet_v1.py` and `nets/mobilenet/mobilenet_v2.py`. Both networks were
released with ReLU6. Class 0 of their 1001 classes is the background.
"""

import pathlib
import re

import numpy as np

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Layer
from mobilenet_jax.transfer import bundle
from mobilenet_jax.transfer.source import Norm, Part, Source, Tensors

prefix = bundle.prefix
_AVERAGE = "ExponentialMovingAverage"
_STATISTIC = re.compile(r".*/moving_(mean|variance)")
_TRAINING = re.compile(r"(.*/)?(RMSProp(_\d+)?|Momentum|Adam(_\d+)?|global_step|beta[12]_power)$")  # left by optimisers


def read(where: pathlib.Path, variables: str = "auto") -> Source:
    """Return the network of a checkpoint.

    Args:
      where: prefix of its files.
      variables: 'raw', 'averaged' (the moving averages of weights, where there are any), or 'auto': averaged for v2,
        raw for v1, as Hugging Face's converters take them. Batch norm's running statistics are always the raw ones.

    Raises:
      InputError: its files are damaged, or hold other variables.
    """
    found = {name: tensor for name, tensor in bundle.read(where).items() if not _TRAINING.fullmatch(name)}
    version = "v2" if any(name.startswith("MobilenetV2/") for name in found) else "v1"
    averages = {name.removesuffix(f"/{_AVERAGE}"): found[name] for name in found if name.endswith(f"/{_AVERAGE}")}
    raw = {name: tensor for name, tensor in found.items() if not name.endswith(f"/{_AVERAGE}")}
    trained = {name: tensor for name, tensor in averages.items() if not _STATISTIC.fullmatch(name)}
    if unknown := sorted(averages.keys() - raw.keys()):
        raise InputError(f"tensor {unknown[0] + '/' + _AVERAGE!r} averages a variable that is missing")
    averaged = variables == "averaged" or (variables == "auto" and version == "v2" and bool(trained))
    if variables == "averaged" and not trained:
        raise InputError("--variables=averaged: the checkpoint has no moving averages of weights")
    single = sorted(name for name in raw.keys() - trained.keys() if not _STATISTIC.fullmatch(name))
    if averaged and single:
        raise InputError(f"tensor {single[0]!r} has no moving average, as others have: give --variables=raw")
    tensors = Tensors(raw | trained if averaged else raw)
    layers = arch.mobilenet(version, activation="relu6").weighted
    names = _v2_names() if version == "v2" else _v1_names()
    parts = [_part(tensors, layer, name) for layer, name in zip(layers, names, strict=True)]
    tensors.done()
    kind = "averaged" if averaged else "raw"
    others = "the moving averages were left out" if averages and not averaged else ""
    return Source(
        format="TF-slim",
        parts=tuple(parts),
        notes=tuple(filter(None, [f"weights are the {kind} variables", others, "pixels are scaled to [-1, 1]"])),
    )


def _v1_names() -> list[str]:
    pairs = [[f"Conv2d_{i}_depthwise", f"Conv2d_{i}_pointwise"] for i in range(1, 14)]
    names = ["Conv2d_0", *(name for pair in pairs for name in pair), "Logits/Conv2d_1c_1x1"]
    return [f"MobilenetV1/{name}" for name in names]


def _v2_names() -> list[str]:
    blocks = [f"expanded_conv_{i}/{name}" for i in range(1, 17) for name in ("expand", "depthwise", "project")]
    first = ["Conv", "expanded_conv/depthwise", "expanded_conv/project"]
    return [f"MobilenetV2/{name}" for name in (*first, *blocks, "Conv_1", "Logits/Conv2d_1c_1x1")]


def _part(tensors: Tensors, layer: Layer, name: str) -> Part:
    if layer.kind == "dense":
        kernel, bias = tensors.take(f"{name}/weights", range(4)), tensors.take(f"{name}/biases", range(1))
        if kernel.shape[:2] != (1, 1):
            raise InputError(f"tensor '{name}/weights' is {list(kernel.shape)}: must be a 1x1 convolution")
        return Part(f"{name}/weights", layer.kind, kernel[0, 0], bias)
    depthwise = layer.kind == "depthwise"
    key = f"{name}/{'depthwise_' if depthwise else ''}weights"
    kernel = tensors.take(key, (0, 1, 3, 2) if depthwise else range(4))
    norm = [
        tensors.take(f"{name}/BatchNorm/{x}", range(1)) for x in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    return Part(key, layer.kind, np.ascontiguousarray(kernel), None, Norm(*norm), layer.activation)
