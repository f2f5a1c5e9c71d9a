"""The arguments of a network: they arrive, impossible ones are refused, and networks compare by value."""

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import mobilenet_v1, mobilenet_v2


def test_hashable_frozen_and_equal_by_value():
    assert mobilenet_v2(0.5) == mobilenet_v2(0.5)
    assert hash(mobilenet_v2(0.5)) == hash(mobilenet_v2(0.5))
    assert len({mobilenet_v1(), mobilenet_v1(), mobilenet_v1(0.5), mobilenet_v1(bn_epsilon=1e-5)}) == 3
    network = mobilenet_v1()
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.version = "v2"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        network.layers[0].stride = 1  # type: ignore[misc]


@pytest.mark.parametrize("build", [mobilenet_v1, mobilenet_v2])
def test_arguments_arrive(build):
    network = build(num_classes=37, bn_epsilon=0.5)
    assert network.version == build.__name__.removeprefix("mobilenet_")
    assert (network.num_classes, network.bn_epsilon, network.input_range) == (37, 0.5, (-1.0, 1.0))
    assert (network.layers[-1].name, network.layers[-1].out_channels) == ("classifier", 37)


@pytest.mark.parametrize(
    ("build", "key", "value"),
    [
        *((build, "alpha", bad) for build in (mobilenet_v1, mobilenet_v2) for bad in (0, -0.5, 9, math.inf, math.nan)),
        *((build, "alpha", bad) for build in (mobilenet_v1, mobilenet_v2) for bad in ("0.5", True, None, 1j)),
        *(
            (build, "num_classes", bad)
            for build in (mobilenet_v1, mobilenet_v2)
            for bad in (1, 0, -3, 10.0, True, "10")
        ),
        *((build, "bn_epsilon", bad) for build in (mobilenet_v1, mobilenet_v2) for bad in (0, -1, math.inf, "1")),
        *((mobilenet_v2, "expansion", bad) for bad in (0, 0.5, 65, math.nan, "6", False)),
    ],
)
def test_impossible_numbers_are_refused(build, key, value):
    with pytest.raises(InputError, match=f"^{key}={re.escape(repr(value))}: "):
        build(**{key: value})


def test_numbers_of_numpy_are_accepted():
    numbers: dict[str, Any] = {"alpha": np.float32(0.5), "num_classes": np.int64(10)}
    for build in (mobilenet_v1, mobilenet_v2):
        network = build(**numbers)
        assert network == build(0.5, num_classes=10)
        assert {type(layer.out_channels) for layer in network.layers} == {int}


@pytest.mark.parametrize(
    ("build", "key", "allowed"),
    [
        (mobilenet_v1, "strides", arch.STRIDES),
        (mobilenet_v1, "variant", arch.VARIANTS),
        (mobilenet_v1, "activation", arch.ACTIVATIONS),
        (mobilenet_v1, "padding", arch.PADDINGS),
        (mobilenet_v2, "strides", arch.STRIDES),
        (mobilenet_v2, "activation", arch.ACTIVATIONS),
        (mobilenet_v2, "bottleneck", arch.BOTTLENECKS),
        (mobilenet_v2, "shortcut", arch.SHORTCUTS),
        (mobilenet_v2, "padding", arch.PADDINGS),
    ],
)
def test_unknown_choices_are_refused(build, key, allowed):
    with pytest.raises(InputError, match=f"^{key}='swish': ") as caught:
        build(**{key: "swish"})
    with pytest.raises(InputError, match=rf"^{key}=\[\]: "):
        build(**{key: []})
    assert all(repr(choice) in str(caught.value) for choice in allowed)


def test_cifar28_has_cifar_strides_only():
    with pytest.raises(InputError, match="^strides='imagenet': .*'cifar28'.*'cifar'"):
        mobilenet_v1(variant="cifar28")


def test_the_former_name_of_a_variant_is_accepted():
    expected = mobilenet_v1(0.5, 10, "cifar", "cifar28")
    assert arch.mobilenet("v1", 0.5, num_classes=10, strides="cifar", variant="seed004") == expected


def test_a_network_by_its_version():
    assert arch.mobilenet("v1", 0.5) == mobilenet_v1(0.5)
    assert arch.mobilenet("v2", 0.5, expansion=3) == mobilenet_v2(0.5, 3)
    for wrong in ("v3", "V1", ["v1"], None, 1):
        with pytest.raises(InputError, match=f"^version={re.escape(repr(wrong))}: .*'v1', 'v2'"):
            arch.mobilenet(wrong)  # type: ignore[arg-type]
