"""Data sets as arrays: small sets prepared here, archives made here, and the real CIFAR-10 where it is present."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilenet_jax import data, datasets
from mobilenet_jax.data import Split, load
from mobilenet_jax.datasets import describe
from mobilenet_jax.errors import InputError

CIFAR10 = describe("cifar10")
TINY = dataclasses.replace(CIFAR10, train_size=15, test_size=3)  # of the same make as CIFAR-10, 3 images a file


def random_splits(seed: int, sizes: Mapping[str, int], side: int, channels: int, classes: int) -> dict[str, Split]:
    rng = np.random.default_rng(seed)
    return {
        name: Split(
            rng.integers(0, 256, (size, side, side, channels), dtype=np.uint8),
            rng.integers(0, classes, size, dtype=np.int32),
        )
        for name, size in sizes.items()
    }


def prepare(root: pathlib.Path, name: str, splits: Mapping[str, Split], classes: int = 3) -> pathlib.Path:
    """Has TFDS prepare a set as array_record; returns its directory."""
    import tensorflow_datasets as tfds

    set_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=next(iter(splits.values())).images.shape[1:])
            features = tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=classes)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(splits[split].images, splits[split].labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image.squeeze()).save(png, "PNG")
                yield i, {"image": png.getvalue(), "label": label if label < classes else -1}

    builder = Builder(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


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
    """A directory with a small prepared set of its own: grey 28x28 images in 3 classes."""
    return str(shutil.copytree(prepared_grey, tmp_path / "tfds"))


def cache_of(root: str) -> pathlib.Path:
    return pathlib.Path(root) / "grey" / "1.0.0" / "mobilenet_jax"


def load_grey(root: str) -> dict[str, Split]:
    return load(describe("grey", root), root)


def assert_equal(actual: Mapping[str, Split], expected: Mapping[str, Split]) -> None:
    assert set(actual) == set(expected)
    for name, split in expected.items():
        assert (actual[name].images.dtype, actual[name].labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(actual[name].images, np.broadcast_to(split.images, actual[name].images.shape))
        np.testing.assert_array_equal(actual[name].labels, split.labels)


# The embedded digits.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    splits = load(describe("digits"))
    test = np.arange(1797) % 5 == 0
    # Pixel centres of 32 on the grid of 8, clamped at the borders, and each one's weights of its two neighbours.
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
    order = data.epoch_order(1000, seed=1, epoch=2)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, data.epoch_order(1000, seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert (order != data.epoch_order(1000, seed, epoch)).any()


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_eval_batches_hold_every_image_once(size: int, batch_size: int):
    batches = list(data.eval_batches(size, batch_size))
    assert len(batches) == -(-size // batch_size)
    for indices, mask in batches:
        assert (indices.shape, mask.shape) == ((batch_size,), (batch_size,))
        assert (indices.dtype, mask.dtype) == (np.int32, np.bool_)
        assert indices.max() < size
    np.testing.assert_array_equal(np.concatenate([indices[mask] for indices, mask in batches]), np.arange(size))


def test_holdout_is_fixed_nested_and_disjoint():
    split = Split(np.arange(1000 * 3, dtype=np.uint8).reshape(1000, 1, 1, 3), np.arange(1000, dtype=np.int32))
    rest, held_out = data.holdout(split, 0.1)
    assert (len(rest), len(held_out)) == (900, datasets.holdout_size(1000, 0.1))
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.labels, held_out.labels])), split.labels)
    np.testing.assert_array_equal(held_out.images, split.images[held_out.labels])
    np.testing.assert_array_equal(rest.images, split.images[rest.labels])
    assert held_out.labels[:4].tolist() == [2, 8, 12, 25]  # the same in every run, so in every version
    assert set(held_out.labels) < set(data.holdout(split, 0.2)[1].labels)


# Sets that TFDS has prepared, and the cache of what was decoded.


def test_a_prepared_set_is_decoded_and_grey_repeated(grey_root: str, grey_splits: dict[str, Split]):
    splits = load_grey(grey_root)
    assert splits["train"].images.shape == (7, 28, 28, 3)
    assert_equal(splits, grey_splits)


def test_the_second_load_maps_the_cache(
    grey_root: str, grey_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    load_grey(grey_root)
    assert not [*cache_of(grey_root).glob("*.partial"), *cache_of(grey_root).glob(".*")]
    monkeypatch.delattr(data, "_decode")
    splits = load_grey(grey_root)
    assert isinstance(splits["train"].images, np.memmap)
    assert_equal(splits, grey_splits)
    assert capfd.readouterr() == ("", "")


def test_the_second_load_imports_nothing_slow(grey_root: str):
    load_grey(grey_root)
    code = (
        "import sys; from mobilenet_jax import data, datasets; root = sys.argv[1]; "
        "data.load(datasets.describe('grey', root), root); "
        "sys.exit(bool({'tensorflow_datasets', 'PIL', 'jax', 'sklearn', 'tqdm', 'filelock'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, grey_root], check=True)


def flip_last_byte(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_images.npy", flip_last_byte),
        ("test_labels.npy", flip_last_byte),
        ("train_images.npy", lambda path: os.truncate(path, 1000)),
        ("test_images.npy", lambda path: path.write_bytes(b"")),
        ("index.json", lambda path: path.write_bytes(path.read_bytes()[:-9])),
        ("index.json", lambda path: path.write_bytes(b"[]")),
    ],
)
def test_a_damaged_cache_is_told_and_rebuilt(
    file: str,
    damage: Callable[[pathlib.Path], object],
    grey_root: str,
    grey_splits: dict[str, Split],
    capfd: pytest.CaptureFixture[str],
):
    load_grey(grey_root)
    damage(cache_of(grey_root) / file)
    assert_equal(load_grey(grey_root), grey_splits)
    message = capfd.readouterr().err
    assert f"{cache_of(grey_root)} are damaged" in message and message.count("\n") == 1
    assert isinstance(load_grey(grey_root)["train"].images, np.memmap)
    assert capfd.readouterr().err == ""


def test_a_set_prepared_anew_is_decoded_anew(grey_root: str):
    load_grey(grey_root)
    (cache_of(grey_root) / "train_labels.npy").unlink()  # a part of the cache gone
    load_grey(grey_root)
    others = random_splits(1, {"train": 7, "test": 4}, side=28, channels=1, classes=3)
    cache = shutil.move(cache_of(grey_root), pathlib.Path(grey_root) / "kept")
    shutil.rmtree(pathlib.Path(grey_root) / "grey")
    prepare(pathlib.Path(grey_root), "grey", others)
    shutil.move(cache, cache_of(grey_root))
    assert_equal(load_grey(grey_root), others)


def test_a_directory_that_cannot_be_written(
    grey_root: str, grey_splits: dict[str, Split], capfd: pytest.CaptureFixture[str]
):
    cache_of(grey_root).write_text("a file in the place of the directory")
    for _ in range(2):
        assert_equal(load_grey(grey_root), grey_splits)
        message = capfd.readouterr().err
        assert "decoded again at each start" in message and message.count("\n") == 1


def test_a_full_disk(
    grey_root: str, grey_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def save(file: Any, array: np.ndarray) -> None:
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    assert_equal(load_grey(grey_root), grey_splits)
    assert "No space left" in capfd.readouterr().err
    assert not cache_of(grey_root).exists()


def test_labels_out_of_range(tmp_path: pathlib.Path):
    prepare(tmp_path, "grey", random_splits(0, {"train": 9, "test": 9}, side=28, channels=1, classes=6))
    with pytest.raises(InputError, match=r"'train' has labels -1.*for 3 classes"):
        load_grey(str(tmp_path))


def test_a_damaged_set(grey_root: str):
    (file,) = (pathlib.Path(grey_root) / "grey" / "1.0.0").glob("grey-test.array_record*")
    os.truncate(file, 100)
    with pytest.raises(InputError, match="'grey' in .* split 'test' cannot be read"):
        load_grey(grey_root)
    assert not cache_of(grey_root).exists()


def test_a_set_under_a_known_name_that_is_another(tmp_path: pathlib.Path, grey_splits: dict[str, Split]):
    prepare(tmp_path, "mnist", grey_splits)
    with pytest.raises(InputError, match="num_classes 3 instead of 10, train_size 7 instead of 60000"):
        load(describe("mnist"), str(tmp_path))


def test_absent_sets(tmp_path: pathlib.Path):
    with pytest.raises(
        InputError, match=f"not prepared in {tmp_path}: `tfds build cifar100 --file_format=array_record"
    ):
        load(describe("cifar100"), str(tmp_path))
    with pytest.raises(InputError, match="only --dry_run"):
        load(describe("imagenet2012"), str(tmp_path))
    with pytest.raises(InputError, match="'cifar10' only, not 'digits'"):
        load(describe("digits"), str(tmp_path), archive="cifar-10-binary.tar.gz")
    assert not list(tmp_path.iterdir())


# Preparing CIFAR-10 from its archive.


@pytest.fixture(scope="session")
def tiny_splits() -> dict[str, Split]:
    return random_splits(0, {"train": 15, "test": 3}, side=32, channels=3, classes=10)


@pytest.fixture
def tiny_digests(tiny_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Has the content of `tiny_splits` taken for the published one."""
    digests = {
        name: hashlib.sha256(split.images.tobytes() + split.labels.astype(np.uint8).tobytes()).hexdigest()
        for name, split in tiny_splits.items()
    }
    monkeypatch.setattr(data, "CIFAR10_SHA256", digests)
    return digests


def archive_files(splits: Mapping[str, Split]) -> dict[str, bytes]:
    """The binary files: per image its label, then its red, green and blue planes."""

    def file(split: Split) -> bytes:
        return b"".join(
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(split.images, split.labels, strict=True)
        )

    train, size = splits["train"], len(splits["train"]) // 5
    parts = [Split(train.images[i * size : (i + 1) * size], train.labels[i * size : (i + 1) * size]) for i in range(5)]
    return {
        "batches.meta.txt": b"airplane\n",
        **{f"data_batch_{i}.bin": file(part) for i, part in enumerate(parts, 1)},
        "test_batch.bin": file(splits["test"]),
    }


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_files(tiny_splits: dict[str, Split]) -> dict[str, bytes]:
    return archive_files(tiny_splits)


@pytest.fixture
def tiny_archive(tmp_path: pathlib.Path, tiny_files: dict[str, bytes], tiny_digests: dict[str, str]) -> str:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(tar_gz(tiny_files))
    return str(path)


def read_with_plain_tfds(root: str, split: str, report: str) -> Any:
    """Evaluates `report` over `source`, TFDS's own reading of CIFAR-10, in a process without this project."""
    code = textwrap.dedent(
        f"""
        import hashlib, json, sys
        import numpy as np
        import tensorflow_datasets as tfds
        source = tfds.data_source("cifar10", split={split!r}, download=False)
        print(json.dumps({report}))
        """
    )
    environment = {**os.environ, "TFDS_DATA_DIR": root}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def test_an_archive_is_prepared_as_tfds_would(
    tmp_path: pathlib.Path, tiny_archive: str, tiny_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
):
    root = str(tmp_path / "new" / "tfds")
    before = pathlib.Path(tiny_archive).read_bytes()
    assert_equal(load(TINY, root, tiny_archive), tiny_splits)
    assert pathlib.Path(tiny_archive).read_bytes() == before
    assert [path.name for path in pathlib.Path(root).iterdir()] == ["cifar10"]
    assert [path.name for path in pathlib.Path(root, "cifar10").iterdir()] == ["3.0.2"]

    for name, split in tiny_splits.items():
        report = "[source.dataset_info.features['label'].names, [[e['id'].decode(), int(e['label'])] for e in source]]"
        names, examples = read_with_plain_tfds(root, name, report)
        assert names == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        assert examples == [[f"{name}_{i:05d}", label] for i, label in enumerate(split.labels.tolist())]

    # What was written decodes to the same arrays, without the cache that preparing has left.
    shutil.rmtree(pathlib.Path(root, "cifar10", "3.0.2", "mobilenet_jax"))
    assert_equal(load(TINY, root), tiny_splits)


def test_a_prepared_set_goes_before_the_archive(
    tmp_path: pathlib.Path, tiny_archive: str, tiny_splits: dict[str, Split], capfd: pytest.CaptureFixture[str]
):
    load(TINY, str(tmp_path), tiny_archive)
    capfd.readouterr()
    assert_equal(load(TINY, str(tmp_path), str(tmp_path / "none.tar.gz")), tiny_splits)
    message = capfd.readouterr().err
    assert "none.tar.gz is not read" in message and message.count("\n") == 1


def altered(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    return {**files, name: bytes(content)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda files: tar_gz(files)[: len(tar_gz(files)) // 2],
            r"its train split, no data_batch_\d.bin.*ended before",
        ),
        (lambda files: tar_gz(altered(files, "data_batch_3.bin")), "its train split has other content"),
        (lambda files: tar_gz(altered(files, "test_batch.bin")), "its test split has other content"),
        (lambda files: tar_gz({**files, "data_batch_2.bin": files["data_batch_2.bin"][:-1]}), "no data_batch_2.bin of"),
        (
            lambda files: tar_gz({k: v for k, v in files.items() if k != "test_batch.bin"}),
            "its test split, no test_batch",
        ),
        (lambda files: tar_gz({"data_batch_0.bin": bytes(10**7), **files}), "unpacks to more than it should"),
        (lambda files: gzip.compress(b"not a tar archive" * 100), "no data_batch_1.bin"),
        (lambda files: b"not gzipped", "Not a gzipped file"),
        (lambda files: b"", "no data_batch_1.bin"),
    ],
)
def test_a_wrong_archive_is_refused_and_nothing_written(
    spoil: Callable[[Mapping[str, bytes]], bytes],
    message: str,
    tmp_path: pathlib.Path,
    tiny_files: dict[str, bytes],
    tiny_digests: dict[str, str],
):
    archive = tmp_path / "spoilt.tar.gz"
    archive.write_bytes(spoil(tiny_files))
    with pytest.raises(InputError, match=message) as error:
        load(TINY, str(tmp_path / "tfds"), str(archive))
    assert str(archive) in str(error.value)
    assert list(tmp_path.iterdir()) == [archive]


def test_an_archive_that_cannot_be_opened(tmp_path: pathlib.Path):
    for archive, message in ((tmp_path / "none.tar.gz", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"config.data.archive='{archive}' cannot be read: {message}"):
            load(CIFAR10, str(tmp_path / "tfds"), str(archive))
    assert not list(tmp_path.iterdir())


def test_a_data_directory_that_cannot_be_written(tmp_path: pathlib.Path, tiny_archive: str):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(InputError, match=f"cannot be written to {root}.*--config.data.dir"):
        load(TINY, str(root), tiny_archive)


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: pathlib.Path, tiny_archive: str, monkeypatch: pytest.MonkeyPatch
):
    def write_cache(splits: Mapping[str, Split], cache: pathlib.Path) -> None:
        assert (cache.parent / "dataset_info.json").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_write_cache", write_cache)
    with pytest.raises(InputError, match="No space left on device"):
        load(TINY, str(tmp_path / "tfds"), tiny_archive)
    assert not (tmp_path / "tfds").exists()


SLOW_WRITER = """
import dataclasses, sys, time
from mobilenet_jax import data, datasets

root, archive, train, test = sys.argv[1:]
data.CIFAR10_SHA256 = {"train": train, "test": test}
write = data._write_tfds

def slow(splits, staging):
    directory = write(splits, staging)
    print("writing", flush=True)
    time.sleep(2)
    return directory

data._write_tfds = slow
tiny = dataclasses.replace(datasets.describe("cifar10"), train_size=15, test_size=3)
print(data.load(tiny, root, archive)["train"].labels.tolist())
"""


def start_slow_writer(root: pathlib.Path, archive: str, digests: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_WRITER, str(root), archive, digests["train"], digests["test"]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_prepare_once(
    tmp_path: pathlib.Path, tiny_archive: str, tiny_digests: dict[str, str], tiny_splits: dict[str, Split]
):
    root = tmp_path / "tfds"
    first = start_slow_writer(root, tiny_archive, tiny_digests)
    assert first.stdout is not None and first.stdout.readline() == "writing\n"
    second = start_slow_writer(root, tiny_archive, tiny_digests)
    labels = f"{tiny_splits['train'].labels.tolist()}\n"
    out, err = second.communicate(timeout=30)
    assert (second.returncode, out) == (0, labels)  # it has written nothing itself
    assert err == f"waiting for another process, which prepares cifar10 in {root}\n"
    out, err = first.communicate(timeout=30)
    assert (first.returncode, out) == (0, labels)
    assert "preparing cifar10" in err and "waiting" not in err
    assert [path.name for path in root.iterdir()] == ["cifar10"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_nothing_that_counts(
    number: signal.Signals,
    tmp_path: pathlib.Path,
    tiny_archive: str,
    tiny_digests: dict[str, str],
    tiny_splits: dict[str, Split],
):
    root = tmp_path / "tfds"
    process = start_slow_writer(root, tiny_archive, tiny_digests)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    assert datasets.prepared("cifar10", str(root)) is None
    assert root.exists() == (number == signal.SIGKILL)
    assert_equal(load(TINY, str(root), tiny_archive), tiny_splits)
    assert [path.name for path in root.iterdir()] == ["cifar10"]


# The download.


@contextlib.contextmanager
def web_server(respond: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        finally:
            server.shutdown()
            thread.join()


def serve(content: bytes, length: int, pause: threading.Event | None = None) -> Any:
    def respond(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(content)
        if pause is not None:
            pause.wait(10)

    return respond


def assert_three_ways_out(tmp_path: pathlib.Path, url: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=reason) as error:
        load(TINY, str(tmp_path / "tfds"))
    assert time.monotonic() - start < 15
    message = str(error.value)
    for way in (url, "--config.data.archive=", "TFDS_DATA_DIR", "--config.data.dir=", "--config configs/digits_v1.py"):
        assert way in message
    assert message.count("\n") == 0
    assert not (tmp_path / "tfds").exists()


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.NETWORK_SECONDS + 3 < 15
    monkeypatch.setattr(data, "NETWORK_SECONDS", 0.5)


def test_download(
    tmp_path: pathlib.Path,
    tiny_files: dict[str, bytes],
    tiny_digests: dict[str, str],
    tiny_splits: dict[str, Split],
    monkeypatch: pytest.MonkeyPatch,
):
    content = tar_gz(tiny_files)
    with web_server(serve(content, len(content))) as url:
        monkeypatch.setattr(data, "CIFAR10_URL", url)
        assert_equal(load(TINY, str(tmp_path / "tfds")), tiny_splits)
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["cifar10"]


def test_downloads_that_are_wrong(
    tmp_path: pathlib.Path,
    tiny_files: dict[str, bytes],
    tiny_digests: dict[str, str],
    short_patience: None,
    monkeypatch: pytest.MonkeyPatch,
):
    content, pause = tar_gz(tiny_files), threading.Event()
    half = content[: len(content) // 2]
    cases = [
        (serve(half, len(content)), "."),  # truncated: whichever of http.client and gzip notices first
        (serve(half, len(half)), "data_batch_"),
        (serve(half, len(content), pause), "timed out"),  # stalls
        (serve(tar_gz(altered(tiny_files, "test_batch.bin")), 10**7), "its test split has other content"),
        (lambda handler: handler.send_error(404), "404"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "nonsense"),
        (lambda handler: pause.wait(10), "timed out|no answer"),
    ]
    for respond, reason in cases:
        with web_server(respond) as url:
            monkeypatch.setattr(data, "CIFAR10_URL", url)
            assert_three_ways_out(tmp_path, url, reason)
            pause.set()
            pause.clear()


def test_a_server_that_refuses_and_one_that_never_answers(
    tmp_path: pathlib.Path, short_patience: None, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(data, "CIFAR10_URL", url)
        assert_three_ways_out(tmp_path, url, "timed out|no answer")
    assert_three_ways_out(tmp_path, url, "refused")


def test_name_resolution_that_hangs(tmp_path: pathlib.Path, short_patience: None, monkeypatch: pytest.MonkeyPatch):
    released = threading.Event()

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        released.wait(10)
        raise socket.gaierror("no name service")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        assert_three_ways_out(tmp_path, data.CIFAR10_URL, "no answer in 0.5 seconds")
    finally:
        released.set()


# The real CIFAR-10.


@pytest.fixture(scope="session")
def cifar10_dir() -> str:
    """Where TFDS holds the real CIFAR-10. Nothing is written there but the cache."""
    root = str(datasets.data_root())
    if datasets.prepared("cifar10", root) is None:
        pytest.skip(f"CIFAR-10 is not prepared in {root} (TFDS_DATA_DIR names another directory)")
    return root


@pytest.fixture(scope="session")
def cifar10_splits(cifar10_dir: str) -> dict[str, Split]:
    return load(CIFAR10, cifar10_dir)


def test_cifar10_is_what_the_table_says(cifar10_dir: str, cifar10_splits: dict[str, Split]):
    found = datasets.prepared("cifar10", cifar10_dir)
    assert found is not None and found[1] == CIFAR10
    assert [len(cifar10_splits[name]) for name in ("train", "test")] == [50_000, 10_000]
    for split in cifar10_splits.values():
        np.testing.assert_array_equal(np.bincount(split.labels), len(split) // 10)


def test_cifar10_again_decodes_nothing(cifar10_dir: str, cifar10_splits: dict[str, Split]):
    """The second start maps the cached arrays: it imports neither TFDS nor a decoder."""
    code = (
        "import sys; from mobilenet_jax import data, datasets; data.load(datasets.describe('cifar10'))\n"
        "print(sorted({'tensorflow_datasets', 'PIL', 'jax'} & set(sys.modules)))"
    )
    environment = {**os.environ, "TFDS_DATA_DIR": cifar10_dir}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_real_archive_prepares_and_an_altered_one_does_not(
    tmp_path: pathlib.Path, cifar10_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
):
    files = archive_files(cifar10_splits)
    if any(
        hashlib.sha256(split.images.tobytes() + split.labels.astype(np.uint8).tobytes()).hexdigest()
        != data.CIFAR10_SHA256[name]
        for name, split in cifar10_splits.items()
    ):
        pytest.skip("CIFAR-10 is prepared in another order than the published one")
    archive, root = tmp_path / "cifar-10-binary.tar.gz", str(tmp_path / "tfds")

    archive.write_bytes(tar_gz(altered(files, "data_batch_4.bin")))
    with pytest.raises(InputError, match=re.escape(str(archive)) + ".*its train split has other content"):
        load(CIFAR10, root, str(archive))
    assert list(tmp_path.iterdir()) == [archive]

    archive.write_bytes(tar_gz(files))
    assert_equal(load(CIFAR10, root, str(archive)), cifar10_splits)
    report = (
        "[len(source), source[0]['image'].tolist(), source.dataset_info.features['label'].int2str(int(source[-1 % "
        "len(source)]['label']))]"
    )
    length, image, label = read_with_plain_tfds(root, "train", report)
    assert length == 50_000
    np.testing.assert_array_equal(image, cifar10_splits["train"].images[0])
    assert label == "automobile"  # the last training image's label is 1
    assert cifar10_splits["train"].labels[-1] == 1
