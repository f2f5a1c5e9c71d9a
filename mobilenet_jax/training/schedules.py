"""Learning-rate schedules: functions from step to a factor of the peak rate. A new schedule gets a branch here."""

import jax.numpy as jnp
import optax


def schedule(
    name: str,
    total_steps: int,
    warmup_steps: int = 0,
    steps_per_epoch: int = 1,
    lr_decay: float = 0.98,
    lr_decay_epochs: float = 1.0,
) -> optax.Schedule:
    """Return the learning rate as a factor of its peak, a function from step to [0, 1].

    Args:
      name: 'constant'; 'cosine', down to 0; 'exponential', the factor `lr_decay` every `lr_decay_epochs` as a staircase
        (v2 paper, section 6.1: 0.98 per epoch); 'one_cycle' (Smith & Topin 2019), a cosine up from 1/25 over the
        warm-up (30 % of the steps if that is 0), then down to 1/250,000.
      warmup_steps: length of a linear rise in the others. 'cosine' starts after the rise, 'exponential' at step 0.
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
    """Rise linearly to 1. The first step is above 0, so that it trains too."""
    return jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))


def _cosine(start, end, part):
    """Follow half a cosine wave from `start` to `end` as `part` goes from 0 to 1, constant outside."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0.0, 1.0))) / 2
