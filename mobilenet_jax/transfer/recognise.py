"""Recognise the network of a foreign file from its shapes, and turn its layers into our variables."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mobilenet_jax.data import imagenet
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.records import weights
from mobilenet_jax.transfer.source import Part, Source

_RELEASED = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4)  # width multipliers of published networks
_OTHERS = tuple(i / 100 for i in range(1, 201))
_RESOLUTION = 224  # of a source that does not say


def convert(source: Source, class_names: Sequence[str] = (), resolution: int = 0) -> tuple[Any, weights.Network]:
    """Return the variables of our network and its description.

    Args:
      class_names: in the order of the logits. Without them, 1000 and 1001 classes get ImageNet's names.
      resolution: side of the input in pixels; 0 for the source's, which is 224 if it does not say.

    Raises:
      InputError: the layers are not those of MobileNet v1 or v2 at any width multiplier.
    """
    options, network = recognise(source)
    if class_names and len(class_names) != network.num_classes:
        raise InputError(f"{len(class_names)} class names: the network has {network.num_classes} classes")
    names = tuple(class_names) or imagenet.class_names(network.num_classes)
    side = resolution or source.resolution or _RESOLUTION
    description = weights.Network(
        architecture=options,
        input_range=source.input_range,
        image_size=side,
        resolution=side,
        class_names=names,
        mean=source.mean,
        std=source.std,
        source=source.format,
    )
    if field := weights.odd_field(description):
        raise InputError(f"{field}={getattr(description, field)} is out of range")
    pairs = list(zip(network.weighted, source.parts, strict=True))
    params = {layer.name: _params(layer, part, source.bn_epsilon) for layer, part in pairs}
    statistics = {layer.name: {"bn": params[layer.name].pop("statistics")} for layer in network.weighted if layer.norm}
    return {"params": params, "batch_stats": statistics}, description


def recognise(source: Source) -> tuple[dict[str, Any], Architecture]:
    """Return the arguments of `arch.mobilenet` and the network whose layers have the source's shapes."""
    parts = source.parts
    same_kinds = [
        version
        for version in arch.VERSIONS
        if [layer.kind for layer in arch.mobilenet(version).weighted] == [p.kind for p in parts]
    ]
    if not same_kinds:
        raise InputError(f"{_kinds(parts)}: {_expected()}")
    version, classes = same_kinds[0], parts[-1].kernel.shape[-1]
    options: dict[str, Any] = {"version": version, "num_classes": classes, "bn_epsilon": source.bn_epsilon}
    options |= {"padding": source.padding, "activation": _activation(source)}
    furthest = (-1, "")
    for each in _candidates(version, parts):
        network = arch.mobilenet(**(options | each))
        fits, problem = _compare(network.weighted, parts)
        if not problem:
            options = _strides(options | each, parts)
            return options, _checked(arch.mobilenet(**options), source)
        furthest = max(furthest, (fits, f"{problem} at alpha={each['alpha']:g}"))
    raise InputError(f"no width multiplier of MobileNet {version} fits: {furthest[1]}")


def _kinds(parts: Sequence[Part | Layer]) -> str:
    count = {kind: sum(p.kind == kind for p in parts) for kind in ("conv", "depthwise", "pointwise", "dense")}
    return ", ".join(f"{n} {kind}" for kind, n in count.items())


def _expected() -> str:
    both = [f"{version} has {_kinds(arch.mobilenet(version).weighted)}" for version in arch.VERSIONS]
    return f"not the layers of a MobileNet ({'; '.join(both)}, in its order)"


def _candidates(version: str, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Yield width multipliers and expansion ratios, released ones first."""
    width = parts[-2].kernel.shape[-1] / 1024
    alphas = [*_RELEASED, *_OTHERS, *([width] if version == "v1" and 0 < width <= 8 else [])]
    ratios = [6.0]
    if version == "v2":
        narrow, wide = parts[3].kernel.shape[-2:]
        ratios += [wide / narrow] if narrow and 1 < wide / narrow <= 64 and wide != 6 * narrow else []
    for ratio in ratios:
        for alpha in alphas:
            yield {"alpha": alpha} if version == "v1" or ratio == 6 else {"alpha": alpha, "expansion": ratio}


def _compare(layers: Sequence[Layer], parts: Sequence[Part]) -> tuple[int, str]:
    """Return how many parts fit, and what is wrong with the next one, '' if all fit."""
    if len(layers) != len(parts):  # an expanding convolution is left out at a ratio of 1
        return 0, f"the network has {len(layers)} layers, not {len(parts)}"
    for i, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        wanted = layer.kernel_shape[2:] if layer.kind == "dense" else layer.kernel_shape
        if part.kernel.shape != wanted:
            return i, f"tensor {part.name!r} is {list(part.kernel.shape)} in our order of axes, not {list(wanted)}"
        vectors = [part.bias, *(vars(part.norm).values() if part.norm else ())]
        if any(vector is not None and vector.shape != (layer.out_channels,) for vector in vectors):
            return i, f"a bias or batch norm after {part.name!r} does not have {layer.out_channels} values"
        if (part.norm is None and part.bias is None) or (part.norm is not None and part.bias is not None):
            return i, f"{part.name!r} must have either batch norm or a bias"
        if layer.kind == "dense" and part.norm is not None:
            return i, f"{part.name!r} is the classifier, and has batch norm"
        if part.norm is not None and (part.norm.var < 0).any():
            return i, f"the variance after {part.name!r} is negative"
    return len(parts), ""


def _activation(source: Source) -> str:
    """Return the one activation of the source: it is never a default."""
    found = {part.activation for part in source.parts} - {None}
    if found - {"relu", "relu6"} or len(found) != 1:
        raise InputError(f"activations {sorted(map(str, found))}: must be ReLU or ReLU6 in all layers")
    return str(found.pop())


def _checked(network: Architecture, source: Source) -> Architecture:
    """Return the network, or raise InputError if the source says that it computes something else."""
    for layer, part in zip(network.weighted, source.parts, strict=True):
        if layer.activation != part.activation:
            raise InputError(f"the activation after {part.name!r} is {part.activation}: must be {layer.activation}")
    shortcuts = sum(layer.shortcut is not None for layer in network.weighted)
    if source.additions not in (None, shortcuts):
        raise InputError(f"{source.additions} shortcuts: a MobileNet {network.version} of these shapes has {shortcuts}")
    return network


def _strides(options: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Return the options with the strides of the source, where it has them."""
    found = [part.stride for part in parts[:-1]]
    if not any(found):
        return options
    for strides in arch.STRIDES:
        if [layer.stride for layer in arch.mobilenet(**options, strides=strides).weighted[:-1]] == found:
            return options if strides == "imagenet" else options | {"strides": strides}
    raise InputError(f"strides {found}: allowed are those for ImageNet and those for CIFAR-10")


def _params(layer: Layer, part: Part, epsilon: float) -> dict[str, Any]:
    """Return the parameters of a layer, and with batch norm its statistics."""
    if layer.kind == "dense":
        return {"kernel": part.kernel, "bias": part.bias}
    if (norm := part.norm) is not None:
        bn, statistics = {"scale": norm.scale, "bias": norm.bias}, {"mean": norm.mean, "var": norm.var}
    else:  # batch norm is folded into kernel and bias: what is left of it divides by 1
        ones = np.ones_like(part.bias)
        bn, statistics = {"scale": ones, "bias": part.bias}, {"mean": 0 * ones, "var": ones * np.float32(1 - epsilon)}
    return {"kernel": part.kernel, "bn": bn, "statistics": statistics}
