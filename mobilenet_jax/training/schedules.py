"""Learning-rate schedules: the factor of the peak rate at a step. A new schedule gets a branch here."""

from typing import Any

import jax
import jax.numpy as jnp


def factor(name: str, step: Any, total_steps: Any, rise_steps: Any, stair_steps: Any, lr_decay: Any) -> jax.Array:
    """Return the learning rate at `step` as a factor of its peak, in [0, 1]. All numbers may be traced.

    Args:
      name: 'constant'; 'cosine', down to 0; 'exponential', a staircase (v2 paper, section 6.1: times 0.98 per epoch);
        'one_cycle' (Smith & Topin 2019), a cosine up from 1/25, then down to 1/250,000.
      total_steps: of the training.
      rise_steps: length of the rise, see `rise`. It is linear in all but 'one_cycle'. 'cosine' starts after the rise,
        'exponential' at step 0.
      stair_steps: length of a stair of 'exponential', at least 1.
      lr_decay: factor from stair to stair.
    """
    step = jnp.asarray(step, jnp.float32)  # exact below 16 million
    fall = jnp.maximum(1.0, total_steps - rise_steps)
    if name == "one_cycle":
        down = _cosine(1.0, 1 / 250_000, (step - rise_steps) / fall)
        return jnp.where(step < rise_steps, _cosine(1 / 25, 1.0, step / rise_steps), down)
    linear = jnp.minimum(1.0, (step + 1) / jnp.maximum(1.0, rise_steps))  # above 0 at the first step, so that it trains
    if name == "exponential":
        return linear * lr_decay ** jnp.floor((step + 0.5) / stair_steps)  # 0.5: a GPU's division is inexact
    if name == "cosine":
        return linear * _cosine(1.0, 0.0, (step - rise_steps) / fall)
    if name == "constant":
        return linear
    raise ValueError(f"unknown schedule {name!r}")


def rise(name: str, total_steps: int, warmup_steps: int) -> int:
    """Return the length of the rise: the warm-up, and for 'one_cycle' 30 % of the steps if there is none."""
    return warmup_steps if name != "one_cycle" else max(1, warmup_steps or round(0.3 * total_steps))


def _cosine(start, end, part):
    """Follow half a cosine wave from `start` to `end` as `part` goes from 0 to 1, constant outside."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0.0, 1.0))) / 2
