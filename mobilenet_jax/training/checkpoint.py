"""Checkpoints: one safetensors file each, written in the background and verified on restore, with a fallback."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors

from mobilenet_jax import files
from mobilenet_jax.errors import InputError, first_line

KEPT = 2
FORMAT = "4"  # raise it when an old reader would misread the file, or `Layout` orders the vectors otherwise


class Checkpoints:
    """The newest `KEPT` checkpoints of one run, `STEP.safetensors`. The run's lock is held by the caller.

    A tensor is a leaf of the state, named by its path. The metadata holds the step, the notes as JSON, and a SHA-256
    over all of it. A file that does not match it is damaged. A whole one with other tensors was written by another
    version of the program, and is kept.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = pathlib.Path(directory)
        self._pool = ThreadPoolExecutor(1)  # so that training goes on while a checkpoint is written
        self._pending: Future[None] | None = None
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Copy `state` (a pytree of arrays) to the host, then write it and `notes` (plain JSON) in the background.

        Raises:
          InputError: the checkpoint before this one cannot be written.
        """
        tensors = {name: np.array(leaf, order="C") for name, leaf in _named(jax.device_get(state))}
        metadata = {"format": FORMAT, "step": str(step), "notes": json.dumps(notes)}
        self._wait()
        self._pending = self._pool.submit(self._write, step, tensors, metadata)

    def _write(self, step: int, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        metadata["sha256"] = _digest(tensors, metadata)
        with files.replacing(self._path(step)) as temporary:
            temporary.write_bytes(safetensors.save(tensors, metadata))
        for old in self._steps()[:-KEPT]:
            self._path(old).unlink()

    def restore(self, template: Any, say: Callable[[str], None] = print) -> tuple[int, Any, dict[str, Any]] | None:
        """Return the newest undamaged checkpoint, and delete damaged ones.

        Args:
          template: a pytree with the shapes and dtypes of the state.
          say: called with a line of text for each damaged checkpoint.

        Returns:
          The step, the state as numpy arrays in the structure of `template`, and the notes; None without a checkpoint.

        Raises:
          InputError: a file cannot be read, which is not damage, or another version of the program wrote it.
        """
        for leftover in self._directory.glob(".*.tmp"):  # of a process that died; the run's lock is held
            leftover.unlink()
        other = f"{self._directory}: another version of this program wrote it; move it away to train from the start"
        if any(path.name.isdecimal() for path in self._directory.iterdir()):  # directories of Orbax
            raise InputError(other)
        leaves = dict(_named(template))
        for step in reversed(self._steps()):
            try:
                version, tensors, notes = _read(self._path(step), step)
            except OSError as e:
                then = "once it can, or is moved away, the same command resumes"
                raise InputError(f"{self._path(step)}: cannot be read ({e.strerror}); {then}") from None
            except MemoryError:
                raise
            except Exception as e:  # a damaged file makes a parser raise anything
                say(f"checkpoint of step {step:,} is damaged and dropped ({first_line(e)})")
                with self._writing():
                    self._path(step).unlink()
                continue
            if version != FORMAT or _shapes(tensors) != _shapes(leaves):
                raise InputError(other)
            return step, jax.tree.unflatten(jax.tree.structure(template), [tensors[name] for name in leaves]), notes
        return None

    def close(self) -> None:
        """Wait until the last checkpoint is written; raise InputError if it cannot be."""
        try:
            self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._writing():
                pending.result()

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / f"{step}.safetensors"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._directory.glob("*.safetensors") if path.stem.isdecimal())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an error about the directory into a sentence."""
        try:
            yield
        except OSError as e:
            raise InputError(
                f"{self._directory}: a checkpoint cannot be written ({first_line(e)}); once it can, the same command "
                "resumes from the one before"
            ) from e


def _read(path: pathlib.Path, step: int) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Return format, tensors and notes of a file; raise OSError if it cannot be read, anything else over damage."""
    content = files.read_regular_file(path)  # not mapped: a failing disk would end this process
    tensors = safetensors.load(content)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if metadata.pop("sha256") != _digest(tensors, metadata) or metadata["step"] != str(step):
        raise ValueError("it does not match its digest")
    return metadata["format"], tensors, json.loads(metadata["notes"])


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    content = json.dumps([leaf_digests(tensors), metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def leaf_digests(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of each leaf's name, dtype, shape and bytes, by its path."""
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _named(tree)}
    heads = {name: f"{name} {array.dtype} {array.shape} ".encode() for name, array in arrays.items()}
    return {name: hashlib.sha256(heads[name] + array.tobytes()).hexdigest() for name, array in arrays.items()}


def tree_digest(tree: Any) -> str:
    """Return one SHA-256 over all leaves of `tree`, independent of their order."""
    leaves = leaf_digests(jax.device_get(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def _shapes(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return dtype and shape of each leaf: 'float32 (3, 3, 8)'."""
    return {name: f"{leaf.dtype} {np.shape(leaf)}" for name, leaf in leaves.items()}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
