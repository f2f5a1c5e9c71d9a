"""What the tests of the training step share: small models, states, batches, and the scalars of a step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.data import augment
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.training.optimizer import optimizer as make_optimizer
from mobilenet_jax.training.state import Layout, TrainState, init_state
from mobilenet_jax.training.step import METRICS, Batch, Hyper, train_step

CLASSES = 5
# Every kind of layer, small enough to compile in a second.
SMALL = Architecture(
    "v2",
    (
        Layer("stem", "conv", 3, 8, 3, 2, "relu6"),
        Layer("block01_depthwise", "depthwise", 8, 8, 3, 1, "relu6"),
        Layer("block01_project", "pointwise", 8, 8, shortcut="stem"),
        Layer("block02_depthwise", "depthwise", 8, 8, 3, 2, "relu6"),
        Layer("head", "pointwise", 8, 16, activation="relu6"),
        Layer("pool", "pool", 16, 16),
        Layer("classifier", "dense", 16, CLASSES),
    ),
)
MODEL: Any = MobileNet(SMALL, bn_decay=0.8)
# Where the layers do not matter.
STEM: Any = MobileNet(
    Architecture("v1", (SMALL.layers[0], Layer("pool", "pool", 8, 8), Layer("classifier", "dense", 8, CLASSES)))
)
HYPER = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "decay": 0.9,
    "epsilon": 1.0,
    "weight_decay": 0.0,
    "depthwise_weight_decay": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 0.0,
    "ema_decay": 0.0,
    "total_steps": 100,
    "rise_steps": 0,
    "stair_steps": 10,
    "lr_decay": 0.98,
}


def hyper(seed: int = 0, **changes: float) -> Hyper:
    return Hyper(key=jax.random.key(seed), **{name: jnp.float32(value) for name, value in (HYPER | changes).items()})


def batch(size: int = 8, side: int = 12, classes: int = CLASSES, seed: int = 0) -> Batch:
    """Return noisy images of a few coloured patches, with the classes in turn."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 200, (size, 4, 4, 3)).repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    images = patches + rng.integers(0, 56, patches.shape)
    return Batch(jnp.asarray(images, jnp.uint8), jnp.arange(size, dtype=jnp.int32) % classes, jnp.ones(size))


def plain_view(images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return augment.evaluation_view(images, images.shape[1], images.shape[1], (-1.0, 1.0))


@functools.cache
def layout_of(model: Any) -> Layout:
    return Layout(model)


def state_of(model: Any, optimizer: str, with_ema: bool = False, key: Any = None) -> Any:
    """Return what `init_state` returns; without a key, its shapes and types."""
    init = functools.partial(init_state, model, layout_of(model), optimizer, with_ema)
    return init(key) if key is not None else jax.eval_shape(init, jax.random.key(0))


def random_state(model: Any, optimizer: str = "sgd", with_ema: bool = False, seed: int = 0) -> TrainState:
    """Return a state with random kernels from NumPy: they need no compilation and are the same everywhere."""
    rng, layout = np.random.default_rng(seed), layout_of(model)
    shapes = jax.eval_shape(layout.variables, state_of(model, optimizer).vectors)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = 0.01 if path[0].key == "classifier" else (2 / np.prod(leaf.shape[:-1])) ** 0.5
            return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), jnp.float32)

    drawn = {name: jax.tree_util.tree_map_with_path(draw, tree) for name, tree in sorted(shapes.items(), reverse=True)}
    vectors = {name: layout.vector(name, tree) for name, tree in drawn.items()}
    opt_state = make_optimizer(optimizer, 0.0, 0.0).init(vectors["params"])
    average = jax.tree.map(jnp.copy, vectors) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), **vectors, opt_state=opt_state, ema=average)


def make_step(
    model: Any = MODEL, optimizer: str = "sgd", view: Any = plain_view, schedule: str = "constant"
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Return `train_step` with its keyword arguments, as `compile.py` does, and with named metrics."""
    recipe = {"model": model, "layout": layout_of(model), "optimizer": optimizer, "schedule": schedule, "view": view}

    def step(*arguments: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = train_step(*arguments, **recipe)
        return state, dict(zip(METRICS, metrics, strict=True))

    return step


@functools.cache
def small_step(optimizer: str = "sgd", model: Any = MODEL) -> Any:
    return jax.jit(make_step(model, optimizer))


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(str(getattr(x, "key", x)) for x in path): np.asarray(leaf) for path, leaf in leaves}


def distance(a: Any, b: Any) -> float:
    """Return the Euclidean distance of two trees."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.square(np.float64(x) - np.float64(y)).sum() for x, y in leaves)))


def assert_trees_close(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


# The 27 layers of v1 magnify a rounding difference a thousandfold at each step where a ReLU switches.
TOLERANCE = {"small": 1e-4, "v1": 5e-3}
