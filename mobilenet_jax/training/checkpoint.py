"""Checkpoints: saved in the background, verified leaf by leaf on restore, falling back to the one before."""

import collections
import contextlib
import copy
import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from mobilenet_jax.errors import InputError, first_line

KEPT = 2
FORMAT = 2  # how the arrays lie in a checkpoint


class Checkpoints:
    """The newest `KEPT` checkpoints of one run.

    Orbax restores damaged data without a word, so beside each checkpoint lie the SHA-256 of every leaf and of the
    notes kept with it, and a restore that does not match them counts as damage. A whole checkpoint of other leaves than
    those asked for is of another version of the program, and is left alone.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        logging.getLogger("absl").setLevel("FATAL")  # Orbax tells each of its phases; failures are told below
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True, cleanup_tmp_directories=True)
        self._directory = directory
        with self._writing():
            self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options)

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Copies `state` (a pytree) to the host, then writes it and `notes` (plain JSON) in the background.

        Raises:
          InputError: it cannot be written, or the one before could not.
        """
        tree = _plain(jax.device_get(state))
        notes = copy.deepcopy(notes)  # the caller's may change before they are written
        of = {"format": FORMAT, "leaves": leaf_digests(tree), "shapes": _shapes(tree), "notes": _notes_digest(notes)}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_packed(tree)),
                    notes=ocp.args.JsonSave(notes),
                    digests=ocp.args.JsonSave(_sealed(of)),
                ),
            )

    def restore(self, template: Any, say: Callable[[str], None] = print) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole.

        Damaged ones are named through `say` and deleted, so that the run can save at the same step again.

        Args:
          template: a pytree with the shapes and dtypes of the state.
          say: takes a line of text.

        Returns:
          The step, the state as numpy arrays in the structure of `template`, and the notes; None where none is left.

        Raises:
          InputError: a file of one cannot be read, which is no damage to it; or another version wrote it.
        """
        _hush_stragglers()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, notes = self._verified(step, template)
            except (InputError, MemoryError):
                raise
            except Exception as e:  # whatever a damaged file makes Orbax or a parser raise
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
        for name in sorted(found.keys() | digests["leaves"].keys()):
            if found.get(name) != digests["leaves"].get(name):
                raise ValueError(f"{name} does not match its digest")
        if _notes_digest(restored.notes) != digests["notes"]:
            raise ValueError("the notes do not match their digest")
        return serialization.from_state_dict(template, state), restored.notes

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          InputError: it could not be.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever Orbax raises over a directory that cannot be written, as a sentence."""
        try:
            yield
        except Exception as e:
            raise InputError(
                f"{self._directory}: a checkpoint cannot be written ({first_line(e)}); once it can, the same command "
                "resumes from the one before"
            ) from e


def _check_readable(directory: str) -> None:
    """Raises InputError where a file in `directory` cannot be read."""

    def stop(error: OSError) -> None:
        raise error

    path = directory
    try:
        for top, _, names in os.walk(directory, onerror=stop):
            for name in names:
                path = os.path.join(top, name)
                with open(path, "rb") as file:
                    while file.read(1 << 20):
                        pass
    except OSError as e:
        reason = f"{e.filename or path} cannot be read ({e.strerror})"
        raise InputError(f"{reason}; once it can, or is moved away, the same command resumes") from None


@functools.cache
def _hush_stragglers() -> None:
    """When one read fails, Orbax leaves the others behind; they would complain on stderr at any time later."""
    logging.getLogger("asyncio").setLevel("CRITICAL")  # "exception was never retrieved"
    before = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def leaf_digests(tree: Any) -> dict[str, str]:
    """The SHA-256 of each leaf's name, dtype, shape and bytes, by its path."""
    digests = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, array = jax.tree_util.keystr(path, simple=True, separator="/"), np.ascontiguousarray(leaf)
        head = f"{name} {array.dtype} {array.shape} ".encode()
        digests[name] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return digests


def tree_digest(tree: Any) -> str:
    """One SHA-256 over all leaves of `tree`, whatever their order."""
    leaves = leaf_digests(jax.device_get(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def _plain(state):
    """Nested dicts of arrays, without the None leaves that Orbax cannot hold."""
    return serialization.to_state_dict(state)


def _packed(tree: Any) -> dict[str, np.ndarray]:
    """All leaves end to end, one array for each dtype: over each that it writes, TensorStore 0.1.86 loses 250 bytes."""
    parts = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        parts[str(leaf.dtype)].append(np.ravel(leaf))
    return {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}


def _unpacked(packed: dict[str, np.ndarray], tree: Any) -> Any:
    """The leaves again, in the structure and the shapes of `tree`."""
    taken = collections.Counter()

    def take(leaf):
        start = taken[str(leaf.dtype)]
        taken[str(leaf.dtype)] += leaf.size
        return packed[str(leaf.dtype)][start : start + leaf.size].reshape(leaf.shape).copy()

    return jax.tree.map(take, tree)


def _notes_digest(notes):
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _shapes(tree) -> dict[str, str]:
    """What a leaf is, by its path: 'float32 (3, 3, 8)'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {np.shape(leaf)}"
        for path, leaf in leaves
    }


def _sealed(digests: dict[str, Any]) -> dict[str, Any]:
    """The digests with one of their own."""
    rest = {key: value for key, value in digests.items() if key != "digests"}
    return rest | {"digests": _notes_digest(rest)}
