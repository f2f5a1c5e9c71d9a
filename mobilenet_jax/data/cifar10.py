"""CIFAR-10 as published: read from its archive or the download, checked by content, written as TFDS would have it.

Nothing here needs TensorFlow. A split is a pair: images, uint8 `[N, 32, 32, 3]`, and labels, int32 `[N]`.
"""

import contextlib
import gzip
import hashlib
import io
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import numpy as np

from mobilenet_jax.data import datasets
from mobilenet_jax.data.datasets import Dataset
from mobilenet_jax.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# sha256 of the published pixels (uint8 [N, H, W, 3]) followed by the labels (uint8 [N]).
SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

NETWORK_SECONDS = 10  # the longest silence of the server, name resolution included

Pair = tuple[np.ndarray, np.ndarray]


def read(dataset: Dataset, archive: str = "") -> dict[str, Pair]:
    """Both splits, from the binary archive at the path `archive`, or from the download where that is ''.

    Raises:
      InputError: there is no reading it, or it is not the published one.
    """
    return _read_archive(dataset, archive) if archive else _download(dataset)


def write(splits: Mapping[str, Pair], root: pathlib.Path) -> pathlib.Path:
    """Writes array_record files that TFDS reads as its own 'cifar10', in the order given; returns their directory.

    TFDS's builder parses and encodes with TensorFlow; this one takes its name, version and features, and yields PNG.
    """
    import tensorflow_datasets as tfds
    from PIL import Image
    from tqdm import tqdm

    registered = tfds.builder("cifar10", data_dir=root)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = registered.name
        VERSION = registered.version

        def _info(self) -> tfds.core.DatasetInfo:
            published = registered.info
            return tfds.core.DatasetInfo(
                builder=self,
                description=published.description,
                features=published.features,
                supervised_keys=published.supervised_keys,
                homepage=published.homepage,
                citation=published.citation,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            del dl_manager
            features: Any = self.info.features
            features["label"].names = _LABELS
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            images, labels = splits[split]
            for i in tqdm(range(len(labels)), f"preparing cifar10 {split}", unit=" images", leave=False, disable=None):
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG", compress_level=1)
                yield i, {"id": f"{split}_{i:05d}", "image": png.getvalue(), "label": int(labels[i])}

    tfds.disable_progress_bar()
    builder = Builder(data_dir=root, file_format=datasets.FILE_FORMAT)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def _read_archive(dataset: Dataset, archive: str) -> dict[str, Pair]:
    path = os.path.expanduser(archive)
    try:
        with open(path, "rb") as file:
            return _read_stream(dataset, file, f"config.data.archive={path!r}")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"config.data.archive={path!r} cannot be read: {reason}") from error


def _download(dataset: Dataset) -> dict[str, Pair]:
    """Reads the archive as it comes in: nothing is kept on disk."""
    import http.client

    from tqdm import tqdm

    try:
        with _open_url(URL) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            bar = {"desc": "downloading cifar10", "leave": False, "disable": None}
            with tqdm.wrapattr(response, "read", total, **bar) as stream:
                return _read_stream(dataset, cast(IO[bytes], stream), "the download")
    except (OSError, http.client.HTTPException, InputError) as error:
        reason = " ".join(str(error).strip("<>").split())  # in one line, whatever the server said
        raise InputError(
            f"cifar10 is not prepared, and {URL} cannot be downloaded ({reason}): either fetch it elsewhere "
            "and give it as --config.data.archive=PATH, or name the directory that holds it prepared (TFDS_DATA_DIR or "
            "--config.data.dir=DIR), or train on the digits, which need no data (--config configs/digits_v1.py)"
        ) from error


def _open_url(url: str) -> Any:
    """Opens `url` within NETWORK_SECONDS; reading then raises when nothing comes for as long.

    A thread does it, as no time-out of a socket covers the resolution of names.
    """
    import queue
    import threading
    import urllib.error
    import urllib.request

    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=NETWORK_SECONDS))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's response as well
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=NETWORK_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {NETWORK_SECONDS} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Bounded(io.RawIOBase):
    """The first `size` bytes of a stream; reading on is an error, so that no archive unpacks to more."""

    def __init__(self, stream: io.BufferedIOBase, size: int):
        self._stream, self._left = stream, size

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("it unpacks to more than it should")
        buffer[: len(data)] = data
        return len(data)


def _read_stream(dataset: Dataset, stream: IO[bytes], where: str) -> dict[str, Pair]:
    """Reads the binary archive: per image one byte of label, then 1024 each of red, green and blue."""
    published = "the published CIFAR-10 binary archive"
    record = 1 + 3 * 32 * 32
    size = dataset.train_size // len(_FILES["train"]) * record
    expected = {name: split for split, names in _FILES.items() for name in names}
    files: dict[str, bytes] = {}
    problem = ""
    try:
        bounded = _Bounded(gzip.GzipFile(fileobj=stream), 6 * size + 2**20)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for member in tar:
                if member.size > 6 * size + 2**20:  # before it is skipped
                    raise tarfile.ReadError("it unpacks to more than it should")
                name = pathlib.PurePosixPath(member.name).name
                if name in expected and member.size == size and (file := tar.extractfile(member)):
                    files[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:  # tarfile's over odd headers
        problem = f" ({error})"

    for name, split in expected.items():
        if name not in files:
            raise InputError(
                f"{where} is not {published}: of its {split} split, no {name} of {size:,} bytes could be read{problem}"
            )
    splits = {}
    for split, names in _FILES.items():
        records = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, record)
        images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels = np.ascontiguousarray(records[:, 0])
        if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != SHA256[split]:
            raise InputError(f"{where} is not {published}: its {split} split has other content")
        splits[split] = images, labels.astype(np.int32)
    return splits
