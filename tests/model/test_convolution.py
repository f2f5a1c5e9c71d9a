"""Dense convolutions as products against `lax.conv`: values and both gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax.model.convolution import convolve


def whole_numbers(*shapes):
    """Small ones: every sum is exact, so two ways must agree to the last bit."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-4, 5, shape), jnp.float32) for shape in shapes]


def value_and_gradients(x, kernel, g, stride, implementation):
    y, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, implementation), x, kernel)
    return y, *pull_back(g)


def assert_all_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2), (12, 2), (7, 2), (6, 1), (5, 1), (1, 1)])
def test_the_stem_is_the_convolution(size, stride):
    out = -(-size // stride)
    arguments = whole_numbers((3, size, size, 3), (3, 3, 3, 8), (3, out, out, 8))
    run = functools.partial(value_and_gradients, *arguments, stride)
    assert_all_equal(run("shift"), run("conv"))
    traced = str(jax.make_jaxpr(lambda: run("shift"))())
    assert "conv_general_dilated" not in traced and "dot_general" in traced


# More channels than outputs, and enough pixels: the product in two halves. Then one condition after another fails.
@pytest.mark.parametrize(
    ("batch", "size", "inputs", "outputs"), [(4, 8, 16, 8), (4, 8, 8, 16), (3, 7, 6, 2), (4, 8, 48, 8), (2, 1, 3, 4)]
)
def test_pointwise_is_the_convolution(batch, size, inputs, outputs):
    shapes = (batch, size, size, inputs), (1, 1, inputs, outputs), (batch, size, size, outputs)
    x, kernel, g = whole_numbers(*shapes)
    found = value_and_gradients(x, kernel, g, 1, "shift")
    plain = jax.vjp(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        x,
        kernel,
    )
    assert_all_equal(found, (plain[0], *plain[1](g)))
    assert_all_equal(value_and_gradients(x, kernel, g, 1, "conv"), found)


@pytest.mark.parametrize(("kernel", "inputs", "outputs"), [(3, 3, 8), (1, 8, 4)])
def test_vmap(kernel, inputs, outputs):
    shapes = (3, 2, 8, 8, inputs), (3, kernel, kernel, inputs, outputs), (3, 2, 8, 8, outputs)
    arguments = whole_numbers(*shapes)
    found = jax.vmap(lambda x, k, g: value_and_gradients(x, k, g, 1, "shift"))(*arguments)
    x, k, g = arguments
    singly = [value_and_gradients(x[i], k[i], g[i], 1, "conv") for i in range(3)]
    assert_all_equal(found, [jnp.stack(parts) for parts in zip(*singly, strict=True)])
