"""Optimisers, schedules, weight decay and the moving average against formulas written out in numpy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import mobilenet_v1, mobilenet_v2
from mobilenet_jax.training import optimizer as optimizers

STEPS = 20


def run(optimizer: str, rates: Any, **scalars: float) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of 20 steps, `[20, 6]`, and where each step leaves the weights."""
    gradients = np.random.default_rng(0).normal(size=(STEPS, 6))
    weights = jnp.linspace(-1.0, 1.0, 6)
    state = optimizers.optimizer(optimizer, 0.0, 0.0).init(weights)  # as `init_state` does

    @jax.jit
    def step(weights, state, gradient, rate, scalars):
        updates, state = optimizers.optimizer(optimizer, rate, **scalars).update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    path = []
    for gradient, rate in zip(gradients, rates, strict=True):
        traced = {name: jnp.asarray(value, weights.dtype) for name, value in scalars.items()}
        weights, state = step(
            weights, state, jnp.asarray(gradient, weights.dtype), jnp.asarray(rate, weights.dtype), traced
        )
        path.append(np.asarray(weights))
    return gradients, np.array(path)


CONSTANT, FALLING = [0.045] * STEPS, [0.1 * 0.8**i for i in range(STEPS)]


@pytest.mark.parametrize("rates", [CONSTANT, FALLING], ids=["constant", "falling"])
@pytest.mark.parametrize(("decay", "momentum", "epsilon"), [(0.9, 0.9, 1.0), (0.9, 0.9, 0.002), (0.99, 0.0, 1e-8)])
def test_rmsprop_is_tensorflows(rates, decay, momentum, epsilon):
    with jax.enable_x64(True):
        gradients, found = run("rmsprop", rates, decay=decay, momentum=momentum, epsilon=epsilon)
    assert found.dtype == np.float64
    w, mean_square, moment = np.linspace(-1, 1, 6), np.ones(6), np.zeros(6)
    for g, rate, after in zip(gradients, rates, found, strict=True):
        mean_square = decay * mean_square + (1 - decay) * g**2
        moment = momentum * moment + rate * g / np.sqrt(mean_square + epsilon)
        w = w - moment
        np.testing.assert_allclose(after, w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rates", [CONSTANT, FALLING], ids=["constant", "falling"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_momentum(rates, momentum):
    with jax.enable_x64(True):
        gradients, found = run("sgd", rates, momentum=momentum)
    w, moment = np.linspace(-1, 1, 6), np.zeros(6)
    for g, rate, after in zip(gradients, rates, found, strict=True):
        moment = momentum * moment + g
        w = w - rate * moment
        np.testing.assert_allclose(after, w, rtol=1e-7, atol=1e-9)


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
        (("exponential", 50, 0, 1, 0.9, 0.25), {0: 1, 1: 0.9, 2: 0.81}),  # a stair is a step at least
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
    schedule = optimizers.schedule(*arguments)
    steps = jnp.array(list(points), jnp.int32)
    found = jax.jit(jax.vmap(schedule))(steps)
    np.testing.assert_allclose(found, list(points.values()), rtol=2e-4, atol=2e-6)
    singly = [jnp.asarray(schedule(step)) for step in steps]
    assert all(value.shape == () for value in singly)
    np.testing.assert_allclose(singly, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("total", [1, 2, 8, 200])
@pytest.mark.parametrize("name", ["constant", "cosine", "exponential", "one_cycle"])
def test_schedules_stay_above_0_and_at_most_1(name, total, warmup):
    schedule = optimizers.schedule(name, total, min(warmup, total), steps_per_epoch=3)
    found = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total)))
    assert (found > 0).all() and (found <= 1 + 1e-6).all(), found
    if total == 200 and name != "exponential":  # whose stairs fall from step 0
        assert found.max() == pytest.approx(1, abs=1e-6)


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="zigzag"):
        optimizers.schedule("zigzag", 10)


BN = {"bn/scale", "bn/bias"}
# One block of each network by hand, and how many leaves there are.
NETWORKS = {
    "v1": (mobilenet_v1(0.25), 27 * 3 + 2, {"block07_pointwise/kernel"}, {"block07_depthwise/kernel"}),
    "v2": (
        mobilenet_v2(0.35),
        52 * 3 + 2,
        {"block07_expand/kernel", "block07_project/kernel"},
        {"block07_depthwise/kernel"},
    ),
}


def kinds(version: str) -> tuple[set[str], set[str], set[str]]:
    """The names of every parameter: kernels that decay, depthwise kernels, and what never decays."""
    blocks = range(1, 14) if version == "v1" else range(1, 18)
    depthwise = {f"block{i:02d}_depthwise" for i in blocks}
    if version == "v1":
        dense = {"stem", *(f"block{i:02d}_pointwise" for i in blocks)}
    else:
        expand = {f"block{i:02d}_expand" for i in blocks if i > 1}
        dense = {"stem", *expand, *(f"block{i:02d}_project" for i in blocks), "head"}
    never = {f"{layer}/{leaf}" for layer in dense | depthwise for leaf in BN} | {"classifier/bias"}
    return {f"{x}/kernel" for x in dense | {"classifier"}}, {f"{x}/kernel" for x in depthwise}, never


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("version", NETWORKS)
def test_what_decays_parameter_by_parameter(version, rate):
    network, leaves, block, block_depthwise = NETWORKS[version]
    params = jax.eval_shape(MobileNet(network).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    depthwise = {layer.name for layer in network.layers if layer.kind == "depthwise"}
    rates = jax.tree.leaves_with_path(optimizers.decay_rates(params, depthwise, 0.5, rate))
    found = {"/".join(entry.key for entry in path): value for path, value in rates}
    decays, own_rate, never = kinds(version)
    assert found == {**dict.fromkeys(decays, 0.5), **dict.fromkeys(own_rate, rate), **dict.fromkeys(never, 0.0)}
    assert len(found) == leaves
    in_block = {name for name in found if name.startswith("block07")}
    assert in_block == block | block_depthwise | {
        f"{name.removesuffix('/kernel')}/{leaf}" for name in block | block_depthwise for leaf in BN
    }
    assert {name for name in in_block if found[name] == 0.5} == block
    assert {name for name in in_block if rate and found[name] == rate} == (block_depthwise if rate else set())


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_moving_average_warms_up_as_tensorflows(decay):
    update = jax.jit(optimizers.ema)
    average: dict[str, Any] = {"a": jnp.array([1.0, -2.0]), "b": {"c": jnp.array(3.0)}}
    expected = [np.array([1.0, -2.0]), np.array(3.0)]
    rng = np.random.default_rng(0)
    for n in range(21):
        new = [rng.normal(size=2), rng.normal()]
        d = min(decay, (1 + n) / (10 + n))
        expected = [d * old + (1 - d) * value for old, value in zip(expected, new, strict=True)]
        tree = {"a": jnp.asarray(new[0], jnp.float32), "b": {"c": jnp.asarray(new[1], jnp.float32)}}
        average = update(average, tree, jnp.float32(decay), jnp.int32(n))
        for found, by_hand in zip(jax.tree.leaves(average), expected, strict=True):
            np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("decay", "step", "share"),
    [
        (0.9999, 0, 0.1),
        (0.9999, 990, 0.991),
        (0.9999, 10**6, 0.9999),
        (0.9999, 10**9, 0.9999),
        (0.9, 79, 80 / 89),
        (0.9, 81, 0.9),
        (0.0, 5, 0.0),
    ],
)
def test_the_share_that_the_average_keeps(decay, step, share):
    kept = optimizers.ema(jnp.ones(()), jnp.zeros(()), jnp.float32(decay), jnp.int32(step))
    assert float(kept) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(
    ("norm", "limit", "scale"),
    [
        (2.0, 1.0, 0.5),
        (1.0, 1.0, 1.0),
        (0.5, 1.0, 1.0),
        (9.0, 0.0, 1.0),
        (0.0, 1.0, 1.0),
        (0.0, 0.0, 1.0),
        (8.0, 2.0, 0.25),
    ],
)
def test_clip_scale(norm, limit, scale):
    assert float(jax.jit(optimizers.clip_scale)(jnp.float32(norm), jnp.float32(limit))) == scale
