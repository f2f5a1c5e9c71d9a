"""Compare the roofline model with times by hand."""

import math

import pytest

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.roofline import PIXEL_1, Device, roofline

# At 2x2 pixels: maps of 12, 16 and 8 values; 12 and 8 weights; 48 and 32 mult-adds.
TWO = Architecture("v1", (Layer("a", "pointwise", 3, 4), Layer("b", "pointwise", 4, 2)))


def machine(rate: float, bandwidth: float, cache: int = 0, cache_rate: float = 1.0) -> Device:
    return Device("machine", rate, bandwidth, cache, cache_rate, "made up")


def test_a_layer_takes_the_longer_of_the_two():
    values = 12 + 12 + 8 + 16  # input, kernel, batch norm, output
    time = roofline(TWO, 2, machine(1e3, 1e3))[0]
    assert (time.compute_seconds, time.memory_seconds) == (48 / 1e3, 4 * values / 1e3)
    assert (time.seconds, time.bound) == (time.memory_seconds, "memory")
    time = roofline(TWO, 2, machine(1e2, 1e3))[0]
    assert (time.seconds, time.bound) == (48 / 1e2, "compute")


def test_kernels_are_read_once_per_batch():
    one, four = (roofline(TWO, 2, machine(1e3, 1e3), batch)[0] for batch in (1, 4))
    assert four.compute_seconds == 4 * one.compute_seconds
    assert four.memory_seconds == 4 * (4 * (12 + 16) + 20) / 1e3


def test_a_layer_that_fits_into_the_cache_has_the_rate_of_the_cache():
    size = 4 * (12 + 12 + 8 + 16)
    assert roofline(TWO, 2, machine(1e9, 1e3, size, 1e4))[0].seconds == size / 1e4
    assert roofline(TWO, 2, machine(1e9, 1e3, size - 1, 1e4))[0].seconds == size / 1e3


def test_a_shortcut_is_read():
    plain = Layer("b", "pointwise", 4, 4)
    join = Layer("b", "pointwise", 4, 4, shortcut="a")
    first = Layer("a", "pointwise", 4, 4)
    without, with_it = (
        roofline(Architecture("v2", (first, layer)), 2, machine(1e9, 1.0))[1].seconds for layer in (plain, join)
    )
    assert with_it - without == 4 * 16


def test_a_phone_is_bound_by_its_arithmetic():
    # At 8.6 G mult-adds/s and 29.9 GB/s, a layer is bound by memory below 0.3 mult-adds per byte.
    times = roofline(mobilenet_v1(), 224, PIXEL_1)
    assert {t.row.layer.kind for t in times if t.bound == "memory"} == {"pool", "dense"}
    assert sum(t.seconds for t in times) == pytest.approx(568_740_352 / 8.6e9, rel=0.01)
    assert sum(t.seconds for t in roofline(mobilenet_v2(), 224, PIXEL_1)) < 0.075  # the v2 paper measured 0.075 s


@pytest.mark.parametrize("batch", [0, -1, 1.0, True])
def test_impossible_batches_are_refused(batch):
    with pytest.raises(InputError, match=f"^batch={batch}: .*from 1"):
        roofline(TWO, 2, PIXEL_1, batch)


@pytest.mark.parametrize("rates", [(0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, math.nan)])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(InputError, match=r"^device\.\w+_per_second=\S+: allowed is above 0"):
        roofline(TWO, 2, machine(*rates[:2], cache_rate=rates[2]))
