"""Compute batch normalisation and the activation after it as one operation with its own gradient.

The gradient that JAX derives reads and writes the map many times. The gradient here takes two passes: one for the two
sums over the batch, one for the result. It recomputes the pre-activation from the input instead of storing it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Each activation is a clip to [low, high]. Its gradient is 1 strictly between them, and 0 elsewhere.
ACTIVATIONS = {None: (-jnp.inf, jnp.inf), "relu": (0.0, jnp.inf), "relu6": (0.0, 6.0)}


def batch_norm_inference(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: float, activation: str | None
) -> Array:
    """Normalise `x` `[..., C]` with given statistics `[C]`, then apply the activation, in float32 or more.

    The result is rounded once, to the dtype of `x`.
    """
    a, b = (each.reshape((1,) * (x.ndim - 1) + each.shape) for each in _affine(scale, bias, mean, var, epsilon))
    y = x.astype(_exact(x)) * a + b
    return (y if activation is None else jnp.clip(y, *ACTIVATIONS[activation])).astype(x.dtype)


def batch_norm_training(
    x: Array, scale: Array, bias: Array, epsilon: float, activation: str | None
) -> tuple[Array, Array, Array]:
    """Normalise `x` with its own statistics, then apply the activation (Ioffe and Szegedy 2015).

    Statistics are over all axes but the last. All is computed in float32 or more, and rounded once. Under `jit` with a
    sharded batch the statistics are those of the global batch. The variance is the biased one, which the running
    average takes too, as in Flax; TensorFlow's fused batch norm averages the unbiased one. NOTE: no gradient flows
    through the returned statistics, which are for the running averages only.

    Args:
      x: `[..., C]`.
      scale, bias: gamma and beta, `[C]`.
      epsilon: added to the variance.
      activation: a key of `ACTIVATIONS`.

    Returns:
      The output (shape and dtype of `x`), the mean `[C]` and the biased variance `[C]`.
    """
    return _norm(x, scale, bias, epsilon, activation)  # type: ignore[return-value]


def _affine(scale, bias, mean, var, epsilon):
    a = scale * jax.lax.rsqrt(var + epsilon)
    return a, bias - mean * a


def _exact(x):
    return np.promote_types(x.dtype, jnp.float32)


def _rows(x):
    return x.reshape(-1, x.shape[-1]).astype(_exact(x))


# `jit` traces a function once per shape. A network has far fewer shapes than layers.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@functools.partial(jax.jit, static_argnums=(3, 4))
def _norm(x, scale, bias, epsilon, activation):
    rows = _rows(x)
    mean = rows.mean(0)
    var = jnp.maximum((rows * rows).mean(0) - mean * mean, 0.0)
    return batch_norm_inference(x, scale, bias, mean, var, epsilon, activation), mean, var


def _norm_fwd(x, scale, bias, epsilon, activation):
    y, mean, var = batch_norm_training(x, scale, bias, epsilon, activation)
    return (y, mean, var), (x, scale, bias, mean, var)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _norm_bwd(epsilon, activation, residuals, cotangents):
    x, scale, bias, mean, var = residuals
    rows, g = _rows(x), _rows(cotangents[0])
    a, b = _affine(scale, bias, mean, var, epsilon)
    if activation is not None:
        low, high = ACTIVATIONS[activation]
        y = rows * a[None] + b[None]
        g = jnp.where((y > low) & (y < high), g, 0.0)
    inv = jax.lax.rsqrt(var + epsilon)
    g_sum, gx_sum = g.sum(0), (g * rows).sum(0)
    g_scale = (gx_sum - mean * g_sum) * inv
    # dx = a (g - mean(g) - xhat mean(g xhat)), where xhat = (x - mean) inv is written as an affine map of x.
    slope = inv * g_scale / rows.shape[0]
    offset = g_sum / rows.shape[0] - mean * slope
    dx = a[None] * (g - rows * slope[None] - offset[None])
    return dx.astype(x.dtype).reshape(x.shape), g_scale, g_sum


_norm.defvjp(_norm_fwd, _norm_bwd)
