"""Crops, flips and sizes, seen on images whose pixels encode their position."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mobilenet_jax.data.augment import evaluation_view, training_view

AS_STORED = (0.0, 255.0)


def coordinates(batch: int, height: int, width: int) -> np.ndarray:
    """Return images whose pixels are (row + 1, column + 1, 7), which black padding never equals."""
    rows, columns = np.mgrid[1 : height + 1, 1 : width + 1]
    image = np.stack([rows, columns, np.full_like(rows, 7)], axis=-1)
    return np.broadcast_to(image, (batch, height, width, 3)).astype(np.uint8)


@functools.cache
def compiled(pad: int, crop: int, flip: bool, resolution: int, input_range: tuple[float, float]) -> Any:
    settings = {"pad": pad, "crop": crop, "flip": flip, "resolution": resolution, "input_range": input_range}
    return jax.jit(functools.partial(training_view, **settings))


@functools.cache
def views(height: int, width: int, pad: int, crop: int, flip: bool, seed: int = 0) -> np.ndarray:
    """Return 2000 training views of the crop's own size and with the stored values."""
    view = compiled(pad, crop, flip, crop, AS_STORED)
    return np.asarray(view(coordinates(2000, height, width), jax.random.key(seed)))


def windows(height: int, width: int, pad: int, crop: int) -> dict[tuple[int, int], np.ndarray]:
    """Return every crop of the padded image, by offset."""
    padded = np.pad(coordinates(1, height, width)[0], ((pad, pad), (pad, pad), (0, 0)))
    starts = itertools.product(range(height + 2 * pad - crop + 1), range(width + 2 * pad - crop + 1))
    return {(i, j): padded[i : i + crop, j : j + crop] for i, j in starts}


@pytest.mark.parametrize(
    ("height", "width", "pad", "crop", "flip"),
    [
        (8, 8, 2, 8, True),
        (8, 8, 2, 8, False),
        (8, 8, 0, 6, True),
        (7, 9, 1, 7, True),
        (7, 9, 1, 7, False),
        (8, 8, 0, 8, True),
        (8, 8, 1, 10, False),
    ],
)
def test_views_are_windows_and_all_occur_equally_often(height, width, pad, crop, flip):
    expected = {window.tobytes(): (offset, False) for offset, window in windows(height, width, pad, crop).items()}
    if flip:
        mirrored = windows(height, width, pad, crop).items()
        expected |= {window[:, ::-1].tobytes(): (offset, True) for offset, window in mirrored}
    found = views(height, width, pad, crop, flip)
    assert found.dtype == np.float32
    whole = np.rint(found).astype(np.uint8)
    np.testing.assert_allclose(found, whole, atol=1e-4)
    seen = [expected[view.tobytes()] for view in whole]  # a KeyError: the view is not a window
    counts = {which: seen.count(which) for which in expected.values()}
    mean = len(seen) / len(expected)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values()), counts
    if flip:
        assert abs(sum(is_mirrored for _, is_mirrored in seen) / len(seen) - 0.5) < 0.05


def test_the_key_decides():
    first, second = (views(8, 8, 2, 8, True, seed=seed) for seed in (0, 1))
    views.cache_clear()
    np.testing.assert_array_equal(views(8, 8, 2, 8, True), first)
    assert (first != second).any((1, 2, 3)).mean() > 0.5


def test_flip_and_crop_are_independent():
    """Mirrored and plain views come from the same offsets, and each image has its own draw."""
    found = views(8, 8, 2, 8, True)
    mirrored = found[:, 4, 4, 1] < found[:, 4, 3, 1]  # columns fall
    first_row = found[:, 4, 4, 0]  # of the image in the middle of the view: the vertical offset
    assert abs(first_row[mirrored].mean() - first_row[~mirrored].mean()) < 0.2
    assert abs(np.corrcoef(mirrored[1:], mirrored[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("height", "width", "crop", "top", "left"),
    [(32, 32, 28, 2, 2), (32, 32, 32, 0, 0), (9, 9, 4, 2, 2), (8, 12, 8, 0, 2), (9, 8, 7, 1, 0)],
)
def test_evaluation_takes_the_centre(height, width, crop, top, left):
    images = jnp.asarray(coordinates(2, height, width))
    found = evaluation_view(images, crop, crop, AS_STORED)
    assert (found.shape, found.dtype) == ((2, crop, crop, 3), jnp.float32)
    np.testing.assert_allclose(found, images[:, top : top + crop, left : left + crop], atol=1e-4)


@pytest.mark.parametrize("resolution", [16, 23, 31, 32, 40])
def test_resizing_is_pillows(resolution):
    """The resize is bilinear, with antialias when it shrinks."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = np.asarray(evaluation_view(jnp.asarray(images), 32, resolution, AS_STORED))
    assert found.shape == (2, resolution, resolution, 3)
    for i, channel in itertools.product(range(2), range(3)):
        image = Image.fromarray(np.float32(images[i, :, :, channel]))
        expected = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[i, :, :, channel], np.asarray(expected), atol=0.01)


@pytest.mark.parametrize("resolution", [5, 16, 32, 40])
def test_a_constant_image_stays_constant(resolution):
    values = np.array([0, 255], np.uint8)[:, None, None, None]
    found = evaluation_view(jnp.asarray(np.broadcast_to(values, (2, 32, 32, 3))), 32, resolution, (-1.0, 1.0))
    np.testing.assert_allclose(found, np.broadcast_to(values / 127.5 - 1, found.shape), atol=1e-5)


@pytest.mark.parametrize("input_range", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 3.0)])
def test_0_and_255_become_the_input_range(input_range):
    images = jnp.asarray([[[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]], jnp.uint8)
    low, high = input_range
    expected = np.array([[low, high], [high, low]])
    trained = compiled(0, 2, False, 2, input_range)(images, jax.random.key(0))
    for found in (evaluation_view(images, 2, 2, input_range), trained):
        np.testing.assert_allclose(np.asarray(found)[0, :, :, 0], expected, atol=1e-6)


def test_mean_and_deviation_apply_in_the_input_range():
    images = jnp.full((1, 2, 2, 3), 255, jnp.uint8)
    of = {"resolution": 2, "input_range": (0.0, 1.0), "mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0)}
    trained = training_view(images, jax.random.key(0), pad=0, crop=2, flip=True, **of)
    for found in (evaluation_view(images, crop=2, **of), trained):
        np.testing.assert_allclose(np.asarray(found)[0, 0, 0], [1.0, 3.0, 0.5], atol=1e-6)


def test_all_three_together():
    """Pad by 4, crop 28 of 40 pixels, flip, resize to 20: the shape, type and range are right."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    found = np.asarray(compiled(4, 28, True, 20, (-1.0, 1.0))(images, jax.random.key(0)))
    assert (found.shape, found.dtype) == ((5, 20, 20, 3), jnp.float32)
    assert found.min() >= -1.001 and found.max() <= 1.001 and found.std() > 0.2
