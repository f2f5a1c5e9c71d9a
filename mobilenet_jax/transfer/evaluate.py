"""Apply a trained network to image files: accuracy on labelled ones, classes of others."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.data import imagenet
from mobilenet_jax.data.images import Loader, Pictures
from mobilenet_jax.errors import InputError
from mobilenet_jax.model import mobilenet
from mobilenet_jax.records import weights
from mobilenet_jax.training import devices

_BATCH = 32  # images, at most


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a network does on labelled images."""

    top1: float  # fractions
    top5: float | None  # None of five classes or fewer, where it is always 1
    n: int  # images
    resolution: int
    protocol: str
    label_offset: int  # was added to each label: 1 if class 0 of the network is the background
    images_per_second: float  # decoding included, compiling not


def of_file(path: pathlib.Path, resolution: int = 0) -> mobilenet.Loaded:
    """Return the network in a file, for views of `resolution` pixels, by default those that it was made for.

    Raises:
      InputError: the file cannot be read, or its tensors are not those of its architecture.
    """
    return of_variables(*weights.read(path), str(path), resolution)


def of_variables(variables: Any, network: weights.Network, where: str, resolution: int = 0) -> mobilenet.Loaded:
    """Return the network of these variables; the other arguments are those of `mobilenet.assemble` and `of_file`."""
    side = resolution or network.resolution
    square = dataclasses.replace(network, image_size=side, resolution=side)
    return mobilenet.assemble(variables, square, where)


def evaluate(
    network: mobilenet.Loaded, images: imagenet.Labelled | Pictures, protocol: str
) -> tuple[Evaluation, np.ndarray]:
    """Return the accuracy on labelled images, and the classes found, best first, int32 `[N, 5]`.

    A network with a class for the background counts an image as wrong where the background is its best class. Of a
    prepared set, images that cannot be decoded are left out: at most 0.1 %, and each is named.

    Raises:
      InputError: a label is no class of the network, or an image cannot be read.
    """
    classes, offset = network.module.arch.num_classes, imagenet.label_offset(network.class_names)
    for path, label in [] if isinstance(images, Pictures) else images:
        if label + offset >= classes:
            background = " and one for the background" if offset else ""
            allowed = f"the network has {classes - offset} classes{background}: allowed are 0 to {classes - offset - 1}"
            raise InputError(f"label {label} of {path}: {allowed}")
    batch = min(_BATCH, len(images))
    program = _program(network, batch)
    start = time.perf_counter()  # after compiling
    found, labels = [], []
    for views_of, wanted, mask in _batches(images, protocol, network.resolution, batch):
        found.append(_order(np.asarray(program(views_of))[mask]))
        labels.append(wanted[mask])
    seconds = time.perf_counter() - start
    order = np.concatenate(found)
    hits = order == np.concatenate(labels)[:, None] + offset
    top1, top5, n = float(hits[:, 0].mean()), float(hits.any(1).mean()) if classes > 5 else None, len(hits)
    return Evaluation(top1, top5, n, network.resolution, protocol, offset, n / seconds), order


def predict(network: mobilenet.Loaded, paths: Sequence[pathlib.Path], protocol: str) -> list[list[tuple[int, float]]]:
    """Return the five best classes of each image with their probabilities, best first."""
    found = []
    batch = min(_BATCH, len(paths))
    program = _program(network, batch)
    for images, _, mask in _batches([(path, 0) for path in paths], protocol, network.resolution, batch):
        logits = np.asarray(program(images))[mask]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        order = _order(logits)
        found += [[(int(i), float(row[i])) for i in best] for best, row in zip(order, odds, strict=True)]
    return found


def _order(logits: np.ndarray) -> np.ndarray:
    return np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)


def _batches(
    images: imagenet.Labelled | Pictures, protocol: str, resolution: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield views, uint8 `[batch, R, R, 3]`, labels, and a mask, bool `[batch]`, that leaves out what fills a batch."""
    loader = Loader(devices.cores())
    try:
        for each in loader.evaluation(images, protocol, resolution, batch):
            yield each.images, each.labels, each.mask > 0
    finally:
        loader.close()


def _program(network: mobilenet.Loaded, batch: int) -> Callable[[np.ndarray], jax.Array]:
    """Return the compiled network, for views, uint8 `[batch, R, R, 3]`."""
    resolution = network.resolution
    apply = jax.jit(network.module.apply)
    program: Any = lambda images: apply(network.variables, network.preprocess(jnp.asarray(images)))  # noqa: E731
    jax.block_until_ready(program(np.zeros((batch, resolution, resolution, 3), np.uint8)))
    return program
