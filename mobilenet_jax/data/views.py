"""Cut and resize an image for evaluation, as the protocols of TF-slim and of PyTorch do. Networks normalise it."""

import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from mobilenet_jax.data import decoding

_CENTRE = 0.875  # share of a side that a protocol keeps


def slim(image: np.ndarray, resolution: int) -> np.ndarray:
    """Return the central 87.5 % of height and width, squashed to a square by TensorFlow 1's bilinear resize.

    That resize has no half-pixel centres and no anti-aliasing. Source: TF-slim, `inception_preprocessing.py`,
    `preprocess_for_eval`.

    Args:
      image: uint8 `[H, W, 3]`.
      resolution: side of the result in pixels.

    Returns:
      uint8 `[resolution, resolution, 3]`, rounded to nearest.
    """
    return np.rint(slim_unrounded(image, resolution)).clip(0, 255).astype(np.uint8)


def slim_unrounded(image: np.ndarray, resolution: int) -> np.ndarray:
    """Return the view of `slim` as float32, as TF-slim has it before it normalises."""
    tops = [int((size - size * _CENTRE) / 2) for size in image.shape[:2]]
    x = image[tops[0] : image.shape[0] - tops[0], tops[1] : image.shape[1] - tops[1]]
    for axis in (0, 1):
        size = x.shape[axis]
        place = np.arange(resolution, dtype=np.float32) * np.float32(size / resolution)
        low = np.minimum(place.astype(int), size - 1)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        share = (place - low).reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, size - 1), axis) * share
    return x


def torch(image: np.ndarray, resolution: int) -> np.ndarray:
    """Return the centre after a resize of the shorter side to `resolution` / 0.875, bilinear with anti-aliasing.

    Arguments and result are those of `slim`. Source: torchvision, `transforms.Resize` and `CenterCrop` of PIL images.
    """
    height, width = image.shape[:2]
    least, short = min(height, width), round(resolution / _CENTRE)
    sides = short * width // least, short * height // least
    x = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))
    top, left = (round((size - resolution) / 2) for size in x.shape[:2])
    return x[top : top + resolution, left : left + resolution]


PROTOCOLS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"slim": slim, "torch": torch}


def read(path: str | os.PathLike[str], protocol: str, resolution: int) -> np.ndarray:
    """Return the view of an image file under a protocol, uint8 `[resolution, resolution, 3]`, or raise InputError."""
    return PROTOCOLS[protocol](decoding.read(path), resolution)
