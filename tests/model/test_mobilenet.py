"""Compare the modules with a forward pass by hand, and check types, dropout, statistics and initial values."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import fast_jit, images, shapes

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1, mobilenet_v2

# All kinds of layers, both strides, one shortcut.
SMALL = Architecture(
    "v2",
    (
        Layer("stem", "conv", 3, 8, 3, 2, "relu6"),
        Layer("block01_expand", "pointwise", 8, 16, activation="relu6"),
        Layer("block01_depthwise", "depthwise", 16, 16, 3, 1, "relu6"),
        Layer("block01_project", "pointwise", 16, 8, shortcut="stem"),
        Layer("block02_depthwise", "depthwise", 8, 8, 3, 2, "relu"),
        Layer("head", "pointwise", 8, 12, activation="relu"),
        Layer("pool", "pool", 12, 12),
        Layer("classifier", "dense", 12, 5),
    ),
)
WITHOUT_BLOCK01 = Architecture("v2", tuple(x for x in SMALL.layers if not x.name.startswith("block01")))


def random_variables(network: Architecture, seed: int = 0) -> dict[str, Any]:
    """Return random variables without special values. Kernels keep the scale of the signal."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return np.float32(rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1])))
        return np.float32(
            rng.uniform(0.5, 1.5, leaf.shape) if name in ("scale", "var") else rng.normal(size=leaf.shape)
        )

    return jax.tree_util.tree_map_with_path(draw, shapes(network))


def random_images(resolution: int, batch: int = 3, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (batch, resolution, resolution, 3)), jnp.float32)


def logits(network: Architecture, variables: Any, x: jax.Array, implementation: str = "shift") -> Any:
    return fast_jit(MobileNet(network, depthwise=implementation).apply)(variables, x)


def by_hand_conv(x, kernel, stride, depthwise=False):
    """Return a convolution with TensorFlow's SAME padding."""
    size, k = x.shape[1], kernel.shape[0]
    out = -(-size // stride)
    total = max((out - 1) * stride + k - size, 0)
    around = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), around, around, (0, 0)))
    reach = (out - 1) * stride + 1
    return sum(
        np.einsum(
            "nhwc,c->nhwc" if depthwise else "nhwc,co->nhwo",
            x[:, i : i + reach : stride, j : j + reach : stride],
            kernel[i, j, 0] if depthwise else kernel[i, j],
        )
        for i in range(k)
        for j in range(k)
    )


@pytest.mark.parametrize("implementation", ["shift", "conv"])
@pytest.mark.parametrize("resolution", [8, 9])
def test_forward_is_the_one_written_by_hand(implementation, resolution):
    variables = random_variables(SMALL)
    wide: Any = jax.tree.map(np.float64, variables)

    def layer(x, name, stride=1, low=-np.inf, high=np.inf):
        params, statistics = wide["params"][name], wide["batch_stats"][name]["bn"]
        x = by_hand_conv(x, params["kernel"], stride, "depthwise" in name)
        x = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-3) * params["bn"]["scale"] + params["bn"]["bias"]
        return x.clip(low, high)

    x = random_images(resolution)
    stem = layer(np.float64(x), "stem", 2, 0, 6)
    y = layer(stem, "block01_expand", 1, 0, 6)
    y = layer(y, "block01_depthwise", 1, 0, 6)
    y = layer(y, "block01_project") + stem
    y = layer(y, "block02_depthwise", 2, 0)
    y = layer(y, "head", 1, 0).mean((1, 2))
    expected = y @ wide["params"]["classifier"]["kernel"] + wide["params"]["classifier"]["bias"]
    np.testing.assert_allclose(logits(SMALL, variables, x, implementation), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [mobilenet_v1(0.25), mobilenet_v2(0.35)], ids=["v1", "v2"])
def test_shift_and_conv_build_the_same_network(network):
    network = Architecture(network.version, network.layers[:9])  # stem and first blocks: both strides, a shortcut in v2
    variables, x = random_variables(network), random_images(34)  # then 17 and 9
    shift, plain = (logits(network, variables, x, implementation) for implementation in ("shift", "conv"))
    assert plain.std() > 0.1
    np.testing.assert_allclose(shift, plain, rtol=1e-3, atol=1e-3)


def test_a_block_whose_projection_is_zero_is_the_identity():
    variables, x = random_variables(SMALL), random_images(8)
    zero = {"scale": np.zeros(8, np.float32), "bias": np.zeros(8, np.float32)}
    params = {**variables["params"], "block01_project": {**variables["params"]["block01_project"], "bn": zero}}
    kept = {name: params[name] for name in params if not name.startswith("block01")}
    short = logits(WITHOUT_BLOCK01, {**variables, "params": kept}, x)
    np.testing.assert_allclose(logits(SMALL, {**variables, "params": params}, x), short, rtol=1e-5, atol=1e-5)
    assert not np.allclose(logits(SMALL, variables, x), short, atol=0.1)


def test_shortcut_and_bottleneck_variants_differ():
    options = [{}, {"shortcut": "expansion"}, {"shortcut": "none"}, {"bottleneck": "relu6"}]
    full = [mobilenet_v2(0.35, strides="cifar", **chosen) for chosen in options]
    networks = [Architecture("v2", network.layers[:12]) for network in full]  # stem and four blocks
    variables, x = random_variables(networks[0]), random_images(8)
    found = [logits(network, variables, x, "conv") for network in networks]
    for a, b in itertools.combinations(found, 2):
        assert not np.allclose(a, b, atol=0.01)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_keeps_float32_where_it_matters(train):
    model = MobileNet(SMALL, dtype=jnp.bfloat16)
    variables = shapes(SMALL, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    collections = ["batch_stats", "intermediates"]
    apply = functools.partial(model.apply, train=train, capture_intermediates=True, mutable=collections)
    output, after = jax.eval_shape(apply, variables, images(8))
    assert output.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(after["batch_stats"])} == {jnp.dtype(jnp.float32)}
    seen = after["intermediates"]
    assert {seen[x.name]["__call__"][0].dtype for x in SMALL.layers if x.norm} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_is_close():
    variables, x = random_variables(SMALL), random_images(8)
    found: Any = fast_jit(MobileNet(SMALL, dtype=jnp.bfloat16).apply)(variables, x)
    exact = logits(SMALL, variables, x)
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())


def test_dropout_draws_only_when_training():
    model, variables, x = MobileNet(SMALL, dropout=0.5), random_variables(SMALL), random_images(8)
    np.testing.assert_array_equal(fast_jit(model.apply)(variables, x), logits(SMALL, variables, x))

    @fast_jit
    def training(key) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    once, again, other = (training(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)


def test_dropout_drops_the_stated_share_and_keeps_the_mean():
    # This classifier returns its inputs.
    network = Architecture("v1", (Layer("pool", "pool", 3, 3), Layer("classifier", "dense", 3, 3)))
    model = MobileNet(network, dropout=0.2)
    variables = {"params": {"classifier": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}}
    out: Any = model.apply(variables, jnp.ones((4000, 1, 1, 3)), train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(out), [0, 1.25])
    assert float((out == 0).mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_running_statistics_keep_the_stated_share(decay):
    # The statistics of the stem by hand: its inputs are the images.
    variables, x = random_variables(SMALL), random_images(8)
    model = MobileNet(SMALL, bn_decay=decay)
    _, after = fast_jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)
    y: Any = by_hand_conv(np.float64(x), np.float64(variables["params"]["stem"]["kernel"]), 2)
    before = variables["batch_stats"]["stem"]["bn"]
    for name, batch in {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2))}.items():
        np.testing.assert_allclose(
            after["batch_stats"]["stem"]["bn"][name], decay * before[name] + (1 - decay) * batch, rtol=1e-4, atol=1e-5
        )
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), after["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))  # those of every layer
    _, after = fast_jit(functools.partial(model.apply, mutable=["batch_stats"]))(variables, x)  # evaluation keeps them
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


def test_initial_values():
    network = Architecture(
        "v1",
        (
            Layer("stem", "conv", 3, 64, 3, 2, "relu"),
            Layer("block01_depthwise", "depthwise", 64, 64, 3, 1, "relu"),
            Layer("block01_pointwise", "pointwise", 64, 64, activation="relu"),
            Layer("pool", "pool", 64, 64),
            Layer("classifier", "dense", 64, 10),
        ),
    )
    init = functools.partial(MobileNet(network).init, train=True)  # initialisation keeps the statistics
    variables: Any = fast_jit(init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    params = variables["params"]
    for name in ("stem", "block01_depthwise", "block01_pointwise"):
        # A normal of deviation 0.09, cut at two deviations, has 0.88 of that deviation.
        assert float(params[name]["kernel"].std()) == pytest.approx(0.88 * 0.09, rel=0.1)
        assert jnp.abs(params[name]["kernel"]).max() <= 0.18
        assert (params[name]["bn"]["scale"] == 1).all() and (params[name]["bn"]["bias"] == 0).all()
        statistics = variables["batch_stats"][name]["bn"]
        assert (statistics["mean"] == 0).all() and (statistics["var"] == 1).all()
    assert float(params["classifier"]["kernel"].std()) == pytest.approx(math.sqrt(1 / (3 * 64)), rel=0.1)
    assert (params["classifier"]["bias"] == 0).all()
