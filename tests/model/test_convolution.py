"""Compare dense convolutions as products with `lax.conv`: values and both gradients."""

import jax
import jax.numpy as jnp
import pytest
from model_helpers import assert_all_equal, fast_jit, value_and_gradients, whole_numbers

from mobilenet_jax.model.convolution import convolve


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2), (12, 2), (7, 2), (6, 1), (5, 1), (1, 1)])
def test_the_stem_is_the_convolution(size, stride, padding):
    out = -(-size // stride)
    arguments = whole_numbers((3, size, size, 3), (3, 3, 3, 8), (3, out, out, 8))
    shift, conv = (value_and_gradients(convolve, stride, which, padding) for which in ("shift", "conv"))
    assert_all_equal(*fast_jit(lambda *arguments: (shift(*arguments), conv(*arguments)))(*arguments))
    traced = str(jax.make_jaxpr(shift)(*arguments))
    assert "conv_general_dilated" not in traced and "dot_general" in traced


# The first case takes the product in two halves. In each of the others one of its conditions fails, or is at its limit.
@pytest.mark.parametrize(
    ("batch", "size", "inputs", "outputs"), [(4, 8, 16, 8), (4, 8, 8, 16), (3, 7, 6, 2), (4, 8, 48, 8), (2, 1, 3, 4)]
)
def test_pointwise_is_the_convolution(batch, size, inputs, outputs):
    shapes = (batch, size, size, inputs), (1, 1, inputs, outputs), (batch, size, size, outputs)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def all_three(x, kernel, g):
        y, pull_back = jax.vjp(plain, x, kernel)
        ours = [value_and_gradients(convolve, 1, implementation)(x, kernel, g) for implementation in ("shift", "conv")]
        return (y, *pull_back(g)), *ours

    expected, *found = fast_jit(all_three)(*whole_numbers(*shapes))
    for values in found:
        assert_all_equal(values, expected)


@pytest.mark.parametrize(("kernel", "inputs", "outputs"), [(3, 3, 8), (1, 8, 4)])
def test_vmap(kernel, inputs, outputs):
    shapes = (3, 2, 8, 8, inputs), (3, kernel, kernel, inputs, outputs), (3, 2, 8, 8, outputs)
    arguments = whole_numbers(*shapes)
    together = fast_jit(jax.vmap(value_and_gradients(convolve, 1, "shift")))
    singly = fast_jit(value_and_gradients(convolve, 1, "conv"))
    expected = [singly(*(a[i] for a in arguments)) for i in range(3)]
    assert_all_equal(together(*arguments), [jnp.stack(parts) for parts in zip(*expected, strict=True)])
