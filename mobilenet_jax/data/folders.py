"""Find the pictures of a set in folders named by their classes: train/<class>/ and val/<class>/."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

from mobilenet_jax.errors import InputError

SPLITS = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Folders:
    """The pictures of a set. A path is relative to the root: 'train/n01440764/n01440764_18.JPEG'.

    The pictures of a split are in the order of their labels, then of their names.
    """

    classes: tuple[str, ...]  # by label
    paths: dict[str, tuple[str, ...]]  # of each split
    labels: dict[str, tuple[int, ...]]
    digest: str  # eight hex digits of the classes and of the names and sizes of all files


def are_in(root: pathlib.Path) -> bool:
    """Return whether `root` has a folder of a split."""
    return any((root / split).is_dir() for split in SPLITS)


def find(root: pathlib.Path, classes: Sequence[str] = ()) -> Folders:
    """Find the pictures of both splits in `root`.

    Args:
      root: the directory that holds train/ and val/.
      classes: the classes of the set, of which some may have no folder; () for those that have one in train/.

    Raises:
      InputError: a split is missing, its folders are not of the classes, or one holds no pictures; or a folder cannot
        be read.
    """
    try:
        folders = {split: _subfolders(root, split) for split in SPLITS}
        known = tuple(classes or folders["train"])
        if len(known) < 2:
            raise InputError(f"{root / 'train'} has the folder of one class, {''.join(known)!r}: at least 2 are needed")
        for split, names in folders.items():
            if others := sorted({*names} - {*known}):
                allowed = (
                    "one with pictures in train/"
                    if not classes
                    else f"{len(known):,} such as {known[0]!r} (classes of your own: data.name='folder')"
                )
                raise InputError(f"{root / split / others[0]} is of no class of the set: allowed is {allowed}")
        # A file that is added, removed or renamed changes the time of its folder.
        times = tuple((root / split / name).stat().st_mtime_ns for split in SPLITS for name in folders[split])
        return _find(root, known, tuple(tuple(folders[split]) for split in SPLITS), times)
    except OSError as e:
        raise InputError(f"{e.filename or root} cannot be read: {e.strerror or e}") from None


def _subfolders(root: pathlib.Path, split: str) -> list[str]:
    if not (root / split).is_dir():
        raise InputError(f"{root} has no folder {split}/: pictures must lie in train/<class>/ and val/<class>/")
    with os.scandir(root / split) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{root / split} has no folders: pictures must lie in {split}/<class>/")
    return names


@functools.lru_cache(maxsize=2)  # the points of a sweep share their set
def _find(
    root: pathlib.Path, classes: tuple[str, ...], folders: tuple[tuple[str, ...], ...], times: tuple[int, ...]
) -> Folders:
    label_of, digest = {name: label for label, name in enumerate(classes)}, hashlib.sha256()
    digest.update(json.dumps(classes).encode())
    paths, labels = {}, {}
    for split, names in zip(SPLITS, folders, strict=True):
        found = [(name, _pictures(root / split / name)) for name in names]
        for name, pictures in found:
            digest.update(json.dumps([split, name, pictures]).encode())
        paths[split] = tuple(f"{split}/{name}/{file}" for name, pictures in found for file, _ in pictures)
        labels[split] = tuple(label_of[name] for name, pictures in found for _ in pictures)
    return Folders(classes, paths, labels, digest.hexdigest()[:8])


def _pictures(folder: pathlib.Path) -> list[tuple[str, int]]:
    """Return names and sizes; other files, and hidden ones, are left out."""
    with os.scandir(folder) as entries:
        found = sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "." and entry.is_file()
        )
    if not found:
        raise InputError(f"{folder} holds no pictures: allowed are {', '.join(SUFFIXES)}")
    return found
