"""Train the same network with the same batch and optimiser in one of several libraries, for `train_step.py`.

    python benchmarks/contenders.py NAME NETWORK BATCH

The process writes JSON lines: first the seconds until it is ready; then, for each number of seconds on stdin, the steps
done in that time; at the end of stdin its peak memory. A contender is a function of an `Architecture`, the batch size
and the dtype. It returns a function that does one training step and returns the loss, for which `float()` waits.
Each contender imports its own libraries.

All use momentum SGD (0.1, 0.9) with a coupled weight decay of 4e-5, float32 or bfloat16, one batch that stays on the
device, cross-entropy, and the layers of `networks.arch`.
"""

import functools
import json
import pathlib
import re
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from mobilenet_jax.networks.arch import Architecture, mobilenet
from mobilenet_jax.training import host, program_cache

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, CLASSES, SIZE = 0.1, 0.9, 4e-5, 10, 32


def architecture(network: str) -> Architecture:
    """Build a network such as 'v1-0.25' or 'v2-0.35' (t = 6) with CIFAR strides."""
    version, alpha = network.split("-")
    return mobilenet(version, alpha=float(alpha), num_classes=CLASSES, strides="cifar")


def batch_of(size: int):
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)
    return images, rng.integers(0, CLASSES, size).astype(np.int32)


# Ours.


def _ours(arch, batch, dtype):
    import jax
    import jax.numpy as jnp

    from mobilenet_jax.data import augment
    from mobilenet_jax.model import depthwise
    from mobilenet_jax.model.mobilenet import MobileNet
    from mobilenet_jax.training.state import Layout, init_state
    from mobilenet_jax.training.step import Batch

    program_cache.use_compilation_cache()
    platform = jax.devices()[0].platform
    model = MobileNet(arch, dtype=jnp.dtype(dtype), depthwise=depthwise.choose("auto", platform))
    view = functools.partial(augment.evaluation_view, crop=SIZE, resolution=SIZE, input_range=arch.input_range)
    layout = Layout(model)
    state = jax.jit(functools.partial(init_state, model, layout, "sgd", False))(jax.random.key(0))
    images, labels = batch_of(batch)
    fed = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(batch))
    return {"model": model, "layout": layout}, view, state, fed


def ours(arch, batch, dtype):
    import jax
    import jax.numpy as jnp

    from mobilenet_jax.training.step import Hyper, train_step

    network, view, state, fed = _ours(arch, batch, dtype)
    scalars = dict.fromkeys(Hyper.__dataclass_fields__, jnp.float32(0.0))
    scalars |= {"key": jax.random.key(1), "learning_rate": jnp.float32(LEARNING_RATE)}
    scalars |= {"momentum": jnp.float32(MOMENTUM), "weight_decay": jnp.float32(WEIGHT_DECAY)}
    hyper = Hyper(**scalars)
    train = jax.jit(
        functools.partial(
            train_step, **network, optimizer="sgd", schedule="constant", view=lambda images, _: view(images)
        ),
        donate_argnums=0,
    )

    def step():
        nonlocal state
        state, metrics = train(state, fed, hyper)
        return metrics[0]  # the loss

    return step


def ours_evaluation(arch, batch, dtype):
    import jax

    from mobilenet_jax.training.step import eval_step

    network, view, state, fed = _ours(arch, batch, dtype)
    evaluate = jax.jit(functools.partial(eval_step, **network, view=view))
    return lambda: evaluate(state.evaluated, fed)["loss"]


# Plain Flax: `nn.Conv` with feature groups, `nn.BatchNorm`, automatic differentiation.


def flax(arch, batch, dtype):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    activations = {None: lambda x: x, "relu": nn.relu, "relu6": nn.relu6}

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            outputs = {}
            for layer in arch.layers:
                if layer.kind == "pool":
                    x = x.mean((1, 2))
                elif layer.kind == "dense":
                    x = nn.Dense(layer.out_channels, dtype=dtype)(x)
                else:
                    x = nn.Conv(
                        layer.out_channels,
                        (layer.kernel, layer.kernel),
                        layer.stride,
                        feature_group_count=layer.in_channels if layer.kind == "depthwise" else 1,
                        use_bias=False,
                        dtype=dtype,
                    )(x)
                    x = nn.BatchNorm(use_running_average=False, epsilon=arch.bn_epsilon, dtype=dtype)(x)
                    x = activations[layer.activation](x)
                if layer.shortcut is not None:
                    x = x + outputs[layer.shortcut]
                outputs[layer.name] = x
            return x.astype(jnp.float32)

    images, labels = batch_of(batch)
    images, labels = jnp.asarray(images / 127.5 - 1, jnp.float32), jnp.asarray(labels)
    network = Network()
    variables = jax.jit(network.init)(jax.random.key(0), images[:1])
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))
    momenta = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train(params, stats, momenta):
        def loss_fn(params):
            logits, updated = network.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, new = optimizer.update(grads, momenta, params)
        return optax.apply_updates(params, updates), updated, new, loss

    def step():
        nonlocal params, stats, momenta
        params, stats, momenta, loss = train(params, stats, momenta)
        return loss

    return step


# Keras 3 on JAX.


def keras(arch, batch, dtype):
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import numpy as np

    if dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    activations = {"relu": lambda: keras.layers.ReLU(), "relu6": lambda: keras.layers.ReLU(6.0)}
    x = inputs = keras.Input((SIZE, SIZE, 3))
    outputs = {}
    for layer in arch.layers:
        if layer.kind == "pool":
            x = keras.layers.GlobalAveragePooling2D()(x)
        elif layer.kind == "dense":
            x = keras.layers.Dense(layer.out_channels, dtype="float32")(x)
        else:
            shared = {"strides": layer.stride, "padding": "same", "use_bias": False}
            if layer.kind == "depthwise":
                x = keras.layers.DepthwiseConv2D(layer.kernel, **shared)(x)
            else:
                x = keras.layers.Conv2D(layer.out_channels, layer.kernel, **shared)(x)
            x = keras.layers.BatchNormalization(epsilon=arch.bn_epsilon)(x)
            if layer.activation is not None:
                x = activations[layer.activation]()(x)
        if layer.shortcut is not None:
            x = keras.layers.Add()([x, outputs[layer.shortcut]])
        outputs[layer.name] = x
    model = keras.Model(inputs, x)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    images, labels = batch_of(batch)
    images = np.asarray(images / 127.5 - 1, np.float32)
    return lambda: model.train_on_batch(images, labels)


# PyTorch.


def torch_eager(arch, batch, dtype, compiled=False):
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    activations = {"relu": nn.ReLU, "relu6": nn.ReLU6}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict()
            for layer in arch.layers:
                if layer.kind == "dense":
                    self.layers[layer.name] = nn.Linear(layer.in_channels, layer.out_channels)
                elif layer.norm:
                    groups = layer.in_channels if layer.kind == "depthwise" else 1
                    parts = [
                        nn.Conv2d(
                            layer.in_channels,
                            layer.out_channels,
                            layer.kernel,
                            layer.stride,
                            layer.kernel // 2,
                            groups=groups,
                            bias=False,
                        ),
                        nn.BatchNorm2d(layer.out_channels, eps=arch.bn_epsilon),
                    ]
                    if layer.activation is not None:
                        parts.append(activations[layer.activation](inplace=True))
                    self.layers[layer.name] = nn.Sequential(*parts)

        def forward(self, x):
            outputs = {}
            for layer in arch.layers:
                x = x.mean((2, 3)) if layer.kind == "pool" else self.layers[layer.name](x)
                if layer.shortcut is not None:
                    x = x + outputs[layer.shortcut]
                outputs[layer.name] = x
            return x

    images, labels = batch_of(batch)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).long().to(device)
    network = Network().to(device).to(memory_format=torch.channels_last).train()
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=True)
    loss_fn = nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_fn(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


CONTENDERS = {
    "ours": ours,
    "ours evaluation": ours_evaluation,
    "flax": flax,
    "keras": keras,
    "torch": torch_eager,
    "torch.compile": functools.partial(torch_eager, compiled=True),
}


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    status = pathlib.Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * (int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(name: str, network: str, batch: str, dtype: str = "float32") -> None:
    def send(**values):
        print(json.dumps(values), flush=True)

    started = time.perf_counter()
    step = CONTENDERS[name](architecture(network), int(batch), dtype)
    float(step())
    start_seconds = time.perf_counter() - started
    if name.startswith("ours"):
        host.restart_after_compiling(start_seconds)  # as `launch.py` does
    send(start_seconds=start_seconds + host.compiled_before())
    for line in sys.stdin:
        seconds, steps, started = float(line), 0, time.perf_counter()
        losses = []  # one step ahead, as a training loop is
        while time.perf_counter() - started < seconds:
            losses.append(step())
            steps += 1
            if len(losses) > 1:
                float(losses.pop(0))
        loss = float(losses.pop())
        send(images_per_second=steps * int(batch) / (time.perf_counter() - started), steps=steps, loss=loss)
    send(peak_bytes=peak_memory())


if __name__ == "__main__":
    main(*sys.argv[1:])
