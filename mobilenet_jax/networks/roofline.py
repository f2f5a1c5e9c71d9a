"""Predict what each layer of a network costs on a described device, by the roofline model.

Source: Williams, Waterman and Patterson 2009, CACM 52(4).
"""

import dataclasses

from mobilenet_jax.networks.arch import Architecture
from mobilenet_jax.networks.cost import LayerCost, layer_costs


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
