"""What the papers' sentences and the documents behind this project (000 to 004) claim on cost, beside ours.

Document 004 predicts the time of its own 28x28 network, layer by layer; `scratchpad` regenerates its tables.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.networks.cost import LayerCost, blocks, layer_costs, totals
from mobilenet_jax.papers import printed as published
from mobilenet_jax.papers.compare import Line, Printed, table
from mobilenet_jax.papers.tables import expansion, layers, millions, share

_IN, _OUT, _MOVED = "input map, bits", "output map, bits", "data moved, bits"
_USED, _TAKEN = "memory used, bits", "rise of memory used, bits"
_MOVE, _COMPUTE, _TOTAL = "data movement, s", "compute, s", "total, s"


@dataclasses.dataclass(frozen=True)
class Scratchpad:
    """A device with on-chip memory that maps and kernels fill up from layer to layer."""

    operations_per_second: float  # two a mult-add
    memory_bits: int
    bus_rate: float  # bytes a second, to and from external memory
    activation_bits: int
    weight_bits_held: int  # that a weight takes on chip
    weight_bits_moved: int  # that a weight costs on the bus


# Section 5 of the report says 1 TFLOP/s, 1 MB and 1 GB/s; of 1 MB, only 10^6 bytes overflow where its Table 3 says. The
# sizes of values follow from that table: a map has 8 bits a value, a weight one on chip and two on the bus ("moved from
# internal to external and then vice versa"). Its 10 GFLOP/s for elementwise operations enter no row.
DEVICE = Scratchpad(1e12, 8_000_000, 1e9, 8, 1, 2)


@dataclasses.dataclass(frozen=True)
class ScratchpadStep:
    """One layer on a `Scratchpad`: bits held once it has run, bits moved for it, and seconds."""

    out_bits: int
    memory_bits: int
    moved_bits: int
    move_seconds: float
    compute_seconds: float
    overflows: bool  # so that all that is held moves out

    @property
    def seconds(self) -> float:
        """Movement and computation one after the other."""
        return self.move_seconds + self.compute_seconds


def scratchpad(
    rows: Sequence[LayerCost], device: Scratchpad, out_bits: Sequence[int] | None = None
) -> tuple[ScratchpadStep, ...]:
    """Predicts each layer of one image on `device`.

    The first layer fetches the image. Each layer fetches its kernels, and leaves them and its output map in memory. One
    that overflows the memory moves out all that is held, and the next starts again from its input map.

    Args:
      rows: the layers, from `cost.layer_costs`.
      device: rates and sizes.
      out_bits: sizes of the output maps to assume instead of the layers' own, in bits.
    """
    sizes = out_bits or [device.activation_bits * row.out_activations for row in rows]
    steps = []
    source = device.activation_bits * rows[0].in_activations  # the map that the next layer reads
    held = 0  # nothing in memory yet, or any more
    for i, (row, out) in enumerate(zip(rows, sizes, strict=True)):
        moved = device.weight_bits_moved * row.weights + (0 if i else source)
        held = (held or source) + out + device.weight_bits_held * row.weights
        overflows = held > device.memory_bits
        if overflows:  # the kernels that were just fetched are among what is held
            moved += held - device.weight_bits_held * row.weights
        compute = 2 * row.mult_adds / device.operations_per_second
        steps.append(ScratchpadStep(out, held, moved, moved / 8 / device.bus_rate, compute, overflows))
        source, held = out, 0 if overflows else held
    return tuple(steps)


def tables() -> Iterator[Printed]:
    """The sentences, the lists of layers, and document 004's two tables of its device."""
    yield table("documents", "Sentences of the papers and of documents 000 to 004", _sentences())
    yield layers("document_000", "Document 000: the layers of v1", arch.mobilenet_v1(), 224)
    yield layers("seed004_table1", "Document 004, Table 1: the layers of its network", _network_004(), 28)
    table3 = table("seed004_table3", "Document 004, Table 3: memory and data movement", _table3())
    yield dataclasses.replace(table3, note=_note_on_memory(table3))
    table4 = table("seed004_table4", "Document 004, Table 4: time", _table4())
    yield dataclasses.replace(table4, note=_note_on_time(table4))


def _sentences() -> Iterator[Line]:
    for row in published.rows("documents"):
        yield f"{row['document']}; {row['claim']}", {"": (row["printed"], _COUNTS[row["count"]]())}


# Formulas: every layer of v1 that one is of, as (layer's cost, D_K, M, N, D_F). D_F is the output map's side, which is
# the input's at stride 1, for which the documents write their formulas.


def _v1(**options) -> tuple[LayerCost, ...]:
    return layer_costs(arch.mobilenet_v1(**options), 224)


def _every(found: Iterable[tuple[int | Decimal, int | Decimal]]) -> str:
    """'all' where both counts of each layer are equal, else for how many they are."""
    equal = [a == b for a, b in found]
    return "all" if equal and all(equal) else f"{sum(equal)} of {len(equal)}"


def _standard() -> str:
    rows = (row for row in _v1(variant="standard_conv") if row.layer.kind == "conv")
    return _every((r.mult_adds, 9 * r.layer.in_channels * r.layer.out_channels * r.out_size**2) for r in rows)


def _depthwise() -> str:
    rows = (row for row in _v1() if row.layer.kind == "depthwise")
    return _every((r.mult_adds, 9 * r.layer.in_channels * r.out_size**2) for r in rows)


def _pointwise() -> str:
    rows = (row for row in _v1() if row.layer.kind == "pointwise")
    return _every((r.mult_adds, r.layer.in_channels * r.layer.out_channels * r.out_size**2) for r in rows)


def _bottleneck() -> str:
    """h w d' t (d' + k² + d''), for every block of v2 that is expanded and has stride 1."""
    found = []
    for expand, depthwise, project in (b for b in blocks(layer_costs(arch.mobilenet_v2(), 224)) if len(b) == 3):
        if depthwise.layer.stride == 1:
            d1, d2, t = expand.layer.in_channels, project.layer.out_channels, expansion([expand, depthwise, project])
            formula = expand.in_size**2 * d1 * t * (d1 + depthwise.layer.kernel**2 + d2)
            found.append((sum(row.mult_adds for row in (expand, depthwise, project)), formula))
    return _every(found)


def _separable(alpha: float = 1, rho: float = 1) -> str:
    """Equation 7 of the v1 paper: alpha M, alpha N, rho D_F."""
    full = blocks(_v1())
    ours = blocks(layer_costs(arch.mobilenet_v1(alpha), round(224 * rho)))

    def formula(block: list[LayerCost]) -> int:
        m, n = (int(alpha * width) for width in (block[0].layer.in_channels, block[1].layer.out_channels))
        size = round(rho * block[0].out_size)
        return 9 * m * size**2 + m * n * size**2

    return _every((sum(r.mult_adds for r in b), formula(a)) for a, b in zip(full, ours, strict=True))


def _pairs() -> list[tuple[int, int, int]]:
    """Of each block: mult-adds as one standard convolution, mult-adds separable, outputs."""
    standard, separable = blocks(_v1(variant="standard_conv")), blocks(_v1())
    return [
        (s[0].mult_adds, sum(row.mult_adds for row in p), p[-1].layer.out_channels)
        for s, p in zip(standard, separable, strict=True)
    ]


def _saving() -> str:
    times = [Decimal(standard) / separable for standard, separable, _ in _pairs()]
    return f"{min(times):.0f} to {max(times):.0f}"


def _reduction() -> str:
    """separable / standard = 1/N + 1/9, without fractions."""
    return _every((separable * 9 * n, standard * (9 + n)) for standard, separable, n in _pairs())


def _widths_half() -> str:
    wide, narrow = arch.mobilenet_v1().layers, arch.mobilenet_v1(0.5).layers
    return _every((a.out_channels, 2 * b.out_channels) for a, b in zip(wide[:-1], narrow[:-1], strict=True))


def _with_weights(network: Architecture) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind != "pool"]


def _share_of_full(count: str, alpha: float = 1.0, resolution: int = 224) -> Decimal:
    part, full = totals(arch.mobilenet_v1(alpha), resolution), totals(arch.mobilenet_v1(), 224)
    return Decimal(getattr(part, count)) / getattr(full, count)


def _cifar_widths() -> str:
    rows = [layer for layer in arch.mobilenet_v1(strides="cifar").layers if layer.kind in ("depthwise", "pointwise")]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return " ".join(f"{p.out_channels}{'/2' if d.stride == 2 else ''}" for d, p in pairs)


def _typical_expansion() -> str:
    found = {expansion(block).normalize() for block in blocks(layer_costs(arch.mobilenet_v2(), 224))[1:]}
    return ", ".join(f"{t:f}" for t in sorted(found))


def _strided_shortcuts() -> int:
    found = blocks(layer_costs(arch.mobilenet_v2(), 224))
    return sum(b[-1].layer.shortcut is not None for b in found if b[-2].layer.stride == 2)


# Document 003's layer: 3 channels to 5, 3x3, to a 4x4 map (of a 6x6 one without padding, which costs as much).
_EXAMPLE = {
    "conv": Layer("conv", "conv", 3, 5, 3),
    "depthwise": Layer("depthwise", "depthwise", 3, 3, 3),
    "pointwise": Layer("pointwise", "pointwise", 3, 5),
}


def _example(*kinds: str) -> int:
    return totals(Architecture("v1", tuple(_EXAMPLE[kind] for kind in kinds)), 4).mult_adds


def _example_product() -> str:
    (row,) = layer_costs(Architecture("v1", (_EXAMPLE["conv"],)), 4)
    k, size, layer = row.layer.kernel, row.out_size, row.layer
    return f"({k}x{k}x{layer.in_channels}) x ({size}x{size}) x ({layer.out_channels})"


def _example_formula() -> Decimal:
    layer = _EXAMPLE["conv"]
    return Decimal(1) / layer.out_channels + Decimal(1) / layer.kernel**2


def _saving_512() -> Decimal | str:
    found = [Decimal(standard) / separable for standard, separable, outputs in _pairs() if outputs == 512]
    return found[0] if found else "none"


def _overflow() -> int | str:
    return next((i for i, step in enumerate(_steps(own_maps=True), 1) if step.overflows), "none")


def _slowest() -> str:
    seconds = [step.seconds for step in _steps(own_maps=True)]
    return ", ".join(str(i) for i, s in enumerate(seconds, 1) if s == max(seconds))


_V1_PAIR = ("depthwise", "pointwise")
_COUNTS: dict[str, Callable[[], Decimal | str | int]] = {
    "saving": _saving,
    "reduction": _reduction,
    "layers": lambda: len(_with_weights(arch.mobilenet_v1())),
    "pointwise_mult_adds": lambda: share(_v1(), "pointwise", lambda row: row.mult_adds),
    "pointwise_params": lambda: share(_v1(), "pointwise", lambda row: row.weights),
    "width_multiplier": lambda: _separable(0.5),
    "multipliers": lambda: _separable(0.5, 4 / 7),
    "bottleneck": _bottleneck,
    "bottlenecks": lambda: len(blocks(layer_costs(arch.mobilenet_v2(), 224))),
    "least_mult_adds": lambda: millions(arch.mobilenet_v2(0.35), 96, "mult-adds"),
    "most_mult_adds": lambda: millions(arch.mobilenet_v2(1.4), 224, "mult-adds"),
    "least_params": lambda: millions(arch.mobilenet_v2(0.35), 96, "without batch norm"),
    "most_params": lambda: millions(arch.mobilenet_v2(1.4), 224, "without batch norm"),
    "widths": _cifar_widths,
    "pooled": lambda: layer_costs(arch.mobilenet_v1(strides="cifar"), 32)[-2].in_size,
    "classifier_inputs": lambda: arch.mobilenet_v1(strides="cifar").layers[-1].in_channels,
    "standard": _standard,
    "depthwise": _depthwise,
    "pointwise": _pointwise,
    "separable": _separable,
    "widths_half": _widths_half,
    "expansion": _typical_expansion,
    "strided_shortcuts": _strided_shortcuts,
    "half_width": lambda: _share_of_full("mult_adds", alpha=0.5),
    "half_width_params": lambda: _share_of_full("params", alpha=0.5),
    "low_resolution": lambda: _share_of_full("mult_adds", resolution=128),
    "example_standard": lambda: _example("conv"),
    "example_signs": _example_product,
    "example_depthwise": lambda: _example("depthwise"),
    "example_pointwise": lambda: _example("pointwise"),
    "example_separable": lambda: _example(*_V1_PAIR),
    "example_sum": lambda: f"{_example('depthwise')} + {_example('pointwise')}",
    "example_ratio": lambda: Decimal(_example(*_V1_PAIR)) / _example("conv"),
    "example_formula": _example_formula,
    "cheaper_512": _saving_512,
    "blocks": lambda: len(blocks(_v1())),
    "layers_004": lambda: len(_with_weights(_network_004())),
    "convolutions_004": lambda: sum(layer.norm for layer in _network_004().layers),
    "overflow_004": _overflow,
    "slowest_004": _slowest,
}


# Document 004's device ------------------------------------------------------------------------------------------------


def _network_004() -> Architecture:
    return arch.mobilenet_v1(num_classes=10, strides="cifar", variant="seed004")


@functools.cache
def _rows_004() -> tuple[list[dict[str, str]], dict[str, str]]:
    """The printed rows of its Tables 3 and 4, which are one file, and the row of the total."""
    *rows, total = published.rows("seed004_times")
    return rows, total


def _steps(own_maps: bool = False) -> tuple[ScratchpadStep, ...]:
    """Its convolutions on its device, with the output maps as it prints them, or at their own sizes."""
    rows = [row for row in layer_costs(_network_004(), 28) if row.layer.norm]
    own = [DEVICE.activation_bits * row.out_activations for row in rows]
    printed = [int(row["out_bits"]) for row in _rows_004()[0]]
    return scratchpad(rows, DEVICE, own if own_maps else [*printed, *own[len(printed) :]][: len(rows)])


def _table3() -> Iterator[Line]:
    """Given the maps as printed, what a layer takes in memory: of the running total, one slip would be many rows."""
    before = "0", 0  # memory used, printed and ours: both accounts start again after an overflow
    source = DEVICE.activation_bits * layer_costs(_network_004(), 28)[0].in_activations
    steps = itertools.zip_longest(_rows_004()[0], _steps(), _steps(own_maps=True))
    for i, (row, given, own) in enumerate(steps, 1):
        if row is None or given is None:
            yield str(i), {_OUT: (row["out_bits"] if row else "none", str(own.out_bits) if own else "none")}
            continue
        now = row["memory_bits"], given.memory_bits
        printed, ours = (int(x) - int(y) if int(x) > int(y) else int(x) for x, y in zip(now, before, strict=True))
        yield (
            row["layer"],
            {
                _IN: (row["in_bits"], source),
                _OUT: (row["out_bits"], own.out_bits),
                _USED: (row["memory_bits"], None),
                _TAKEN: (str(printed), ours),
                _MOVED: (row["moved_bits"], given.moved_bits),
            },
        )
        before, source = now, own.out_bits


def _table4() -> Iterator[Line]:
    rows, total = _rows_004()
    steps = _steps()
    for row, step in zip(rows, steps, strict=False):  # a missing or further layer is told by Table 3
        values = {
            _MOVE: (row["move_seconds"], step.move_seconds),
            _COMPUTE: (row["compute_seconds"], step.compute_seconds),
            _TOTAL: (row["total_seconds"], step.seconds),
        }
        yield row["layer"], {column: (cell, Decimal(str(ours))) for column, (cell, ours) in values.items()}
    yield "total", {_TOTAL: (total["total_seconds"], Decimal(str(sum(step.seconds for step in steps))))}


def _equal(printed: Printed, column: str) -> str:
    found = [cell.agrees for label, cell in printed.cells() if cell.column == column and label != "total"]
    return f"{sum(found)} of {len(found)} rows"


def _note_on_memory(table3: Printed) -> str:
    rows, own = _rows_004()[0], _steps(own_maps=True)
    weights = [row.weights for row in layer_costs(_network_004(), 28)]
    used = [0, *(int(row["memory_bits"]) for row in rows)]
    plain = [
        b - a == int(r["out_bits"]) + w for (a, b), r, w in zip(itertools.pairwise(used), rows, weights, strict=False)
    ]
    most, moved = max(step.memory_bits for step in own), sum(step.moved_bits for step in own)
    return (
        "Data moved: two bits a weight, and the image for the first layer. Memory is used up from layer to layer: a "
        "layer takes its output map and one bit a weight, and where memory starts empty (rows 1 and 26) its input map. "
        f"Given the maps as they are printed, data moved is equal to the digit in {_equal(table3, _MOVED)}, the rise "
        f"of memory used in {_equal(table3, _TAKEN)} (by output map and weights alone in {sum(plain)}). With every map "
        f"at its own size nothing overflows: at most {most:,} of {DEVICE.memory_bits:,} bits are held, and "
        f"{moved:,} moved in all."
    )


def _note_on_time(table4: Printed) -> str:
    alone = sum(step.seconds for step in _steps(own_maps=True))
    return (
        f"Data movement is bits over 8 over 1 GB/s, {_equal(table4, _MOVE)} equal; compute is two operations a "
        f"mult-add at 1 TFLOP/s, {_equal(table4, _COMPUTE)} equal; the elementwise term of its text enters no row. "
        f"With every map at its own size, where nothing overflows, the network takes {alone:.6f} s."
    )
