"""Describe data sets without loading them: the usual ones from a table, others from TFDS's metadata."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
from typing import Any, cast

from mobilenet_jax import console, files
from mobilenet_jax.data import folders, imagenet
from mobilenet_jax.errors import InputError, first_line

FILE_FORMAT = "array_record"  # the one format that TFDS reads without TensorFlow
_BLOCK, _SAMPLED = 2**14, 2**24  # bytes of a set that its fingerprint covers, in blocks; all of a smaller set


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image-classification set. Labels are 0 to `num_classes` - 1.

    Images are square and of one size, except those of a streamed set, which are of any size.
    """

    name: str  # as TFDS writes it: 'name', 'name/config' or 'name:1.0.0'
    num_classes: int
    train_size: int  # images
    test_size: int
    resolution: int  # side of the images in pixels; of a streamed set, of what is cut out of them
    test_split: str = "test"  # TFDS's name
    streamed: bool = False  # read from disk in every epoch: pictures in folders, or too large for memory
    version: str = ""
    fingerprint: str = ""  # eight hex digits that change with the set behind the name; "" where the name fixes the set
    class_names: tuple[str, ...] = ()  # of pictures in folders: the names of the folders, by label


_KNOWN = (
    Dataset("digits", 10, 1437, 360, 32),  # scikit-learn's 8x8 digits, enlarged
    Dataset("cifar10", 10, 50_000, 10_000, 32),
    Dataset("cifar100", 100, 50_000, 10_000, 32),
    Dataset("mnist", 10, 60_000, 10_000, 28),
    Dataset("fashion_mnist", 10, 60_000, 10_000, 28),
    Dataset("imagenet2012", 1000, 1_281_167, 50_000, 224, test_split="validation", streamed=True),
)
DATASETS = {dataset.name: dataset for dataset in _KNOWN}
FOLDER = "folder"  # the name of a set of a user's own pictures

_SIDE = DATASETS["imagenet2012"].resolution  # of what is cut out of pictures in folders
_NAME = re.compile(r"(?P<set>[A-Za-z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # the spellings of TFDS's metadata


def data_root(data_dir: str = "") -> pathlib.Path:
    """Return the directory of the prepared sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(console.expand_home(root, "config.data.dir, else TFDS_DATA_DIR: ")).absolute()


def describe(name: str, data_dir: str = "") -> Dataset:
    """Describe a set: from the table, else from what `data_root(data_dir)` holds.

    A streamed set is described as it is there. ImageNet is described by the table where it is absent.

    Raises:
      InputError: the set is neither in the table nor there, or it cannot be used (see `describe_prepared`).
    """
    if name == FOLDER or (name in DATASETS and DATASETS[name].streamed):
        return _describe_streamed(name, data_dir)
    if name in DATASETS:
        return DATASETS[name]
    root, directory = data_root(data_dir), prepared(name, data_dir)
    if not directory:
        usable = f"any image-classification set that TFDS has prepared there as {FILE_FORMAT}"
        allowed = f"{', '.join(DATASETS)}, and {usable} (`{build_command(name, root)}`, where TensorFlow is installed)"
        raise InputError(f"data set {name!r} is not known, nor prepared in {root}: allowed are {allowed}")
    return describe_prepared(name, directory, root)


def prepared(name: str, data_dir: str = "") -> pathlib.Path | None:
    """Return the directory that holds the newest prepared version of a set, or None if no version is prepared.

    Raises:
      InputError: the set is prepared in several configs, and the name does not choose one.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    home, version = data_root(data_dir) / parts["set"] / (parts["config"] or ""), parts["version"] or "*.*.*"
    for pattern in (version, f"*/{version}"):  # without and with a config
        paths = [path.parent for path in home.glob(f"{pattern}/dataset_info.json")]
        if found := [path for path in paths if _VERSION.fullmatch(path.name)]:
            break
    if len(configs := sorted({path.parent.name for path in found})) > 1:
        names = ", ".join(f"{parts['set']}/{config}" for config in configs)
        raise InputError(f"data set {name!r} is prepared in several configs in {home}: name one of {names}")
    return max(found, key=lambda path: [int(number) for number in path.name.split(".")], default=None)


def describe_prepared(name: str, directory: pathlib.Path, root: pathlib.Path) -> Dataset:
    """Describe the set in `directory` by its TFDS metadata. The `root` of all prepared sets is for messages.

    Raises:
      InputError: the metadata is damaged, the files are not array_record, the images are not square uint8 images of one
        size with one label each, there is one class, or the splits are not 'train' and 'test' (or 'validation').
    """
    import tensorflow_datasets as tfds  # late: takes half a second, and the sets of the table do not need it

    def refuse(problem: str) -> InputError:
        return InputError(f"data set {name!r} in {directory} {problem}")

    again = prepare_again(name, directory, root)
    try:
        for file in ("dataset_info.json", "features.json"):
            _check_classes(files.read_json_object(directory / file))
        info = cast(Any, tfds.builder_from_directory(directory).info)
        formats = {each.value for each in (info.file_format, *info.alternative_file_formats) if each}
        features = dict(info.features)
        sizes = {split: found.num_examples for split, found in info.splits.items()}
        paths = sorted(directory.glob(f"*.{FILE_FORMAT}*"))
        sample = _sample(*((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
    except Exception as error:  # TFDS parses JSON and protocol buffers, and creates objects from names of classes
        raise refuse(f"has damaged metadata ({first_line(error)}): {again}") from error
    if FILE_FORMAT not in formats:
        raise refuse(f"is prepared as {', '.join(sorted(formats))}, only {FILE_FORMAT} can be read: {again}")
    image, label = features.get("image"), cast(Any, features.get("label"))
    classes = isinstance(label, tfds.features.ClassLabel) and label.num_classes
    if not isinstance(image, tfds.features.Image) or not classes:
        raise refuse(f"is not for image classification: it needs 'image' and 'label', and has {', '.join(features)}")
    if classes < 2:
        raise refuse(f"has one class, {label.names[0]!r}: a classifier needs at least 2")
    height, width, channels = shape = cast(Any, image.shape)
    if not height or height != width or channels not in (1, 3) or image.np_dtype != "uint8":
        sides = "x".join(str(side or "?") for side in shape)
        raise refuse(f"has {image.np_dtype} images of {sides}: must be uint8, square, of one size, and grey or RGB")
    test_split = next((split for split in ("test", "validation") if sizes.get(split)), "")
    if not sizes.get("train") or not test_split:
        raise refuse(f"needs a 'train' split, and a 'test' or 'validation' one: it has {', '.join(sizes)}")
    content = [version := directory.name, label.names, list(shape), sizes["train"], sizes[test_split], sample]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    return Dataset(name, classes, sizes["train"], sizes[test_split], height, test_split, False, version, digest)


def find_streamed(name: str, data_dir: str = "") -> pathlib.Path | folders.Folders:
    """Return what a streamed set consists of: the directory that TFDS has prepared, or pictures in folders.

    Raises:
      InputError: `data_root(data_dir)` holds neither or both, or its folders are not those of pictures by class.
    """
    root = data_root(data_dir)
    wanted = [f"{' and '.join(f'{split}/<class>/' for split in folders.SPLITS)} with pictures"]
    directory = None
    if name != FOLDER:
        directory = prepared(name, data_dir)
        wanted.append(f"{name}/<version>/ as TFDS prepares it")
    if directory and folders.are_in(root):
        raise InputError(f"{root} holds both {directory.relative_to(root)}/ and folders of pictures: move one away")
    if directory:
        return directory
    if not folders.are_in(root):
        raise InputError(f"data set {name!r}: {root} (config.data.dir) holds no {', and no '.join(wanted)}")
    return folders.find(root, () if name == FOLDER else tuple(imagenet.synsets()))


def _describe_streamed(name: str, data_dir: str) -> Dataset:
    root, known = data_root(data_dir), DATASETS.get(name)
    if known and not folders.are_in(root) and not prepared(name, data_dir):
        return known
    found = find_streamed(name, data_dir)
    if isinstance(found, folders.Folders):
        train, val = (len(found.labels[split]) for split in folders.SPLITS)
        classes = found.classes if name == FOLDER else ()
        return Dataset(name, len(found.classes), train, val, _SIDE, "val", True, "", found.digest, classes)
    return _describe_imagenet(name, found, root)


def _describe_imagenet(name: str, directory: pathlib.Path, root: pathlib.Path) -> Dataset:
    """Describe ImageNet as TFDS prepares it, without TFDS."""
    known = DATASETS[name]
    try:
        info = files.read_json_object(directory / "dataset_info.json")
        lengths = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        sizes = [lengths.get(split, 0) for split in ("train", known.test_split)]
        names = tuple((directory / "label.labels.txt").read_text(encoding="utf-8").split())
        written = sorted((path.name, path.stat().st_size) for path in directory.glob(f"*.{FILE_FORMAT}*"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"data set {name!r} in {directory} has damaged metadata ({first_line(error)})") from None
    again = f"`python -m mobilenet_jax.prepare {name} TRAIN.tar VAL.tar --dir {shlex.quote(str(root))}` writes it"
    if info.get("fileFormat") != FILE_FORMAT:
        raise InputError(f"data set {name!r} in {directory} is not prepared as {FILE_FORMAT}: {again}")
    if names != tuple(imagenet.synsets()) or not all(sizes):
        raise InputError(f"data set {name!r} in {directory} lacks images of a split, or has other classes: {again}")
    content = json.dumps([directory.name, *sizes, written])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    found = {"train_size": sizes[0], "test_size": sizes[1], "version": directory.name, "fingerprint": digest}
    return dataclasses.replace(known, **found)


@functools.lru_cache
def _sample(*files_of_set: tuple[pathlib.Path, int, int]) -> str:
    """Return the SHA-256 of files, given with their sizes and times; of large ones, of blocks at equal distances."""
    distance, digest = _BLOCK * max(1, -(-sum(size for _, size, _ in files_of_set) // _SAMPLED)), hashlib.sha256()
    for path, size, _ in files_of_set:
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, distance):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def class_names(dataset: Dataset, data_dir: str = "") -> tuple[str, ...]:
    """Return the names of the classes, by label; () if they are unknown."""
    if dataset.streamed:
        return dataset.class_names or imagenet.class_names(dataset.num_classes)
    names = tuple(str(i) for i in range(dataset.num_classes))
    if dataset.name not in ("digits", "mnist"):
        names = ()
        with contextlib.suppress(OSError, ValueError):  # InputError is a ValueError
            directory = prepared(dataset.name, data_dir)
            if directory and (not dataset.fingerprint or describe(dataset.name, data_dir) == dataset):
                names = tuple((directory / "label.labels.txt").read_text(encoding="utf-8").splitlines())  # TFDS's
    return names if len(names) == dataset.num_classes else ()


def prepare_again(name: str, directory: pathlib.Path, root: pathlib.Path) -> str:
    """Return the advice for a set in `directory` that cannot be read."""
    if name == "cifar10":
        return f"move {directory} away, and the next start prepares it again"
    return f"prepare it again with `{build_command(name, root)} --overwrite`, where TensorFlow is installed"


def build_command(name: str, root: pathlib.Path) -> str:
    """Return the command line with which TFDS prepares a set in `root`."""
    return shlex.join(["tfds", "build", name, f"--file_format={FILE_FORMAT}", f"--data_dir={root}"])


def holdout_size(size: int, fraction: float) -> int:
    """Return how many of `size` training images to hold out.

    Raises:
      InputError: the fraction is not between 0 and 1, or leaves one of the two parts without an image.
    """
    held_out = round(size * fraction) if 0 < fraction < 1 else 0
    if not 0 < held_out < size:
        allowed = f"must lie between 0 and 1, and leave images on both sides of {size:,}"
        raise InputError(f"config.data.holdout={fraction:g}: {allowed}")
    return held_out


def _check_classes(value: Any, key: object = None) -> None:
    """Raise ValueError if the metadata names a class outside TFDS: TFDS would import its module, which runs code."""
    if isinstance(value, str):
        if key in _CLASS_KEYS and "." in value and not value.startswith("tensorflow_datasets."):
            raise ValueError(f"{value!r} is not a feature of TFDS")
        with contextlib.suppress(ValueError):
            value = json.loads(value)  # TFDS also reads features from JSON inside strings
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        _check_classes(each, key)
