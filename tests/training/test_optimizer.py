"""Optimisers, weight decay, clipping and the moving average against formulas in NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import mobilenet_v1, mobilenet_v2
from mobilenet_jax.training.optimizer import clip_scale, decay_rates, ema, optimizer
from mobilenet_jax.training.state import Layout

STEPS = 20


@functools.cache
def step_of(name: str) -> Any:
    """Return a jitted step: (weights, state, gradient, rate, other scalars) -> weights, state."""

    @jax.jit
    def step(weights, state, gradient, rate, scalars):
        updates, state = optimizer(name, rate, **scalars).update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    return step


def run(name: str, rates: Any, **scalars: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of 20 steps, `[20, 6]`, and the weights after each step, `[20, 6]`."""
    gradients = np.random.default_rng(0).normal(size=(STEPS, 6))
    weights = jnp.linspace(-1.0, 1.0, 6)
    state = optimizer(name, 0.0, 0.0).init(weights)  # as `init_state` does
    traced = {key: jnp.asarray(value, weights.dtype) for key, value in scalars.items()}
    path = []
    for gradient, rate in zip(gradients, rates, strict=True):
        arrays = jnp.asarray(gradient, weights.dtype), jnp.asarray(rate, weights.dtype)
        weights, state = step_of(name)(weights, state, *arrays, traced)
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
    """Return the names of every parameter: kernels that decay, depthwise kernels, and the rest, which never decays."""
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
    layout = Layout(MobileNet(network))
    sizes = {key: sum(np.prod(shape) for shape in shapes.values()) for key, shapes in layout.shapes.items()}
    vectors = {key: np.zeros(size) for key, size in sizes.items()}
    vectors["params"] = np.asarray(decay_rates(vectors["params"].size, layout.decaying, 0.5, rate))
    rates = jax.tree.leaves_with_path(layout.variables(vectors)["params"])
    assert all(np.ptp(value) == 0 for _, value in rates)
    found = {"/".join(entry.key for entry in path): float(value.flat[0]) for path, value in rates}
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
    update = jax.jit(ema)
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
    kept = ema(jnp.ones(()), jnp.zeros(()), jnp.float32(decay), jnp.int32(step))
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
    assert float(jax.jit(clip_scale)(jnp.float32(norm), jnp.float32(limit))) == scale
