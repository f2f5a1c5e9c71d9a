"""Compare batch norm and its activation with Flax's in float64: value, statistics, gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mobilenet_jax.model.batch_norm import ACTIVATIONS, batch_norm_inference, batch_norm_training

EPSILON = 1e-3
FLAX_ACTIVATIONS: dict[str | None, Any] = {None: lambda y: y, "relu": nn.relu, "relu6": nn.relu6}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def arguments(lead=(), spread=2.0, centre=1.0):
    """Return float32 x `[4, 5, 3, 8]`, scale and bias `[8]`, and a cotangent. ReLU6 clips x on both sides."""
    rng = np.random.default_rng(0)
    x = rng.normal(centre, spread, (*lead, 4, 5, 3, 8))
    scale, bias = rng.uniform(2, 4, (*lead, 8)), rng.uniform(0, 4, (*lead, 8))
    return [a.astype(np.float32) for a in (x, scale, bias, rng.normal(size=x.shape))]


def training(x, scale, bias, cotangent, *, activation):
    """Return output, mean, variance, and the gradients of x, scale and bias."""

    def run(x, scale, bias):
        y, mean, var = batch_norm_training(x, scale, bias, EPSILON, activation)
        return y, (mean, var)

    y, pull_back, statistics = jax.vjp(run, x, scale, bias, has_aux=True)
    return y, *statistics, *pull_back(cotangent)


def flax_training(x, scale, bias, cotangent, *, activation):
    """Return the same from `flax.linen.BatchNorm`. A momentum of 0 keeps only the statistics of the batch."""
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=EPSILON, dtype=x.dtype, param_dtype=x.dtype)
    before = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}

    def run(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": before}
        y, after = layer.apply(variables, x, mutable=["batch_stats"])
        return FLAX_ACTIVATIONS[activation](y), after["batch_stats"]

    y, pull_back, after = jax.vjp(run, x, scale, bias, has_aux=True)
    return y, after["mean"], after["var"], *pull_back(cotangent)


def in_float64(run, values):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # Flax's own code is not strict
        return jax.tree.map(np.asarray, jax.jit(run)(*(jnp.asarray(v, jnp.float64) for v in values)))


def assert_all_close(found, expected, rtol=2e-5, atol=2e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * max(1.0, np.abs(b).max()))


@each_activation
def test_training_is_flax(activation):
    values = arguments()
    expected = in_float64(functools.partial(flax_training, activation=activation), values)
    assert all(a.dtype == np.float64 for a in expected)
    for bound in ACTIVATIONS[activation]:
        assert np.isinf(bound) or (expected[0] == bound).mean() > 0.05  # it clips
    found = jax.jit(functools.partial(training, activation=activation))(*values)
    assert all(a.dtype == jnp.float32 for a in found)
    assert_all_close(found, expected)


def test_a_mean_far_from_zero():
    values = arguments(spread=1.0, centre=30.0)
    expected = in_float64(functools.partial(flax_training, activation="relu6"), values)
    found = jax.jit(functools.partial(training, activation="relu6"))(*values)
    assert_all_close(found, expected, rtol=2e-3, atol=2e-3)


@each_activation
def test_inference_is_flax(activation):
    x, scale, bias, _ = arguments()
    rng = np.random.default_rng(1)
    mean, var = np.float32(rng.normal(size=8)), np.float32(rng.uniform(0.5, 2, 8))

    def flax_inference(x, scale, bias, mean, var):
        layer = nn.BatchNorm(use_running_average=True, epsilon=EPSILON, dtype=x.dtype, param_dtype=x.dtype)
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        return FLAX_ACTIVATIONS[activation](layer.apply(variables, x))

    values = [jnp.asarray(value) for value in (x, scale, bias, mean, var)]
    found = batch_norm_inference(*values, epsilon=EPSILON, activation=activation)
    assert_all_close([found], [in_float64(flax_inference, values)])


@each_activation
def test_vmap(activation):
    run = jax.jit(functools.partial(training, activation=activation))
    values = arguments(lead=(3,))
    expected = [np.stack(parts) for parts in zip(*(run(*(v[i] for v in values)) for i in range(3)), strict=True)]
    assert not np.allclose(expected[1][0], expected[1][1])
    assert_all_close(jax.jit(jax.vmap(run))(*values), expected, rtol=1e-6, atol=1e-6)


@each_activation
def test_constant_input(activation):
    _, scale, bias, cotangent = arguments()
    x = np.broadcast_to(np.float32(3.0), cotangent.shape)
    y, mean, var, *gradients = jax.jit(functools.partial(training, activation=activation))(x, scale, bias, cotangent)
    np.testing.assert_allclose(mean, np.full(8, 3.0), rtol=1e-6)
    assert (var >= 0).all() and (var < 1e-5).all()
    np.testing.assert_allclose(y, np.broadcast_to(bias, x.shape), atol=1e-4)
    assert_all_close(
        gradients,
        in_float64(functools.partial(flax_training, activation=activation), [x, scale, bias, cotangent])[3:],
        rtol=1e-3,
        atol=1e-3,
    )


def test_statistics_carry_no_gradient():
    x, scale, bias, _ = arguments()

    def of_statistics(*inputs):
        _, mean, var = batch_norm_training(*inputs, epsilon=EPSILON, activation="relu")
        return mean.sum() + var.sum()

    for gradient in jax.grad(of_statistics, (0, 1, 2))(x, scale, bias):
        assert not gradient.any()


def test_bfloat16():
    x, scale, bias, cotangent = arguments()
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in (x, cotangent)]
    run = jax.jit(functools.partial(training, activation="relu6"))
    y, mean, var, *gradients = run(rounded[0], scale, bias, rounded[1])
    assert [a.dtype for a in (y, mean, var, *gradients)] == [
        *(jnp.bfloat16, jnp.float32, jnp.float32),
        *(jnp.bfloat16, jnp.float32, jnp.float32),
    ]
    expected = run(np.float32(rounded[0]), scale, bias, np.float32(rounded[1]))
    assert_all_close((mean, var), expected[1:3], rtol=1e-6, atol=1e-6)  # float32 statistics
    assert_all_close(gradients[1:], expected[4:], rtol=1e-5, atol=1e-5)
    assert_all_close([np.float32(y), np.float32(gradients[0])], [expected[0], expected[3]], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("centre", [0.0, 1.0, 3.0, 10.0])
def test_bfloat16_is_rounded_once(centre):
    """Rounding alone is off by 0.0017 in the root mean square, relative to that of the values."""
    x, scale, bias, cotangent = arguments(spread=1.0, centre=centre)
    x, cotangent = (jnp.asarray(each, jnp.bfloat16) for each in (x, cotangent))
    y, *_ = jax.jit(functools.partial(training, activation=None))(x, scale, bias, cotangent)
    values = [np.asarray(x, np.float64), scale, bias, np.asarray(cotangent, np.float64)]
    exact, *_ = in_float64(functools.partial(flax_training, activation=None), values)
    error = np.asarray(y, np.float64) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 2.5e-3 and np.abs(error).max() / np.abs(exact).max() < 4e-3


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_forward_and_backward_clip_the_same_values_in_bfloat16(activation):
    """The gradient of the bias counts the values that pass."""
    x, scale, bias, _ = arguments(spread=1.0, centre=10.0)
    x = jnp.asarray(x, jnp.bfloat16)
    run = jax.jit(functools.partial(training, activation=activation))
    y = np.asarray(run(x, scale, bias, jnp.ones_like(x))[0], np.float32)
    low, high = ACTIVATIONS[activation]
    clipped, inside = y == low, (y > low) & (y < high)
    assert clipped.sum() > 20 and inside.sum() > 20
    assert not np.any(run(x, scale, bias, jnp.asarray(clipped, jnp.bfloat16))[5])
    passed = run(x, scale, bias, jnp.asarray(inside, jnp.bfloat16))[5]
    np.testing.assert_array_equal(passed, inside.sum((0, 1, 2)))
