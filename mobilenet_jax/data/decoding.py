"""Decode image files of any size to RGB."""

import importlib.util
import io
import os
import pathlib
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from mobilenet_jax.errors import InputError, first_line

_PIXELS = 2**27  # of the largest picture that is decoded: 400 MB
_LONGEST = 100  # ratio of the sides: a protocol may enlarge the shorter one
# Found by the content: a PNG may be called .JPEG. Pillow would run other programs over some of the other formats.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_REUSED = 2**24  # bytes of an image at most that each thread keeps memory for
_MEMORY = threading.local()

_TURBO = importlib.util.find_spec("simplejpeg") is not None  # of the extra 'images'
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_PIXELS` is the limit here


class DecodingError(ValueError):
    """A file that holds no whole picture."""


def decode(content: bytes, reuse: bool = False) -> np.ndarray:
    """Return a JPEG, PNG, WebP, BMP, GIF or TIFF file as RGB, uint8 `[H, W, 3]`.

    With `reuse`, it may lie in memory that the thread's next call overwrites: fresh memory takes time to map.

    An orientation in the file's EXIF data is ignored, as in both evaluation protocols. Transparency is ignored. Of
    16-bit pixels, the higher byte is taken, as TensorFlow does.

    Raises:
      DecodingError: the file is damaged, truncated, of another kind, of more than `_PIXELS` pixels, or a narrow strip.
    """
    if _TURBO and content[:2] == b"\xff\xd8":
        import simplejpeg

        try:  # as Pillow decodes it, to the bit (CMYK: within one grey level), in less time
            height, width = map(int, simplejpeg.decode_jpeg_header(content)[:2])
            _check_size(width, height)
            buffer = _buffer(height * width * 3) if reuse else None
            return simplejpeg.decode_jpeg(content, "RGB", buffer=buffer)
        except ValueError:
            pass  # Pillow may know better
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(image.width, image.height)
            if image.mode.startswith("I"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            opaque = image if image.mode != "P" else image.convert("RGBA")  # else Pillow warns of transparent palettes
            return np.asarray(opaque.convert("RGB"))
    except UnidentifiedImageError:
        raise DecodingError("it is no picture that can be decoded" if content else "it is empty") from None
    except Exception as e:  # Pillow's plug-ins raise nearly all kinds over damaged files
        raise DecodingError(first_line(e)) from None


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Return an image file as `decode` does; raise InputError if it cannot be read."""
    try:
        return decode(pathlib.Path(path).read_bytes())
    except (OSError, DecodingError) as e:
        raise InputError(f"{path}: the image cannot be read ({getattr(e, 'strerror', None) or e})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > _PIXELS or max(width, height) > _LONGEST * min(width, height):
        allowed = f"allowed are {_PIXELS:,}, and a side up to {_LONGEST} times the other"
        raise DecodingError(f"it has {width}x{height} pixels: {allowed}")


def _buffer(size: int) -> np.ndarray | None:
    """Return this thread's memory for an image of so many bytes, None if it is a large one."""
    if size > _REUSED:
        return None
    if (buffer := getattr(_MEMORY, "buffer", None)) is None or len(buffer) < size:
        buffer = _MEMORY.buffer = np.empty(size, np.uint8)
    return buffer[:size]
