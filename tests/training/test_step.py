"""The training step: pinned, and each of its parts computed by hand."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from mobilenet_jax.data import augment
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture, Layer, mobilenet_v1
from mobilenet_jax.training.optimizer import optimizer as make_optimizer
from mobilenet_jax.training.state import Layout, TrainState, init_state
from mobilenet_jax.training.step import METRICS, Batch, Hyper, eval_step, train_step

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


# For each of three steps: the loss, and the distance that the average of parameters and of statistics has moved.
GOLDEN = {
    "small": [
        [1.611912, 0.000341921, 0.0713596],
        [1.608889, 0.001029122, 0.1419921],
        [1.614299, 0.00197720, 0.2093651],
    ],
    "v1": [[1.623208, 0.000786897, 0.310203], [1.612532, 0.00284297, 0.613614], [1.629134, 0.00610645, 0.914192]],
}
# The 27 layers of v1 magnify a rounding difference a thousandfold at each step where a ReLU switches.
TOLERANCE = {"small": 1e-4, "v1": 5e-3}


@pytest.mark.parametrize("name", ["small", pytest.param("v1", marks=pytest.mark.slow)])
def test_golden_steps(name):
    """Three steps with every option of the recipe."""
    network = SMALL if name == "small" else mobilenet_v1(0.25, CLASSES, "cifar")
    model = MobileNet(network, dropout=0.1)
    view = functools.partial(
        augment.training_view, pad=4, crop=28, flip=True, resolution=24, input_range=network.input_range
    )
    step = jax.jit(make_step(model, "rmsprop", view, "cosine"))
    start: Any = random_state(model, "rmsprop", with_ema=True)
    state = start
    scalars = hyper(
        learning_rate=0.01,
        weight_decay=4e-3,
        label_smoothing=0.1,
        clip_norm=0.1,
        ema_decay=0.99,
        total_steps=10,
        rise_steps=2,
    )
    found = []
    for seed in range(3):
        state, metrics = step(state, batch(16, 32, seed=seed), scalars)
        moved = [distance(state.ema[part], start.ema[part]) for part in ("params", "batch_stats")]
        found.append([float(metrics["loss"]), *moved])
    np.testing.assert_allclose(found, GOLDEN[name], rtol=TOLERANCE[name])


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_keeps_every_shape_and_type(optimizer, dtype):
    """Else the second step would be compiled again."""
    model = MobileNet(SMALL, dtype=dtype)
    before = state_of(model, optimizer, with_ema=True)
    after, metrics = jax.eval_shape(make_step(model, optimizer), before, batch(), hyper())
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, old.weak_type)
    assert {x.dtype for x in jax.tree.leaves((after.params, after.batch_stats, metrics))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(("schedule", "idle"), [("exponential", "total_steps"), ("cosine", "stair_steps lr_decay")])
def test_one_trace_serves_every_value(schedule, idle):
    traces = []

    def view(images, key):
        traces.append(images.shape)
        return plain_view(images)

    step = jax.jit(make_step(optimizer="rmsprop", view=view, schedule=schedule))
    state = random_state(MODEL, "rmsprop", with_ema=True)
    values = {"learning_rate": 0.2, "momentum": 0.5, "decay": 0.99, "epsilon": 0.1, "weight_decay": 0.1}
    values |= {"depthwise_weight_decay": 0.1, "label_smoothing": 0.1, "clip_norm": 0.01, "ema_decay": 0.9}
    values |= {"total_steps": 3, "rise_steps": 5, "stair_steps": 2, "lr_decay": 0.5}
    assert values.keys() == HYPER.keys()
    base = hyper(clip_norm=1.0, weight_decay=0.01, stair_steps=1)
    plain = step(step(state, batch(), base)[0], batch(), base)[0]
    for name, value in values.items():
        changed = base.replace(**{name: jnp.float32(value)})  # type: ignore[attr-defined]
        after = step(step(state, batch(), changed)[0], batch(), changed)[0]
        differ = jax.tree.map(lambda a, b: bool((a != b).any()), (after.params, after.ema), (plain.params, plain.ema))
        assert any(jax.tree.leaves(differ)) == (name not in idle.split()), name
    assert len(traces) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_the_loss_falls_on_one_batch(optimizer):
    state, losses = random_state(STEM, optimizer), []
    for i in range(40):
        assert state.step == i
        state, metrics = small_step(optimizer, STEM)(state, batch(), hyper(learning_rate=0.3))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0] and np.isfinite(losses).all()


def by_hand_logits(state: TrainState, images: jax.Array) -> np.ndarray:
    """Return the logits in training, where the batch's own statistics normalise."""
    variables = layout_of(MODEL).variables(state.vectors)
    apply = jax.jit(functools.partial(MODEL.apply, train=True, mutable=["batch_stats"]))
    return np.asarray(apply(variables, plain_view(images))[0], np.float64)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_and_label_smoothing_by_hand(smoothing):
    state = random_state(MODEL)
    _, metrics = small_step()(state, batch(), hyper(label_smoothing=smoothing))
    logits = by_hand_logits(state, batch().images)
    targets = np.full((8, CLASSES), smoothing / CLASSES)
    labels = np.asarray(batch().labels)
    targets[np.arange(8), labels] += 1 - smoothing
    assert float(metrics["loss"]) == pytest.approx(cross_entropy(logits, targets).mean(), rel=1e-5)
    assert float(metrics["correct"]) == (logits.argmax(-1) == labels).sum()
    assert float(metrics["count"]) == 8


def test_masked_rows_do_not_train():
    """They do not count in loss and metrics, and their labels have no effect. Their pixels do: in the statistics."""
    mask = jnp.arange(8) < 5
    state, whole = random_state(MODEL), batch()
    masked = whole._replace(mask=mask.astype(jnp.float32))
    after, metrics = small_step()(state, masked, hyper())
    logits = by_hand_logits(state, whole.images)[:5]
    labels = np.asarray(whole.labels)[:5]
    assert float(metrics["loss"]) == pytest.approx(cross_entropy(logits, np.eye(CLASSES)[labels]).mean(), rel=1e-5)
    assert (float(metrics["correct"]), float(metrics["count"])) == ((logits.argmax(-1) == labels).sum(), 5)
    relabelled = masked._replace(labels=jnp.where(mask, whole.labels, 0))
    assert_trees_close(small_step()(state, relabelled, hyper())[0].params, after.params, rtol=0, atol=0)


def test_masked_rows_do_not_count_in_evaluation():
    step = jax.jit(functools.partial(eval_step, model=STEM, layout=layout_of(STEM), view=plain_view))
    state, whole = random_state(STEM, seed=1), batch()
    logits: Any = jax.jit(STEM.apply)(layout_of(STEM).variables(state.evaluated), plain_view(whole.images))
    labels = np.where(np.arange(8) % 3 == 0, np.asarray(logits.argmax(-1)), whole.labels)  # some are right
    losses = cross_entropy(np.asarray(logits, np.float64), np.eye(CLASSES)[labels])
    correct = np.asarray(logits.argmax(-1) == labels)
    assert 0 < correct[:5].sum() < correct.sum() < 8 and np.ptp(losses) > 0.01
    for real in (8, 5, 1, 0):
        mask = jnp.asarray(np.arange(8) < real, jnp.float32)
        garbage = jnp.where(mask[:, None, None, None] > 0, whole.images, jnp.uint8(255))
        found = step(state.evaluated, Batch(garbage, jnp.asarray(labels), mask))
        expected = {"loss": losses[:real].sum(), "correct": correct[:real].sum(), "count": real}
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("decay", "own_decay"), [(0.25, 0.0), (0.25, 0.5), (0.0, 0.5)])
def test_weight_decay_reaches_the_update(decay, own_decay):
    """At a learning rate of 1 without momentum, the decay changes a weight by minus its rate times the weight."""
    state = random_state(MODEL)
    recipe = functools.partial(hyper, learning_rate=1.0, momentum=0.0, clip_norm=1e-3)  # almost no gradient
    without, metrics = small_step()(state, batch(), recipe())
    with_decay, same = small_step()(state, batch(), recipe(weight_decay=decay, depthwise_weight_decay=own_decay))
    before, a, b = (flat(layout_of(MODEL).variables(x.vectors)["params"]) for x in (state, without, with_decay))
    for name, weight in before.items():
        rate = 0.0 if not name.endswith("kernel") else own_decay if "depthwise" in name else decay
        np.testing.assert_allclose(b[name] - a[name], -rate * weight, rtol=1e-5, atol=1e-6)
    assert float(metrics["loss"]) == float(same["loss"])  # the loss does not include it
    assert float(metrics["grad_norm"]) == float(same["grad_norm"])


def test_clipping_scales_the_gradient_to_the_limit():
    state = random_state(MODEL)

    def update(clip_norm: float) -> tuple[Any, float]:
        recipe = hyper(learning_rate=1.0, momentum=0.0, clip_norm=clip_norm)
        after, metrics = small_step()(state, batch(), recipe)
        moved = jax.tree.map(lambda a, b: np.asarray(b - a, np.float64), state.params, after.params)
        return moved, float(metrics["grad_norm"])

    full, norm = update(0.0)
    assert norm == pytest.approx(np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(full))), rel=1e-4)
    for limit in (norm / 4, norm * 2):
        clipped, reported = update(limit)
        assert reported == norm  # before clipping
        scale = min(1, limit / norm)
        assert_trees_close(clipped, jax.tree.map(lambda x, scale=scale: x * scale, full), rtol=1e-3)


def test_the_schedule_scales_the_rate():
    """The rate follows the step in the state."""
    step = jax.jit(make_step(STEM, schedule="exponential"))
    state = random_state(STEM)
    for i in range(3):
        after, metrics = step(state, batch(), hyper(learning_rate=0.1, momentum=0.0, stair_steps=1, lr_decay=0.5))
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 * 0.5**i)
        moved = np.sqrt(
            sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True))
        )
        assert float(moved) == pytest.approx(0.1 * 0.5**i * float(metrics["grad_norm"]), rel=1e-3)
        state = after


def test_the_average_holds_statistics_and_is_what_is_evaluated():
    state = random_state(STEM, with_ema=True)
    assert state.evaluated is state.ema
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    for n in range(4):
        state, _ = small_step(model=STEM)(state, batch(), hyper(ema_decay=0.3))
        d = min(0.3, (1 + n) / (10 + n))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda old, new, d=d: d * old + (1 - d) * new, expected, now)
        assert_trees_close(state.evaluated, expected)
    assert not np.allclose(state.evaluated["batch_stats"], state.batch_stats)


def test_without_an_average_the_state_itself_is_evaluated():
    state, _ = small_step()(random_state(MODEL), batch(), hyper())
    assert state.ema is None
    assert state.evaluated == {"params": state.params, "batch_stats": state.batch_stats}


def test_every_step_draws_from_the_key_and_its_number():
    seen = []

    def view(images, key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return plain_view(images)

    step = jax.jit(make_step(STEM, view=view))
    state = random_state(STEM)
    for seed in (0, 0, 1):
        for at in (0, 1):
            jax.block_until_ready(step(state.replace(step=jnp.int32(at)), batch(), hyper(seed)))  # type: ignore[attr-defined]
            jax.effects_barrier()
    assert seen[:2] == seen[2:4] and len(set(seen)) == 4


@pytest.mark.parametrize(
    ("optimizer", "compiled"), [("rmsprop", True), pytest.param("sgd", False, marks=pytest.mark.slow)]
)
def test_a_first_state_can_be_donated(optimizer, compiled):
    """No buffer is in it twice, although the average starts at the weights."""
    init = functools.partial(state_of, STEM, optimizer, True)
    state = (jax.jit(init) if compiled else init)(jax.random.key(0))
    assert state.step == 0
    assert_trees_close(state.ema, {"params": state.params, "batch_stats": state.batch_stats}, rtol=0, atol=0)
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    after, _ = jax.jit(make_step(STEM, optimizer), donate_argnums=0)(state, batch(), hyper())
    assert after.step == 1 and all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.slow
def test_states_and_recipes_of_several_runs_can_be_stacked():
    """Two states with two recipes in one program have the results that they have alone."""
    states = [random_state(MODEL, "rmsprop", with_ema=True, seed=seed) for seed in (0, 1)]
    recipes = [hyper(0, weight_decay=0.01, ema_decay=0.9), hyper(1, learning_rate=0.02, momentum=0.5, clip_norm=0.1)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    both, both_hyper = stack(*states), stack(*recipes)
    stacked_step = jax.jit(jax.vmap(make_step(optimizer="rmsprop"), in_axes=(0, None, 0)))
    for _ in range(3):
        both, both_metrics = stacked_step(both, batch(), both_hyper)
        singly = [small_step("rmsprop")(state, batch(), recipe) for state, recipe in zip(states, recipes, strict=True)]
        states = [state for state, _ in singly]
        assert_trees_close(both_metrics, stack(*(metrics for _, metrics in singly)), rtol=1e-4, atol=1e-5)
        assert_trees_close(both, stack(*states), rtol=1e-4, atol=1e-5)


TWO_DEVICES = """
import functools, json, sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import test_step as t

def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, tree)


def train(network, side, rate, devices):
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    model = t.MobileNet(network, dropout=0.1, dtype="float64")
    view = functools.partial(
        t.augment.training_view, pad=2, crop=side, flip=True, resolution=side, input_range=(-1.0, 1.0)
    )
    step = jax.jit(t.make_step(model, view=view), donate_argnums=0, out_shardings=everywhere)
    with jax.enable_x64(False):
        state, start = t.random_state(model, with_ema=True), t.random_state(model).evaluated
    state, start = jax.device_put(double(state), everywhere), double(start)
    hyper = t.hyper(learning_rate=rate, weight_decay=1e-4, ema_decay=0.9, clip_norm=5.0)
    hyper = jax.device_put(double(hyper), everywhere)
    losses = []
    for seed in range(5):
        batch = jax.device_put(t.batch(16, side, network.num_classes, seed), sharded)
        assert len(batch.images.sharding.device_set) == len(devices)
        state, metrics = step(state, batch, hyper)
        losses.append(float(metrics["loss"]))
    return losses, t.distance(state.evaluated, start)


# In float64, as a random v1 grows rounding errors a hundredfold a step.
case = {"small": (t.SMALL, 12, 0.1), "v1": (t.mobilenet_v1(0.25, 10, "cifar"), 32, 0.001)}[sys.argv[1]]
assert len(jax.devices()) == 2
jax.config.update("jax_enable_x64", True)
print(json.dumps([train(*case, jax.devices()[:n]) for n in (1, 2)]))
"""


@pytest.mark.slow  # test_compile.py has a shorter one
@pytest.mark.parametrize("network", ["small", "v1"])
def test_two_devices_train_as_one(network, tmp_path):
    path = [pathlib.Path(__file__).parent, ROOT / "tests", ROOT]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",  # images and schedule stay float32
    }
    command = [sys.executable, "-c", TWO_DEVICES, network]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one, moved_by_one), (two, moved_by_two) = json.loads(done.stdout)
    assert len(one) == 5 and np.ptp(one) > 0.001
    np.testing.assert_allclose(two, one, rtol=TOLERANCE[network] / 5)
    assert moved_by_two == pytest.approx(moved_by_one, rel=TOLERANCE[network])
