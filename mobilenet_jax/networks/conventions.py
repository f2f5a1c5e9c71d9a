"""Count one network under the counting conventions in use, to find out which one gives a published figure.

Each count is for one image and computed from the layers. The tools gave the same counts when run on PyTorch 2.13 and
JAX 0.10.2. Sources of their rules: thop 0.1.1, `vision/basic_hooks.py` and `calc_func.py`. ptflops 0.7.5,
`pytorch_ops.py` and `pytorch_engine.py` (its default backend). fvcore 0.1.5, `nn/flop_count.py` and `jit_handles.py`.
XLA, `hlo_cost_analysis.cc`. thop 0.0.31.post2001170342, `count_hooks.py`: read, not run; it sums in float32.
"""

import dataclasses
from collections.abc import Callable

from mobilenet_jax.networks.arch import Architecture, mobilenet_v1, mobilenet_v2, zero_padding
from mobilenet_jax.networks.cost import LayerCost, layer_costs
from mobilenet_jax.render.tables import Table


@dataclasses.dataclass(frozen=True)
class Convention:
    """A way to count operations or parameters."""

    name: str
    rule: str  # in words
    of_layer: Callable[[LayerCost], int] = dataclasses.field(repr=False)  # the count of one layer

    def count(self, arch: Architecture, resolution: int) -> int:
        """Return the count for a square image of `resolution` pixels."""
        return sum(self.of_layer(row) for row in layer_costs(arch, resolution))


def _normalised(row: LayerCost) -> int:
    return row.out_activations if row.layer.norm else 0


def _activated(row: LayerCost) -> int:
    return row.out_activations if row.layer.activation else 0


def _pooled(row: LayerCost) -> int:
    return row.in_activations if row.layer.kind == "pool" else 0


def _plus(normalised: int, pooled: int = 0) -> Callable[[LayerCost], int]:
    """Return a count of mult-adds and of that many operations per normalised value and per value pooled."""
    return lambda row: row.mult_adds + normalised * _normalised(row) + pooled * _pooled(row)


def _inside(row: LayerCost) -> int:
    """Return the mult-adds without those on padded zeros."""
    kernel, stride = row.layer.kernel, row.layer.stride
    first = -zero_padding(row.in_size, kernel, stride, row.layer.padding)[0]
    starts = range(first, first + row.out_size * stride, stride)
    pairs = sum(0 <= start + tap < row.in_size for start in starts for tap in range(kernel))  # along one axis
    return row.weights // kernel**2 * pairs**2


def _ptflops(row: LayerCost) -> int:
    # ptflops counts `nn.ReLU` twice: the module, and the function that the module calls. It counts `nn.ReLU6` once.
    activation = _activated(row) * (2 if row.layer.activation == "relu" else 1)
    return _plus(2, pooled=1)(row) + activation + row.bias


def _xla(row: LayerCost) -> int:
    # Batch norm takes 4 operations per channel to fold its four values into a scale and an offset. `row.bn` is 2 per
    # channel. The reciprocal square root is a 'transcendental', not a flop.
    norm = 2 * _normalised(row) + 2 * row.bn
    # A clip is a maximum and a minimum, also for ReLU. A mean of n values is n - 1 additions and one division.
    shortcut = row.out_activations if row.layer.shortcut else 0
    return 2 * _inside(row) + row.bias + norm + 2 * _activated(row) + _pooled(row) + shortcut


def _slim_v1(row: LayerCost) -> int:
    background = row.layer.in_channels + 1 if row.layer.kind == "dense" else 0
    return row.weights + row.bias + row.bn * 3 // 2 + background


OPERATIONS = (
    Convention(
        "mult-adds",
        "convolutions and classifier, SAME padding in full: this package's and both papers'",
        lambda row: row.mult_adds,
    ),
    Convention("without classifier", "convolutions", lambda row: 0 if row.layer.kind == "dense" else row.mult_adds),
    Convention(
        "without stem",
        "without the first 3x3 convolution: TF-slim's v1 rows of alpha 0.75",
        lambda row: 0 if row.layer.name == "stem" else row.mult_adds,
    ),
    Convention("with bias", "plus 1 per class, for the classifier's bias", lambda row: row.mult_adds + row.bias),
    Convention("inside the image", "mult-adds without those on padded zeros", _inside),
    Convention("with batch norm, 1", "plus 1 per normalised value", _plus(1)),
    Convention("with batch norm, 2", "plus 2 per normalised value: a multiplication, an addition", _plus(2)),
    Convention("fvcore 0.1.5", "plus 2 per normalised value, 1 per value pooled", _plus(2, pooled=1)),
    Convention(
        "ptflops 0.7.5",
        "plus 2 per normalised value, 1 per activated value (ReLU: 2), 1 per value pooled, 1 per class, for the bias",
        _ptflops,
    ),
    Convention("thop 0.1.1", "plus 4 per normalised value", _plus(4)),
    Convention(
        "thop 0.0.31",
        "of January 2020: plus 2 per normalised value, 1 per mult-add of the classifier",
        lambda row: _plus(2)(row) + (row.mult_adds if row.bias else 0),
    ),
    Convention("FLOPs", "twice the mult-adds", lambda row: 2 * row.mult_adds),
    Convention(
        "XLA flops",
        "2 per mult-add inside the image, per normalised and per activated value; 4 per batch-norm channel; 1 per "
        "value pooled, per value that a shortcut adds, per class",
        _xla,
    ),
)

PARAMS = (
    Convention("trainable", "kernels, bias, batch norm's scale and offset: this package's", lambda row: row.params),
    Convention("without batch norm", "kernels and bias: TF-slim's v2", lambda row: row.weights + row.bias),
    Convention("kernels", "no bias, no batch norm", lambda row: row.weights),
    Convention(
        "with running statistics",
        "trainable, and batch norm's mean and variance: Keras's total",
        lambda row: row.params + row.bn,
    ),
    Convention(
        "TF-slim v1",
        "one more class, for the background, and three values per batch-norm channel (inferred; gives all 16 rows)",
        _slim_v1,
    ),
)

NAMED = {convention.name: convention for convention in (*OPERATIONS, *PARAMS)}


def explain(figure: float, arch: Architecture, resolution: int = 224, tolerance: float = 0.5e6) -> list[Convention]:
    """Return the conventions that give `figure` within `tolerance` (inclusive), the nearest first.

    `figure` is a number of operations or parameters, such as 569e6 for a printed 569 M. `resolution` is in pixels.
    """
    off = {c: abs(c.count(arch, resolution) - figure) for c in NAMED.values()}
    return sorted((c for c in off if off[c] <= tolerance), key=off.__getitem__)


def tables() -> tuple[Table, Table]:
    """Return the tables of operations and parameters: both versions at alpha 1, for ImageNet and CIFAR-10."""
    networks = {
        "v1, 224": (mobilenet_v1(), 224),
        "v2, 224": (mobilenet_v2(), 224),
        "CIFAR v1, 32": (mobilenet_v1(num_classes=10, strides="cifar"), 32),
        "CIFAR v2, 32": (mobilenet_v2(num_classes=10, strides="cifar"), 32),
    }
    header = ("convention", "counted", *networks, "v1, 224 / first row")

    def table(name: str, title: str, conventions: tuple[Convention, ...], note: str) -> Table:
        counts = [[c.count(*network) for network in networks.values()] for c in conventions]
        rows = tuple(
            (c.name, c.rule, *(f"{n:,}" for n in row), f"{row[0] / counts[0][0]:.3f}")
            for c, row in zip(conventions, counts, strict=True)
        )
        return Table(name, title, header, rows, note)

    operations = (
        "One image. 'plus': added to the mult-adds. Profilers: a PyTorch model in evaluation mode, built like "
        "torchvision's v2 (pooling by `functional.adaptive_avg_pool2d`, shortcuts by `+`). XLA: "
        "`jax.jit(f).lower(x).cost_analysis()['flops']` of the model with `depthwise='conv'`. XLA sums in float32, "
        "so its own count is off by about 1e-7."
    )
    params = "TF-slim's v1 networks have 1001 classes, so its rule counts one more class than the network has."
    return (
        table("conventions_operations", "Operations under other conventions", OPERATIONS, operations),
        table("conventions_params", "Parameters under other conventions", PARAMS, params),
    )
