"""Define MobileNet as Flax modules, built from the `Architecture` that `networks/cost.py` counts."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from mobilenet_jax.data import augment
from mobilenet_jax.errors import InputError
from mobilenet_jax.model import batch_norm, convolution, depthwise
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.records import weights

# TF-slim's initialisation of kernels. Under batch norm a kernel's scale only sets its effective learning rate: He's
# initialisation, larger for a small fan-in (9 for a depthwise kernel), was far slower on held-out CIFAR-10. The
# classifier starts with small logits.
_KERNEL_INIT = nn.initializers.truncated_normal(0.09)
_CLASSIFIER_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "truncated_normal")


class BatchNorm(nn.Module):
    """Batch norm over the last axis and an activation. Its running statistics are in the `batch_stats` collection."""

    epsilon: float  # added to the variance
    decay: float  # share of the old running value that a step keeps (TensorFlow's `decay`, Flax's `momentum`)
    activation: str | None  # a key of `batch_norm.ACTIVATIONS`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            return batch_norm.batch_norm_inference(x, scale, bias, mean.value, var.value, self.epsilon, self.activation)
        y, batch_mean, batch_var = batch_norm.batch_norm_training(x, scale, bias, self.epsilon, self.activation)
        if not self.is_initializing():
            mean.value = self.decay * mean.value + (1 - self.decay) * batch_mean
            var.value = self.decay * var.value + (1 - self.decay) * batch_var
        return y


class ConvLayer(nn.Module):
    """A convolution with its batch norm and activation: `[N, H, W, C]` to `[N, H', W', C']`."""

    layer: Layer
    epsilon: float
    decay: float
    dtype: DTypeLike
    implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = self.layer
        kernel = self.param("kernel", _KERNEL_INIT, layer.kernel_shape).astype(self.dtype)
        convolve = depthwise.depthwise if layer.kind == "depthwise" else convolution.convolve
        y = convolve(x.astype(self.dtype), kernel, layer.stride, self.implementation, layer.padding)
        return BatchNorm(self.epsilon, self.decay, layer.activation, name="bn")(y, train)


class MobileNet(nn.Module):
    """MobileNet v1 or v2, built from its list of layers.

    The variables are float32: `params/<layer name>/kernel`, `params/<layer name>/bn/{scale,bias}`,
    `params/classifier/{kernel,bias}`, and `batch_stats/<layer name>/bn/{mean,var}`.
    """

    arch: Architecture
    dropout: float = 0.0  # rate before the classifier; training draws from the 'dropout' stream
    bn_decay: float = 0.99  # share of the running statistics that a step keeps
    dtype: DTypeLike = jnp.float32  # of activations: jnp.float32 or jnp.bfloat16. Sums and the classifier are float32
    depthwise: str = "shift"  # implementation of the convolutions, from `depthwise.choose`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Map normalised images `[B, H, W, 3]` to logits `[B, num_classes]`, float32 or more."""
        outputs, exact = {}, np.promote_types(self.dtype, jnp.float32)
        for layer in self.arch.layers:
            if layer.kind == "pool":
                x = x.astype(exact).mean((1, 2))
            elif layer.kind == "dense":
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
                x = nn.Dense(layer.out_channels, dtype=exact, kernel_init=_CLASSIFIER_INIT, name=layer.name)(x)
            else:
                settings = (self.arch.bn_epsilon, self.bn_decay, self.dtype, self.depthwise)
                x = ConvLayer(layer, *settings, name=layer.name)(x, train)
            if layer.shortcut is not None:
                x = x + outputs[layer.shortcut]
            outputs[layer.name] = x
        return x


class Loaded(NamedTuple):
    """A trained network: `module.apply(variables, preprocess(images))` returns the logits `[B, num_classes]`."""

    module: MobileNet
    variables: dict[str, Any]
    class_names: Sequence[str]  # in the order of the logits; () if unknown
    preprocess: Callable[[Any], jax.Array]  # of images, uint8 [B, H, W, 3], as in the run's evaluation
    resolution: int  # side of the module's input in pixels, and of the views of images from files
    protocol: str  # of such views, see `data.views`: that of the training, 'slim' if it is unknown


def load(path: str | os.PathLike[str]) -> Loaded:
    """Return the network in a run directory or in its `weights.safetensors`; raise InputError if it has none."""
    return assemble(*weights.read(pathlib.Path(path)), os.fspath(path))


def assemble(variables: dict[str, Any], network: weights.Network, where: str) -> Loaded:
    """Return the network of these variables, from the file `where`.

    Raises:
      InputError: no network has this architecture, or it has other tensors.
    """
    try:
        built = arch.mobilenet(**dict(network.architecture))  # type: ignore[arg-type]
    except (InputError, TypeError) as e:
        raise InputError(f"{where}: no network has this architecture ({e})") from None
    if found := _misfit(built, variables):
        raise InputError(f"{where}: the tensors are not those of its architecture: {found}")
    built = dataclasses.replace(built, input_range=network.input_range, mean=network.mean, std=network.std)
    module = MobileNet(built, depthwise=depthwise.choose("auto", jax.default_backend()))

    def preprocess(images: jax.Array) -> jax.Array:
        size = network.image_size
        exact = bool(network.source or network.protocol)  # a view of a file is not cut, as stored images may be
        sides = images.shape[1:3]
        odd = images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3
        if odd or min(sides) < size or (exact and max(sides) > size):
            allowed = f"must be uint8 [B, H, W, 3] with sides of {'' if exact else 'at least '}{size} pixels"
            raise InputError(f"images of {images.dtype} {images.shape}: {allowed}")
        view = (size, network.resolution, network.input_range, network.mean, network.std)
        return augment.evaluation_view(images, *view)

    return Loaded(module, variables, network.class_names, preprocess, network.resolution, network.protocol or "slim")


def _misfit(network: Architecture, variables: dict[str, Any]) -> str:
    """Return the first tensor that is missing, left over or of another shape than the network's; '' if all fit."""
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in network.layers:
        width = (layer.out_channels,)
        if layer.norm:
            wanted[f"params/{layer.name}/kernel"] = layer.kernel_shape
            wanted |= {f"params/{layer.name}/bn/{name}": width for name in ("scale", "bias")}
            wanted |= {f"batch_stats/{layer.name}/bn/{name}": width for name in ("mean", "var")}
        elif layer.kind == "dense":
            wanted |= {f"params/{layer.name}/kernel": layer.kernel_shape[2:], f"params/{layer.name}/bias": width}
    found = {name: tensor.shape for name, tensor in weights.flat(variables)}
    return min((name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)), default="")
