"""Crop, flip, resize and normalise a batch of stored images on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def training_view(
    images: jax.Array,
    key: jax.Array,
    pad: int,
    crop: int,
    flip: bool,
    resolution: int,
    input_range: tuple[float, float],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> jax.Array:
    """Return random views of `images`, uint8 `[B, H, W, 3]`, as float32 `[B, resolution, resolution, 3]`.

    Pad each image with `pad` black pixels on each side, crop a square of `crop` pixels at random, mirror it with
    probability 1/2 if `flip` is set, resize it, and map 0 to 255 to `input_range`. `key` decides the crops and flips.
    `mean` is subtracted from red, green and blue in that range, and the result divided by `std`.
    """
    crop_key, flip_key = jax.random.split(key)
    b, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    limits = jnp.array([[h + 2 * pad - crop + 1, w + 2 * pad - crop + 1]])
    starts = jax.random.randint(crop_key, (b, 2), 0, limits)
    views = jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), (crop, crop, 3)))(padded, starts)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(b, 1, 1, 1))
        views = jnp.where(mirrored, views[:, :, ::-1], views)
    return _finish(views, resolution, input_range, mean, std)


def evaluation_view(
    images: jax.Array,
    crop: int,
    resolution: int,
    input_range: tuple[float, float],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> jax.Array:
    """Return views of the centres of `images`; arguments and result as in `training_view`."""
    top, left = (images.shape[1] - crop) // 2, (images.shape[2] - crop) // 2
    return _finish(images[:, top : top + crop, left : left + crop], resolution, input_range, mean, std)


def _finish(images, resolution, input_range, mean, std):
    low, high = input_range
    x = images.astype(jnp.float32) * ((high - low) / 255) + low
    if x.shape[1:3] != (resolution, resolution):
        x = jax.image.resize(x, (x.shape[0], resolution, resolution, x.shape[3]), "linear")  # anti-aliased
    if tuple(mean) == (0, 0, 0) and tuple(std) == (1, 1, 1):
        return x
    channels = (1, 1, 1, 3)
    return (x - jnp.asarray(mean, x.dtype).reshape(channels)) / jnp.asarray(std, x.dtype).reshape(channels)
