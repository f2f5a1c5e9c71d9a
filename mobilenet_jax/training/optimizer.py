"""Schedules, optimisers, weight decay and the moving average: pure functions of traced scalars."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any


def schedule(
    name: str,
    total_steps: int,
    warmup_steps: int = 0,
    steps_per_epoch: int = 1,
    lr_decay: float = 0.98,
    lr_decay_epochs: float = 1.0,
) -> optax.Schedule:
    """The learning rate's course as a factor of its peak: a function from step to [0, 1].

    Args:
      name: 'constant'; 'cosine', to 0; 'exponential', the factor `lr_decay` every `lr_decay_epochs` as a staircase
        (v2 paper, section 6.1: 0.98 per epoch); 'one_cycle' (Smith & Topin 2019), cosine up from 1/25 over the warm-up
        (30 % of the steps where that is 0), then down to 1/250,000.
      total_steps: of the whole run.
      warmup_steps: linear rise before the others, whose own course is measured from step 0 ('exponential') or from
        the end of the rise ('cosine').
      steps_per_epoch: turns epochs into steps.
      lr_decay: see 'exponential'.
      lr_decay_epochs: see 'exponential'.
    """
    if name == "one_cycle":
        peak = max(1, warmup_steps or round(0.3 * total_steps))
        fall = max(1, total_steps - peak)
        return lambda step: jnp.where(
            jnp.less(step, peak), _cosine(1 / 25, 1.0, step / peak), _cosine(1.0, 1 / 250_000, (step - peak) / fall)
        )
    if name == "exponential":
        stairs = optax.exponential_decay(
            1.0, max(1, round(lr_decay_epochs * steps_per_epoch)), lr_decay, staircase=True
        )
        return lambda step: stairs(step) * _rise(step, warmup_steps)
    if name == "cosine":
        fall = max(1, total_steps - warmup_steps)
        return lambda step: _rise(step, warmup_steps) * _cosine(1.0, 0.0, (step - warmup_steps) / fall)
    if name == "constant":
        return lambda step: _rise(step, warmup_steps)
    raise ValueError(f"unknown schedule {name!r}")


def _rise(step, warmup_steps):
    """Linear to 1, and never 0: the first step moves too."""
    return jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))


def _cosine(start, end, part):
    """Half a cosine wave from `start` to `end` as `part` goes from 0 to 1; level outside."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0.0, 1.0))) / 2


def optimizer(
    name: str, learning_rate: Any, momentum: Any, decay: Any = 0.9, epsilon: Any = 1.0
) -> optax.GradientTransformation:
    """Momentum SGD, or RMSprop as TensorFlow wrote it.

    TF's RMSprop (Tieleman & Hinton 2012, and the papers' released recipe) starts the mean square at 1, adds epsilon
    inside the root and keeps the learning rate inside the momentum:
    ms = decay ms + (1 - decay) g^2; m = momentum m + lr g / sqrt(ms + epsilon); w = w - m.
    All four scalars may be traced.
    """
    if name == "sgd":
        return optax.sgd(learning_rate, momentum)
    return optax.rmsprop(learning_rate, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum)


def decay_rates(params: Params, depthwise: Collection[str], weight_decay: Any, depthwise_weight_decay: Any) -> Params:
    """The weight decay of each parameter, as a tree like `params`.

    Kernels of convolutions, pointwise layers and the classifier decay; biases and batch norm never; depthwise kernels
    by a rate of their own, as the v1 paper (section 3.2) asks for little or none on them. Their shape `[3, 3, 1, C]`
    does not tell, so the layers are named.

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
    """What gradients of global norm `norm` are multiplied by so as not to exceed `limit`; 1 where `limit` is 0."""
    return jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)


def ema(average: Params, new: Params, decay: Any, step: Any) -> Params:
    """One update of the moving average, with TensorFlow's warm-up: the decay is min(decay, (1 + step) / (10 + step)).

    `step` is the number of updates done before this one.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: d * a + (1 - d) * n, average, new)
