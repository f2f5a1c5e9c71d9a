"""What a data set is: its splits and their sizes, its pixels, its classes. No arrays.

A table knows the usual sets. Any other image-classification set that TFDS has prepared is described by the two JSON
files in its directory, read as they are: importing TFDS would cost a dry run half a second.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
from typing import Any

from mobilenet_jax.errors import InputError

FILE_FORMAT = "array_record"  # the one format of TFDS that is read without TensorFlow


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image-classification set. Image counts are per split; `resolution` is the side of its square images."""

    name: str  # as TFDS writes it: 'name', 'name/config', 'name:1.0.0'
    num_classes: int
    train_size: int
    test_size: int
    resolution: int
    train_split: str = "train"
    test_split: str = "test"
    streamed: bool = False  # too large to be held in memory


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("digits", 10, 1437, 360, 32),  # scikit-learn's 8x8 digits, enlarged
        Dataset("cifar10", 10, 50_000, 10_000, 32),
        Dataset("cifar100", 100, 50_000, 10_000, 32),
        Dataset("mnist", 10, 60_000, 10_000, 28),
        Dataset("fashion_mnist", 10, 60_000, 10_000, 28),
        Dataset("imagenet2012", 1000, 1_281_167, 50_000, 224, test_split="validation", streamed=True),
    )
}

_NAME = re.compile(r"(?P<set>[A-Za-z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_root(data_dir: str = "") -> pathlib.Path:
    """The directory that holds the prepared sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(os.path.expanduser(root)).absolute()


def describe(name: str, data_dir: str = "") -> Dataset:
    """Describes a set: from the table, else from what TFDS has prepared in `data_root(data_dir)`.

    Raises:
      InputError: the set is neither known nor prepared, or it cannot be used (see `prepared`).
    """
    if name in DATASETS:
        return DATASETS[name]
    found = prepared(name, data_dir)
    if found is None:
        root = data_root(data_dir)
        raise InputError(
            f"data set {name!r} is not known, nor prepared in {root}: allowed are {', '.join(DATASETS)}, and any "
            f"image-classification set that TFDS has prepared there as {FILE_FORMAT} (`{build_command(name, root)}`, "
            "where TensorFlow is installed)"
        )
    return found[1]


def prepared(name: str, data_dir: str = "") -> tuple[pathlib.Path, Dataset] | None:
    """Where and what TFDS has prepared under this name, the newest version if several match; None if nothing.

    Raises:
      InputError: the name leaves several configs to choose from; or the files are not array_record; or it is not a set
        of equally large square images with one label each, split into 'train' and 'test' (or 'validation').
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    root = data_root(data_dir)
    home = root / parts["set"] / (parts["config"] or "")
    versions = _versions(home, parts["version"])
    if not versions and not parts["config"]:
        configs = {path.name: found for path in home.glob("*/") if (found := _versions(path, parts["version"]))}
        if len(configs) > 1:
            names = ", ".join(f"{parts['set']}/{config}" for config in sorted(configs))
            raise InputError(f"data set {name!r} is prepared in several configs in {home}: name one of {names}")
        versions = next(iter(configs.values()), [])
    if not versions:
        return None
    directory = max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
    return directory, _read_metadata(name, directory, root)


def _versions(home: pathlib.Path, pattern: str | None) -> list[pathlib.Path]:
    found = (path.parent for path in home.glob("*/dataset_info.json"))
    return [path for path in found if _VERSION.fullmatch(path.name) and fnmatch.fnmatch(path.name, pattern or "*")]


def _read_metadata(name: str, directory: pathlib.Path, root: pathlib.Path) -> Dataset:
    try:
        return _understood(name, directory, root)
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        again = prepare_again(name, directory, root)
        raise InputError(f"data set {name!r} in {directory} has damaged metadata ({error}): {again}") from error


def _understood(name: str, directory: pathlib.Path, root: pathlib.Path) -> Dataset:
    def refuse(problem: str) -> InputError:
        return InputError(f"data set {name!r} in {directory} {problem}")

    info, features = _read_json(directory / "dataset_info.json"), _read_json(directory / "features.json")
    _check_classes(features)
    formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", ())}
    if FILE_FORMAT not in formats:
        way = f"prepare it again with `{build_command(name, root, overwrite=True)}`, where TensorFlow is installed"
        if name == "cifar10":
            way += ", or remove that directory: the next start then prepares it without TensorFlow"
        raise refuse(f"is prepared as {', '.join(sorted(formats))}, only {FILE_FORMAT} can be read: {way}")

    features = features.get("featuresDict", {}).get("features", {})
    image, label = features.get("image", {}).get("image"), features.get("label", {}).get("classLabel")
    if image is None or label is None:
        raise refuse(f"is not for image classification: it needs 'image' and 'label', and has {', '.join(features)}")
    height, width, channels = (int(side) for side in image.get("shape", {}).get("dimensions", (-1, -1, 3)))
    if height != width or height < 1:
        sides = "x".join(str(side) if side > 0 else "?" for side in (height, width))
        raise refuse(f"has images of {sides} pixels: they must all be square and of one size")
    if channels not in (1, 3) or image.get("dtype", "uint8") != "uint8":
        raise refuse(f"has {channels}-channel {image.get('dtype', 'uint8')} images: they must be grey or RGB, in uint8")

    sizes = {split["name"]: sum(map(int, split.get("shardLengths", ()))) for split in info.get("splits", ())}
    test_split = next((split for split in ("test", "validation") if sizes.get(split)), "")
    if not sizes.get("train") or not test_split:
        raise refuse(f"needs a 'train' split, and a 'test' or 'validation' one: it has {', '.join(sizes)}")
    num_classes = int(label.get("numClasses", 0))
    return Dataset(name, num_classes, sizes["train"], sizes[test_split], height, test_split=test_split)


def _check_classes(features: Any) -> None:
    """Raises ValueError where a class is named that is not TFDS's: it would import the module, whatever that does."""
    for key, value in features.items() if isinstance(features, dict) else enumerate(features):
        if isinstance(value, dict | list):
            _check_classes(value)
        elif key in ("pythonClassName", "type") and not str(value).startswith("tensorflow_datasets."):
            raise ValueError(f"features.json: {value!r} is no feature of TFDS")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None


def prepare_again(name: str, directory: pathlib.Path, root: pathlib.Path) -> str:
    """What to do about a prepared set that is damaged."""
    if name == "cifar10":
        return f"move {directory} away, and the next start prepares it again"
    return f"prepare it again with `{build_command(name, root, overwrite=True)}`, where TensorFlow is installed"


def build_command(name: str, root: pathlib.Path, overwrite: bool = False) -> str:
    """The command line with which TFDS prepares a set in `root`."""
    return f"tfds build {name} --file_format={FILE_FORMAT} --data_dir={root}" + " --overwrite" * overwrite


def holdout_size(size: int, fraction: float) -> int:
    """How many of `size` training images `fraction` of them are.

    Raises:
      InputError: the fraction does not lie between 0 and 1, or leaves one of the two parts without an image.
    """
    held_out = round(size * fraction) if 0 < fraction < 1 else 0
    if not 0 < held_out < size:
        raise InputError(f"holdout={fraction:g}: must lie between 0 and 1, and leave images on both sides of {size:,}")
    return held_out
