"""The training step: each of its parts computed by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_helpers import (
    CLASSES,
    HYPER,
    MODEL,
    SMALL,
    STEM,
    assert_trees_close,
    batch,
    flat,
    hyper,
    layout_of,
    make_step,
    plain_view,
    random_state,
    small_step,
    state_of,
)

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.training.state import TrainState
from mobilenet_jax.training.step import Batch, eval_step


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
