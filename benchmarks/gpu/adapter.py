"""Everything that the GPU checks use of the project. The other files in this folder import nothing of mobilenet_jax.

Start the scripts in the root of a checkout.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

sys.path.insert(0, os.getcwd())

DEPTHWISE = ("conv", "taps", "shift")  # implementations


@contextlib.contextmanager
def _project():
    """Explain errors that come from a project other than the one this file was written for."""
    try:
        yield
    except (ImportError, AttributeError, TypeError, KeyError) as e:
        e.add_note("Start in the root of a checkout. If the project has moved, only adapter.py needs to change.")
        raise


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer, for building the network in another library. Sizes are per image."""

    name: str
    kind: str  # 'conv', 'depthwise', 'pointwise', 'pool', 'dense'
    inputs: int
    outputs: int
    kernel: int
    stride: int
    activation: str | None
    shortcut: str | None
    read: int  # values
    written: int  # values


@_project()
def layers(network: str, px: int) -> tuple[tuple[Layer, ...], float]:
    """Return the layers of a network such as 'v1-0.25' or 'v2-1' (t = 6), and the epsilon of batch norm."""
    from mobilenet_jax.networks import cost

    arch = _architecture(network, px)
    rows = []
    for row in cost.layer_costs(arch, px):
        at = row.layer
        sizes = (at.in_channels, at.out_channels, at.kernel, at.stride)
        activations = (row.in_activations, row.out_activations)
        rows.append(Layer(at.name, at.kind, *sizes, at.activation, at.shortcut, *activations))
    return tuple(rows), arch.bn_epsilon


def classes(px: int) -> int:
    return 10 if px <= 64 else 1000


def _architecture(network: str, px: int) -> Any:
    from mobilenet_jax.networks import arch

    version, alpha = network.split("-")
    strides = "cifar" if px <= 64 else "imagenet"
    return arch.mobilenet(version, alpha=float(alpha), num_classes=classes(px), strides=strides)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training step: momentum SGD with weight decay, without augmentation, on a batch that is on the device."""

    init: Callable[[Any], Any]  # key -> state
    step: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]  # (state, batch, hyper) -> (state, {'loss': ...})
    batch: Callable[[int, int], Any]  # (images, seed) -> batch, on the host
    hyper: Any
    parameters: Callable[[Any], Any]  # of a state, as one vector
    statistics: Callable[[Any], Any]  # of a state, as one vector


@_project()
def training(network: str, px: int, dtype: str, depthwise: str, learning_rate: float = 0.01) -> Training:
    import jax
    import jax.numpy as jnp

    from mobilenet_jax.data import augment
    from mobilenet_jax.model.mobilenet import MobileNet
    from mobilenet_jax.training import state, step

    arch = _architecture(network, px)
    model = MobileNet(arch, dtype=jnp.dtype(dtype), depthwise=depthwise)
    layout = state.Layout(model)
    scalars = dict.fromkeys(step.Hyper.__dataclass_fields__, np.float32(0.0))
    scalars |= {"key": jax.random.key(1), "momentum": np.float32(0.9), "weight_decay": np.float32(4e-5)}
    hyper = step.Hyper(**scalars | {"learning_rate": np.float32(learning_rate)})
    view = functools.partial(augment.evaluation_view, crop=px, resolution=px, input_range=arch.input_range)

    def batch(images: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (images, px, px, 3), np.uint8)
        labels = rng.integers(0, classes(px), images).astype(np.int32)
        return step.Batch(pixels, labels, np.ones(images, np.float32))

    recipe = {"model": model, "layout": layout, "optimizer": "sgd", "schedule": "constant"}

    def train(before: Any, batch: Any, hyper: Any) -> tuple[Any, dict[str, Any]]:
        after, metrics = step.train_step(before, batch, hyper, **recipe, view=lambda images, _: view(images))
        return after, dict(zip(step.METRICS, metrics, strict=True))

    return Training(
        init=functools.partial(state.init_state, model, layout, "sgd", False),
        step=train,
        batch=batch,
        hyper=hyper,
        parameters=lambda state: state.params,
        statistics=lambda state: state.batch_stats,
    )


@_project()
def depthwise(x: Any, kernel: Any, stride: int, implementation: str) -> Any:
    """Convolve `[N, H, W, C]` with `[3, 3, 1, C]`, SAME padding, to `[N, H', W', C]`."""
    from mobilenet_jax.model import depthwise

    return depthwise.depthwise(x, kernel, stride, implementation)


@_project()
def pointwise(x: Any, kernel: Any) -> Any:
    """Convolve `[N, H, W, C]` with `[1, 1, C, C']` to `[N, H, W, C']`."""
    from mobilenet_jax.model import convolution

    return convolution.convolve(x, kernel, 1, "conv")


@_project()
def batch_norm(x: Any, scale: Any, bias: Any, epsilon: float, activation: str | None) -> Any:
    """Normalise `x` with its own statistics."""
    from mobilenet_jax.model import batch_norm

    return batch_norm.batch_norm_training(x, scale, bias, epsilon, activation)[0]


@_project()
def cifar10(archive: str = "", data_dir: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images and labels by split, from the binary archive or from the directory of TFDS."""
    from mobilenet_jax.data import arrays, cifar10, datasets

    dataset = datasets.DATASETS["cifar10"]
    if archive:
        return cifar10.read(dataset, archive)
    return {name: (split.images, split.labels) for name, split in arrays.load(dataset, data_dir).items()}


@_project()
def cifar10_digests() -> dict[str, str]:
    """Return the sha256 of each split's pixels, followed by its labels as bytes."""
    from mobilenet_jax.data import cifar10

    return cifar10.SHA256


@_project()
def train_runs(
    network: str,
    seeds: Sequence[int],
    settings: dict[str, Any],
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    directory: pathlib.Path,
    seconds: float,
) -> list[dict[str, Any]]:
    """Train on CIFAR-10, all seeds as one vmapped program.

    Args:
      network: such as 'v1-1'.
      seeds: one run each.
      settings: changes to the config of that version, such as `{'train.epochs': 200}`.
      splits: from `cifar10`.
      directory: where the run directories go.
      seconds: after which the runs save a checkpoint and stop.

    Returns:
      The summaries of the finished runs.
    """
    import importlib
    import signal

    import jax

    from mobilenet_jax import config
    from mobilenet_jax.data.arrays import Split
    from mobilenet_jax.records.directory import RunDirectory, read_summary
    from mobilenet_jax.training import devices, loop, program_cache
    from mobilenet_jax.training.compile import Inputs, compile_runs
    from mobilenet_jax.training.progress import Display
    from mobilenet_jax.training.run import TrainingRun

    version, alpha = network.split("-")
    recipe = importlib.import_module(f"configs.cifar_{version}")

    def spec(seed: int) -> Any:
        c = recipe.get_config()
        c.update_from_flattened_dict({"model.alpha": float(alpha), "seed": seed, "wandb.mode": "disabled", **settings})
        return config.resolve(c, f"cifar_{version}")

    specs = [spec(seed) for seed in seeds]
    inputs = Inputs({name: Split(*pair) for name, pair in splits.items()}, jax.devices()[:1])
    directories = [RunDirectory(directory / each.run_name) for each in specs]
    started, signals = time.monotonic(), []
    timer = threading.Timer(seconds, signals.append, [signal.SIGTERM])
    timer.daemon = True
    timer.start()
    program_cache.use_compilation_cache()
    with contextlib.ExitStack() as held:
        for each in directories:
            held.enter_context(each.locked())
        program = compile_runs(specs, inputs)
        name, compiling = devices.device_name(inputs.devices), program.compile_seconds / len(specs)
        runs = [
            TrainingRun(
                spec, each, Display(), program.layout, name, lambda: time.monotonic() - started, compiling, len(specs)
            )
            for spec, each in zip(specs, directories, strict=True)
        ]
        try:
            loop.train(program, runs, signals)
        except loop.Interrupted:
            print(f"{network}: stopped after {seconds:.0f} s", flush=True)
    timer.cancel()
    return [found.model_dump() for each in directories if (found := read_summary(each.path))]
