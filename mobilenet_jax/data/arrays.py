"""Named data sets as arrays in memory: preparing and checking them, the decoded cache, the order of the batches.

Nothing here needs TensorFlow. Slow imports (TFDS, Pillow) wait until something has to be decoded or prepared.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from mobilenet_jax import console
from mobilenet_jax.data import cifar10, datasets
from mobilenet_jax.data.datasets import Dataset
from mobilenet_jax.errors import InputError, first_line

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
    next start reads it at once.

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
        console.warn(f"{name} is prepared in {found[0]} already: {archive} is not read")
    directory, actual = found
    if actual != dataset:
        was, must = (dataclasses.asdict(described) for described in (actual, dataset))
        wrong = ", ".join(f"{key} {was[key]} instead of {must[key]}" for key in must if was[key] != must[key])
        raise InputError(f"data set {name!r} in {directory} is another one: {wrong}")
    return _load_prepared(dataset, directory, datasets.prepare_again(name, directory, root))


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


def _load_prepared(dataset: Dataset, directory: pathlib.Path, again: str) -> dict[str, Split]:
    cache = directory / _CACHE
    splits = _read_cache(cache)
    if splits is not None:
        return splits
    try:
        with _alone(cache, f"decodes {dataset.name}") as waited:
            splits = _read_cache(cache) if waited else None
            if splits is None:
                splits = _decode(dataset, directory, again)
                _write_cache(splits, cache)
    except OSError as error:
        console.warn(
            f"data set {dataset.name!r} will be decoded again at each start: {cache} cannot be written ({error})"
        )
    return splits or _decode(dataset, directory, again)


def _decode(dataset: Dataset, directory: pathlib.Path, again: str) -> dict[str, Split]:
    """Reads the prepared files; `again` says how to make them anew."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tqdm import tqdm

    def refuse(problem: str) -> InputError:
        return InputError(f"data set {dataset.name!r} in {directory}: {problem}")

    try:
        builder: Any = tfds.builder_from_directory(directory)
    except Exception as error:  # TFDS reads JSON, protocol buffers and names of classes
        raise refuse(f"its metadata cannot be read ({first_line(error)}): {again}") from error
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
        except Exception as error:  # TFDS and the readers raise many kinds over damaged files
            raise refuse(f"split {name!r} cannot be read ({first_line(error)}): {again}") from error
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
            return np.load(path)  # no map of the file: what becomes of it while a run trains is not to be seen there

        return {split: Split(array(f"{split}_images"), array(f"{split}_labels")) for split in ("train", "test")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        console.warn(f"the decoded arrays in {cache} are damaged ({error}): decoding again")
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
            console.warn(f"waiting for another process, which {what} in {directory}")
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


def _prepare_cifar10(dataset: Dataset, root: pathlib.Path, archive: str) -> None:
    """Writes what TFDS would have prepared, and the cache, under another name, and renames it when it is complete."""
    staging = root / ".mobilenet_jax_staging"
    try:
        with _alone(root, "prepares cifar10"):
            if datasets.prepared(dataset.name, str(root)) is not None:
                return  # by the process that was waited for
            for place in (root / dataset.name).glob("*.*.*"):
                if any(place.iterdir()):
                    again = datasets.prepare_again(dataset.name, place, root)
                    raise InputError(f"{place} holds no whole prepared set: {again}")
            published = cifar10.read(dataset, archive)
            console.warn(f"preparing cifar10 in {root}: once, in about 15 seconds")
            try:
                shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
                complete = cifar10.write(published, staging)
                (complete / _CACHE).mkdir()
                _write_cache({name: Split(*pair) for name, pair in published.items()}, complete / _CACHE)
                target = root / complete.relative_to(staging)
                target.parent.mkdir(exist_ok=True)
                os.rename(complete, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cifar10 cannot be written to {root}: {error}; --config.data.dir names another") from error
