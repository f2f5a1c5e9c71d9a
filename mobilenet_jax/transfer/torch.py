"""Map the tensors of PyTorch networks in safetensors files: torchvision, timm, Hugging Face. PyTorch is not needed.

Sources: torchvision 0.29, `models/mobilenetv2.py`; timm 1.0, `models/efficientnet.py` and `mobilenetv3.py`;
transformers 4, `models/mobilenet_v1` and `mobilenet_v2`. All have ReLU6.
"""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.files import read_json_object
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Layer
from mobilenet_jax.transfer.source import Norm, Part, Source, Tensors

_IMAGENET = {"input_range": (0.0, 1.0), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_PYTORCH = {"bn_epsilon": 1e-5, "padding": "symmetric"}


def read(path: pathlib.Path) -> Source:
    """Return the network in a file; raises InputError over anything else."""
    try:
        found = safetensors.load(path.read_bytes())
    except SafetensorError as e:
        raise InputError(f"is no safetensors file ({first_line(e)})") from None
    except KeyError as e:  # a type that NumPy does not have
        raise InputError(f"has tensors of type {e}: save them as float32") from None
    found = {name: tensor for name, tensor in found.items() if not name.endswith(".num_batches_tracked")}
    config = _config(path)
    for marker, mapping in _MAPPINGS.items():
        if marker in found:
            return mapping(Tensors(found), config)
    if any(name.startswith("params/") for name in found):  # `records.weights`
        raise InputError("is already a file of this package")
    raise InputError(f"has none of the tensors {', '.join(_MAPPINGS)}: it is no MobileNet of {_FROM}")


_FROM = "torchvision, timm or Hugging Face"


def _config(path: pathlib.Path) -> dict[str, Any]:
    """Return what is in `config.json` next to the file, as timm and Hugging Face save it; {} if there is none."""
    try:
        return read_json_object(path.with_name("config.json"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise InputError(f"config.json next to the file cannot be read ({first_line(e)})") from None


def _torchvision(tensors: Tensors, config: dict[str, Any]) -> Source:
    names = [("features.0.0", "features.0.1"), ("features.1.conv.0.0", "features.1.conv.0.1")]
    names += [("features.1.conv.1", "features.1.conv.2")]
    for i in range(2, 18):
        block = f"features.{i}.conv"
        names += [(f"{block}.0.0", f"{block}.0.1"), (f"{block}.1.0", f"{block}.1.1"), (f"{block}.2", f"{block}.3")]
    names += [("features.18.0", "features.18.1"), ("classifier.1", "")]
    return Source("torchvision", _parts(tensors, "v2", names), **_PYTORCH, **_IMAGENET, notes=_notes(_IMAGENET))


def _timm(tensors: Tensors, config: dict[str, Any]) -> Source:
    v2 = "conv_head.weight" in tensors
    depths = (1, 2, 3, 4, 3, 3, 1) if v2 else (1, 2, 2, 6, 2)
    names = [("conv_stem", "bn1")]
    for stage, depth in enumerate(depths):
        for block in (f"blocks.{stage}.{i}" for i in range(depth)):
            pair = [(f"{block}.conv_dw", f"{block}.bn1"), (f"{block}.conv_pw", f"{block}.bn2")]
            expanded = [(f"{block}.{x}", f"{block}.bn{i}") for i, x in enumerate(("conv_pw", "conv_dw", "conv_pwl"), 1)]
            names += expanded if v2 and stage else pair
    names += [*([("conv_head", "bn2")] if v2 else []), ("classifier", "")]
    saved = config.get("pretrained_cfg", config)
    view: dict[str, Any] = dict(_IMAGENET) if v2 else {"input_range": (0.0, 1.0), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    if isinstance(saved, dict):
        view |= {key: _channels(key, saved[key]) for key in ("mean", "std") if key in saved}
        view["resolution"] = _side(saved.get("input_size"))
    return Source("timm", _parts(tensors, "v2" if v2 else "v1", names), **_PYTORCH, **view, notes=_notes(view))


def _hugging_face(tensors: Tensors, config: dict[str, Any]) -> Source:
    v2 = "mobilenet_v2.conv_stem.first_conv.convolution.weight" in tensors
    if v2:
        layers = [f"conv_stem.{name}" for name in ("first_conv", "conv_3x3", "reduce_1x1")]
        layers += [f"layer.{i}.{name}" for i in range(16) for name in ("expand_1x1", "conv_3x3", "reduce_1x1")]
        layers += ["conv_1x1"]
    else:
        layers = ["conv_stem", *(f"layer.{i}" for i in range(26))]
    top = "mobilenet_v2" if v2 else "mobilenet_v1"
    names = [(f"{top}.{name}.convolution", f"{top}.{name}.normalization") for name in layers]
    same, epsilon, act = (
        config.get(key, value)
        for key, value in {"tf_padding": True, "layer_norm_eps": 1e-3, "hidden_act": "relu6"}.items()
    )
    if (stride := config.get("output_stride", 32)) != 32:
        raise InputError(f"config.json: output_stride={stride!r}: must be 32, as other networks are dilated")
    if not isinstance(same, bool) or not isinstance(epsilon, float) or not 0 < epsilon < 1 or act != "relu6":
        raise InputError(f"config.json: tf_padding={same!r}, layer_norm_eps={epsilon!r}, hidden_act={act!r} do not fit")
    notes = ("pixels are scaled to [-1, 1]",)
    if "tf_padding" not in config:
        notes += ("there is no config.json with tf_padding: SAME padding is assumed",)
    parts = _parts(tensors, top[-2:], [*names, ("classifier", "")])
    if v2 and parts[0].kernel.shape[-1] == parts[2].kernel.shape[-1]:  # as at widths below 0.35
        raise InputError(f"{parts[2].name!r} is as wide as the stem: Hugging Face has no shortcut there, ours has")
    side, padding = _side(config.get("image_size")), "same" if same else "symmetric"
    return Source("Hugging Face", parts, bn_epsilon=epsilon, padding=padding, resolution=side, notes=notes)


# The first layer's kernel tells the libraries apart.
_MAPPINGS = {
    "features.0.0.weight": _torchvision,
    "conv_stem.weight": _timm,
    "mobilenet_v1.conv_stem.convolution.weight": _hugging_face,
    "mobilenet_v2.conv_stem.first_conv.convolution.weight": _hugging_face,
}


def _parts(tensors: Tensors, version: str, names: list[tuple[str, str]]) -> tuple[Part, ...]:
    """Return the parts by the names of their convolutions and batch norms. Each tensor must be used."""
    layers = arch.mobilenet(version, activation="relu6").weighted
    parts = tuple(_part(tensors, layer, *pair) for layer, pair in zip(layers, names, strict=True))
    tensors.done()
    return parts


def _part(tensors: Tensors, layer: Layer, name: str, norm: str) -> Part:
    key = f"{name}.weight"
    if layer.kind == "dense":
        kernel, bias = tensors.take(key, (1, 0)), tensors.take(f"{name}.bias", (0,))
        return Part(key, layer.kind, np.ascontiguousarray(kernel), bias)
    kernel = np.ascontiguousarray(tensors.take(key, (2, 3, 1, 0)))  # OIHW; depthwise [C, 1, K, K]
    values = [tensors.take(f"{norm}.{x}", (0,)) for x in ("weight", "bias", "running_mean", "running_var")]
    return Part(key, layer.kind, kernel, None, Norm(*values), layer.activation)


def _channels(key: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and len(value) == 3 and all(isinstance(x, int | float) for x in value)
    if not numbers or (key == "std" and min(value) <= 0):
        raise InputError(f"config.json: {key}={json.dumps(value)}: must be three numbers")
    return tuple(map(float, value))


def _side(size: Any) -> int:
    """Return the side of a square given as a number or a list that ends with it; 0 if it is something else."""
    last = size[-1] if isinstance(size, list) and size else size
    return last if type(last) is int and last > 0 else 0


def _notes(view: dict[str, Any]) -> tuple[str, ...]:
    mean, std = (", ".join(f"{x:g}" for x in view[key]) for key in ("mean", "std"))
    return (f"pixels are scaled to [0, 1], then mean {mean} is subtracted, and the result divided by {std}",)
