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


def decay_rates(params: Params, depthwise: Collection[str], weight_decay: Any, depthwise_weight_decay: Any) -> Params:
    """Return the weight decay of each parameter, as a tree like `params`.

    Kernels of convolutions, pointwise layers and the classifier decay. Biases and batch norm do not. Depthwise kernels
    have a rate of their own, because the v1 paper (section 3.2) asks for little or none on them. They are found by
    layer name: their shape `[3, 3, 1, C]` is that of other kernels too.

    Args:
      params: `{layer: {...}}`.
      depthwise: names of the depthwise layers.
      weight_decay: of all other kernels.
      depthwise_weight_decay: of depthwise kernels.
    """

    def rate(path, _):
        layer, leaf = path[0].key, path[-1].key
        if leaf != "kernel":
            return 0.0
        return depthwise_weight_decay if layer in depthwise else weight_decay

    return jax.tree_util.tree_map_with_path(rate, params)


def clip_scale(norm: jax.Array, limit: Any) -> jax.Array:
    """Return the factor that scales gradients of global norm `norm` down to `limit`, 1 if `limit` is 0."""
    return jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)


def ema(average: Params, new: Params, decay: Any, step: Any) -> Params:
    """Return the moving average after one update, with TensorFlow's warm-up.

    The decay is min(decay, (1 + step) / (10 + step)), where `step` is the number of updates before this one.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: d * a + (1 - d) * n, average, new)
