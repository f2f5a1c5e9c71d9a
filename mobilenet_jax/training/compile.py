"""Compile runs: data on the devices, first states, and the compiled steps of one program."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays, augment
from mobilenet_jax.model import depthwise
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.training import schedules
from mobilenet_jax.training.step import Batch, Hyper, TrainState, eval_step, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run takes from its machine."""

    splits: dict[str, arrays.Split]
    devices: Sequence[Any]  # of jax.Device


@dataclasses.dataclass
class Program:
    """The compiled steps of one run, or of K runs that train at the same time.

    With K runs, every argument except the images and the mask, and every result, has a leading axis of size K.
    """

    runs: int  # K
    train_on: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, indices [K, B], hyper) -> state, metrics
    eval_on: dict[str, Callable[..., dict[str, jax.Array]]]  # split -> (variables, indices [B], mask [B]) -> sums
    states: list[TrainState]  # the first state of each run
    hyper: Hyper
    sizes: dict[str, int]  # images of each split
    everywhere: NamedSharding  # of a state: replicated
    shared: NamedSharding  # of one batch: each device has its part
    each: NamedSharding  # of the batches of K runs
    compile_seconds: float

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """Return the runs' states as the one that `train_on` takes."""
        return jax.device_put(states[0] if self.runs == 1 else _stack(jax.device_get(states)), self.everywhere)

    def split(self, tree: Any) -> list[Any]:
        """Return the part of each run, on the host."""
        tree = jax.device_get(tree)
        return [tree] if self.runs == 1 else [_part(tree, i) for i in range(self.runs)]

    def batch(self, indices: Sequence[np.ndarray]) -> jax.Array:
        """Return the runs' next batches, int32 `[B]` each, as `train_on` takes them."""
        return jax.device_put(indices[0] if self.runs == 1 else np.stack(indices), self.each)


def compile_runs(specs: Sequence[RunSpec], inputs: Inputs) -> Program:
    """Build model, augmentation, schedule and steps of runs with one `program_key`; compile them for all devices."""
    spec, runs, splits, devices = specs[0], len(specs), inputs.splits, inputs.devices
    assert all(other.program_key == spec.program_key for other in specs)
    c = spec.config
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    each = shared if runs == 1 else NamedSharding(mesh, PartitionSpec(None, "data"))

    if c.data.holdout:
        train, val = arrays.holdout(splits["train"], c.data.holdout)
        splits = {**splits, "train": train, "val": val}
    resident = {name: jax.device_put((s.images, s.labels), everywhere) for name, s in splits.items()}

    model = MobileNet(
        spec.arch,
        dropout=c.model.dropout,
        bn_decay=c.model.bn_decay,
        dtype=jnp.dtype(c.train.dtype),
        depthwise=depthwise.choose(c.model.depthwise, devices[0].platform),
    )
    lengths = spec.total_steps, spec.warmup_steps, spec.steps_per_epoch
    schedule = schedules.schedule(c.optim.schedule, *lengths, c.optim.lr_decay, c.optim.lr_decay_epochs)
    crop = {"crop": spec.image_size, "resolution": spec.resolution, "input_range": spec.arch.input_range}
    train_view = functools.partial(augment.training_view, pad=c.augment.pad, flip=c.augment.flip, **crop)
    eval_view = functools.partial(augment.evaluation_view, **crop)
    recipe = {
        "model": model,
        "optimizer": c.optim.name,
        "schedule": schedule,
        "view": train_view,
        "depthwise": frozenset(layer.name for layer in spec.arch.layers if layer.kind == "depthwise"),
    }

    def train_on(state, images, labels, indices, hyper):
        return train_step(state, Batch(images[indices], labels[indices], jnp.ones(indices.shape)), hyper, **recipe)

    def eval_on(variables, images, labels, indices, mask):
        return eval_step(variables, Batch(images[indices], labels[indices], mask), model=model, view=eval_view)

    started = time.perf_counter()
    init = functools.partial(init_state, model, c.optim.name, spec.resolution, c.train.ema_decay > 0)
    init = jax.jit(init, out_shardings=everywhere)
    keys = [jax.random.split(jax.random.key(s.config.seed)) for s in specs]
    states = [init(init_key) for init_key, _ in keys]
    hypers = [_hyper(s, step_key) for s, (_, step_key) in zip(specs, keys, strict=True)]
    hyper = jax.device_put(hypers[0] if runs == 1 else _stack(hypers), everywhere)

    state, batch = states[0], (c.train.batch_size,)
    if runs > 1:
        train_on = jax.vmap(train_on, in_axes=(0, None, None, 0, 0))
        eval_on = jax.vmap(eval_on, in_axes=(0, None, None, None, None))
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), state)
    batches = jax.ShapeDtypeStruct(batch if runs == 1 else (runs, *batch), np.int32, sharding=each)
    indices, mask = (jax.ShapeDtypeStruct(batch, dtype, sharding=shared) for dtype in (np.int32, np.float32))
    train_jit = jax.jit(train_on, donate_argnums=0, out_shardings=everywhere)
    eval_jit = jax.jit(eval_on, out_shardings=everywhere)

    def compiling(step, split, first, *rest):
        return pool.submit(step.lower(first, *resident[split], *rest).compile)

    def on(split, future):
        compiled = future.result()
        return lambda first, *rest: compiled(first, *resident[split], *rest)

    with ThreadPoolExecutor(1) as pool:  # compiles one step while the next one is traced
        trained = compiling(train_jit, "train", state, batches, hyper)
        judges = [name for name in splits if name != "train"]
        judged = {name: compiling(eval_jit, name, state.evaluated, indices, mask) for name in judges}

    return Program(
        runs=runs,
        train_on=on("train", trained),
        eval_on={name: on(name, future) for name, future in judged.items()},
        states=states,
        hyper=hyper,
        sizes={name: len(split) for name, split in splits.items()},
        everywhere=everywhere,
        shared=shared,
        each=each,
        compile_seconds=time.perf_counter() - started,
    )


def _hyper(spec: RunSpec, key: jax.Array) -> Hyper:
    o, t = spec.config.optim, spec.config.train
    scalars = {name: o[name] for name in ("momentum", "decay", "epsilon", "weight_decay", "clip_norm")}
    scalars |= {"depthwise_weight_decay": o.weight_decay if o.decay_depthwise else 0.0}
    scalars |= {"learning_rate": spec.learning_rate} | {name: t[name] for name in ("label_smoothing", "ema_decay")}
    return Hyper(key=key, **{name: jnp.float32(value) for name, value in scalars.items()})


def _part(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _stack(trees):
    return jax.tree.map(lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves), *trees)
