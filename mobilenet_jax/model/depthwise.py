"""Compute the depthwise convolution with its own gradients.

Products and sums are float32 or more, and are rounded once.

On a CPU, XLA computes `lax.conv` with one group per channel one channel at a time, and turns its kernel gradient into a
dense C x C one. Here the forward pass and the input gradient are sums of shifted slices, which XLA fuses into one
vectorised loop. On two cores with 128 images (`benchmarks/parts.py`), the forward pass takes 1.5 to 2.7 times as long
as to read or write each array once. Both gradients take 3.5 to 5.7 times as long.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mobilenet_jax.model.convolution import lax_convolution, zeros_around


def choose(implementation: str, platform: str) -> str:
    """Return the implementation that 'auto' means on a platform. Any other implementation is returned unchanged.

    'shift' was measured to be faster on a CPU. NOTE: on a GPU only 'conv' was measured (docs/speed.md), and nothing on
    a TPU.
    """
    if implementation != "auto":
        return implementation
    return "shift" if platform == "cpu" else "conv"


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, implementation: str, padding: str = "same") -> jax.Array:
    """Convolve each channel with its own kernel (v1 paper, section 3.1, equation 3).

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K, K, 1, C]`, the shape Flax gives it.
      implementation: 'shift' or 'taps' (shifted slices; they differ in the kernel gradient), or 'conv'
        (`lax.conv_general_dilated` with C groups).
      padding: of `arch.zero_padding`.

    Returns:
      `[N, ceil(H / stride), ceil(W / stride), C]`.
    """
    if implementation == "conv":
        return lax_convolution(x, kernel, stride, padding)
    return _slices(x, kernel[:, :, None, None], stride, implementation, padding)


# `jit` traces a function once per shape. A network has far fewer shapes than layers.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _slices(x: jax.Array, kernel: jax.Array, stride: int, implementation: str, padding: str) -> jax.Array:
    k, exact = kernel.shape[0], _exact(x)
    padded, kernel = _padded(x, k, stride, padding), kernel.astype(exact)
    sizes = [-(-size // stride) for size in x.shape[1:3]]
    taps = itertools.product(range(k), range(k))
    terms = [_tap(padded, *tap, sizes, stride).astype(exact) * kernel[tap] for tap in taps]
    return sum(terms[1:], terms[0]).astype(x.dtype)


def _slices_bwd(stride, implementation, padding, residuals, g):
    x, kernel = residuals
    k, kernel_gradient = kernel.shape[0], _kernel_gradient if implementation == "shift" else _tap_sums
    before = tuple(zeros for zeros, _ in zeros_around(x, k, stride, padding))
    return _input_gradient(g, kernel, stride, x.shape, before), kernel_gradient(x, g, k, stride, padding)


_slices.defvjp(lambda x, kernel, *options: (_slices(x, kernel, *options), (x, kernel)), _slices_bwd)


def _exact(x):
    return np.promote_types(x.dtype, np.float32)


def _padded(x, k, stride, padding):
    return jnp.pad(x, ((0, 0), *zeros_around(x, k, stride, padding), (0, 0)))


def _tap(padded, i, j, sizes, stride):
    """Return the values that tap (i, j) meets at each place of an output of `sizes`."""
    rows, columns = ((size - 1) * stride + 1 for size in sizes)
    limits = padded.shape[0], i + rows, j + columns, padded.shape[3]
    return lax.slice(padded, (0, i, j, 0), limits, (1, stride, stride, 1))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _input_gradient(g, kernel, stride, shape, before):
    """Compute the stride^2 phases of the gradient, each from its own taps and of the output's size. Interleave them."""
    (n, h, w, c), k, (top, left) = shape, kernel.shape[0], before
    reach = (k - 1) // stride
    rows, columns = -(-(h + top) // stride), -(-(w + left) // stride)
    below, after = max(rows - g.shape[1], 0), max(columns - g.shape[2], 0)
    dtype, exact = g.dtype, _exact(g)
    kernel = kernel.astype(exact)
    padded = lax.pad(g, jnp.zeros((), dtype), ((0, 0, 0), (reach, below, 0), (reach, after, 0), (0, 0, 0)))

    def shifted(i, j):
        start, side = reach - i // stride, reach - j // stride
        return lax.slice(padded, (0, start, side, 0), (n, start + rows, side + columns, c)).astype(exact)

    def phase(a, b):
        taps = itertools.product(range(a, k, stride), range(b, k, stride))
        terms = [shifted(i, j) * kernel[i, j] for i, j in taps]
        total = sum(terms[1:], terms[0]) if terms else jnp.zeros((n, rows, columns, c), exact)
        return total.astype(dtype)

    if stride == 1:
        full = phase(0, 0)
    else:
        phases = [jnp.stack([phase(a, b) for b in range(stride)], axis=3) for a in range(stride)]
        full = jnp.stack(phases, axis=2).reshape(n, rows * stride, columns * stride, c)
    return lax.slice(full, (0, top, left, 0), (n, top + h, left + w, c))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _kernel_gradient(x, g, k, stride, padding):
    """Sum the products of each tap over a few images at a time, so that both maps are in cache for all k*k sums."""
    # Sums as large as the map would cost more to carry from image to image than the products cost. So each map is cut
    # into a grid of equal patches, and a sum has the size of one patch and adds 16 or more products per iteration. It
    # has two halves, each from one half of the images, because XLA splits the outermost axis over the cores.
    (n, *_, c), exact = x.shape, _exact(x)
    halves = math.gcd(n, 2)
    images, rows, columns = _patches(n // halves, *g.shape[1:3])
    height, width = g.shape[1] // rows, g.shape[2] // columns
    zeros = ((0, 0), (0, 0), *zeros_around(x, k, stride, padding), (0, 0))

    def add_images(sums, both):
        x, g = (array.astype(exact) for array in both)
        x = lax.optimization_barrier(jnp.pad(x, zeros))  # pad once, not once per tap

        def patch(image, row, column):
            limits = halves, (row + 1) * height, (column + 1) * width, c
            return lax.slice(g[image], (0, row * height, column * width, 0), limits)

        grid = itertools.product(range(images), range(rows), range(columns))
        g_of = {place: patch(*place) for place in grid}
        x_of = [x[image] for image in range(images)]

        def product(i, j, place):
            image, top, left = place[0], place[1] * height * stride + i, place[2] * width * stride + j
            limits = (halves, top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, c)
            return lax.mul(lax.slice(x_of[image], (0, top, left, 0), limits, (1, stride, stride, 1)), g_of[place])

        taps = itertools.product(range(k), range(k))
        add = functools.partial(functools.reduce, lax.add)  # operators of arrays are slower to trace
        return [add([product(*tap, place) for place in g_of], s) for s, tap in zip(sums, taps, strict=True)], None

    nothing = [jnp.zeros((halves, height, width, c), exact)] * (k * k)
    groups = [array.reshape(-1, images, halves, *array.shape[1:]) for array in (x, g)]
    sums, _ = lax.scan(add_images, nothing, groups)
    return jnp.stack(sums).sum((1, 2, 3)).reshape(k, k, 1, 1, 1, c).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _tap_sums(x, g, k, stride, padding):
    """Sum the products of each tap over all images and places at once, without a loop over images."""
    exact = _exact(x)
    padded, g = _padded(x, k, stride, padding), g.astype(exact)
    taps = itertools.product(range(k), range(k))
    sums = [(_tap(padded, *tap, g.shape[1:3], stride).astype(exact) * g).sum((0, 1, 2)) for tap in taps]
    return jnp.stack(sums).reshape(k, k, 1, 1, 1, -1).astype(x.dtype)


def _patches(*sizes: int) -> tuple[int, ...]:
    """Return divisors of batch, height and width with a product of 16 or little more, preferably of two images."""
    choices = itertools.product(*([d for d in range(1, size + 1) if size % d == 0] for size in sizes))
    enough = min(16, math.prod(sizes))
    fit = [choice for choice in choices if math.prod(choice) >= enough]
    return min(fit, key=lambda choice: (math.prod(choice) + 4 * abs(choice[0] - 2), abs(choice[1] - choice[2])))
