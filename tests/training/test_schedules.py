"""Schedules against formulas written by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet_jax.training.schedules import factor, rise


def schedule(name, total, warmup=0, steps_per_epoch=1, lr_decay=0.98, lr_decay_epochs=1.0):
    """Return a function of the step, with the lengths as `compile.py` derives them."""
    lengths = total, rise(name, total, warmup), max(1, round(lr_decay_epochs * steps_per_epoch)), lr_decay
    return lambda step: factor(name, step, *lengths)


def cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        (("constant", 100), {0: 1, 50: 1, 99: 1}),
        (("constant", 100, 10), {0: 0.1, 1: 0.2, 8: 0.9, 9: 1, 10: 1, 99: 1}),
        (("cosine", 100), {0: 1, 25: cosine(0.25), 50: 0.5, 99: cosine(0.99)}),
        (("cosine", 110, 10), {0: 0.1, 4: 0.5, 9: 1, 10: 1, 35: cosine(0.25), 60: 0.5, 109: cosine(0.99)}),
        (("exponential", 1000, 0, 10), {0: 1, 9: 1, 10: 0.98, 19: 0.98, 20: 0.98**2, 995: 0.98**99}),
        (("exponential", 1000, 0, 10, 0.98, 2.5), {0: 1, 24: 1, 25: 0.98, 49: 0.98, 50: 0.98**2, 999: 0.98**39}),
        (("exponential", 1000, 20, 10, 0.5), {0: 1 / 20, 9: 0.5, 10: 0.5 * 11 / 20, 19: 0.5, 20: 0.25, 39: 0.125}),
        (("exponential", 50, 0, 1, 0.9, 0.25), {0: 1, 1: 0.9, 2: 0.81}),  # a stair is at least one step
        (
            ("one_cycle", 100),
            {
                0: 1 / 25,
                15: (1 / 25 + 1) / 2,
                30: 1,
                65: (1 + 1 / 250_000) / 2,
                99: 1 / 250_000 + (1 - 1 / 250_000) * cosine(69 / 70),
                100: 1 / 250_000,
            },
        ),
        (("one_cycle", 100, 29), {0: 1 / 25, 29: 1, 100: 1 / 250_000}),
        (("one_cycle", 200, 20), {0: 1 / 25, 10: (1 / 25 + 1) / 2, 20: 1, 110: 0.5, 200: 1 / 250_000}),
    ],
)
def test_schedules_by_hand(arguments, points):
    of = schedule(*arguments)
    steps = jnp.array(list(points), jnp.int32)
    found = jax.jit(jax.vmap(of))(steps)
    np.testing.assert_allclose(found, list(points.values()), rtol=2e-4, atol=2e-6)
    singly = [jnp.asarray(of(step)) for step in steps]
    assert all(value.shape == () for value in singly)
    np.testing.assert_allclose(singly, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("total", [1, 2, 8, 200])
@pytest.mark.parametrize("name", ["constant", "cosine", "exponential", "one_cycle"])
def test_schedules_stay_above_0_and_at_most_1(name, total, warmup):
    of = schedule(name, total, min(warmup, total), steps_per_epoch=3)
    found = np.asarray(jax.vmap(of)(jnp.arange(200)))[:total]  # one shape for all, as JAX compiles each operation
    assert (found > 0).all() and (found <= 1 + 1e-6).all(), found
    if total == 200 and name != "exponential":  # which falls from step 0
        assert found.max() == pytest.approx(1, abs=1e-6)


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="zigzag"):
        factor("zigzag", 0, 10, 0, 1, 0.98)
