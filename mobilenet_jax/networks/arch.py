"""Build every network as a frozen list of layers, which both the model (`model/`) and the cost (`cost.py`) walk.

Sources: Howard et al. 2017, "MobileNets" (arXiv:1704.04861), Table 1. Sandler et al. 2018, "MobileNetV2"
(arXiv:1801.04381), Tables 1 and 2. Their TF-slim release for the rounding of widths.
"""

import dataclasses
import itertools
from collections.abc import Callable

from mobilenet_jax.errors import InputError, number

VARIANTS = ("paper", "standard_conv", "shallow", "cifar28")
ALIASES = {"seed004": "cifar28"}  # former names of variants, still accepted
STRIDES = ("imagenet", "cifar")
ACTIVATIONS = ("auto", "relu", "relu6")
BOTTLENECKS = ("linear", "relu6")
SHORTCUTS = ("bottleneck", "expansion", "none")
PADDINGS = ("same", "symmetric")
_CHOICES = {"variant": VARIANTS, "strides": STRIDES, "activation": ACTIVATIONS, "bottleneck": BOTTLENECKS}
_CHOICES |= {"shortcut": SHORTCUTS, "padding": PADDINGS}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer. Only the classifier has a bias."""

    name: str
    kind: str  # 'conv', 'depthwise', 'pointwise', 'pool' or 'dense'
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    activation: str | None = None  # 'relu', 'relu6', or None: linear
    shortcut: str | None = None  # name of an earlier layer whose output is added to this layer's output
    padding: str = "same"  # where the zeros around a map lie: see `zero_padding`

    @property
    def norm(self) -> bool:
        """Return whether batch norm follows, as after every convolution."""
        return self.kind in ("conv", "depthwise", "pointwise")

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Return `(K, K, inputs of one output, outputs)`. An output of a depthwise layer has one input."""
        return self.kernel, self.kernel, 1 if self.kind == "depthwise" else self.in_channels, self.out_channels


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A whole network. Images arrive as `[B, H, W, 3]`.

    They are scaled from 0..255 to `input_range`. Then `mean` is subtracted, and the result divided by `std`.
    """

    version: str
    layers: tuple[Layer, ...]
    bn_epsilon: float = 1e-3  # added to the variance in batch norm
    input_range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of red, green and blue
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def num_classes(self) -> int:
        return self.layers[-1].out_channels

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """Return the layers that have weights: all but the pooling."""
        return tuple(layer for layer in self.layers if layer.kind != "pool")


# (output channels, stride) of the 13 depthwise separable blocks: v1 paper, Table 1. The stride 2 that the paper prints
# for the last depthwise layer is a misprint: its input and output are both 7x7.
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_CIFAR28_BLOCKS = ((64, 1), (64, 2), (128, 1), (128, 1), (128, 1), (256, 1), *((256, 1),) * 5, (256, 2), (256, 1))

# (channels, blocks, stride of the first block for ImageNet, for CIFAR): v2 paper, Table 2. The first stage is not
# expanded (t = 1), the others by t.
_V2_STAGES = ((16, 1, 1, 1), (24, 2, 2, 1), (32, 3, 2, 2), (64, 4, 2, 2), (96, 3, 1, 1), (160, 3, 2, 2), (320, 1, 1, 1))
_V2_HEAD = 1280


def make_divisible(value: float) -> int:
    """Round a width to the nearest multiple of 8, never below 0.9 of `value`: TF-slim's rule for v2."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def zero_padding(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Return the zeros before and after one axis that an output of `ceil(size / stride)` reads.

    'same' is TensorFlow's rule, with half of the zeros before the axis. 'symmetric' is PyTorch's `padding=kernel // 2`.
    The two differ where size and stride are even: 'same' then puts its one zero after the axis, 'symmetric' before.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2 if padding == "same" else kernel // 2
    return before, max(total - before, 0)


def mobilenet_v1(
    alpha: float = 1.0,
    num_classes: int = 1000,
    strides: str = "imagenet",
    variant: str = "paper",
    activation: str = "auto",
    bn_epsilon: float = 1e-3,
    padding: str = "same",
) -> Architecture:
    """Build MobileNet v1 (paper, Table 1).

    Args:
      alpha: width multiplier. Each width c becomes max(8, int(c * alpha)): TF-slim's rule.
      strides: 'imagenet' (stem 2) or 'cifar' (stem 1).
      variant: 'paper'. 'standard_conv': each separable pair as one standard 3x3 convolution (paper, Table 4).
        'shallow': without the five 14x14x512 blocks (paper, Table 5). 'cifar28': a 28x28 CIFAR-10 network of 27
        convolutions from a course report, with 'cifar' strides only. 'seed004' is its former name.
      activation: 'relu', 'relu6', or 'auto' (ReLU, as in the paper; TF-slim released it with ReLU6).
      padding: 'same' (TF-slim, Keras) or 'symmetric' (PyTorch).

    Raises:
      InputError: an argument is outside its allowed values.
    """
    variant = ALIASES.get(str(variant), variant)
    alpha = _check(alpha, bn_epsilon, strides=strides, variant=variant, activation=activation, padding=padding)
    if variant == "cifar28" and strides != "cifar":
        raise InputError(f"strides={strides!r}: variant 'cifar28' has 'cifar' strides only")
    act = "relu" if activation == "auto" else activation
    blocks = _CIFAR28_BLOCKS if variant == "cifar28" else _V1_BLOCKS
    if variant == "shallow":
        blocks = blocks[:6] + blocks[11:]

    layers = [Layer("stem", "conv", 3, max(8, int(32 * alpha)), 3, 2 if strides == "imagenet" else 1, act)]
    for i, (channels, stride) in enumerate(blocks, 1):
        width, out = layers[-1].out_channels, max(8, int(channels * alpha))
        if variant == "standard_conv":
            layers.append(Layer(f"block{i:02d}_conv", "conv", width, out, 3, stride, act))
        else:
            layers.append(Layer(f"block{i:02d}_depthwise", "depthwise", width, width, 3, stride, act))
            layers.append(Layer(f"block{i:02d}_pointwise", "pointwise", width, out, activation=act))
    return _network("v1", layers, num_classes, padding, bn_epsilon)


def mobilenet_v2(
    alpha: float = 1.0,
    expansion: float = 6,
    num_classes: int = 1000,
    strides: str = "imagenet",
    activation: str = "auto",
    bottleneck: str = "linear",
    shortcut: str = "bottleneck",
    bn_epsilon: float = 1e-3,
    padding: str = "same",
) -> Architecture:
    """Build MobileNet v2 (paper, Tables 1 and 2): 17 inverted residuals with linear bottlenecks.

    `make_divisible` rounds all widths, including the stem's. The 1280-wide head does not shrink for alpha < 1 (paper,
    section 6.1). A block whose expanded width equals its input width has no expanding convolution.

    Args:
      alpha: width multiplier.
      expansion: expansion ratio t of every stage but the first, which is never expanded.
      strides: 'imagenet' (224 -> 7) or 'cifar' (32 -> 4: stem 1, stages 1, 1, 2, 2, 1, 2, 1).
      activation: 'relu', 'relu6', or 'auto' (ReLU6, as in the paper).
      bottleneck: 'linear', or 'relu6' after the projection as well (paper, Figure 6a).
      shortcut: 'bottleneck', between the projections, at stride 1 and equal widths. 'expansion', between the expanded
        layers of consecutive blocks under the same condition. 'none' (paper, Figure 6b).
      padding: 'same' (TF-slim, Keras) or 'symmetric' (PyTorch).

    Raises:
      InputError: an argument is outside its allowed values.
    """
    choices = {"strides": strides, "activation": activation, "bottleneck": bottleneck, "shortcut": shortcut}
    alpha = _check(alpha, bn_epsilon, padding=padding, **choices)
    expansion = number("expansion", expansion, "an expansion ratio from 1 to 64", lambda t: 1 <= t <= 64)
    act = "relu6" if activation == "auto" else activation
    projection_act = None if bottleneck == "linear" else "relu6"

    layers = [Layer("stem", "conv", 3, make_divisible(32 * alpha), 3, 2 if strides == "imagenet" else 1, act)]
    blocks = [
        (channels, expansion if stage else 1, 1 if repeat else first_strides[STRIDES.index(strides)])
        for stage, (channels, repeats, *first_strides) in enumerate(_V2_STAGES)
        for repeat in range(repeats)
    ]
    for i, (channels, ratio, stride) in enumerate(blocks, 1):
        name, width, out = f"block{i:02d}", layers[-1].out_channels, make_divisible(channels * alpha)
        expanded = make_divisible(width * ratio)
        if expanded != width:
            layers.append(Layer(f"{name}_expand", "pointwise", width, expanded, activation=act))
        layers.append(Layer(f"{name}_depthwise", "depthwise", expanded, expanded, 3, stride, act))
        layers.append(Layer(f"{name}_project", "pointwise", expanded, out, activation=projection_act))
    depthwise = [i for i, layer in enumerate(layers) if layer.kind == "depthwise"]
    if shortcut == "bottleneck":
        _add_shortcuts(layers, [0, *(i + 1 for i in depthwise)])  # the stem and the projections
    elif shortcut == "expansion":
        _add_shortcuts(layers, [i - 1 for i in depthwise])
    head = make_divisible(_V2_HEAD * max(1.0, alpha))
    layers.append(Layer("head", "pointwise", layers[-1].out_channels, head, activation=act))
    return _network("v2", layers, num_classes, padding, bn_epsilon)


VERSIONS: dict[str, Callable[..., Architecture]] = {"v1": mobilenet_v1, "v2": mobilenet_v2}


def mobilenet(version: str, *args: float | str, **options: float | str) -> Architecture:
    """Build the network of a version by its function in `VERSIONS`, or raise InputError."""
    if str(version) not in VERSIONS:
        raise InputError(f"version={version!r}: allowed are {', '.join(map(repr, VERSIONS))}")
    return VERSIONS[str(version)](*args, **options)


def _add_shortcuts(layers: list[Layer], ends: list[int]) -> None:
    """Add shortcuts, in place, between consecutive `ends` of equal width with no stride between them."""
    for start, end in itertools.pairwise(ends):
        equal = layers[start].out_channels == layers[end].out_channels
        if equal and all(layer.stride == 1 for layer in layers[start + 1 : end + 1]):
            layers[end] = dataclasses.replace(layers[end], shortcut=layers[start].name)


def _network(version: str, layers: list[Layer], num_classes: int, padding: str, bn_epsilon: float) -> Architecture:
    """Return the network of convolutions with their padding, and pooling and the classifier after them."""
    num_classes = number("num_classes", num_classes, "a whole number from 2", lambda n: n >= 2, whole=True)
    convolutions, width = [dataclasses.replace(layer, padding=padding) for layer in layers], layers[-1].out_channels
    top = Layer("pool", "pool", width, width), Layer("classifier", "dense", width, num_classes)
    return Architecture(version, (*convolutions, *top), bn_epsilon)


def _check(alpha: float, bn_epsilon: float, **choices: str) -> float:
    """Return alpha as a float, or raise InputError if it or another argument is outside its allowed values."""
    number("bn_epsilon", bn_epsilon, "above 0", lambda epsilon: 0 < epsilon < float("inf"))
    for name, value in choices.items():
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise InputError(f"{name}={value!r}: allowed are {', '.join(map(repr, _CHOICES[name]))}")
    return number("alpha", alpha, "a width multiplier above 0 and at most 8", lambda a: 0 < a <= 8)
