"""Checkpoints: every bit of the saved state is restored, or the checkpoint is refused."""

import dataclasses
import gc
import itertools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from mobilenet_jax.errors import InputError
from mobilenet_jax.training import checkpoint
from mobilenet_jax.training.checkpoint import Checkpoints
from mobilenet_jax.training.optimizer import optimizer as make_optimizer
from mobilenet_jax.training.state import TrainState

KINDS = list(itertools.product(("sgd", "rmsprop"), (False, True)))


def make_state(seed: int, optimizer: str = "sgd", with_ema: bool = False) -> Any:
    """Return a state with random leaves, which are more than a real one has."""
    shapes = {
        "stem": {"kernel": (3, 3, 3, 8), "bn": {"scale": (8,)}},
        "classifier": {"kernel": (64, 100), "bias": (10,)},
    }
    rng = np.random.default_rng(seed)

    def fill(like):
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), like)

    params = jax.tree.map(lambda shape: np.zeros(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))
    stats = {"stem": {"bn": {"mean": np.zeros(8, np.float32)}}}
    opt_state = make_optimizer(optimizer, 0.0, 0.0).init(params)
    ema = fill({"params": params, "batch_stats": stats}) if with_ema else None
    return TrainState(np.int32(seed), fill(params), fill(stats), fill(opt_state), ema)  # type: ignore[arg-type]


def make_notes(seed: int) -> dict:
    return {"tally": {"loss": seed / 3, "count": 64.0}, "images": 128.0, "figures": {}, "text": "é"}


def identical(a, b) -> bool:
    leaves, structure = jax.tree.flatten(a)
    others, other_structure = jax.tree.flatten(b)
    return structure == other_structure and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() and x.dtype == y.dtype and x.shape == y.shape
        for x, y in zip(leaves, others, strict=True)
    )


def save(directory: pathlib.Path, *seeds: int) -> None:
    checkpoints = Checkpoints(directory)
    for seed in seeds:
        checkpoints.save(seed, make_state(seed), make_notes(seed))
    checkpoints.close()


def restore(directory: pathlib.Path, template: TrainState | None = None):
    """Return what `restore` returns, and the lines that it prints."""
    lines: list[str] = []
    checkpoints = Checkpoints(directory)
    found = checkpoints.restore(template or make_state(0), lines.append)
    checkpoints.close()
    return found, lines


def steps(directory: pathlib.Path) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in directory.iterdir()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return a directory with the checkpoints of steps 1 and 2; to be copied, not changed."""
    directory = tmp_path_factory.mktemp("checkpoints") / "two"
    save(directory, 1, 2)
    return directory


@pytest.fixture
def copy(two, tmp_path) -> Callable[[], pathlib.Path]:
    """Return a function that copies that directory."""
    counter = itertools.count()
    return lambda: pathlib.Path(shutil.copytree(two, tmp_path / str(next(counter))))


@pytest.mark.parametrize(("optimizer", "with_ema"), KINDS)
def test_a_round_trip_keeps_every_bit(optimizer, with_ema, tmp_path):
    state = make_state(7, optimizer, with_ema)
    state.params["stem"]["kernel"][0, 0, 0, :4] = [np.nan, np.inf, -0.0, 1e-45]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, make_notes(7))
    checkpoints.close()
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    found, lines = restore(tmp_path, template)
    assert found is not None and lines == []
    step, restored, notes = found
    assert (step, notes) == (7, make_notes(7))
    assert isinstance(restored, TrainState) and (restored.ema is None) == (not with_ema)
    assert identical(restored, state)


def test_a_save_copies_the_state_before_it_returns(tmp_path):
    """The training step donates its state: its buffers are deleted when the next step starts. The run counts on."""
    state = jax.device_put(make_state(1))
    checkpoints, notes = Checkpoints(tmp_path), make_notes(1)
    checkpoints._pool.submit(time.sleep, 0.2)  # the next write waits
    checkpoints.save(1, state, notes)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    notes["tally"]["loss"] += 1
    checkpoints.close()
    found, _ = restore(tmp_path)
    assert found is not None and identical(found[1], make_state(1)) and found[2] == make_notes(1)


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "absent") == (None, [])


def test_the_newest_two_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 10)
    assert steps(tmp_path) == {"3", "10"}
    found, _ = restore(tmp_path)
    assert found is not None and found[0] == 10


def flip(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]


def flips(data: bytes) -> list[bytes]:
    """Return copies with one bit changed, in the header, in its spaces, in each part of the tensors."""
    head = 8 + int.from_bytes(data[:8], "little")
    offsets = {
        0,
        7,
        8,
        head - 1,
        head,
        len(data) - 1,
        *range(9, head, head // 40),
        *range(head, len(data), len(data) // 40),
    }
    return [flip(data, offset) for offset in sorted(offsets)]


DAMAGES: dict[str, Callable[[bytes], list[bytes | None]]] = {
    "flipped": lambda data: [*flips(data)],
    "cut": lambda data: [data[:-1], data[: len(data) // 2], data[:100], data[:5]],
    "emptied": lambda data: [b""],
    "lengthened": lambda data: [data + b"\0"],
    "of another step": lambda data: [data.replace(b'"step":"2"', b'"step":"3"')],
    "of another note": lambda data: [data.replace(rb"\"count\": 64", rb"\"count\": 65")],
    "of another name": lambda data: [data.replace(b"stem/kernel", b"stem/kernal")],
    "of another tensor": lambda data: [safetensors.save({"x": np.zeros(3)}), safetensors.save({}, {"step": "2"})],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_never_gives_wrong_values(damage, copy):
    """The checkpoint before is used, and a line printed."""
    directory = copy()
    file = directory / "2.safetensors"
    before = file.read_bytes()
    for after in DAMAGES[damage](before):
        assert after not in (None, before)
        file.write_bytes(after or b"")
        found, lines = restore(directory)
        assert found is not None
        step, state, notes = found
        assert identical(state, make_state(step)) and notes == make_notes(step)
        assert len(lines) == 2 - step and all("checkpoint of step 2 is damaged and dropped (" in x for x in lines)
        assert step == 1 and steps(directory) == {"1"}


def test_a_removed_file(copy):
    directory = copy()
    (directory / "2.safetensors").unlink()
    found, lines = restore(directory)
    assert found is not None and (found[0], lines) == (1, [])


def test_others_can_read_it(two):
    """The library that the format comes from needs nothing of ours."""
    state = make_state(2)
    tensors = safetensors.load_file(two / "2.safetensors")
    assert np.array_equal(tensors["params/classifier/kernel"], state.params["classifier"]["kernel"])
    assert len(tensors) == len(jax.tree.leaves(state))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc's")
def test_an_unreadable_file_is_not_damage(copy):
    """A network disk may be away, or the file another user's: nothing is deleted."""
    directory = copy()
    file = directory / "2.safetensors"
    aside = file.rename(directory.parent / "aside")
    file.symlink_to("/proc/self/mem")  # reading it fails, even for the superuser
    with pytest.raises(InputError, match="cannot be read"):
        restore(directory)
    aside.rename(file)
    found, lines = restore(directory)
    assert found is not None and (found[0], lines) == (2, [])


@pytest.mark.parametrize("change", ["a leaf more", "another shape"])
def test_checkpoints_of_another_version_are_left_alone(change, two, copy):
    """They are not damaged, so they are not deleted."""
    state = make_state(0)
    leaf = np.zeros((10 if change == "a leaf more" else 11,), np.float32)
    name = "more" if change == "a leaf more" else "bias"
    params = {**state.params, "classifier": {**state.params["classifier"], name: leaf}}
    directory = copy()
    checkpoints = Checkpoints(directory)
    with pytest.raises(InputError, match="another version"):
        checkpoints.restore(dataclasses.replace(state, params=params), print)
    checkpoints.close()
    assert steps(directory) == {"1", "2"}


def test_directories_of_earlier_versions_are_left_alone(copy):
    directory = copy()
    (directory / "3").mkdir()
    with pytest.raises(InputError, match="another version"):
        restore(directory)
    assert steps(directory) == {"1", "2", "3"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc's")
def test_saving_holds_no_memory(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {f"{i}": np.full(1000, i) for i in range(100)}

    def resident(steps: range) -> int:
        for step in steps:
            checkpoints.save(step, state, {})
        checkpoints._wait()
        gc.collect()
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident(range(30))
    assert resident(range(30, 130)) - before < 5e6
    checkpoints.close()


def test_a_lack_of_memory_is_not_damage(copy, monkeypatch):
    def full(*_):
        raise MemoryError

    directory = copy()
    monkeypatch.setattr(checkpoint, "_read", full)
    with pytest.raises(MemoryError):
        restore(directory)
    assert steps(directory) == {"1", "2"}


def test_all_damaged(copy):
    directory = copy()
    for step in "12":
        (directory / f"{step}.safetensors").write_text("{}")
    found, lines = restore(directory)
    assert found is None and [line[:20] for line in lines] == ["checkpoint of step 2", "checkpoint of step 1"]
    assert restore(directory) == (None, [])


@pytest.mark.parametrize("reopened", [False, True])
def test_the_same_step_can_be_saved_again_after_a_fallback(reopened, copy):
    directory = copy()
    (directory / "2.safetensors").write_text("{}")
    checkpoints = Checkpoints(directory)
    checkpoints.restore(make_state(0), lambda line: None)
    if reopened:
        checkpoints.close()
        checkpoints = Checkpoints(directory)
    checkpoints.save(2, make_state(5), make_notes(5))
    checkpoints.save(3, make_state(6), make_notes(6))
    checkpoints.close()
    assert steps(directory) == {"2", "3"}
    (directory / "3.safetensors").unlink()
    found, lines = restore(directory)
    assert found is not None and lines == []
    assert found[0] == 2 and identical(found[1], make_state(5)) and found[2] == make_notes(5)


def test_a_half_written_checkpoint_is_removed(copy):
    directory = copy()
    half = directory / ".3.safetensors.tmp"
    half.write_bytes((directory / "2.safetensors").read_bytes()[:1000])
    found, lines = restore(directory)
    assert found is not None and (found[0], lines) == (2, [])
    assert steps(directory) == {"1", "2"}


def test_another_format_is_left_alone(copy, monkeypatch):
    directory = copy()
    monkeypatch.setattr(checkpoint, "FORMAT", "other")
    with pytest.raises(InputError, match="another version"):
        restore(directory)
    assert steps(directory) == {"1", "2"}


def test_digests_see_name_dtype_shape_and_bits():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(3, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"].astype(np.int32), "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": -base["a"], "b": base["b"]},
        {"a": base["a"]},
        {"a": base["a"], "b": {"c": base["b"]}},
    ]
    digests = {checkpoint.tree_digest(tree) for tree in [base, *others]}
    assert len(digests) == 1 + len(others)
    on_device = {"b": jax.device_put(base["b"]), "a": np.asfortranarray(base["a"])}
    assert checkpoint.tree_digest(on_device) == checkpoint.tree_digest(base)
    assert checkpoint.leaf_digests({"x": base}).keys() == {"x/a", "x/b"}


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="deep: a checkpoint cannot be written"):
        Checkpoints(tmp_path / "file" / "deep")
    checkpoints = Checkpoints(tmp_path / "run")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    checkpoints.save(1, {"x": np.zeros(2)}, {})
    with pytest.raises(InputError, match="No space left on device"):
        checkpoints.save(2, {"x": np.zeros(2)}, {})
    monkeypatch.undo()
    checkpoints.save(3, {"x": np.zeros(2)}, {})
    checkpoints.close()
    assert steps(tmp_path / "run") == {"3"}
