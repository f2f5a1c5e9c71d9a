"""Compare shifted slices ('shift' and 'taps') with `lax.conv`: values and both gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import assert_all_equal, fast_jit, value_and_gradients, whole_numbers

from mobilenet_jax.model.depthwise import _patches, choose, depthwise
from mobilenet_jax.networks.arch import mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.cost import layer_costs

# (height, width, kernel, stride). The layers of the networks ...
IN_NETWORKS = sorted(
    {
        (row.in_size, row.in_size, row.layer.kernel, row.layer.stride)
        for build in (mobilenet_v1, mobilenet_v2)
        for strides, resolution in {"imagenet": 224, "cifar": 32}.items()
        for row in layer_costs(build(strides=strides), resolution)
        if row.layer.kind == "depthwise"
    }
)
# ... and edge cases: tiny, odd and not square maps, other kernels and strides.
EDGES = [(size, size, 3, stride) for size in (1, 2, 3, 5, 7) for stride in (1, 2)] + [
    *((1, 6, 3, 2), (6, 1, 3, 2), (5, 8, 3, 1), (5, 8, 3, 2), (8, 5, 3, 2)),
    *((7, 6, 3, 3), (7, 6, 5, 2), (6, 7, 1, 2), (6, 7, 2, 1), (9, 8, 2, 3)),
]
CHANNELS = 3


def arguments_of(height, width, kernel, stride, lead=(), dtype: type = np.float64, batch=2):
    """Return x, kernel and cotangent."""
    return whole_numbers(
        (*lead, batch, height, width, CHANNELS),
        (*lead, kernel, kernel, 1, CHANNELS),
        (*lead, batch, -(-height // stride), -(-width // stride), CHANNELS),
        dtype=dtype,
    )


def all_of(stride, padding="same"):
    """Return a compiled function that returns the results of 'shift', 'taps' and 'conv'."""
    runs = [value_and_gradients(depthwise, stride, which, padding) for which in ("shift", "taps", "conv")]
    return fast_jit(lambda *arguments: [run(*arguments) for run in runs])


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), sorted({*IN_NETWORKS, *EDGES}))
def test_slices_are_conv(height, width, kernel, stride):
    with jax.enable_x64(True):
        arguments = arguments_of(height, width, kernel, stride)
        *found, expected = all_of(stride)(*arguments)
    assert expected[0].dtype == jnp.float64 and len(found) == 2
    for each in found:
        assert_all_equal(each, expected)


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"), [(8, 8, 3, 2), (8, 5, 3, 2), (7, 6, 5, 2), (6, 6, 3, 1)]
)
def test_slices_are_conv_with_symmetric_padding(height, width, kernel, stride):
    arguments = arguments_of(height, width, kernel, stride, dtype=np.float32)
    *found, expected = all_of(stride, "symmetric")(*arguments)
    for each in found:
        assert_all_equal(each, expected)
    x, weights, _ = arguments
    zeros, axes = [(kernel // 2, kernel // 2)] * 2, ("NHWC", "HWIO", "NHWC")
    plain = jax.lax.conv_general_dilated(
        x, weights, (stride, stride), zeros, dimension_numbers=axes, feature_group_count=CHANNELS
    )
    np.testing.assert_array_equal(expected[0], plain)


@pytest.mark.parametrize(("size", "patches"), [(1, (16, 1, 1)), (2, (4, 2, 2)), (7, (3, 1, 7)), (32, (2, 2, 4))])
def test_a_batch_of_many_images(size, patches):
    # For small maps the kernel gradient takes several images at once.
    assert _patches(48, size, size) == patches
    arguments = arguments_of(size, size, 3, 1, dtype=np.float32, batch=48)
    shift, _, conv = all_of(1)(*arguments)
    assert_all_equal(shift, conv)


def test_patches_cut_evenly():
    for size, batch in itertools.product(range(1, 60), (1, 2, 97, 128)):
        found = _patches(batch, size, size)
        assert all(whole % parts == 0 for whole, parts in zip((batch, size, size), found, strict=True)), (batch, size)
        assert min(16, batch * size * size) <= math.prod(found) <= 200, (batch, size)


@pytest.mark.parametrize("implementation", ["shift", "taps", "conv"])
def test_by_hand(implementation):
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, :, 0, 0].set(jnp.array([1.0, 10.0, 100.0]))
    for stride, expected in {1: [210, 321, 432, 43], 2: [321, 43]}.items():  # at stride 2 all padding comes last
        np.testing.assert_array_equal(depthwise(x, kernel, stride, implementation).ravel(), expected)
    found = depthwise(x, kernel, 2, implementation, "symmetric").ravel()
    np.testing.assert_array_equal(found, [210, 432])  # the padding comes first


@pytest.mark.parametrize("implementation", ["shift", "taps"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_vmap(stride, axes, implementation):
    x, kernel, cotangent = arguments_of(7, 6, 3, stride, lead=(3,), dtype=np.float32)
    x, kernel = (a if axis == 0 else a[1] for a, axis in zip((x, kernel), axes, strict=True))
    conv = fast_jit(value_and_gradients(depthwise, stride, "conv"))
    singly = [
        conv(x if axes[0] is None else x[i], kernel if axes[1] is None else kernel[i], cotangent[i]) for i in range(3)
    ]
    expected = [jnp.stack(parts) for parts in zip(*singly, strict=True)]
    run = jax.vmap(value_and_gradients(depthwise, stride, implementation), (*axes, 0))
    assert_all_equal(fast_jit(run)(x, kernel, cotangent), expected)


@pytest.mark.parametrize("implementation", ["shift", "taps", "conv"])
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_rounded_once(stride, implementation):
    """Rounding alone is off by 0.0017 in the root mean square, relative to that of the values."""
    rng = np.random.default_rng(1)
    shapes = [a.shape for a in arguments_of(16, 16, 3, stride, dtype=np.float32)]
    rounded = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    found = fast_jit(value_and_gradients(depthwise, stride, implementation))(*rounded)
    with jax.enable_x64(True):
        exact = fast_jit(value_and_gradients(depthwise, stride, "conv"))(*(a.astype(jnp.float64) for a in rounded))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.asarray(a, np.float64) - np.asarray(b)
        assert np.sqrt((error**2).mean() / (np.asarray(b) ** 2).mean()) < 2.5e-3


@pytest.mark.parametrize(
    ("implementation", "platform", "chosen"),
    [
        ("auto", "cpu", "shift"),
        ("auto", "gpu", "conv"),
        ("auto", "tpu", "conv"),
        ("shift", "gpu", "shift"),
        ("conv", "cpu", "conv"),
    ],
)
def test_choose(implementation, platform, chosen):
    assert choose(implementation, platform) == chosen
