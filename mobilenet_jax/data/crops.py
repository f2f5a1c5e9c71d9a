"""Decode pictures of any size and cut out of them what a network is trained on, on the host."""

import dataclasses
import importlib.util
import io
import math
import threading

import numpy as np
from PIL import Image, UnidentifiedImageError

from mobilenet_jax.data import views
from mobilenet_jax.errors import InputError, first_line

PIXELS = 2**27  # of the largest picture that is decoded: 400 MB
_REUSED = 2**24  # bytes of an image at most that each thread keeps memory for
_MEMORY = threading.local()
_TRIES = 10  # to find an Inception crop, as in TF-slim and torchvision


class DecodingError(ValueError):
    """A file that holds no whole picture."""


def check_installed() -> None:
    """Raise InputError if a package of the extra 'images' is missing."""
    for package in ("cv2", "simplejpeg"):
        if importlib.util.find_spec(package) is None:
            command = "pip install -c constraints.txt -e '.[images]'"
            raise InputError(f"training on pictures needs the package {package!r}: `{command}` installs it")


def decode(content: bytes, reuse: bool = False) -> np.ndarray:
    """Return a JPEG, PNG or WebP file as RGB, uint8 `[H, W, 3]`.

    With `reuse`, it may lie in memory that the thread's next call overwrites: fresh memory takes time to map.

    An orientation in the file's EXIF data is ignored, as in both evaluation protocols. Transparency is ignored. Of
    16-bit pixels, the higher byte is taken, as TensorFlow does.

    Raises:
      DecodingError: the file is damaged, truncated, of another kind, or of more than `PIXELS` pixels.
    """
    import simplejpeg  # of the extra 'images'

    if content[:2] == b"\xff\xd8":
        try:  # as Pillow decodes it, to the bit, in less time
            height, width = map(int, simplejpeg.decode_jpeg_header(content)[:2])
            if height * width <= PIXELS:
                buffer = _buffer(height * width * 3) if reuse else None
                return simplejpeg.decode_jpeg(content, "RGB", buffer=buffer)
        except ValueError:
            pass  # Pillow may know better
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > PIXELS:
                raise DecodingError(f"it has more than {PIXELS:,} pixels")
            if image.mode.startswith("I"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            opaque = image if image.mode != "P" else image.convert("RGBA")  # else Pillow warns of transparent palettes
            return np.asarray(opaque.convert("RGB"))
    except DecodingError:
        raise
    except UnidentifiedImageError:
        raise DecodingError("it is no picture that can be decoded" if content else "it is empty") from None
    # Pillow's plug-ins raise all of these over damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, Image.DecompressionBombError) as e:
        raise DecodingError(first_line(e)) from None


def _buffer(size: int) -> np.ndarray | None:
    """Return this thread's memory for an image of so many bytes, None if it is a large one."""
    if size > _REUSED:
        return None
    if (buffer := getattr(_MEMORY, "buffer", None)) is None or len(buffer) < size:
        buffer = _MEMORY.buffer = np.empty(size, np.uint8)
    return buffer[:size]


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
