"""Describe a foreign network: its layers in order, in our layout, and the conventions that its format fixes."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from mobilenet_jax.errors import InputError

_NORM = ("scale", "bias", "mean", "var")
_SYMMETRIC, _AFTER = [[1, 1], [1, 1]], [[0, 1], [0, 1]]  # zeros before and after height and width
CROPPED = "cropped"  # of `padding`
CROPPED_NOTE = "some maps have odd sides, of which it drops a row and a column that SAME padding keeps: logits differ"


@dataclasses.dataclass(frozen=True)
class Norm:
    """Batch norm of one layer: four arrays `[C]`."""

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


@dataclasses.dataclass(frozen=True)
class Part:
    """One convolution, with what follows it, or the classifier."""

    name: str  # of the kernel, in the source
    kind: str  # 'conv', 'depthwise', 'pointwise' or 'dense'
    kernel: np.ndarray  # `[K, K, C, C']`; depthwise `[K, K, 1, C]`; dense `[C, C']`
    bias: np.ndarray | None = None
    norm: Norm | None = None
    activation: str | None = None  # 'relu', 'relu6', or None: linear
    stride: int = 0  # 0: the source does not say


@dataclasses.dataclass(frozen=True)
class Source:
    """A foreign network. An image is normalised as by `records.weights.Network`."""

    format: str
    parts: tuple[Part, ...]
    bn_epsilon: float = 1e-3
    padding: str = "same"
    input_range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resolution: int = 0  # 0: the source does not say
    additions: int | None = None  # shortcuts; None: the source does not say
    notes: tuple[str, ...] = ()  # what was read or assumed, in sentences

    def to_bytes(self) -> bytes:
        """Return the source as a safetensors file."""
        tensors, parts = {}, []
        for i, part in enumerate(self.parts):
            arrays = {"kernel": part.kernel, "bias": part.bias}
            arrays |= {f"norm_{name}": getattr(part.norm, name) for name in _NORM} if part.norm else {}
            found = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
            tensors |= {f"{i}/{name}": array for name, array in found.items()}
            fields = {key: getattr(part, key) for key in ("name", "kind", "activation", "stride")}
            parts.append(fields | {"arrays": list(found)})
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return safetensors.save(tensors, {"source": json.dumps(fields | {"parts": parts})})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Source":
        """Return the source that `to_bytes` wrote."""
        size = int.from_bytes(content[:8], "little")
        fields = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["source"])
        tensors = safetensors.load(content)
        parts = []
        for i, part in enumerate(fields.pop("parts")):
            arrays: dict[str, Any] = {name: tensors[f"{i}/{name}"] for name in part.pop("arrays")}
            norm = {name: arrays.pop(f"norm_{name}") for name in _NORM if f"norm_{name}" in arrays}
            parts.append(Part(**part, **arrays, norm=Norm(**norm) if norm else None))
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        return cls(**fields | lists, parts=tuple(parts))


class Tensors:
    """The tensors of a source by name. Each must be taken once: `done` names one that is left."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, axes: Iterable[int] | None = None) -> np.ndarray:
        """Return a tensor as float32, with its axes in this order.

        Raises:
          InputError: there is no such tensor, or it has other axes, or its values are not finite numbers.
        """
        if name not in self._left:
            raise InputError(f"tensor {name!r} is missing")
        tensor = floats(name, self._left.pop(name))
        order = None if axes is None else tuple(axes)
        if order is not None and tensor.ndim != len(order):
            raise InputError(f"tensor {name!r} has {tensor.ndim} axes: must have {len(order)}")
        return tensor if order is None else tensor.transpose(order)

    def done(self) -> None:
        """Raise InputError if a tensor is left."""
        if self._left:
            raise InputError(f"tensor {min(self._left)!r} belongs to no layer of a MobileNet v1 or v2")


def padding(where: str, kernel: int, stride: int, own: str, zeros: list[list[int]] | None, size: int) -> set[str]:
    """Return our names of the padding of a convolution: one, or none where 'same' and 'symmetric' are the same.

    Zeros after the map, at stride 2, are SAME padding of an even map. An odd one loses a row and a column: `CROPPED`.

    Args:
      where: the layer, for messages.
      kernel: side of its kernel.
      own: its own padding, 'same' or 'valid'.
      zeros: those that a layer of their own adds before and after height and width, None without such a layer.
      size: side of the map, 0 if it is unknown, which counts as even.

    Raises:
      InputError: a MobileNet has no such padding.
    """
    differ = stride > 1 and size % 2 == 0
    if kernel == 1 and zeros is None:
        return set()
    if kernel > 1 and (own, zeros) == ("same", None):
        return {"same"} if differ else set()
    if kernel > 1 and (own, zeros) == ("valid", _SYMMETRIC):
        return {"symmetric"} if differ else set()
    if kernel > 1 and (own, zeros) == ("valid", _AFTER) and stride > 1:
        return {"same"} if differ else {CROPPED}
    raise InputError(f"{where} has padding {own!r} after zeros {zeros}: a MobileNet has none such")


def floats(name: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor of finite numbers as float32, or raise InputError."""
    if tensor.dtype.kind != "f":
        raise InputError(f"tensor {name!r} is of {tensor.dtype}: must hold floating-point numbers")
    with np.errstate(over="ignore"):
        tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"tensor {name!r} holds a value that is no finite float32")
    return tensor
