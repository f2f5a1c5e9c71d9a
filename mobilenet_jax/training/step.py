"""The training step and the evaluation step: pure functions of a state, a batch and a few traced scalars."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.training import optimizer as optimizers
from mobilenet_jax.training import schedules
from mobilenet_jax.training.state import Layout, TrainState

METRICS = ("loss", "correct", "count", "grad_norm", "learning_rate")  # of a training step, in this order


class Batch(NamedTuple):
    """A batch of stored images."""

    images: jax.Array  # uint8 [B, H, W, 3]
    labels: jax.Array  # int32 [B]
    mask: jax.Array  # float32 [B]: 1 for an image, 0 for padding


@struct.dataclass
class Hyper:
    """The scalars of a recipe. They are traced: one compilation serves every value, and several can be stacked."""

    key: jax.Array  # of augmentation and dropout, folded with the step
    learning_rate: Any  # peak
    momentum: Any
    decay: Any  # rmsprop
    epsilon: Any  # rmsprop
    weight_decay: Any
    depthwise_weight_decay: Any
    label_smoothing: Any
    clip_norm: Any
    ema_decay: Any
    total_steps: Any  # the lengths of the schedule, see `schedules.factor`
    rise_steps: Any
    stair_steps: Any
    lr_decay: Any


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    *,
    model: MobileNet,
    layout: Layout,
    optimizer: str,
    schedule: str,
    view: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[TrainState, jax.Array]:
    """Return the state after one update, and the metrics of the batch.

    NOTE: batch norm takes its statistics over all rows of a training batch, also over those that the mask leaves out
    of the loss. The batches of training are full.

    Args:
      batch: stored images, labels and mask.
      optimizer: 'sgd' or 'rmsprop'.
      schedule: a name that `schedules.factor` takes.
      view: maps stored images and a key to network inputs, see `augment.training_view`.

    Returns:
      The new state and the metrics, float32 `[5]`: loss (mean, with label smoothing), correct and count (images), norm
      of the gradient (before clipping, without weight decay), learning rate.
    """
    view_key, dropout_key = jax.random.split(jax.random.fold_in(hyper.key, state.step))
    inputs = view(batch.images, view_key)
    variables = layout.variables(state.vectors)  # outside of the gradient, which is packed once, as a whole

    def loss_fn(params):
        logits, updated = model.apply(
            variables | {"params": params},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), hyper.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return (losses * batch.mask).sum() / batch.mask.sum(), (logits, updated["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])

    gradient = layout.vector("params", grads)
    grad_norm = jnp.sqrt(jnp.sum(gradient**2))
    rates = optimizers.decay_rates(gradient.size, layout.decaying, hyper.weight_decay, hyper.depthwise_weight_decay)
    gradient = optimizers.clip_scale(grad_norm, hyper.clip_norm) * gradient + rates * state.params

    lengths = hyper.total_steps, hyper.rise_steps, hyper.stair_steps, hyper.lr_decay
    learning_rate = hyper.learning_rate * schedules.factor(schedule, state.step, *lengths)
    tx = optimizers.optimizer(optimizer, learning_rate, hyper.momentum, hyper.decay, hyper.epsilon)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = state.params + updates  # pyright: ignore[reportOperatorIssue]
    after = TrainState(state.step + 1, params, layout.vector("batch_stats", batch_stats), opt_state, None)
    if state.ema is not None:
        after = after.replace(ema=optimizers.ema(state.ema, after.vectors, hyper.ema_decay, state.step))  # type: ignore[attr-defined]
    figures = loss, _correct(logits, batch), batch.mask.sum(), grad_norm, learning_rate
    return after, jnp.stack(figures)


def train_steps(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    hyper: Hyper,
    *,
    steps: int,
    **recipe: Any,
) -> tuple[TrainState, jax.Array]:
    """Return the state after some steps of an epoch, from the step in `state` on, and their metrics, `[steps, 5]`.

    Args:
      images, labels: the split.
      order: the epoch's batches, as indices of images, int32 `[steps per epoch, B]`.
      recipe: keyword arguments of `train_step`.
    """

    def step(state, indices):
        return train_step(state, Batch(images[indices], labels[indices], jnp.ones(indices.shape)), hyper, **recipe)

    rows = jax.lax.dynamic_slice_in_dim(order, state.step % order.shape[0], steps)
    if steps > 1:
        return jax.lax.scan(step, state, rows)
    state, metrics = step(state, rows[0])
    return state, metrics[None]


def eval_step(
    vectors: Mapping[str, jax.Array],
    batch: Batch,
    *,
    model: MobileNet,
    layout: Layout,
    view: Callable[[jax.Array], jax.Array],
    top5: bool = False,
) -> dict[str, jax.Array]:
    """Return sums over the images of a batch: `loss` (cross-entropy, not smoothed), `correct` (top-1), `count`.

    With `top5`, also `top5`: images whose class is among the five largest logits, the lower one of equal ones first.
    """
    logits: Any = model.apply(layout.variables(vectors), view(batch.images), train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    sums = {"loss": (losses * batch.mask).sum(), "correct": _correct(logits, batch), "count": batch.mask.sum()}
    if top5:
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        sums["top5"] = ((best == batch.labels[:, None]).any(-1) * batch.mask).sum()
    return sums


def _correct(logits, batch):
    return jnp.where(logits.argmax(-1) == batch.labels, batch.mask, 0.0).sum()
