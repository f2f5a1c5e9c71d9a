"""Cut out of pictures of any size what a network is trained on, on the host."""

import dataclasses
import importlib.util
import math

import numpy as np

from mobilenet_jax.data import views
from mobilenet_jax.errors import InputError

_TRIES = 10  # to find an Inception crop, as in TF-slim and torchvision


def check_installed() -> None:
    """Raise InputError if a package of the extra 'images' is missing."""
    for package in ("cv2", "simplejpeg"):
        if importlib.util.find_spec(package) is None:
            command = "pip install -c constraints.txt -e '.[images]'"
            raise InputError(f"training on pictures needs the package {package!r}: `{command}` installs it")


@dataclasses.dataclass(frozen=True)
class Crop:
    """What a network is trained on: a part of a picture, resized to a square.

    Attributes:
      side: of the square in pixels.
      scale: of an Inception crop, the least share of the area; 0 for none.
      ratio: of an Inception crop, the largest ratio of its sides.
      resize: without an Inception crop, the shorter side of the picture before a random square is cut out of it. With
        0, it is the view of `protocol`.
      flip: mirror half of the pictures.
      protocol: of evaluation, see `views.PROTOCOLS`.
    """

    side: int
    scale: float
    ratio: float
    resize: int
    flip: bool
    protocol: str

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the part that `rng` chooses of an image, uint8 `[H, W, 3]`, as uint8 `[side, side, 3]`.

        The resize is bilinear between half-pixel centres, without anti-aliasing.
        """
        import cv2  # of the extra 'images'

        cv2.setNumThreads(0)  # pictures are spread over threads already
        if self.scale or self.resize:
            top, left, h, w = self._box(image.shape[0], image.shape[1], rng)
            part = image[top : top + h, left : left + w]
            part = cv2.resize(part, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        else:
            part = views.PROTOCOLS[self.protocol](image, self.side)
        return part[:, ::-1] if self.flip and rng.random() < 0.5 else part

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        if self.scale:
            return inception_box(height, width, self.scale, self.ratio, rng)
        side = max(1, round(min(height, width) * self.side / self.resize))
        return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


def inception_box(
    height: int, width: int, scale: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random box in an image of `height` x `width` pixels.

    Its area is uniform between `scale` and 1 of the image's, and the logarithm of its sides' ratio is uniform up to
    that of `ratio`, both ways. Where no such box is found, it is the largest in the centre with an allowed ratio.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(scale, 1)
        stretch = math.exp(rng.uniform(-math.log(ratio), math.log(ratio)))
        h, w = round(math.sqrt(area / stretch)), round(math.sqrt(area * stretch))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = min(height, max(1, round(width * ratio))), min(width, max(1, round(height * ratio)))
    return (height - h) // 2, (width - w) // 2, h, w
