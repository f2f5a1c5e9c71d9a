"""Archives of CIFAR-10 and of a tiny set like it: written, altered, and read by TFDS alone once they are prepared."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Mapping
from typing import Any

from mobilenet_jax.data.arrays import Split
from mobilenet_jax.data.datasets import describe

CIFAR10 = describe("cifar10")
TINY = dataclasses.replace(CIFAR10, train_size=15, test_size=3)  # CIFAR-10 with 3 images per file


def archive_files(splits: Mapping[str, Split]) -> dict[str, bytes]:
    """Return the binary files: for each image its label, then its red, green and blue planes."""

    def file(split: Split) -> bytes:
        return b"".join(
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(split.images, split.labels, strict=True)
        )

    train, size = splits["train"], len(splits["train"]) // 5
    parts = [Split(train.images[i * size : (i + 1) * size], train.labels[i * size : (i + 1) * size]) for i in range(5)]
    return {
        "batches.meta.txt": b"airplane\n",
        **{f"data_batch_{i}.bin": file(part) for i, part in enumerate(parts, 1)},
        "test_batch.bin": file(splits["test"]),
    }


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_with_plain_tfds(root: str, report: str) -> Any:
    """Evaluate `report` over `sources`, the splits as TFDS alone reads them, in a process without this project."""
    code = textwrap.dedent(
        f"""
        import json
        import tensorflow_datasets as tfds
        sources = tfds.data_source("cifar10", download=False)
        print(json.dumps({report}))
        """
    )
    env = os.environ | {"TFDS_DATA_DIR": root}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def visible(root: pathlib.Path) -> list[str]:
    return [path.name for path in root.iterdir()]


def altered(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    return {**files, name: bytes(content)}
