"""Dense convolutions, pointwise ones and the stem, as matrix products with a kernel gradient of their own.

XLA turns neither the kernel gradient of a 1x1 convolution nor a contraction over a 4-D map into one product, and runs
the gradients of its convolutions slowly on a CPU. Milliseconds there, with two cores at 145 G multiply-adds/s and
26 GB/s, batch 128, 32x32 pixels, 48 to 8 channels: forward 0.8, input gradient 0.9, kernel gradient 2.5 as `x.T @ g`
and 0.8 here; the limit is 1.1, of bandwidth (less where a map is in cache).
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from mobilenet_jax.model.depthwise import same_padding


def convolve(x: jax.Array, kernel: jax.Array, stride: int, implementation: str) -> jax.Array:
    """A dense convolution, SAME padding.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K, K, C, C']`.
      stride: of both directions; 1 where K is 1.
      implementation: 'shift', with which the stem is a product and gradients are those below, or 'conv', as
        `depthwise.choose` gives it.

    Returns:
      `[N, ceil(H / stride), ceil(W / stride), C']`.
    """
    k, _, inputs, outputs = kernel.shape
    if k > 1 and (implementation == "conv" or inputs > 3):
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if k > 1:
        return _stem(x, kernel, stride)
    product = _product if implementation == "shift" else jnp.matmul
    return product(x.reshape(-1, inputs), kernel.reshape(inputs, outputs)).reshape(*x.shape[:3], outputs)


def _stem(x, kernel, stride):
    """Four columns of the output at once: the patch that they see is half the size of their four patches.

    It is also in longer runs: 18 values instead of 9 at stride 1. The kernel stands in it at four places.
    """
    k, _, inputs, outputs = kernel.shape
    n, h, w, _ = x.shape
    height, width = -(-h // stride), -(-w // stride)
    columns = math.gcd(width, 4)
    reach = (columns - 1) * stride + k  # columns of the input
    x = jnp.pad(x, ((0, 0), same_padding(h, k, stride), same_padding(w, k, stride), (0, 0)))
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


def _product_fwd(x, kernel):
    return x @ kernel, (x, kernel)


def _product_bwd(residuals, g):
    x, kernel = residuals
    return g @ kernel.T, _kernel_gradient(x, g)


_product.defvjp(_product_fwd, _product_bwd)


def _kernel_gradient(x, g):
    """`x.T @ g` of two tall matrices.

    Where `x` is the wider one, XLA's product is two to three times as fast with `g` on the left. It would turn such a
    product around by itself, but not a batch of two.
    """
    rows, inputs = x.shape
    if inputs <= g.shape[1] or rows % 2 or rows < 8 * inputs:
        return x.T @ g
    halves = [array.reshape(2, rows // 2, -1) for array in (g, x)]
    return jnp.einsum("bro,bri->boi", *halves).sum(0).T
