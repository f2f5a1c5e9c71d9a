"""Small sets of pictures, written where a test wants them."""

import io
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 40, width: int = 52, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return a file with smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((width, height)).convert(mode).save(content, kind)
    return content.getvalue()


def write(root: pathlib.Path, counts: Mapping[str, int], seed: int = 0) -> pathlib.Path:
    """Write so many pictures into each folder, such as 'train/cat'; return `root`."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            seed += 1
            (root / folder / f"{i:03}.JPEG").write_bytes(picture(seed, 40 + seed % 9))
    return root
