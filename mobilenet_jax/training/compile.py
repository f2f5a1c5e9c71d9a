"""Compile runs: data on the devices, first states, and the compiled steps of one program."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mobilenet_jax import console
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays, augment, images
from mobilenet_jax.errors import InputError
from mobilenet_jax.model import depthwise
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.records import weights
from mobilenet_jax.training import schedules
from mobilenet_jax.training.state import Layout, TrainState, init_state, start_from
from mobilenet_jax.training.step import Batch, Hyper, eval_step, train_step, train_steps
from mobilenet_jax.training.streamed import Streamed

_MOST_STEPS = 128  # per call, which has images for about 0.2 s of an H200, and fewer of a large network
_CALL_IMAGES, _CALL_MULT_ADDS = 4096, 1e11


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run takes from its machine."""

    splits: Mapping[str, arrays.Split | images.Pictures]
    devices: Sequence[Any]  # of jax.Device


# (state, what `order` or `pictures` returns, hyper) -> what `step.train_steps` returns
TrainCall = Callable[[TrainState, tuple[jax.Array, ...], Hyper], tuple[TrainState, jax.Array]]


@dataclasses.dataclass
class Program:
    """The compiled steps of one run, or of K runs that train at the same time.

    With K runs, every argument except the images and the mask, and every result, has a leading axis of size K.
    """

    runs: int  # K
    layout: Layout
    lengths: Sequence[int]  # steps per call that are compiled: an epoch is made of them
    call: Callable[[int], TrainCall]  # steps -> a call of that length, compiled now if it is not among `lengths`
    eval_on: dict[str, Callable[..., dict[str, jax.Array]]]  # split -> (vectors, *a batch of `eval_batches`) -> sums
    states: list[TrainState]  # the first state of each run
    hyper: Hyper
    sizes: dict[str, int]  # images of each split
    eval_batches: Callable[[str], Iterable[tuple[np.ndarray, ...]]]  # split -> batches on the host, masks last
    streamed: Streamed | None  # None for a set in memory
    everywhere: NamedSharding  # of a state: replicated
    shared: NamedSharding  # of one batch: each device has its part
    each: NamedSharding  # of the image orders of K runs
    compile_seconds: float

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """Return the runs' states as the one that a call takes."""
        return jax.device_put(states[0] if self.runs == 1 else _stack(jax.device_get(states)), self.everywhere)

    def split(self, tree: Any) -> list[Any]:
        """Return the part of each run, on the host."""
        tree = jax.device_get(tree)
        return [tree] if self.runs == 1 else [_part(tree, i) for i in range(self.runs)]

    def order(self, orders: Sequence[np.ndarray]) -> tuple[jax.Array, ...]:
        """Return the runs' batches of an epoch, int32 `[steps per epoch, B]` each, as a call takes them."""
        return (jax.device_put(orders[0] if self.runs == 1 else np.stack(orders), self.each),)

    def pictures(self, batch: images.PictureBatch) -> tuple[jax.Array, ...]:
        """Return a batch of a stream as a call takes it."""
        return jax.device_put((batch.images, batch.labels), self.shared)


def steps_per_call(platform: str, steps_per_epoch: int, images: int, mult_adds: float) -> int:
    """Return the number of training steps in one call.

    A GPU or TPU may need less time for a small step than the host needs to start it. A call with large steps has few,
    so that a signal acts soon. The result divides an epoch where possible, because another length for the rest is one
    more program to compile. On a CPU it is 1: XLA:CPU runs a convolution in a loop on one thread.

    Args:
      images: of a step, of all runs together.
      mult_adds: of one forward pass over them.
    """
    if platform == "cpu":
        return 1
    most = round(min(steps_per_epoch, _MOST_STEPS, max(1.0, min(_CALL_IMAGES / images, _CALL_MULT_ADDS / mult_adds))))
    return max((n for n in range(-(-most // 4), most + 1) if steps_per_epoch % n == 0), default=most)


def images_per_evaluation(platform: str, batch_size: int, devices: int) -> int:
    """Return the number of images in one call of an evaluation, at least 512 on a GPU or TPU: few calls cost less."""
    return batch_size if platform == "cpu" else -(-max(batch_size, 512) // devices) * devices


def compile_runs(specs: Sequence[RunSpec], inputs: Inputs) -> Program:
    """Build model, augmentation, schedule and steps of runs with one `program_key`; compile them for all devices."""
    spec, runs, splits, devices = specs[0], len(specs), inputs.splits, inputs.devices
    assert all(other.program_key == spec.program_key for other in specs)
    c, platform = spec.config, devices[0].platform
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    lead = () if runs == 1 else (runs,)
    each = NamedSharding(mesh, PartitionSpec(*[None] * (len(lead) + 1), "data"))

    if c.data.holdout:
        holdout: Any = images.holdout if spec.dataset.streamed else arrays.holdout
        splits = {**splits, **dict(zip(("train", "val"), holdout(splits["train"], c.data.holdout), strict=True))}
    pictures = {name: split for name, split in splits.items() if isinstance(split, images.Pictures)}
    streamed = Streamed(spec, pictures) if pictures else None
    resident = {
        name: jax.device_put((split.images, split.labels), everywhere)
        for name, split in splits.items()
        if isinstance(split, arrays.Split)
    }

    started = time.perf_counter()
    layout, first_state, train_on, eval_on = _functions(spec, platform)
    init = jax.jit(first_state, out_shardings=everywhere)
    keys = [jax.random.split(jax.random.key(s.config.seed)) for s in specs]
    states = [init(init_key) for init_key, _ in keys]
    if spec.weights:
        states = [jax.device_put(_trained(spec, layout, state), everywhere) for state in states]
    hypers = [_hyper(s, step_key) for s, (_, step_key) in zip(specs, keys, strict=True)]
    hyper = jax.device_put(hypers[0] if runs == 1 else _stack(hypers), everywhere)

    batch = c.train.batch_size
    eval_batch = images_per_evaluation(platform, batch, len(devices))
    if streamed:
        trained_on, judged_on = (_picture_shapes(size, spec.resolution, shared) for size in (batch, eval_batch))
    else:
        trained_on = (jax.ShapeDtypeStruct((*lead, spec.steps_per_epoch, batch), np.int32, sharding=each),)
        judged_on = (jax.ShapeDtypeStruct((eval_batch,), np.int32, sharding=shared),)
    judged_on += (jax.ShapeDtypeStruct((eval_batch,), np.float32, sharding=shared),)  # the mask
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), states[0])
    if runs > 1:
        eval_on = jax.vmap(eval_on, in_axes=(0, None, None, None, None))
    eval_jit = jax.jit(eval_on, out_shardings=everywhere)

    def lowered(steps):
        train = functools.partial(train_on, steps=steps)
        train = train if runs == 1 else jax.vmap(train, in_axes=(0, None, None, 0, 0))
        jitted = jax.jit(train, donate_argnums=0, out_shardings=everywhere)
        return jitted.lower(state, *resident.get("train", ()), *trained_on, hyper)

    work = spec.totals.mult_adds * batch * runs
    # The host has one batch of a streamed set at a time.
    per_call = 1 if streamed else steps_per_call(platform, spec.steps_per_epoch, batch * runs, work)
    lengths = sorted({per_call, spec.steps_per_epoch % per_call} - {0})
    with ThreadPoolExecutor(1) as pool:  # compiles one step while the next one is traced
        trained = {steps: pool.submit(lowered(steps).compile) for steps in lengths}
        judged = {
            name: pool.submit(eval_jit.lower(state.evaluated, *resident.get(name, ()), *judged_on).compile)
            for name in splits
            if name != "train"
        }
    compiled = {steps: future.result() for steps, future in trained.items()}

    def call(steps):
        if steps not in compiled:  # a machine with other calls has left the run between two of ours
            compiled[steps] = lowered(steps).compile()
        return lambda state, given, hyper: compiled[steps](state, *resident.get("train", ()), *given, hyper)

    def on(split, evaluate):
        return lambda vectors, *given: evaluate(vectors, *resident.get(split, ()), *given)

    def eval_batches(split):
        if streamed:
            return streamed.evaluation(split, eval_batch)
        found = arrays.eval_batches(len(splits[split]), eval_batch)
        return ((indices, mask.astype(np.float32)) for indices, mask in found)

    return Program(
        runs=runs,
        layout=layout,
        lengths=lengths,
        call=call,
        eval_on={name: on(name, future.result()) for name, future in judged.items()},
        states=states,
        hyper=hyper,
        sizes={name: len(split) for name, split in splits.items()},
        eval_batches=eval_batches,
        streamed=streamed,
        everywhere=everywhere,
        shared=shared,
        each=each,
        compile_seconds=time.perf_counter() - started,
    )


def _functions(spec: RunSpec, platform: str) -> tuple[Layout, *tuple[Callable[..., Any], ...]]:
    """Return the layout of the state, and the functions that make a state, train and evaluate, with their recipe."""
    c = spec.config
    model = MobileNet(
        spec.arch,
        dropout=c.model.dropout,
        bn_decay=c.model.bn_decay,
        dtype=jnp.dtype(c.train.dtype),
        depthwise=depthwise.choose(c.model.depthwise, platform),
    )
    layout = Layout(model)
    streamed, given = spec.dataset.streamed, {key: getattr(spec.arch, key) for key in ("input_range", "mean", "std")}
    given |= {"resolution": spec.resolution}
    crop = {"crop": spec.resolution if streamed else spec.image_size, **given}  # pictures are cut on the host
    eval_view = functools.partial(augment.evaluation_view, **crop)
    first_state = functools.partial(init_state, model, layout, c.optim.name, c.train.ema_decay > 0)
    recipe = {"model": model, "layout": layout, "optimizer": c.optim.name, "schedule": c.optim.schedule}

    def train_on_pictures(state, pictures, labels, hyper, *, steps):
        del steps  # is 1
        batch = Batch(pictures, labels, jnp.ones(labels.shape))
        state, metrics = train_step(state, batch, hyper, view=lambda pictures, _: eval_view(pictures), **recipe)
        return state, metrics[None]

    def evaluate_pictures(vectors, pictures, labels, mask):
        batch = Batch(pictures, labels, mask)
        return eval_step(vectors, batch, model=model, layout=layout, view=eval_view, top5=spec.dataset.num_classes > 5)

    if streamed:
        return layout, first_state, train_on_pictures, evaluate_pictures

    def evaluate(vectors, images, labels, indices, mask):
        batch = Batch(images[indices], labels[indices], mask)
        return eval_step(vectors, batch, model=model, layout=layout, view=eval_view)

    view = functools.partial(augment.training_view, pad=c.augment.pad, flip=c.augment.flip, **crop)
    return layout, first_state, functools.partial(train_steps, view=view, **recipe), evaluate


def _trained(spec: RunSpec, layout: Layout, state: TrainState) -> TrainState:
    """Return the first state with the weights to start from, and with their classifier if the classes are the same."""
    path = pathlib.Path(console.expand_home(spec.weights))
    if weights.identify(path)[0] != spec.identity["model.weights"]:
        raise InputError(f"{path} has changed since this process started: start again")
    return start_from(state, layout, weights.read(path)[0], body_only=not spec.same_classes)


def _picture_shapes(size: int, side: int, sharding: NamedSharding) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = ((size, side, side, 3), np.uint8), ((size,), np.int32)
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes)


def _hyper(spec: RunSpec, key: jax.Array) -> Hyper:
    o, t = spec.config.optim, spec.config.train
    scalars = {name: o[name] for name in ("momentum", "decay", "epsilon", "weight_decay", "clip_norm", "lr_decay")}
    scalars |= {"depthwise_weight_decay": o.weight_decay if o.decay_depthwise else 0.0}
    scalars |= {"learning_rate": spec.learning_rate} | {name: t[name] for name in ("label_smoothing", "ema_decay")}
    scalars |= {
        "total_steps": spec.total_steps,
        "rise_steps": schedules.rise(o.schedule, spec.total_steps, spec.warmup_steps),
        "stair_steps": max(1, round(o.lr_decay_epochs * spec.steps_per_epoch)),
    }
    return Hyper(key=key, **{name: jnp.float32(value) for name, value in scalars.items()})


def _part(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _stack(trees):
    return jax.tree.map(lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves), *trees)
