"""Load named data sets into memory: prepare and check them, cache the decoded arrays, order the batches."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mobilenet_jax import console, files
from mobilenet_jax.data import cifar10, datasets
from mobilenet_jax.data.datasets import Dataset
from mobilenet_jax.data.progress import progress
from mobilenet_jax.errors import InputError, first_line

HOLDOUT_SEED = 0  # not the run's: runs that differ in their seed hold out the same images

_CACHE = "mobilenet_jax/arrays.npz"  # in the directory of the prepared set
_CACHE_FORMAT = 2  # raise it when the same files would decode to other arrays
_LOCK_SECONDS = 60  # longest wait for another process that decodes the same set


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8 `[N, H, W, 3]`, and their labels, int32 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load(dataset: Dataset, data_dir: str = "", archive: str = "") -> dict[str, Split]:
    """Load the splits 'train' and 'test' of a set that is prepared in `data_dir` (see `datasets.data_root`).

    Decoded arrays are cached in the directory of the prepared set. CIFAR-10 is prepared first if it is missing, from a
    download or from `archive`, the path of the published binary archive.

    Raises:
      InputError: the set is not prepared, is damaged, or differs from its description.
    """
    name = dataset.name
    if archive and name != "cifar10":
        raise InputError(f"config.data.archive={archive!r}: an archive can be given for 'cifar10' only, not {name!r}")
    if name == "digits":
        return _digits(dataset)
    root, directory = datasets.data_root(data_dir), datasets.prepared(name, data_dir)
    if directory and archive:
        console.warn(f"{name} is already prepared in {directory}: {archive} is not read")
    if not directory and name != "cifar10":
        command = datasets.build_command(name, root)
        raise InputError(f"data set {name!r} is not prepared in {root}: `{command}` does it (it needs TensorFlow)")
    directory = directory or _prepare_cifar10(dataset, root, archive)
    if not (splits := _read_cache(dataset, directory)):
        try:
            with files.lock((directory / _CACHE).with_name(".lock"), _LOCK_SECONDS):  # of many processes, one decodes
                if not (splits := _read_cache(dataset, directory)):
                    splits = _decode(dataset, directory, root)
                    _write_cache(splits, dataset, directory)
        except OSError as error:
            console.warn(f"data set {name!r} is decoded again at each start: its cache cannot be written ({error})")
    return splits or _decode(dataset, directory, root)


def holdout(split: Split, fraction: float) -> tuple[Split, Split]:
    """Return the rest and the held-out part of a split, each in the order of the split."""
    rest, held_out = holdout_indices(len(split), fraction)
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held_out], split.labels[held_out])


def holdout_indices(size: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rest and of the held-out part of a split of so many images.

    The choice depends on the size alone, and a larger fraction contains a smaller one.
    """
    count = datasets.holdout_size(size, fraction)
    order = np.random.default_rng(HOLDOUT_SEED).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits the images: a permutation, int32 `[size]`, fixed by the arguments."""
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.int32)


def eval_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches that visit every image once: indices, int32 `[B]`, and a mask, bool `[B]`.

    The last batch is filled up with index 0, where its mask is False.
    """
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size, dtype=np.int32)
        mask = positions < size
        yield np.where(mask, positions, 0), mask


def _digits(dataset: Dataset) -> dict[str, Split]:
    """Load scikit-learn's digits; every fifth one is in the test split."""
    from PIL import Image

    # The file inside the package: importing scikit-learn to read it takes longer than everything else here.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    rows = np.loadtxt(pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # the file's values are 0 to 16
    side = (dataset.resolution, dataset.resolution)
    grey = np.stack([np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in pixels])
    images, labels = np.repeat(grey[..., None], 3, axis=-1), rows[:, -1].astype(np.int32)
    test = np.arange(len(labels)) % 5 == 0
    return {"train": Split(images[~test], labels[~test]), "test": Split(images[test], labels[test])}


def _decode(dataset: Dataset, directory: pathlib.Path, root: pathlib.Path) -> dict[str, Split]:
    import tensorflow_datasets as tfds
    from PIL import Image

    def refuse(problem: str) -> InputError:
        return InputError(f"data set {dataset.name!r} in {directory} {problem}")

    found = vars(datasets.describe_prepared(dataset.name, directory, root))
    expected = [(key, value) for key, value in vars(dataset).items() if value != ""]  # "": any version of a usual set
    if wrong := [f"{key} {found[key]} instead of {value}" for key, value in expected if found[key] != value]:
        raise refuse(f"is another one: {', '.join(wrong)}")
    builder: Any = tfds.builder_from_directory(directory)
    skip: Any = tfds.decode.SkipDecoding  # TFDS would decode with OpenCV or Pillow, as installed
    sizes, splits = {"train": dataset.train_size, dataset.test_split: dataset.test_size}, {}
    with progress(f"decoding {dataset.name} in {directory}", sum(sizes.values())) as advance:
        for key, (name, size) in zip(("train", "test"), sizes.items(), strict=True):
            images = np.empty((size, dataset.resolution, dataset.resolution, 3), np.uint8)
            labels = np.empty(size, np.int32)
            try:
                source = builder.as_data_source(name, decoders={"image": skip()}, file_format=datasets.FILE_FORMAT)
                for i in range(size):
                    example = source[i]
                    images[i] = np.asarray(Image.open(io.BytesIO(example["image"])).convert("RGB"))
                    labels[i] = example["label"]
                    advance(1)
            except Exception as error:  # TFDS and the readers raise many kinds over damaged files
                again = datasets.prepare_again(dataset.name, directory, root)
                raise refuse(f"has a split {name!r} that cannot be read ({first_line(error)}): {again}") from error
            low, high = labels.min(), labels.max()
            if low < 0 or high >= dataset.num_classes:
                raise refuse(f"has labels {low}..{high} for {dataset.num_classes} classes in its split {name!r}")
            splits[key] = Split(images, labels)
    return splits


def _write_cache(splits: Mapping[str, Split], dataset: Dataset, directory: pathlib.Path) -> None:
    cache = directory / _CACHE
    arrays = {f"{name}_{field}": array for name, split in splits.items() for field, array in vars(split).items()}
    cache.parent.mkdir(exist_ok=True)
    with files.replacing(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, source=np.array(_source(dataset, directory)), **arrays)


def _read_cache(dataset: Dataset, directory: pathlib.Path) -> dict[str, Split] | None:
    """Return the cached splits, or None if they are missing, damaged, of another set, or older than its files."""
    try:
        with open(directory / _CACHE, "rb") as file, np.load(file) as arrays:
            if arrays["source"] != _source(dataset, directory):
                return None
            if damaged := arrays.zip.testzip():  # NumPy checks the CRC of an array only if it reads the last byte
                raise ValueError(f"{damaged} has another CRC")
            return {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # NumPy and zipfile raise many kinds over damaged files
        console.warn(f"the decoded arrays in {directory / _CACHE} are damaged ({first_line(error)}): decoding again")
        with contextlib.suppress(OSError):
            (directory / _CACHE).unlink()  # or else the next look at it warns again
        return None


def _source(dataset: Dataset, directory: pathlib.Path) -> str:
    """Return the names, sizes and times of the files of a set, which change when it is prepared again."""
    found = sorted((path.name, path.stat()) for path in directory.iterdir() if path.is_file())
    return json.dumps([_CACHE_FORMAT, *([n, of.st_size, of.st_mtime_ns] for n, of in found)]) + dataset.fingerprint


def _prepare_cifar10(dataset: Dataset, root: pathlib.Path, archive: str) -> pathlib.Path:
    """Prepare CIFAR-10 and its cache in a staging directory; when it is complete, rename it and return it."""
    staging, lock = root / ".mobilenet_jax_staging", root / ".mobilenet_jax.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(files.lock(lock, timeout=0))
            except TimeoutError:
                console.warn(f"waiting for another process, which prepares cifar10 in {root}")
                held.enter_context(files.lock(lock))
            held.callback(lock.unlink, missing_ok=True)  # filelock notices that the file has lost its name
            if found := datasets.prepared(dataset.name, str(root)):
                return found  # by the process that this one waited for
            for place in (root / dataset.name).glob("*.*.*"):
                if any(place.iterdir()):
                    again = datasets.prepare_again(dataset.name, place, root)
                    raise InputError(f"{place} holds no complete prepared set: {again}")
            published = cifar10.read(dataset, archive)
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            held.callback(shutil.rmtree, staging, ignore_errors=True)
            complete = cifar10.write(published, staging)
            _write_cache({name: Split(*pair) for name, pair in published.items()}, dataset, complete)
            target = root / complete.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            return complete.rename(target)
    except OSError as error:
        raise InputError(f"cifar10 cannot be written to {root}: {error}; --config.data.dir names another") from error
