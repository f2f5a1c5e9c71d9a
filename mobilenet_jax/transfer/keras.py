"""Read a network from Keras's files: HDF5 (`.h5`) and the zip archives of Keras 3 (`.keras`). Keras is not needed.

The layers are taken in the order of the model, so their names do not matter. Source of the conventions: Keras 2.8 and
3.15, `applications/mobilenet.py` and `mobilenet_v2.py`.
"""

import dataclasses
import io
import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer.source import CROPPED, CROPPED_NOTE, Norm, Part, Source, floats, padding

_LIMIT = 2**31  # bytes of one member of an archive


@dataclasses.dataclass
class _Layer:
    """A layer of the model: its class, its settings and its arrays by name, without suffix."""

    name: str
    kind: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def take(self, name: str, axes: int) -> np.ndarray:
        if name not in self.arrays:
            raise InputError(f"tensor '{self.name}/{name}' is missing")
        tensor = floats(f"{self.name}/{name}", self.arrays.pop(name))
        if tensor.ndim != axes:
            raise InputError(f"tensor '{self.name}/{name}' has {tensor.ndim} axes: must have {axes}")
        return tensor


def read(path: pathlib.Path) -> Source:
    """Return the network in the file; raises InputError over anything else."""
    import h5py  # late: an optional dependency

    if not zipfile.is_zipfile(path):
        with h5py.File(path, "r") as file:
            tensors = _Tensors(_inner(file, "model_weights") if "model_weights" in file else file)
            return _source(_legacy_layers(file, tensors))
    with zipfile.ZipFile(path) as archive:
        config = json.loads(_member(archive, "config.json"))
        with h5py.File(io.BytesIO(_member(archive, "model.weights.h5")), "r") as file:
            return _source(_new_layers(config, _Tensors(_inner(file, "layers"))))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise InputError(f"the archive has no {name!r}: it is no .keras file")
    with archive.open(name) as file:
        content = file.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise InputError(f"{name!r} in the archive unpacks to more than {_LIMIT:,} bytes")
    return content


class _Tensors:
    """The tensors below a group. Each must lie in the file and be taken once: `done` names one that is left."""

    def __init__(self, top: Any):
        self.top = top
        self._taken = set[Any]()  # a tensor under two names is one element: h5py compares addresses in the file

    def take(self, group: Any, name: str) -> np.ndarray:
        data = _inner(group, name)
        if not hasattr(data, "shape") or data.external or data.is_virtual:
            raise InputError(f"tensor {name!r} does not lie in this file")
        if data.dtype.kind != "f" or data.size * data.dtype.itemsize > _LIMIT:
            raise InputError(f"tensor {name!r} is of {data.dtype} {data.shape}: must hold floating-point numbers")
        if data in self._taken:
            raise InputError(f"tensor {name!r} belongs to two layers")
        self._taken.add(data)
        return data[()]

    def done(self) -> None:
        def check(name: str, each: Any) -> None:
            # Keras 3 stores the state of random generators, such as dropout's, with the tensors.
            if hasattr(each, "shape") and each not in self._taken and "/seed_generator/" not in f"/{name}":
                raise InputError(f"tensor {name!r} belongs to no layer of a MobileNet v1 or v2")

        self.top.visititems(check)


def _legacy_layers(file: Any, tensors: _Tensors) -> list[_Layer]:
    """Return the layers of an HDF5 file of a whole model, or of its weights alone."""
    top = tensors.top
    if "layer_names" not in top.attrs:
        raise InputError("has no attribute 'layer_names', the order of the layers: save the whole model with Keras")
    settings = {}
    if "model_config" in file.attrs:
        for layer in _configs(json.loads(file.attrs["model_config"])):
            settings[layer["config"]["name"]] = layer
    elif "keras_version" not in file.attrs:
        raise InputError("has neither 'model_config' nor 'keras_version': it is no model of Keras")
    layers = []
    for raw in top.attrs["layer_names"]:
        name = _text(raw)
        group = _inner(top, name)
        arrays = {}
        for weight in map(_text, group.attrs["weight_names"]):
            arrays[weight.rpartition("/")[2].removesuffix(":0")] = tensors.take(group, weight)
        layer = settings.get(name, {"class_name": "", "config": {}})
        layers.append(_Layer(name, layer["class_name"], layer["config"], arrays))
    tensors.done()
    if not settings:
        for layer in layers:
            _guess(layer)
    return layers


def _new_layers(config: dict[str, Any], tensors: _Tensors) -> list[_Layer]:
    """Return the layers of an archive of Keras 3.

    Its tensors have the name of the layer's class, with the number of such layers before it, and are numbered within
    the layer. The layer's own name may be that of another layer's tensors.
    """
    counts, layers = dict[str, int](), []
    for layer in _configs(config):
        kind, settings = layer["class_name"], layer["config"]
        number = counts[kind] = counts.get(kind, -1) + 1
        arrays = {}
        if kind in _NUMBERED:
            snake, names = _NUMBERED[kind]
            key = f"{snake}_{number}/vars" if number else f"{snake}/vars"
            arrays = {name: tensors.take(tensors.top, f"{key}/{i}") for i, name in enumerate(names(settings))}
        layers.append(_Layer(settings["name"], kind, settings, arrays))
    tensors.done()
    return layers


def _normal(settings: dict[str, Any]) -> tuple[str, ...]:
    scaled = ("gamma",) * bool(settings.get("scale", True)) + ("beta",) * bool(settings.get("center", True))
    return (*scaled, "moving_mean", "moving_variance")


def _kernel(settings: dict[str, Any]) -> tuple[str, ...]:
    return ("kernel", *(("bias",) * bool(settings["use_bias"])))


# The class of a layer -> the start of its name in an archive, and the names of its tensors in their order.
_NUMBERED = {
    "Conv2D": ("conv2d", _kernel),
    "DepthwiseConv2D": ("depthwise_conv2d", _kernel),
    "Dense": ("dense", _kernel),
    "BatchNormalization": ("batch_normalization", _normal),
}


def _configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each layer, in order; those of a model inside the model in its place."""
    found = []
    for layer in config["config"]["layers"]:
        nested = isinstance(layer["config"], dict) and "layers" in layer["config"]
        if nested:
            raise InputError(f"layer {layer['config'].get('name')!r} is a model of its own: save a flat model")
        found.append(layer)
    return found


def _guess(layer: _Layer) -> None:
    """Set the class of a layer of a file without settings: the conventions are then those of Keras's own networks."""
    names = layer.arrays.keys()
    kernel = layer.arrays.get("kernel", np.zeros(0))
    if "depthwise_kernel" in names or (kernel.ndim == 4 and kernel.shape[0] > 1 and kernel.shape[3] == 1):
        layer.kind = "DepthwiseConv2D"
    elif "moving_mean" in names:
        layer.kind = "BatchNormalization"
    elif "kernel" in names:
        layer.kind = "Conv2D" if kernel.ndim == 4 else "Dense"
    elif names:
        raise InputError(f"layer {layer.name!r} has tensor {min(names)!r}: it is none of a MobileNet's layers")


def _inner(group: Any, name: str) -> Any:
    """Return what a group has under a name; raises InputError if that is a link, which may lead out of the file."""
    import h5py

    for part in name.split("/"):
        if part not in group or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise InputError(f"{name!r} is missing, or is a link to another place")
        group = group[part]
    return group


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _source(layers: list[_Layer]) -> Source:
    """Put the layers together: a convolution, its batch norm and its activation become one part."""
    known = any(layer.settings for layer in layers)
    parts: list[Part] = []
    epsilons, paddings, zeros = set(), set(), None
    resolution, size, additions, input_range = 0, 0, 0, (-1.0, 1.0)
    shape: list[Any]
    for layer in layers:
        kind, settings = layer.kind, layer.settings
        if kind in ("Conv2D", "DepthwiseConv2D"):
            parts.append(_convolution(layer, known))
            if known:
                own, kernel, stride = settings["padding"], parts[-1].kernel.shape[0], parts[-1].stride
                paddings |= padding(f"layer {layer.name!r}", kernel, stride, own, zeros, size)
                size = -(-size // stride)
            zeros = None
        elif kind == "BatchNormalization":
            if not parts or parts[-1].norm or parts[-1].activation:
                raise InputError(f"batch norm {layer.name!r} does not follow a convolution")
            parts[-1] = dataclasses.replace(parts[-1], norm=_norm(layer, known))
            epsilons.add(float(settings.get("epsilon", 1e-3)))
        elif kind == "Dense":
            parts.append(Part(f"{layer.name}/kernel", "dense", layer.take("kernel", 2), layer.take("bias", 1)))
        elif kind in ("ReLU", "Activation"):
            if (name := _activation(layer)) and parts:
                parts[-1] = dataclasses.replace(parts[-1], activation=name)
        elif kind == "ZeroPadding2D":
            zeros = [list(pair) for pair in settings["padding"]]
        elif kind == "InputLayer":
            shape = settings.get("batch_input_shape") or settings.get("batch_shape") or [None] * 4
            if len(shape) == 4 and isinstance(shape[1], int) and shape[1] == shape[2]:
                resolution = size = shape[1]
        elif kind == "Rescaling":
            scale, offset = float(settings["scale"]), float(settings["offset"])
            input_range = (offset, 255 * scale + offset)
        elif kind == "Add":
            additions += 1
        elif kind not in ("GlobalAveragePooling2D", "Dropout", "Reshape", "Flatten", ""):
            raise InputError(f"layer {layer.name!r} is a {kind}: a MobileNet has none")
        if layer.arrays:
            raise InputError(f"tensor '{layer.name}/{min(layer.arrays)}' belongs to no layer of a MobileNet v1 or v2")
    if not parts:
        raise InputError("has no convolution")
    if len(epsilons) > 1 or len(paddings - {CROPPED}) > 1:
        raise InputError(f"batch norm's epsilons {sorted(epsilons)}, paddings {sorted(paddings)}: must be one of each")
    notes = [
        f"pixels are scaled to {list(input_range)}" + (", as by Keras's preprocess_input" if input_range[0] else "")
    ]
    if CROPPED in paddings:
        notes.append(CROPPED_NOTE)
    if not known:
        parts = _with_relu6(parts)
        notes.append("the file has no settings: ReLU6, epsilon 0.001 and SAME padding are those of Keras's networks")
    return Source(
        format="Keras",
        parts=(*parts[:-1], _classifier(parts[-1])),
        bn_epsilon=epsilons.pop() if epsilons else 1e-3,
        padding="symmetric" if "symmetric" in paddings else "same",
        input_range=input_range,
        resolution=resolution,
        additions=additions if known else None,
        notes=tuple(notes),
    )


def _convolution(layer: _Layer, known: bool) -> Part:
    settings, depthwise = layer.settings, layer.kind == "DepthwiseConv2D"
    name = "depthwise_kernel" if depthwise and "depthwise_kernel" in layer.arrays else "kernel"
    kernel = layer.take(name, 4)
    bias = layer.take("bias", 1) if "bias" in layer.arrays else None
    stride = 0
    if known:
        plain = settings["data_format"] == "channels_last" and tuple(settings.get("dilation_rate", (1, 1))) == (1, 1)
        if not plain or settings.get("groups", 1) != 1 or settings["strides"][0] != settings["strides"][1]:
            raise InputError(f"layer {layer.name!r} has another layout, dilation, groups or strides than a MobileNet")
        stride = int(settings["strides"][0])
    if depthwise and kernel.shape[3] != 1:
        raise InputError(f"tensor '{layer.name}/{name}' has {kernel.shape[3]} outputs per channel: must have 1")
    kind = "depthwise" if depthwise else "conv" if kernel.shape[0] > 1 else "pointwise"
    part = Part(f"{layer.name}/{name}", kind, kernel.transpose(0, 1, 3, 2) if depthwise else kernel, bias, None, None)
    activation = _activation(layer) if settings.get("activation", "linear") != "linear" else None
    return dataclasses.replace(part, stride=stride, activation=activation)


def _norm(layer: _Layer, known: bool) -> Norm:
    mean, var = layer.take("moving_mean", 1), layer.take("moving_variance", 1)
    settings, ones = layer.settings, np.ones_like(mean)
    scale = ones if known and not settings.get("scale", True) else layer.take("gamma", 1)
    bias = 0 * ones if known and not settings.get("center", True) else layer.take("beta", 1)
    return Norm(scale, bias, mean, var)


def _activation(layer: _Layer) -> str | None:
    """Return the activation of a layer, None for one that changes no order of the logits."""
    settings = layer.settings
    if layer.kind != "ReLU":
        name = settings["activation"]
        if name in ("softmax", "linear"):
            return None
        if name in ("relu", "relu6"):
            return name
        raise InputError(f"layer {layer.name!r} has activation {name!r}: allowed are relu and relu6")
    limit, plain = settings.get("max_value"), not (settings.get("negative_slope") or settings.get("threshold"))
    if not plain or limit not in (None, 6):
        raise InputError(f"layer {layer.name!r} is no plain ReLU and no ReLU6: max_value is {limit}")
    return "relu" if limit is None else "relu6"


def _with_relu6(parts: list[Part]) -> list[Part]:
    """Give all but the linear projections of v2 and the classifier a ReLU6."""
    v2 = len(parts) > 28  # v1 has 27 convolutions and a classifier

    def linear(i: int) -> bool:
        before = parts[i - 1].kind if i else ""
        return i == len(parts) - 1 or (v2 and parts[i].kind == "pointwise" and before == "depthwise")

    return [part if linear(i) else dataclasses.replace(part, activation="relu6") for i, part in enumerate(parts)]


def _classifier(part: Part) -> Part:
    """Return a 1x1 convolution at the end as the dense layer that it is."""
    if part.kind != "pointwise" or part.norm is not None:
        return part
    return dataclasses.replace(part, kind="dense", kernel=part.kernel[0, 0], stride=0)
