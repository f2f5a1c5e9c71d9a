"""Checkpoints: saved in the background, verified leaf by leaf on restore, with a fallback to the one before."""

import collections
import contextlib
import copy
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from mobilenet_jax.errors import InputError, first_line

KEPT = 2
FORMAT = 2  # of the arrays in a checkpoint


class Checkpoints:
    """The newest `KEPT` checkpoints of one run.

    Orbax restores damaged data silently. Each checkpoint therefore holds the SHA-256 of every leaf and of its notes,
    and a restore that does not match them counts as damage. An undamaged checkpoint with other leaves was written by
    another version of the program, and is kept.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        logging.getLogger("absl").setLevel("FATAL")  # Orbax logs each of its phases; failures are reported here
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, cleanup_tmp_directories=True)
        self._directory = directory
        with self._writing():
            self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options)

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Copy `state` (a pytree) to the host, then write it and `notes` (plain JSON) in the background.

        Raises:
          InputError: this checkpoint or the one before cannot be written.
        """
        tree = _plain(jax.device_get(state))
        notes = copy.deepcopy(notes)  # the caller may change them before they are written
        of = {"format": FORMAT, "leaves": leaf_digests(tree), "shapes": _shapes(tree), "notes": _notes_digest(notes)}
        digests, packed = ocp.args.JsonSave(_sealed(of)), ocp.args.StandardSave(_packed(tree))
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(state=packed, notes=ocp.args.JsonSave(notes), digests=digests)
            )

    def restore(self, template: Any, say: Callable[[str], None] = print) -> tuple[int, Any, dict[str, Any]] | None:
        """Return the newest undamaged checkpoint, and delete damaged ones so that the run can save at their steps.

        Args:
          template: a pytree with the shapes and dtypes of the state.
          say: called with a line of text for each damaged checkpoint.

        Returns:
          The step, the state as numpy arrays in the structure of `template`, and the notes; None without a checkpoint.

        Raises:
          InputError: a file cannot be read, which is not damage, or another version of the program wrote it.
        """
        _hush_stragglers()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, notes = self._verified(step, template)
            except (InputError, MemoryError):
                raise
            except Exception as e:  # a damaged file makes Orbax or a parser raise anything
                _check_readable(os.path.join(self._directory, str(step)))
                say(f"checkpoint of step {step:,} is damaged and dropped ({first_line(e)})")
                with self._writing():
                    self._manager.delete(step)
                continue
            return step, state, notes
        return None

    def _verified(self, step, template):
        tree = _plain(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template))
        restored: Any = self._manager.restore(step, args=ocp.args.Composite(digests=ocp.args.JsonRestore()))
        digests = restored.digests
        version = digests.keys() == {"leaves", "notes"}  # the first one
        if not version and digests != _sealed(digests):
            raise ValueError("the digests do not match their own")
        if digests.get("format") != FORMAT or digests["shapes"] != _shapes(tree):
            raise InputError(f"{self._directory}: another version of this program wrote it; name another run directory")
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_packed(tree)), notes=ocp.args.JsonRestore())
        )
        state = _unpacked(restored.state, tree)
        found = leaf_digests(state)
        if wrong := {name for name, _ in found.items() ^ digests["leaves"].items()}:
            raise ValueError(f"{min(wrong)} does not match its digest")
        if _notes_digest(restored.notes) != digests["notes"]:
            raise ValueError("the notes do not match their digest")
        return serialization.from_state_dict(template, state), restored.notes

    def close(self) -> None:
        """Wait until the last checkpoint is written; raise InputError if it cannot be."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn anything that Orbax raises about a directory into a sentence."""
        try:
            yield
        except Exception as e:
            raise InputError(
                f"{self._directory}: a checkpoint cannot be written ({first_line(e)}); once it can, the same command "
                "resumes from the one before"
            ) from e


def _check_readable(directory: str) -> None:
    """Raise InputError if a file in `directory` cannot be read."""

    path = top = pathlib.Path(directory)
    try:
        for path in (top, *sorted(top.rglob("*"))):
            _ = [*path.iterdir()] if path.is_dir() else path.read_bytes()
    except OSError as e:
        reason = f"{e.filename or path} cannot be read ({e.strerror})"
        raise InputError(f"{reason}; once it can, or is moved away, the same command resumes") from None


@functools.cache
def _hush_stragglers() -> None:
    """Silence the reads that Orbax abandons when one of them fails: they would print to stderr later."""
    logging.getLogger("asyncio").setLevel("CRITICAL")  # "exception was never retrieved"
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def leaf_digests(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of each leaf's name, dtype, shape and bytes, by its path."""
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _named(tree)}
    heads = {name: f"{name} {array.dtype} {array.shape} ".encode() for name, array in arrays.items()}
    return {name: hashlib.sha256(heads[name] + array.tobytes()).hexdigest() for name, array in arrays.items()}


def tree_digest(tree: Any) -> str:
    """Return one SHA-256 over all leaves of `tree`, independent of their order."""
    leaves = leaf_digests(jax.device_get(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def _plain(state):
    """Return nested dicts of arrays, without None leaves, which Orbax cannot store."""
    return serialization.to_state_dict(state)


def _packed(tree: Any) -> dict[str, np.ndarray]:
    """Concatenate all leaves, one array per dtype: TensorStore 0.1.86 leaks 250 bytes per array that it writes."""
    parts = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        parts[str(leaf.dtype)].append(np.ravel(leaf))
    return {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}


def _unpacked(packed: dict[str, np.ndarray], tree: Any) -> Any:
    """Return the leaves in the structure and the shapes of `tree`."""
    taken = collections.Counter()

    def take(leaf):
        start = taken[str(leaf.dtype)]
        taken[str(leaf.dtype)] += leaf.size
        return packed[str(leaf.dtype)][start : start + leaf.size].reshape(leaf.shape).copy()

    return jax.tree.map(take, tree)


def _notes_digest(notes):
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _shapes(tree: Any) -> dict[str, str]:
    """Return dtype and shape of each leaf, by its path: 'float32 (3, 3, 8)'."""
    return {name: f"{leaf.dtype} {np.shape(leaf)}" for name, leaf in _named(tree)}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _sealed(digests: dict[str, Any]) -> dict[str, Any]:
    """Return the digests with a digest of themselves."""
    rest = {key: value for key, value in digests.items() if key != "digests"}
    return rest | {"digests": _notes_digest(rest)}
