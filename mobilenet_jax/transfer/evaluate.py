"""Apply a trained network to image files: accuracy on labelled ones, classes of others."""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.data import imagenet, views
from mobilenet_jax.data.arrays import eval_batches
from mobilenet_jax.errors import InputError
from mobilenet_jax.model import mobilenet
from mobilenet_jax.records import weights

_BATCH = 32  # images, at most


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a network does on labelled images."""

    top1: float  # fractions
    top5: float
    n: int  # images
    resolution: int
    protocol: str
    label_offset: int  # was added to each label: 1 if class 0 of the network is the background
    images_per_second: float  # decoding included, compiling not


class Viewed(NamedTuple):
    """A network, and the side in pixels of the views that it takes."""

    network: mobilenet.Loaded
    resolution: int


def of_file(path: pathlib.Path, resolution: int = 0) -> Viewed:
    """Return the network in a file, for views of `resolution` pixels, by default those that it was made for.

    Raises:
      InputError: the file cannot be read, or its tensors are not those of its architecture.
    """
    return of_variables(*weights.read(path), str(path), resolution)


def of_variables(variables: Any, network: weights.Network, where: str, resolution: int = 0) -> Viewed:
    """Return the network of these variables; the other arguments are those of `mobilenet.assemble` and `of_file`."""
    side = resolution or network.resolution
    square = dataclasses.replace(network, image_size=side, resolution=side)
    return Viewed(mobilenet.assemble(variables, square, where), side)


def evaluate(viewed: Viewed, images: imagenet.Labelled, protocol: str) -> tuple[Evaluation, np.ndarray]:
    """Return the accuracy on labelled images, and the classes found, best first, int32 `[N, 5]`.

    A network with a class for the background counts an image as wrong where the background is its best class.

    Raises:
      InputError: a label is no class of the network, or an image cannot be read.
    """
    network, resolution = viewed
    classes, offset = network.module.arch.num_classes, imagenet.label_offset(network.class_names)
    labels = np.array([label for _, label in images]) + offset
    for (path, label), shifted in zip(images, labels, strict=True):
        if shifted >= classes:
            background = " and one for the background" if offset else ""
            allowed = f"the network has {classes - offset} classes{background}: allowed are 0 to {classes - offset - 1}"
            raise InputError(f"label {label} of {path}: {allowed}")
    paths = [path for path, _ in images]
    program = _program(viewed, _batch(paths))
    start = time.perf_counter()  # after compiling
    found = np.concatenate([_order(x) for x in _logits(program, resolution, paths, protocol)])
    seconds = time.perf_counter() - start
    hits = found == labels[:, None]
    top1, top5 = float(hits[:, 0].mean()), float(hits.any(1).mean())
    return Evaluation(top1, top5, len(images), resolution, protocol, offset, len(images) / seconds), found


def predict(viewed: Viewed, paths: Sequence[pathlib.Path], protocol: str) -> list[list[tuple[int, float]]]:
    """Return the five best classes of each image with their probabilities, best first."""
    found = []
    for logits in _logits(_program(viewed, _batch(paths)), viewed.resolution, paths, protocol):
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        order = _order(logits)
        found += [[(int(i), float(row[i])) for i in best] for best, row in zip(order, odds, strict=True)]
    return found


def _batch(paths: Sequence[pathlib.Path]) -> int:
    return min(_BATCH, len(paths))


def _order(logits: np.ndarray) -> np.ndarray:
    return np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)


def _logits(
    program: Callable[[np.ndarray], jax.Array], resolution: int, paths: Sequence[pathlib.Path], protocol: str
) -> Iterator[np.ndarray]:
    """Yield the logits of each batch, float32 `[B, num_classes]`, where B may be smaller for the last one."""
    view = functools.partial(views.read, protocol=protocol, resolution=resolution)
    batch = _batch(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the lock of the interpreter
        for indices, mask in eval_batches(len(paths), batch):
            images = np.stack(list(pool.map(view, [paths[i] for i in indices[mask]])))
            padded = np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), np.uint8)])
            yield np.asarray(program(padded))[: len(images)]


def _program(viewed: Viewed, batch: int) -> Callable[[np.ndarray], jax.Array]:
    """Return the compiled network, for views, uint8 `[batch, R, R, 3]`."""
    network, resolution = viewed
    apply = jax.jit(network.module.apply)
    program: Any = lambda images: apply(network.variables, network.preprocess(jnp.asarray(images)))  # noqa: E731
    jax.block_until_ready(program(np.zeros((batch, resolution, resolution, 3), np.uint8)))
    return program
