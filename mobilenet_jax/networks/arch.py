"""The list of layers of every network, as frozen data.

The model (`model.py`) and the cost (`cost.py`) walk the same `Architecture`, so neither can drift from the other.

Sources: Howard et al. 2017, "MobileNets" (arXiv:1704.04861), Table 1; Sandler et al. 2018, "MobileNetV2"
(arXiv:1801.04381), Tables 1 and 2; their TF-slim release for the rounding of widths.
"""

import dataclasses
from typing import Any

from mobilenet_jax.errors import InputError

VARIANTS = ("paper", "standard_conv", "shallow", "seed004")
STRIDES = ("imagenet", "cifar")
ACTIVATIONS = ("auto", "relu", "relu6")
BOTTLENECKS = ("linear", "relu6")
SHORTCUTS = ("bottleneck", "expansion", "none")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: SAME padding; batch norm and activation after every convolution; a bias in the classifier only."""

    name: str
    kind: str  # 'conv', 'depthwise', 'pointwise', 'pool' or 'dense'
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    activation: str | None = None  # 'relu', 'relu6', or None: linear
    shortcut: str | None = None  # name of an earlier layer whose output is added to this one's

    @property
    def norm(self) -> bool:
        """Whether batch normalisation follows: it does after every convolution."""
        return self.kind in ("conv", "depthwise", "pointwise")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A whole network. Images arrive as `[B, H, W, 3]`, scaled from 0..255 to `input_range`."""

    version: str
    layers: tuple[Layer, ...]
    bn_epsilon: float = 1e-3
    input_range: tuple[float, float] = (-1.0, 1.0)

    @property
    def num_classes(self) -> int:
        return self.layers[-1].out_channels


# (output channels, stride) of the 13 depthwise separable blocks: v1 paper, Table 1. The stride 2 that the paper prints
# for the last depthwise layer is a misprint: its input and output are both 7x7.
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
# The 28x28 CIFAR-10 network: 27 convolutions, the last ones 256 wide.
_SEED004_BLOCKS = ((64, 1), (64, 2), (128, 1), (128, 1), (128, 1), (256, 1), *((256, 1),) * 5, (256, 2), (256, 1))

# (channels, blocks, stride of the first block for ImageNet, the same for CIFAR): v2 paper, Table 2. The first stage is
# not expanded (t = 1), the others by t.
_V2_STAGES = ((16, 1, 1, 1), (24, 2, 2, 1), (32, 3, 2, 2), (64, 4, 2, 2), (96, 3, 1, 1), (160, 3, 2, 2), (320, 1, 1, 1))
_V2_HEAD = 1280


def _v1_width(channels: int, alpha: float) -> int:
    """TF-slim's rule for v1: truncate, and keep at least 8 channels."""
    return max(8, int(channels * alpha))


def make_divisible(value: float, divisor: int = 8) -> int:
    """TF-slim's rule for v2: the nearest multiple of `divisor`, never below 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha <= 8:
        raise InputError(f"alpha={alpha:g}: the width multiplier must be above 0 and at most 8")


def mobilenet_v1(
    alpha: float = 1.0,
    num_classes: int = 1000,
    strides: str = "imagenet",
    variant: str = "paper",
    activation: str = "auto",
    bn_epsilon: float = 1e-3,
) -> Architecture:
    """MobileNet v1 (paper, Table 1).

    Args:
      alpha: width multiplier; each width c becomes max(8, int(c * alpha)).
      num_classes: outputs of the classifier.
      strides: 'imagenet' (stem 2) or 'cifar' (stem 1).
      variant: 'paper'; 'standard_conv', each separable pair as one standard 3x3 convolution (paper, Table 4);
        'shallow', without the five 14x14x512 blocks (paper, Table 5); 'seed004', a 28x28 CIFAR-10 network of 27
        convolutions whose last rows are 256 wide ('cifar' strides only).
      activation: 'relu', 'relu6', or 'auto' (ReLU, as in the paper; TF-slim released it with ReLU6).
      bn_epsilon: added to the variance in batch norm.

    Raises:
      InputError: an argument outside what is allowed.
    """
    _check_alpha(alpha)
    _check("strides", strides, STRIDES)
    _check("variant", variant, VARIANTS)
    _check("activation", activation, ACTIVATIONS)
    if variant == "seed004" and strides != "cifar":
        raise InputError(f"strides={strides!r}: variant 'seed004' has 'cifar' strides only")
    act = "relu" if activation == "auto" else activation
    blocks = _SEED004_BLOCKS if variant == "seed004" else _V1_BLOCKS
    if variant == "shallow":
        blocks = blocks[:6] + blocks[11:]

    width = _v1_width(32, alpha)
    layers = [Layer("stem", "conv", 3, width, 3, 2 if strides == "imagenet" else 1, act)]
    for i, (channels, stride) in enumerate(blocks, 1):
        out = _v1_width(channels, alpha)
        if variant == "standard_conv":
            layers.append(Layer(f"block{i:02d}_conv", "conv", width, out, 3, stride, act))
        else:
            layers.append(Layer(f"block{i:02d}_depthwise", "depthwise", width, width, 3, stride, act))
            layers.append(Layer(f"block{i:02d}_pointwise", "pointwise", width, out, activation=act))
        width = out
    return Architecture("v1", (*layers, *_top(width, num_classes)), bn_epsilon)


def mobilenet_v2(
    alpha: float = 1.0,
    expansion: float = 6,
    num_classes: int = 1000,
    strides: str = "imagenet",
    activation: str = "auto",
    bottleneck: str = "linear",
    shortcut: str = "bottleneck",
    bn_epsilon: float = 1e-3,
) -> Architecture:
    """MobileNet v2 (paper, Tables 1 and 2): 17 inverted residuals with linear bottlenecks.

    Widths are rounded by `make_divisible`, the stem's too; the 1280-wide head is not shrunk for alpha < 1 (paper,
    section 6.1). A block whose expanded width equals its input width has no expanding convolution.

    Args:
      alpha: width multiplier.
      expansion: expansion ratio t of every stage but the first, which is never expanded.
      num_classes: outputs of the classifier.
      strides: 'imagenet' (224 -> 7) or 'cifar' (32 -> 4: stem 1, stages 1, 1, 2, 2, 1, 2, 1).
      activation: 'relu', 'relu6', or 'auto' (ReLU6, as in the paper).
      bottleneck: 'linear', or 'relu6' after the projection as well (paper, Figure 6a).
      shortcut: 'bottleneck', between the projections, at stride 1 and equal widths; 'expansion', between the expanded
        layers of consecutive blocks under the same condition; 'none' (paper, Figure 6b).
      bn_epsilon: added to the variance in batch norm.

    Raises:
      InputError: an argument outside what is allowed.
    """
    _check_alpha(alpha)
    if not 1 <= expansion <= 64:
        raise InputError(f"expansion={expansion:g}: the expansion ratio must be from 1 to 64")
    _check("strides", strides, STRIDES)
    _check("activation", activation, ACTIVATIONS)
    _check("bottleneck", bottleneck, BOTTLENECKS)
    _check("shortcut", shortcut, SHORTCUTS)
    act = "relu6" if activation == "auto" else activation
    projection_act = None if bottleneck == "linear" else "relu6"

    width = make_divisible(32 * alpha)
    layers = [Layer("stem", "conv", 3, width, 3, 2 if strides == "imagenet" else 1, act)]
    joinable: Layer | None = None  # what fed the depthwise layer of the block before, if that one has stride 1
    index = 0
    for stage, (channels, repeats, stride_imagenet, stride_cifar) in enumerate(_V2_STAGES):
        out = make_divisible(channels * alpha)
        for repeat in range(repeats):
            index += 1
            stride = 1 if repeat else (stride_imagenet if strides == "imagenet" else stride_cifar)
            expanded = make_divisible(width * (expansion if stage else 1))
            block_input = layers[-1].name
            if expanded != width:
                layers.append(Layer(f"block{index:02d}_expand", "pointwise", width, expanded, activation=act))
            feeds = layers[-1]
            if shortcut == "expansion" and joinable is not None and joinable.out_channels == feeds.out_channels:
                feeds = layers[-1] = dataclasses.replace(feeds, shortcut=joinable.name)
            joinable = feeds if stride == 1 else None
            layers.append(Layer(f"block{index:02d}_depthwise", "depthwise", expanded, expanded, 3, stride, act))
            source = block_input if shortcut == "bottleneck" and stride == 1 and width == out else None
            layers.append(
                Layer(
                    f"block{index:02d}_project", "pointwise", expanded, out, activation=projection_act, shortcut=source
                )
            )
            width = out
    head = make_divisible(_V2_HEAD * max(1.0, alpha))
    layers.append(Layer("head", "pointwise", width, head, activation=act))
    return Architecture("v2", (*layers, *_top(head, num_classes)), bn_epsilon)


def mobilenet(version: str, *args: Any, **options: Any) -> Architecture:
    """`mobilenet_v1` or `mobilenet_v2`, by the version's name ('v1', 'v2')."""
    return (mobilenet_v1 if version == "v1" else mobilenet_v2)(*args, **options)


def _top(width: int, num_classes: int) -> tuple[Layer, Layer]:
    """Global average pooling and the classifier."""
    if num_classes < 2:
        raise InputError(f"num_classes={num_classes}: a classifier needs at least 2")
    return Layer("pool", "pool", width, width), Layer("classifier", "dense", width, num_classes)
