"""Name the classes of ImageNet, and find labelled images in folders."""

import csv
import functools
import pathlib
from collections.abc import Sequence
from importlib import resources

from mobilenet_jax.data.folders import SUFFIXES
from mobilenet_jax.errors import InputError, first_line

BACKGROUND = "background"  # class 0 of the networks with 1001 classes
Labelled = list[tuple[pathlib.Path, int]]  # files and their labels


@functools.cache
def synsets() -> dict[str, str]:
    """Return the names of the 1,000 classes by their WordNet identifiers, in the order of the labels."""
    text = resources.files("mobilenet_jax.data").joinpath("imagenet.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["synset"]: row["name"] for row in rows}


def class_names(num_classes: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 or 1001 classes, where the first is the background; else ()."""
    names = tuple(synsets().values())
    return {1000: names, 1001: (BACKGROUND, *names)}.get(num_classes, ())


def label_offset(names: Sequence[str]) -> int:
    """Return what to add to a label for the class of a network with these names: 1 if the first is the background."""
    return int(len(names) == 1001 and names[0] == BACKGROUND)


def in_folders(directory: pathlib.Path, classes: Sequence[str] = ()) -> Labelled:
    """Return the images in `directory`/val, else in `directory`, in folders named by their classes.

    Args:
      classes: the names of the folders, by label; () for ImageNet's identifiers.

    Raises:
      InputError: there are no such folders, or another one, or no images.
    """
    root = directory / "val" if (directory / "val").is_dir() else directory
    label_of = {name: label for label, name in enumerate(classes or synsets())}
    such = next(iter(label_of))
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        if not folders:
            raise InputError(f"{root}: has no folders named by classes, such as {such}; or give --labels")
        if unknown := [path.name for path in folders if path.name not in label_of]:
            raise InputError(f"{root}: folder {unknown[0]!r} is no class of the network, such as {such}")
        found = [(path, label_of[folder.name]) for folder in folders for path in _images(folder)]
    except OSError as e:
        raise InputError(f"{root}: {e.strerror or e}") from None
    if not found:
        raise InputError(f"{root}: no images in its folders: allowed are {', '.join(SUFFIXES)}")
    return found


def in_list(directory: pathlib.Path, labels: pathlib.Path) -> Labelled:
    """Return the images of `directory` that the CSV file `labels` lists, in columns 'file' and 'label'.

    Raises:
      InputError: the file cannot be read, lacks a column, has no rows, a label that is no whole number from 0, or a
        file that does not exist or is not in `directory`.
    """
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as e:
        raise InputError(f"--labels={labels}: cannot be read ({first_line(e)})") from None
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise InputError(f"--labels={labels}: must have rows with columns 'file' and 'label'")
    found = []
    for number, row in enumerate(rows, 2):
        name, label = row["file"] or "", row["label"] or ""
        if not (label.isascii() and label.isdecimal() and len(label) < 10):
            raise InputError(f"--labels={labels}: label {label!r} in line {number}: must be a whole number from 0")
        path, outside = directory / name, name.startswith("/") or ".." in pathlib.PurePath(name).parts
        if "\0" in name or outside or not path.is_file():
            raise InputError(f"--labels={labels}: {name!r} in line {number} is no file in {directory}")
        found.append((path, int(label)))
    return found


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
