"""The digits, small prepared sets, the cache of their arrays, and the order of the batches."""

import os
import pathlib
import random
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import assert_equal, environment, prepare, python, python_command, random_splits

from mobilenet_jax import files
from mobilenet_jax.data import arrays, datasets
from mobilenet_jax.data.arrays import Split, load
from mobilenet_jax.data.datasets import describe
from mobilenet_jax.errors import InputError


@pytest.fixture(scope="session")
def grey_splits() -> dict[str, Split]:
    return random_splits(0, {"train": 7, "test": 4}, side=28, channels=1, classes=3)


@pytest.fixture(scope="session")
def prepared_grey(tmp_path_factory: pytest.TempPathFactory, grey_splits: dict[str, Split]) -> pathlib.Path:
    root = tmp_path_factory.mktemp("grey")
    prepare(root, "grey", grey_splits)
    return root


@pytest.fixture
def grey_root(prepared_grey: pathlib.Path, tmp_path: pathlib.Path) -> str:
    """Return a data directory with a fresh copy of a small prepared set: grey 28x28 images in 3 classes."""
    return str(shutil.copytree(prepared_grey, tmp_path / "tfds"))


def cache_of(root: str) -> pathlib.Path:
    return pathlib.Path(root) / "grey" / "1.0.0" / "mobilenet_jax" / "arrays.npz"


def load_grey(root: str) -> dict[str, Split]:
    return load(describe("grey", root), root)


# The embedded digits.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    splits = load(describe("digits"))
    test = np.arange(1797) % 5 == 0
    # The pixel centres of 32 on the grid of 8, clamped at the borders, and the weights of their two neighbours.
    centres = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    bilinear = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)))
    for split, chosen, size in ((splits["train"], ~test, 1437), (splits["test"], test, 360)):
        assert len(split) == size
        assert (split.images.shape, split.images.dtype) == ((size, 32, 32, 3), np.uint8)
        assert split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.labels, source.target[chosen])
        np.testing.assert_array_equal(split.images, split.images[..., :1].repeat(3, -1))
        enlarged = bilinear @ source.images[chosen] @ bilinear.T * (255 / 16)
        assert np.abs(split.images[..., 0] - enlarged).max() < 1.5  # rounded twice


# Order, batches and the held-out part.


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = arrays.epoch_order(1000, seed=1, epoch=2)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, arrays.epoch_order(1000, seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert (order != arrays.epoch_order(1000, seed, epoch)).any()


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_eval_batches_hold_every_image_once(size: int, batch_size: int):
    batches = list(arrays.eval_batches(size, batch_size))
    assert len(batches) == -(-size // batch_size)
    for indices, mask in batches:
        assert (indices.shape, mask.shape) == ((batch_size,), (batch_size,))
        assert (indices.dtype, mask.dtype) == (np.int32, np.bool_)
        assert indices.max() < size
    np.testing.assert_array_equal(np.concatenate([indices[mask] for indices, mask in batches]), np.arange(size))


def test_holdout_is_fixed_nested_and_disjoint():
    split = Split(np.arange(1000 * 3, dtype=np.uint8).reshape(1000, 1, 1, 3), np.arange(1000, dtype=np.int32))
    rest, held_out = arrays.holdout(split, 0.1)
    assert (len(rest), len(held_out)) == (900, datasets.holdout_size(1000, 0.1))
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.labels, held_out.labels])), split.labels)
    np.testing.assert_array_equal(held_out.images, split.images[held_out.labels])
    np.testing.assert_array_equal(rest.images, split.images[rest.labels])
    assert held_out.labels[:4].tolist() == [2, 8, 12, 25]  # the same in every run, so in every version
    assert set(held_out.labels) < set(arrays.holdout(split, 0.2)[1].labels)


# Sets that TFDS has prepared, and the cache of their decoded arrays.


def test_a_prepared_set_is_decoded_and_grey_repeated(grey_root: str, grey_splits: dict[str, Split]):
    splits = load_grey(grey_root)
    assert splits["train"].images.shape == (7, 28, 28, 3)
    assert_equal(splits, grey_splits)


def test_the_second_load_reads_the_cache(
    grey_root: str, grey_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    load_grey(grey_root)
    assert sorted(path.name for path in cache_of(grey_root).parent.iterdir()) == [".lock", "arrays.npz"]
    assert not list(pathlib.Path(grey_root).glob(".*"))
    capfd.readouterr()
    monkeypatch.delattr(arrays, "_decode")
    splits = load_grey(grey_root)
    assert_equal(splits, grey_splits)
    assert capfd.readouterr() == ("", "")


def test_the_second_load_imports_nothing_slow(grey_root: str):
    load_grey(grey_root)
    code = """if True:
        import sys
        from mobilenet_jax.data import arrays, datasets
        arrays.load(datasets.Dataset("grey", 3, 7, 4, 28, fingerprint=sys.argv[2]), sys.argv[1])
        print(*{"tensorflow_datasets", "PIL", "jax", "sklearn", "rich", "filelock"} & set(sys.modules))
    """
    assert python(code, grey_root, describe("grey", grey_root).fingerprint) == [""]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:1000],
        lambda content: content[:-9],
        lambda content: content[:9000] + b"other" + content[9005:],
        lambda content: content.replace(b"PK", b"KP"),
        lambda content: b"",
    ],
)
def test_a_damaged_cache_is_reported_and_rebuilt(
    damage: Callable[[bytes], bytes], grey_root: str, grey_splits: dict[str, Split], capfd: pytest.CaptureFixture[str]
):
    load_grey(grey_root)
    capfd.readouterr()
    cache_of(grey_root).write_bytes(damage(cache_of(grey_root).read_bytes()))
    assert_equal(load_grey(grey_root), grey_splits)
    lines = capfd.readouterr().err.splitlines()
    assert [f"{cache_of(grey_root)} are damaged" in line for line in lines] == [True, False]
    load_grey(grey_root)
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_of_the_cache_never_changes_an_image(grey_root: str, grey_splits: dict[str, Split]):
    load_grey(grey_root)
    cache, described = cache_of(grey_root), describe("grey", grey_root)
    whole, refused = cache.read_bytes(), 0
    header = whole.index(b"train_images")  # of an array, which says how much of the file to read
    places = [*range(header, header + 160), *range(0, len(whole), 397)]
    for place in places:
        cache.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if (found := arrays._read_cache(described, cache.parent.parent)) is None:
            refused += 1
        else:  # the bit belongs to a time or an attribute of a file in the archive
            assert_equal(found, grey_splits)
    assert refused > 0.9 * len(places)


def test_processes_that_start_together_decode_once(grey_root: str):
    code = """if True:
        import sys
        from mobilenet_jax.data import arrays, datasets
        read = arrays._read_cache
        arrays._read_cache = lambda *given: (found := read(*given), print(bool(found), flush=True))[0]
        arrays.load(datasets.Dataset("grey", 3, 7, 4, 28), sys.argv[1])
    """
    command, pipe, cache = python_command(code, grey_root), subprocess.PIPE, cache_of(grey_root)
    cache.parent.mkdir()
    with files.lock(cache.with_name(".lock")):
        started = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) for _ in range(3)]
        for process in started:
            assert process.stdout and process.stdout.readline() == "False\n"
    done = [process.communicate(timeout=60) for process in started]
    assert sorted(out for out, _ in done) == ["False\n", "True\n", "True\n"]
    assert sum("decoding grey" in err for _, err in done) == 1


def test_a_cache_that_another_process_holds_is_not_waited_for_forever(
    grey_root: str, grey_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(arrays, "_LOCK_SECONDS", 0)
    cache = cache_of(grey_root)
    cache.parent.mkdir()
    with files.lock(cache.with_name(".lock")):
        assert_equal(load_grey(grey_root), grey_splits)
    assert "decoded again at each start" in capfd.readouterr().err and not cache.exists()


def test_a_set_prepared_again_is_decoded_again(grey_root: str):
    load_grey(grey_root)
    others = random_splits(1, {"train": 7, "test": 4}, side=28, channels=1, classes=3)
    cache = shutil.move(cache_of(grey_root).parent, pathlib.Path(grey_root) / "kept")
    shutil.rmtree(pathlib.Path(grey_root) / "grey")
    prepare(pathlib.Path(grey_root), "grey", others)
    shutil.move(cache, cache_of(grey_root).parent)
    assert_equal(load_grey(grey_root), others)


def test_a_set_that_was_replaced_after_it_was_described(grey_root: str):
    """The cache of the new one is not served as the old one."""
    before = describe("grey", grey_root)
    shutil.rmtree(pathlib.Path(grey_root) / "grey")
    others = random_splits(1, {"train": 7, "test": 4}, side=28, channels=1, classes=3)
    prepare(pathlib.Path(grey_root), "grey", others)
    assert_equal(load_grey(grey_root), others)
    with pytest.raises(InputError, match=f"'grey'.*fingerprint .* instead of {before.fingerprint}"):
        load(before, grey_root)


def test_a_directory_that_cannot_be_written(
    grey_root: str, grey_splits: dict[str, Split], capfd: pytest.CaptureFixture[str]
):
    cache_of(grey_root).parent.write_text("a file in the place of the directory")
    for _ in range(2):
        assert_equal(load_grey(grey_root), grey_splits)
        assert capfd.readouterr().err.count("decoded again at each start") == 1


def test_a_full_disk(
    grey_root: str, grey_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def save(file: Any, **_: Any) -> None:
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", save)
    assert_equal(load_grey(grey_root), grey_splits)
    assert "No space left" in capfd.readouterr().err
    assert [path.name for path in cache_of(grey_root).parent.iterdir()] == [".lock"]


def test_labels_out_of_range(tmp_path: pathlib.Path):
    prepare(tmp_path, "grey", random_splits(0, {"train": 9, "test": 9}, side=28, channels=1, classes=6))
    with pytest.raises(InputError, match=r"labels -1.*for 3 classes in its split 'train'"):
        load_grey(str(tmp_path))


def test_a_damaged_set(grey_root: str):
    (file,) = (pathlib.Path(grey_root) / "grey" / "1.0.0").glob("grey-test.array_record*")
    os.truncate(file, 100)
    with pytest.raises(InputError, match="'grey' in .* split 'test' .*`tfds build"):
        load_grey(grey_root)
    assert not cache_of(grey_root).exists()


def test_damaged_metadata_is_reported_or_harmless(grey_root: str, grey_splits: dict[str, Split]):
    """Flip bits in the two JSON files: the images stay the same, or a sentence says what to do."""
    directory = pathlib.Path(grey_root) / "grey" / "1.0.0"
    chance, messages = random.Random(0), []
    for file in ("dataset_info.json", "features.json"):
        whole = (directory / file).read_bytes()
        damages = [b"[]", b"", b"{}", whole[: len(whole) // 2]]
        for _ in range(40):
            place = chance.randrange(len(whole))
            damages.append(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        for damage in damages:
            (directory / file).write_bytes(damage)
            cache_of(grey_root).unlink(missing_ok=True)
            try:
                found = load_grey(grey_root)
            except InputError as e:
                messages.append(str(e))
            else:
                assert_equal(found, grey_splits)
        (directory / file).write_bytes(whole)
    assert 20 < len(messages) <= 88
    assert sum("`tfds build grey" in message for message in messages) > 20
    assert all("\n" not in message for message in messages)


def test_what_is_left_of_a_prepared_cifar10_is_in_the_way(tmp_path: pathlib.Path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "features.json").write_text("{}")
    with pytest.raises(InputError, match=r"no complete prepared set: move .*3\.0\.2 away"):
        load(describe("cifar10"), str(tmp_path))


def test_loaded_arrays_do_not_follow_the_cached_file(grey_root: str):
    load_grey(grey_root)
    found = load_grey(grey_root)["train"].images
    before = found.copy()
    cache_of(grey_root).write_bytes(b"")
    assert (found == before).all()


def test_a_set_under_a_known_name_that_is_another(tmp_path: pathlib.Path, grey_splits: dict[str, Split]):
    prepare(tmp_path, "mnist", grey_splits)
    with pytest.raises(InputError, match="num_classes 3 instead of 10, train_size 7 instead"):
        load(describe("mnist"), str(tmp_path))


def test_absent_sets(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match=f"not prepared in {tmp_path}: `tfds build cifar100"):
        load(describe("cifar100"), str(tmp_path))
    with pytest.raises(InputError, match="'cifar10' only, not 'digits'"):
        load(describe("digits"), str(tmp_path), archive="cifar-10-binary.tar.gz")
    assert not list(tmp_path.iterdir())
