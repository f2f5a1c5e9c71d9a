"""Named data sets as arrays in memory: preparing and checking them, the decoded cache, the order of the batches.

Nothing here needs TensorFlow. Slow imports (TFDS, Pillow) wait until something has to be decoded or prepared.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import numpy as np

from mobilenet_jax import datasets
from mobilenet_jax.datasets import Dataset
from mobilenet_jax.errors import InputError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# sha256 of the published pixels (uint8 [N, H, W, 3]) followed by the labels (uint8 [N]).
CIFAR10_SHA256 = {
    "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
    "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
}
_CIFAR10_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

NETWORK_SECONDS = 10  # the longest silence of the server, name resolution included
HOLDOUT_SEED = 0  # not the run's: runs that differ in their seed hold out the same images

_CACHE = "mobilenet_jax"  # the cache's directory, inside the prepared set's
_CACHE_FORMAT = 1  # raise it when the same files would decode to other arrays


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8 `[N, H, W, 3]`, and their labels, int32 `[N]`; memory-mapped and read-only if from the cache."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load(dataset: Dataset, data_dir: str = "", archive: str = "") -> dict[str, Split]:
    """Loads the splits 'train' and 'test' of a set.

    CIFAR-10 is prepared first where it is absent. What had to be decoded is kept beside the prepared set, so that the
    next start maps it into memory.

    Args:
      dataset: what `datasets.describe` says of it.
      data_dir: where TFDS keeps its sets (see `datasets.data_root`).
      archive: the published binary archive of CIFAR-10, to prepare it from instead of a download.

    Raises:
      InputError: the set cannot be trained on, or is not there, or is not what `dataset` says.
    """
    name = dataset.name
    if dataset.streamed:
        raise InputError(f"data set {name!r} does not fit in memory: it cannot be trained on yet, only --dry_run works")
    if archive and name != "cifar10":
        raise InputError(f"config.data.archive={archive!r}: an archive can be given for 'cifar10' only, not {name!r}")
    if name == "digits":
        return _digits(dataset)
    root = datasets.data_root(data_dir)
    found = datasets.prepared(name, data_dir)
    if found is None:
        if name != "cifar10":
            command = datasets.build_command(name, root)
            raise InputError(f"data set {name!r} is not prepared in {root}: `{command}` does it (it needs TensorFlow)")
        _prepare_cifar10(dataset, root, archive)
        found = datasets.prepared(name, data_dir)
        assert found is not None
    elif archive:
        _say(f"{name} is prepared in {found[0]} already: {archive} is not read")
    directory, actual = found
    if actual != dataset:
        was, must = (dataclasses.asdict(described) for described in (actual, dataset))
        wrong = ", ".join(f"{key} {was[key]} instead of {must[key]}" for key in must if was[key] != must[key])
        raise InputError(f"data set {name!r} in {directory} is another one: {wrong}")
    return _load_prepared(dataset, directory)


def holdout(split: Split, fraction: float) -> tuple[Split, Split]:
    """Holds out part of a split for validation: `(rest, held out)`, each in the split's order.

    The choice depends on the size of the split alone, and a larger fraction contains a smaller one.
    """
    size = datasets.holdout_size(len(split), fraction)
    order = np.random.default_rng(HOLDOUT_SEED).permutation(len(split))
    held_out, rest = np.sort(order[:size]), np.sort(order[size:])
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held_out], split.labels[held_out])


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: a permutation, int32 `[size]`, a function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.int32)


def eval_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields indices, int32 `[B]`, and a mask, bool `[B]`: every image once, the last batch filled up with index 0."""
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size, dtype=np.int32)
        mask = positions < size
        yield np.where(mask, positions, 0), mask


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _digits(dataset: Dataset) -> dict[str, Split]:
    """scikit-learn's digits, every fifth one in the test split; 8x8 values of 0..16 become grey images of 0..255."""
    from PIL import Image

    # The file inside the package: importing scikit-learn to have it read takes longer than everything else here.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    rows = np.loadtxt(pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    side = (dataset.resolution, dataset.resolution)
    grey = np.stack([np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in pixels])
    images, labels = np.repeat(grey[..., None], 3, axis=-1), rows[:, -1].astype(np.int32)
    test = np.arange(len(labels)) % 5 == 0
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}


# Prepared sets, and the cache of their decoded arrays.


def _load_prepared(dataset: Dataset, directory: pathlib.Path) -> dict[str, Split]:
    cache = directory / _CACHE
    splits = _read_cache(cache)
    if splits is not None:
        return splits
    try:
        with _alone(cache, f"decodes {dataset.name}") as waited:
            splits = _read_cache(cache) if waited else None
            if splits is None:
                splits = _decode(dataset, directory)
                _write_cache(splits, cache)
    except OSError as error:
        _say(f"data set {dataset.name!r} will be decoded again at each start: {cache} cannot be written ({error})")
    return splits or _decode(dataset, directory)


def _decode(dataset: Dataset, directory: pathlib.Path) -> dict[str, Split]:
    import tensorflow_datasets as tfds
    from PIL import Image
    from tqdm import tqdm

    def refuse(problem: str) -> InputError:
        return InputError(f"data set {dataset.name!r} in {directory}: {problem}")

    builder: Any = tfds.builder_from_directory(directory)
    raw = {"image": tfds.decode.SkipDecoding()}  # TFDS decodes with whichever of OpenCV and Pillow it finds
    side = dataset.resolution
    splits = {}
    for key, name, size in (
        ("train", dataset.train_split, dataset.train_size),
        ("test", dataset.test_split, dataset.test_size),
    ):
        images, labels = np.empty((size, side, side, 3), np.uint8), np.empty(size, np.int32)
        try:
            source = builder.as_data_source(name, decoders=raw, file_format=datasets.FILE_FORMAT)
            for i in tqdm(range(size), f"decoding {dataset.name} {name}", unit=" images", leave=False, disable=None):
                example = source[i]
                images[i] = np.asarray(Image.open(io.BytesIO(example["image"])).convert("RGB"))
                labels[i] = example["label"]
        except (RuntimeError, ValueError, OSError) as error:  # what the readers raise over damaged files
            raise refuse(f"split {name!r} cannot be read: {error}") from error
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise refuse(f"split {name!r} has labels {labels.min()}..{labels.max()} for {dataset.num_classes} classes")
        splits[key] = Split(images, labels)
    return splits


def _write_cache(splits: Mapping[str, Split], cache: pathlib.Path) -> None:
    """Writes the arrays, and last the index that vouches for them."""
    index = cache / "index.json"
    index.unlink(missing_ok=True)
    digests = {}
    for name, split in splits.items():
        for field in ("images", "labels"):
            path = cache / f"{name}_{field}.npy"
            with _replacing(path) as file:
                np.save(file, getattr(split, field))
            digests[path.name] = _file_sha256(path)
    with _replacing(index) as file:
        file.write(json.dumps({"source": _fingerprint(cache.parent), "sha256": digests}).encode())


def _read_cache(cache: pathlib.Path) -> dict[str, Split] | None:
    """The cached splits; None if there are none, if the set's files have changed since, or if they are damaged."""
    try:
        index = json.loads((cache / "index.json").read_bytes())
        if index["source"] != _fingerprint(cache.parent):
            return None

        def array(name: str) -> np.ndarray:
            path = cache / f"{name}.npy"
            if _file_sha256(path) != index["sha256"][path.name]:
                raise ValueError(f"{path.name} has another sha256")
            return np.load(path, mmap_mode="r")

        return {split: Split(array(f"{split}_images"), array(f"{split}_labels")) for split in ("train", "test")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        _say(f"the decoded arrays in {cache} are damaged ({error}): decoding again")
        return None


def _fingerprint(directory: pathlib.Path) -> list[Any]:
    """What changes when a set is prepared anew, as JSON gives it back."""
    files = sorted((path.name, path.stat()) for path in directory.iterdir() if path.is_file())
    return [_CACHE_FORMAT, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in files)]


def _file_sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes the place of `path` once it is complete. One writer at a time (see `_alone`)."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(directory: pathlib.Path, what: str) -> Iterator[bool]:
    """Keeps other processes out until the end, or the death, of this one; yields whether it had to wait for another.

    Makes the directory, and takes it away again if nothing has been put in it.
    """
    import filelock

    made = [path for path in (directory, *directory.parents) if not path.exists()]
    path = directory / ".mobilenet_jax.lock"
    lock = filelock.FileLock(path)
    waited = False
    while not lock.is_locked:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if waited else 0)
        except filelock.Timeout:
            _say(f"waiting for another process, which {what} in {directory}")
            waited = True
        except FileNotFoundError:
            continue  # that process has just taken the directory away
    try:
        yield waited
    finally:
        path.unlink(missing_ok=True)  # whoever has it open finds it without a name, and opens another
        lock.release()
        with contextlib.suppress(OSError):
            for empty in made:
                empty.rmdir()


# Preparing CIFAR-10.


def _prepare_cifar10(dataset: Dataset, root: pathlib.Path, archive: str) -> None:
    """Writes what TFDS would have prepared, and the cache, under another name, and renames it when it is complete."""
    staging = root / ".mobilenet_jax_staging"
    try:
        with _alone(root, "prepares cifar10"):
            if datasets.prepared(dataset.name, str(root)) is not None:
                return  # by the process that was waited for
            splits = _read_archive(dataset, archive) if archive else _download(dataset)
            _say(f"preparing cifar10 in {root}: once, in about 15 seconds")
            try:
                shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
                complete = _write_tfds(splits, staging)
                (complete / _CACHE).mkdir()
                _write_cache(splits, complete / _CACHE)
                target = root / complete.relative_to(staging)
                target.parent.mkdir(exist_ok=True)
                os.rename(complete, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cifar10 cannot be written to {root}: {error}; --config.data.dir names another") from error


def _read_archive(dataset: Dataset, archive: str) -> dict[str, Split]:
    path = pathlib.Path(archive).expanduser()
    try:
        with open(path, "rb") as file:
            return _read_cifar10(dataset, file, f"config.data.archive={str(path)!r}")
    except OSError as error:
        raise InputError(f"config.data.archive={str(path)!r} cannot be read: {error.strerror or error}") from error


def _download(dataset: Dataset) -> dict[str, Split]:
    """Reads the archive as it comes in: nothing is kept on disk."""
    import http.client

    from tqdm import tqdm

    try:
        with _open_url(CIFAR10_URL) as response:
            total = int(response.headers.get("Content-Length", 0)) or None
            bar = {"desc": "downloading cifar10", "leave": False, "disable": None}
            with tqdm.wrapattr(response, "read", total, **bar) as stream:
                return _read_cifar10(dataset, cast(IO[bytes], stream), "the download")
    except (OSError, http.client.HTTPException, InputError) as error:
        reason = " ".join(str(error).strip("<>").split())  # in one line, whatever the server said
        raise InputError(
            f"cifar10 is not prepared, and {CIFAR10_URL} cannot be downloaded ({reason}): either fetch it elsewhere "
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


def _read_cifar10(dataset: Dataset, stream: IO[bytes], where: str) -> dict[str, Split]:
    """Reads the binary archive: per image one byte of label, then 1024 each of red, green and blue."""
    published = "the published CIFAR-10 binary archive"
    record = 1 + 3 * 32 * 32
    size = dataset.train_size // len(_CIFAR10_FILES["train"]) * record
    expected = {name: split for split, names in _CIFAR10_FILES.items() for name in names}
    files: dict[str, bytes] = {}
    problem = ""
    try:
        bounded = _Bounded(gzip.GzipFile(fileobj=stream), 6 * size + 2**20)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if name in expected and member.size == size and (file := tar.extractfile(member)):
                    files[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError) as error:
        problem = f" ({error})"

    for name, split in expected.items():
        if name not in files:
            raise InputError(
                f"{where} is not {published}: of its {split} split, no {name} of {size:,} bytes could be read{problem}"
            )
    splits = {}
    for split, names in _CIFAR10_FILES.items():
        records = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, record)
        images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels = np.ascontiguousarray(records[:, 0])
        if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != CIFAR10_SHA256[split]:
            raise InputError(f"{where} is not {published}: its {split} split has other content")
        splits[split] = Split(images, labels.astype(np.int32))
    return splits


def _write_tfds(splits: Mapping[str, Split], root: pathlib.Path) -> pathlib.Path:
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
            features["label"].names = _CIFAR10_LABELS
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            images, labels = splits[split].images, splits[split].labels
            for i in tqdm(range(len(labels)), f"preparing cifar10 {split}", unit=" images", leave=False, disable=None):
                png = io.BytesIO()
                Image.fromarray(images[i]).save(png, "PNG", compress_level=1)
                yield i, {"id": f"{split}_{i:05d}", "image": png.getvalue(), "label": int(labels[i])}

    tfds.disable_progress_bar()
    builder = Builder(data_dir=root, file_format=datasets.FILE_FORMAT)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)
