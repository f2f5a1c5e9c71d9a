"""Predict what each layer of a network costs on a described device, by the roofline model.

Source: Williams, Waterman and Patterson 2009, CACM 52(4).
"""

import dataclasses

from mobilenet_jax.errors import number
from mobilenet_jax.networks.arch import Architecture
from mobilenet_jax.networks.cost import LayerCost, layer_costs


@dataclasses.dataclass(frozen=True)
class Device:
    """The limits of a device in the roofline model."""

    name: str
    mult_adds_per_second: float
    bytes_per_second: float  # of main memory
    cache_bytes: int  # if maps and kernels of a layer fit, the rate of the cache applies
    cache_bytes_per_second: float
    source: str  # of the constants


_PIXEL_1_SOURCE = (
    "Four float mult-adds per cycle: in LLVM's model of Kryo (AArch64SchedKryoDetails.td), multiplying four floats "
    "takes both of a core's multiplying units. 2.15 GHz; LPDDR4-1866 on 64 bits, 29.9 GB/s: specification of the "
    "Snapdragon 821. No cache is modelled."
)
PIXEL_1 = Device("Pixel 1, one large core", 4 * 2.15e9, 8 * 2 * 1.866e9, 0, 1.0, _PIXEL_1_SOURCE)


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """The predicted times of one layer for a batch: seconds of arithmetic and seconds of memory traffic."""

    row: LayerCost
    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """Return the longer of the two times."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """Return which of 'compute' and 'memory' takes longer."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def roofline(arch: Architecture, resolution: int, device: Device, batch: int = 1) -> tuple[LayerTime, ...]:
    """Predict the time of each layer for a batch of square images. The time of a network is the sum over its layers.

    A layer reads its input, its kernel and the map of its shortcut once, and writes its output once. Batch norm and
    activation are fused into the convolution, as in an inference engine.
    """
    for name in ("mult_adds_per_second", "bytes_per_second", "cache_bytes_per_second"):
        number(f"device.{name}", getattr(device, name), "above 0", lambda rate: rate > 0)
    batch, times = number("batch", batch, "a whole number from 1", lambda n: n >= 1, whole=True), []
    for row in layer_costs(arch, resolution):
        shortcut = row.out_activations if row.layer.shortcut else 0
        size = 4 * (batch * (row.in_activations + shortcut + row.out_activations) + row.params)  # float32
        rate = device.cache_bytes_per_second if size <= device.cache_bytes else device.bytes_per_second
        times.append(LayerTime(row, batch * row.mult_adds / device.mult_adds_per_second, size / rate))
    return tuple(times)
