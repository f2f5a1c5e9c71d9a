"""Compute dense convolutions: the stem and pointwise layers as matrix products with their own kernel gradient.

XLA computes neither the kernel gradient of a 1x1 convolution nor a contraction over a 4-D map as one matrix product,
and its convolution gradients are slow on a CPU.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from mobilenet_jax.networks.arch import zero_padding


def convolve(x: jax.Array, kernel: jax.Array, stride: int, implementation: str, padding: str = "same") -> jax.Array:
    """Compute a dense convolution.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K, K, C, C']`.
      stride: 1 if K is 1.
      implementation: 'shift' (matrix products with the gradients below), 'taps' (with XLA's, but the stem's as
        below) or 'conv', from `depthwise.choose`.
      padding: of `arch.zero_padding`.

    Returns:
      `[N, ceil(H / stride), ceil(W / stride), C']`.
    """
    k, _, inputs, outputs = kernel.shape
    if k > 1 and (implementation == "conv" or inputs > 3):
        return lax_convolution(x, kernel, stride, padding)
    if k > 1:
        return _stem(x, kernel, stride, padding)
    product = _product if implementation == "shift" else jnp.matmul
    return product(x.reshape(-1, inputs), kernel.reshape(inputs, outputs)).reshape(*x.shape[:3], outputs)


def lax_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    """Convolve with `lax.conv_general_dilated`. The kernel's input axis determines the channel groups."""
    axes, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    zeros = zeros_around(x, kernel.shape[0], stride, padding)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), zeros, dimension_numbers=axes, feature_group_count=groups
    )


def zeros_around(x: jax.Array, k: int, stride: int, padding: str) -> list[tuple[int, int]]:
    """Return the zeros before and after height and width of `x`, `[N, H, W, C]`."""
    return [zero_padding(size, k, stride, padding) for size in x.shape[1:3]]


def _stem(x, kernel, stride, padding):
    """Compute four columns of the output with one product, whose kernel holds four shifted copies of `kernel`."""
    # The patch of four columns has half the values of their four patches, in longer contiguous runs.
    k, _, inputs, outputs = kernel.shape
    n, h, w, _ = x.shape
    height, width = -(-h // stride), -(-w // stride)
    columns = math.gcd(width, 4)
    reach = (columns - 1) * stride + k  # columns of the input
    x = jnp.pad(x, ((0, 0), *zeros_around(x, k, stride, padding), (0, 0)))
    starts = range(0, width * stride, columns * stride)
    x = jnp.stack([lax.slice_in_dim(x, start, start + reach, axis=2) for start in starts], axis=2)
    below = (height - 1) * stride + 1
    patches = jnp.stack([lax.slice_in_dim(x, i, i + below, stride, axis=1) for i in range(k)], axis=3)
    shifts = range(0, columns * stride, stride)
    places = [jnp.pad(kernel, ((0, 0), (shift, reach - k - shift), (0, 0), (0, 0))) for shift in shifts]
    size = k * reach * inputs
    y = _product(patches.reshape(-1, size), jnp.stack(places, axis=-2).reshape(size, columns * outputs))
    return y.reshape(n, height, width, outputs)


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


def _product_bwd(residuals, g):
    x, kernel = residuals
    return g @ kernel.T, _kernel_gradient(x, g)


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_bwd)


def _kernel_gradient(x, g):
    """Return `x.T @ g` for two tall matrices."""
    # If `x` is the wider one, XLA's product is two to three times as fast with `g` on the left. XLA swaps the operands
    # of a single product back, but not those of a batch of two.
    rows, inputs = x.shape
    if inputs <= g.shape[1] or rows % 2 or rows < 8 * inputs:
        return x.T @ g
    halves = [array.reshape(2, rows // 2, -1) for array in (g, x)]
    return jnp.einsum("bro,bri->boi", *halves).sum(0).T
