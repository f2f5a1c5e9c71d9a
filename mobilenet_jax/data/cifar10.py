"""Read CIFAR-10 as published, check its sha256, and write it as TFDS does, without TensorFlow."""

import contextlib
import gzip
import hashlib
import io
import pathlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from mobilenet_jax import console
from mobilenet_jax.data import datasets
from mobilenet_jax.data.datasets import Dataset
from mobilenet_jax.data.progress import progress
from mobilenet_jax.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NETWORK_SECONDS = 10  # longest silence of the server, once its name is resolved

# sha256 of the published pixels (uint8 [N, H, W, 3]) followed by the labels (uint8 [N]).
SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}

_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_RECORD = 1 + 3 * 32 * 32  # bytes per image: its label, then 1024 each of red, green and blue
_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Pair = tuple[np.ndarray, np.ndarray]  # images, uint8 [N, 32, 32, 3], and labels, int32 [N]


def read(dataset: Dataset, archive: str = "") -> dict[str, Pair]:
    """Read and check both splits, from the binary archive at the path `archive` or, if that is empty, from the web.

    Raises:
      InputError: the archive cannot be read or downloaded, or its content is not the published one.
    """
    if not archive:
        return _download(dataset)
    path = console.expand_home(archive, "config.data.archive=")
    where = f"config.data.archive={path!r}"
    try:
        with open(path, "rb") as file:
            return _read_stream(dataset, file, where, lambda amount: None)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the path contains a null character
        raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def write(splits: Mapping[str, Pair], root: pathlib.Path) -> pathlib.Path:
    """Write array_record files that TFDS reads as its own 'cifar10', in the given order, and return their directory."""
    import tensorflow_datasets as tfds
    from PIL import Image

    registered: Any = tfds.builder_cls("cifar10")

    # TFDS's own builder parses and encodes with TensorFlow. This one keeps its version, features and description.
    class Builder(registered, skip_registration=True):  # type: ignore[call-arg]
        name = "cifar10"

        def _info(self) -> tfds.core.DatasetInfo:
            info = super()._info()
            info.as_proto.disable_shuffling = True
            return info

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            self.info.features["label"].names = _LABELS
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(*splits[split], strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG", compress_level=1)
                yield i, {"id": f"{split}_{i:05d}", "image": png.getvalue(), "label": int(label)}
                advance(1)

    tfds.disable_progress_bar()
    builder = Builder(data_dir=root, file_format=datasets.FILE_FORMAT)
    images, silence = sum(len(labels) for _, labels in splits.values()), contextlib.redirect_stdout(io.StringIO())
    with progress("preparing cifar10: once, in about 15 seconds", images) as advance, silence:
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def _download(dataset: Dataset) -> dict[str, Pair]:
    """Read the archive while it arrives, without a copy on disk. Only the connection has a time limit, not DNS."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        with (
            progress(f"downloading cifar10 from {URL}", (dataset.train_size + dataset.test_size) * _RECORD) as advance,
            urllib.request.urlopen(URL, timeout=NETWORK_SECONDS) as response,
        ):
            return _read_stream(dataset, response, "the download", advance)
    except (OSError, http.client.HTTPException, InputError) as error:
        reason = " ".join(str(error).strip("<>").split())
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the server's response as well
        raise InputError(
            f"cifar10 is not prepared, and {URL} cannot be downloaded ({reason}): either fetch it elsewhere "
            "and give it as --config.data.archive=PATH, or name the directory that holds it prepared (TFDS_DATA_DIR or "
            "--config.data.dir=DIR), or train on the digits, which need no data (--config configs/digits_v1.py)"
        ) from error


def _read_stream(dataset: Dataset, stream: IO[bytes], where: str, advance: Callable[[int], None]) -> dict[str, Pair]:
    """Unpack and check the binary archive, and report the number of unpacked bytes to `advance`."""
    size = dataset.train_size // len(_FILES["train"]) * _RECORD
    limit = 6 * size + 2**20
    found, unpacked, problem = {}, io.BytesIO(), ""
    try:
        with gzip.GzipFile(fileobj=stream) as packed:
            while chunk := packed.read(2**18):
                advance(unpacked.write(chunk))
                if unpacked.tell() > limit:
                    raise tarfile.ReadError("it unpacks to more than it should")
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked, mode="r|") as tar:  # never seeks back, so no header makes a loop
            for member in tar:
                if member.size > limit:  # before tarfile skips it piece by piece
                    raise tarfile.ReadError("it unpacks to more than it should")
                name = pathlib.PurePosixPath(member.name).name
                if member.size == size and (file := tar.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:  # tarfile's over odd headers
        problem = f" ({error})"
    splits, refusal = {}, f"{where} is not the published CIFAR-10 binary archive"
    for split, names in _FILES.items():
        if missing := [name for name in names if name not in found]:
            lost = f"no {missing[0]} of {size:,} bytes could be read{problem}"
            raise InputError(f"{refusal}: of its {split} split, {lost}")
        records = np.frombuffer(b"".join(found[name] for name in names), np.uint8).reshape(-1, _RECORD)
        images, labels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
        if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != SHA256[split]:
            raise InputError(f"{refusal}: its {split} split has other content")
        splits[split] = np.ascontiguousarray(images), labels.astype(np.int32)
    return splits
