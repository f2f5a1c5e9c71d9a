"""Compare document 004, a report on a 28x28 CIFAR-10 network, with ours: its layers, its memory, its predicted times.

The report predicts the time of each layer on a device whose on-chip memory fills up. `scratchpad` is that model.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture
from mobilenet_jax.networks.cost import LayerCost, layer_costs
from mobilenet_jax.papers import printed
from mobilenet_jax.papers.compare import Comparison, Line, compare
from mobilenet_jax.papers.tables import layers


@dataclasses.dataclass(frozen=True)
class Scratchpad:
    """A device with on-chip memory that maps and kernels fill up from layer to layer."""

    operations_per_second: float  # two per mult-add
    memory_bits: int
    bus_rate: float  # bytes per second, to and from external memory
    activation_bits: int
    weight_bits_held: int  # that a weight takes on chip
    weight_bits_moved: int  # that a weight costs on the bus


# Section 5 of the report gives 1 TFLOP/s, 1 MB and 1 GB/s. Its Table 3 overflows where it does only if 1 MB is 10^6
# bytes. The sizes of values follow from that table: a map has 8 bits a value, a weight one on chip and two on the bus
# ("moved from internal to external and then vice versa"). Its 10 GFLOP/s for elementwise operations enter no row.
DEVICE = Scratchpad(1e12, 8_000_000, 1e9, 8, 1, 2)


@dataclasses.dataclass(frozen=True)
class ScratchpadStep:
    """One layer on a `Scratchpad`: bits held once it has run, bits moved for it, and seconds."""

    out_bits: int
    memory_bits: int
    moved_bits: int
    move_seconds: float
    compute_seconds: float
    overflows: bool  # everything that is held moves out

    @property
    def seconds(self) -> float:
        """Movement and computation one after the other."""
        return self.move_seconds + self.compute_seconds


def scratchpad(
    rows: Sequence[LayerCost], device: Scratchpad, out_bits: Sequence[int] | None = None
) -> tuple[ScratchpadStep, ...]:
    """Predict each layer of one image on `device`.

    The first layer fetches the image. Each layer fetches its kernels, and leaves them and its output map in memory. A
    layer that overflows the memory moves out everything that is held. The next one starts again from its input map.
    `out_bits` are sizes of the output maps to assume instead of the layers' own.
    """
    sizes = out_bits or [device.activation_bits * row.out_activations for row in rows]
    steps = []
    source = device.activation_bits * rows[0].in_activations  # the map that the next layer reads
    held = 0  # at the start and after an overflow
    for i, (row, out) in enumerate(zip(rows, sizes, strict=True)):
        moved = device.weight_bits_moved * row.weights + (0 if i else source)
        held = (held or source) + out + device.weight_bits_held * row.weights
        overflows = held > device.memory_bits
        if overflows:
            moved += held - device.weight_bits_held * row.weights  # moving the kernels is counted already
        compute = 2 * row.mult_adds / device.operations_per_second
        steps.append(ScratchpadStep(out, held, moved, moved / 8 / device.bus_rate, compute, overflows))
        source, held = out, 0 if overflows else held
    return tuple(steps)


def tables() -> Iterator[Comparison]:
    """Yield the report's Tables 1, 3 and 4."""
    yield layers("cifar28_table1", "Document 004, Table 1: the layers of its network", network(), 28)
    note = (
        "Data moved: two bits a weight, and the image for the first layer. Memory is used up from layer to layer: a "
        "layer takes its output map and one bit a weight, and where memory starts empty (rows 1 and 26) its input map. "
        "Given the maps as they are printed, data moved is equal to the digit in 24 of 27 rows, the rise of memory "
        "used in 25 of 27 rows (by output map and weights alone in 23). With every map at its own size nothing "
        "overflows: at most 7,704,320 of 8,000,000 bits are held, and 1,139,840 moved in all."
    )
    yield compare("cifar28_table3", "Document 004, Table 3: memory and data movement", _table3(), note=note)
    note = (
        "Data movement is bits over 8 over 1 GB/s, 24 of 27 rows equal; compute is two operations a mult-add at "
        "1 TFLOP/s, 25 of 27 rows equal; the elementwise term of its text enters no row. With every map at its own "
        "size, where nothing overflows, the network takes 0.000326 s."
    )
    yield compare("cifar28_table4", "Document 004, Table 4: time", _table4(), note=note)


def network() -> Architecture:
    """Return the report's network."""
    return arch.mobilenet_v1(num_classes=10, strides="cifar", variant="cifar28")


def steps(printed_maps: bool = False) -> tuple[ScratchpadStep, ...]:
    """Predict the network's convolutions on `DEVICE`, with output maps of their own sizes or of those printed.

    Raises:
      ValueError: the network has another number of convolutions than the printed tables.
    """
    rows = [row for row in layer_costs(network(), 28) if row.layer.norm]
    maps = [int(row["out_bits"]) for row in printed.rows("cifar28_times")[:-1]]  # the last row is the total
    return scratchpad(rows, DEVICE, maps if printed_maps else None)


def _table3() -> Iterator[Line]:
    # The rise of memory used is compared, as one slip in the running total would be many rows. The maps are as printed.
    source = DEVICE.activation_bits * layer_costs(network(), 28)[0].in_activations
    used = ours_used = 0

    def rise(before: int, now: int) -> int:
        return now - before if now > before else now  # memory starts empty again after an overflow

    for row, given, own in zip(printed.rows("cifar28_times")[:-1], steps(printed_maps=True), steps(), strict=True):
        memory = int(row["memory_bits"])
        cells = {
            "input map, bits": (row["in_bits"], source),
            "output map, bits": (row["out_bits"], own.out_bits),
            "memory used, bits": (row["memory_bits"], None),
            "rise of memory used, bits": (str(rise(used, memory)), rise(ours_used, given.memory_bits)),
            "data moved, bits": (row["moved_bits"], given.moved_bits),
        }
        yield row["layer"], cells
        source, used, ours_used = own.out_bits, memory, given.memory_bits


def _table4() -> Iterator[Line]:
    *rows, total = printed.rows("cifar28_times")
    found = steps(printed_maps=True)
    for row, step in zip(rows, found, strict=True):
        cells = {
            "data movement, s": (row["move_seconds"], step.move_seconds),
            "compute, s": (row["compute_seconds"], step.compute_seconds),
            "total, s": (row["total_seconds"], step.seconds),
        }
        yield row["layer"], cells
    yield "total", {"total, s": (total["total_seconds"], sum(step.seconds for step in found))}
