"""Optimisers, weight decay, gradient clipping and the moving average: pure functions of traced scalars."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any  # a pytree of arrays


def optimizer(
    name: str, learning_rate: Any, momentum: Any, decay: Any = 0.9, epsilon: Any = 1.0
) -> optax.GradientTransformation:
    """Return momentum SGD, or RMSprop in TensorFlow's form. All scalars may be traced.

    TF's RMSprop (Tieleman & Hinton 2012, and the papers' released recipe) starts the mean square at 1, adds epsilon
    inside the root and keeps the learning rate inside the momentum:

        ms = decay ms + (1 - decay) g^2
        m = momentum m + lr g / sqrt(ms + epsilon)
        w = w - m

    Args:
      name: 'sgd' or 'rmsprop'; `decay` and `epsilon` are of RMSprop alone.
    """
    if name == "sgd":
        return optax.sgd(learning_rate, momentum)
    return optax.rmsprop(learning_rate, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum)


def decay_group(name: str, depthwise: Collection[str]) -> int:
    """Return the kind of weight decay of a parameter: 0 for a kernel, 1 for a depthwise kernel, 2 for none.

    Kernels of convolutions, pointwise layers and the classifier decay. Biases and batch norm do not. Depthwise kernels
    have a rate of their own, because the v1 paper (section 3.2) asks for little or none on them. They are found by
    layer name: their shape `[3, 3, 1, C]` is that of other kernels too.

    Args:
      name: such as 'stem/kernel' or 'stem/bn/scale'.
      depthwise: names of the depthwise layers.
    """
    layer, *_, leaf = name.split("/")
    return 2 if leaf != "kernel" else int(layer in depthwise)


def decay_rates(size: int, decaying: tuple[int, int], weight_decay: Any, depthwise_weight_decay: Any) -> jax.Array:
    """Return the weight decay of each of `size` parameters, which lie in the order of their `decay_group`.

    Args:
      decaying: number of values of kernels and of depthwise kernels.
      weight_decay: of kernels.
      depthwise_weight_decay: of depthwise kernels.
    """
    position, (kernels, own) = jnp.arange(size), decaying  # a range and two limits: no vector is stored or filled
    others = jnp.where(position < kernels + own, depthwise_weight_decay, 0.0)
    return jnp.where(position < kernels, weight_decay, others)


def clip_scale(norm: jax.Array, limit: Any) -> jax.Array:
    """Return the factor that scales gradients of global norm `norm` down to `limit`, 1 if `limit` is 0."""
    return jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)


def ema(average: Params, new: Params, decay: Any, step: Any) -> Params:
    """Return the moving average after one update, with TensorFlow's warm-up.

    The decay is min(decay, (1 + step) / (10 + step)), where `step` is the number of updates before this one.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: d * a + (1 - d) * n, average, new)
