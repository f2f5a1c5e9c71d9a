"""The training step and the evaluation step: pure functions of a state, a batch and a few traced scalars."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.flatten_util import ravel_pytree

from mobilenet_jax.training import optimizer as optimizers


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


@struct.dataclass
class TrainState:
    """The state that training carries from step to step."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState  # of all parameters as one vector: hundreds of small arrays are slow to compile and run
    ema: Any  # the average of {'params', 'batch_stats'}, or None

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that evaluation uses: the moving average if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(model: nn.Module, optimizer: str, resolution: int, with_ema: bool, key: jax.Array) -> TrainState:
    """Return the state before the first step. The optimiser's state does not depend on its scalars."""
    variables = model.init(key, jnp.zeros((1, resolution, resolution, 3)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state = optimizers.optimizer(optimizer, 0.0, 0.0).init(ravel_pytree(params)[0])
    # A copy, because the state is donated, and a buffer can be donated only once.
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, average)


def train_step(
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    *,
    model: nn.Module,
    optimizer: str,
    schedule: optax.Schedule,
    view: Callable[[jax.Array, jax.Array], jax.Array],
    depthwise: Collection[str],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update, and the metrics of the batch.

    Args:
      batch: stored images, labels and mask.
      optimizer: 'sgd' or 'rmsprop'.
      schedule: maps the step to a factor of the peak learning rate.
      view: maps stored images and a key to network inputs, see `augment.training_view`.
      depthwise: names of the depthwise layers, for the weight decay.

    Returns:
      The new state and scalars: `loss` (mean, with label smoothing), `correct` and `count` (images), `grad_norm`
      (before clipping, without weight decay), `learning_rate`.
    """
    view_key, dropout_key = jax.random.split(jax.random.fold_in(hyper.key, state.step))
    inputs = view(batch.images, view_key)

    def loss_fn(params):
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), hyper.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return (losses * batch.mask).sum() / batch.mask.sum(), (logits, updated["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    weights, as_tree = ravel_pytree(state.params)
    gradient, _ = ravel_pytree(grads)
    rates = optimizers.decay_rates(state.params, depthwise, hyper.weight_decay, hyper.depthwise_weight_decay)
    rates, _ = ravel_pytree(jax.tree.map(jnp.full_like, state.params, rates))
    grad_norm = jnp.sqrt(jnp.sum(gradient**2))
    gradient = optimizers.clip_scale(grad_norm, hyper.clip_norm) * gradient + rates * weights

    learning_rate = hyper.learning_rate * schedule(state.step)
    tx = optimizers.optimizer(optimizer, learning_rate, hyper.momentum, hyper.decay, hyper.epsilon)
    updates, opt_state = tx.update(gradient, state.opt_state, weights)
    params = as_tree(weights + updates)  # pyright: ignore[reportOperatorIssue]
    average = state.ema
    if average is not None:
        average = optimizers.ema(average, {"params": params, "batch_stats": batch_stats}, hyper.ema_decay, state.step)

    metrics = {
        "loss": loss,
        "correct": _correct(logits, batch),
        "count": batch.mask.sum(),
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics


def eval_step(
    variables: dict[str, Any], batch: Batch, *, model: nn.Module, view: Callable[[jax.Array], jax.Array]
) -> dict[str, jax.Array]:
    """Return sums over the images of a batch: `loss` (cross-entropy, not smoothed), `correct` (top-1), `count`."""
    logits: Any = model.apply(variables, view(batch.images), train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return {"loss": (losses * batch.mask).sum(), "correct": _correct(logits, batch), "count": batch.mask.sum()}


def _correct(logits, batch):
    return jnp.where(logits.argmax(-1) == batch.labels, batch.mask, 0.0).sum()
