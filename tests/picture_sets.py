"""Small sets of pictures, written where a test wants them."""

import io
import pathlib
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n02119789")


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


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def training_archive(path: pathlib.Path, synsets=SYNSETS, pictures: int = 3) -> pathlib.Path:
    """Write ImageNet's archive of training images."""
    with tarfile.open(path, "w") as tar:
        for n, synset in enumerate(synsets):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as of_class:
                for i in reversed(range(pictures)):  # not in the order of their names
                    add(of_class, f"{synset}_{i}.JPEG", picture(10 * n + i, 60 + i, 80))
            add(tar, f"{synset}.tar", inner.getvalue())
    return path


def validation_archive(path: pathlib.Path, numbers=(3, 1, 2)) -> pathlib.Path:
    """Write ImageNet's archive of validation images, of the classes with the labels 65, 970 and 230."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            add(tar, f"ILSVRC2012_val_{number:08}.JPEG", picture(number, 300, 400))
    return path
