"""What a network costs on a described device: predicted time, layer by layer.

Two models. `scratchpad` is the accounting of the report behind the 28x28 CIFAR-10 network ("seed004"), whose Tables 3
and 4 it regenerates: maps stay in on-chip memory until it overflows. `roofline` (Williams et al. 2009, CACM 52(4)) is
the useful one: a layer takes the longer of its multiplications and its traffic.
"""

import dataclasses
from collections.abc import Sequence

from mobilenet_jax.networks.arch import Architecture
from mobilenet_jax.networks.cost import LayerCost, layer_costs


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
SEED004 = Scratchpad(1e12, 8_000_000, 1e9, 8, 1, 2)


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


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as a roofline sees it. `source` says where each constant comes from."""

    name: str
    mult_adds_per_second: float
    bytes_per_second: float  # of main memory
    cache_bytes: int  # a layer whose maps and kernels fit is read and written at the cache's rate
    cache_bytes_per_second: float
    source: str
    value_bytes: int = 4


PIXEL_1 = Device(
    "Pixel 1, one large core",
    4 * 2.15e9,
    8 * 2 * 1.866e9,
    0,
    1.0,
    "Four float mult-adds a cycle: in LLVM's model of Kryo (AArch64SchedKryoDetails.td), multiplying four floats takes "
    "both of a core's multiplying units. 2.15 GHz; LPDDR4-1866 on 64 bits, 29.9 GB/s: specification of the "
    "Snapdragon 821. No cache is modelled.",
)

EPYC_2_CORES = Device(
    "two cores of an AMD EPYC (Zen 4, AVX-512)",
    97e9,
    53e9,
    32 << 20,
    76e9,
    "Measured by benchmarks/layer_latency.py: results/bench/cpu_latency.json.",
)


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """One layer of a batch under a roofline: seconds of multiplying, seconds of reading and writing."""

    row: LayerCost
    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The longer of the two."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """'compute' or 'memory', whichever takes longer."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def roofline(arch: Architecture, resolution: int, device: Device, batch: int = 1) -> tuple[LayerTime, ...]:
    """Predicts each layer of a batch of images of `resolution` pixels; a network takes their sum.

    A layer reads its input, its kernels and a shortcut's map once, and writes its output once; batch norm and
    activation are part of the convolution, as an inference engine has it.
    """
    times = []
    for row in layer_costs(arch, resolution):
        shortcut = row.out_activations if row.layer.shortcut else 0
        values = batch * (row.in_activations + shortcut + row.out_activations) + row.weights + row.bias + row.bn
        size = values * device.value_bytes
        rate = device.cache_bytes_per_second if size <= device.cache_bytes else device.bytes_per_second
        compute = batch * row.mult_adds / device.mult_adds_per_second
        times.append(LayerTime(row, compute, size / rate))
    return tuple(times)
