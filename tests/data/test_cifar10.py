"""CIFAR-10 from small archives, and the real set where it is prepared."""

import dataclasses
import gzip
import hashlib
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from cifar10_archives import CIFAR10, TINY, altered, archive_files, read_with_plain_tfds, tar_gz, visible
from helpers import assert_equal, environment, python

from mobilenet_jax.data import arrays, cifar10, datasets
from mobilenet_jax.data.arrays import Split, load
from mobilenet_jax.errors import InputError


@pytest.fixture
def tiny_archive(tmp_path: pathlib.Path, tiny_files: dict[str, bytes], tiny_digests: dict[str, str]) -> str:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(tar_gz(tiny_files))
    return str(path)


def test_an_archive_is_prepared_as_tfds_would(tmp_path: pathlib.Path, tiny_archive: str, tiny_splits: dict[str, Split]):
    root = tmp_path / "new" / "tfds"
    before = pathlib.Path(tiny_archive).read_bytes()
    assert_equal(load(TINY, str(root), tiny_archive), tiny_splits)
    assert pathlib.Path(tiny_archive).read_bytes() == before
    assert (visible(root), visible(root / "cifar10")) == (["cifar10"], ["3.0.2"])

    names = "source.dataset_info.features['label'].names"
    examples = "[[e['id'].decode(), int(e['label'])] for e in source]"
    found = read_with_plain_tfds(str(root), f"{{name: [{names}, {examples}] for name, source in sources.items()}}")
    assert found == {
        name: [
            ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
            [[f"{name}_{i:05d}", label] for i, label in enumerate(split.labels.tolist())],
        ]
        for name, split in tiny_splits.items()
    }

    # The written files decode to the same arrays, without the cache that preparing has left.
    shutil.rmtree(root / "cifar10" / "3.0.2" / "mobilenet_jax")
    assert_equal(load(TINY, str(root)), tiny_splits)


def test_a_prepared_set_goes_before_the_archive(
    tmp_path: pathlib.Path, tiny_archive: str, tiny_splits: dict[str, Split], capfd: pytest.CaptureFixture[str]
):
    load(TINY, str(tmp_path), tiny_archive)
    capfd.readouterr()
    assert_equal(load(TINY, str(tmp_path), str(tmp_path / "none.tar.gz")), tiny_splits)
    message = capfd.readouterr().err
    assert "none.tar.gz is not read" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: tar_gz(files)[: len(tar_gz(files)) // 2], r"no data_batch_\d.bin.*ended before"),
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
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_an_archive_that_cannot_be_opened(tmp_path: pathlib.Path):
    for archive, message in ((tmp_path / "none.tar.gz", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"config.data.archive='{archive}' cannot be read: {message}"):
            load(CIFAR10, str(tmp_path / "tfds"), str(archive))
    assert visible(tmp_path) == ["tfds"] and not visible(tmp_path / "tfds")


def test_a_data_directory_that_cannot_be_written(tmp_path: pathlib.Path, tiny_archive: str):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(InputError, match=f"cannot be written to {root}.*--config.data.dir"):
        load(TINY, str(root), tiny_archive)


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: pathlib.Path, tiny_archive: str, monkeypatch: pytest.MonkeyPatch
):
    def write_cache(splits: Mapping[str, Split], dataset: Any, directory: pathlib.Path) -> None:
        assert (directory / "dataset_info.json").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays, "_write_cache", write_cache)
    with pytest.raises(InputError, match="No space left on device"):
        load(TINY, str(tmp_path / "tfds"), tiny_archive)
    assert not visible(tmp_path / "tfds")


WRITER = """
import dataclasses, sys
from mobilenet_jax.data import arrays, cifar10, datasets

root, archive, train, test = sys.argv[1:]
cifar10.SHA256 = {"train": train, "test": test}
write = cifar10.write

def write_and_wait(splits, staging):
    directory = write(splits, staging)
    print("writing", flush=True)
    sys.stdin.readline()
    return directory

cifar10.write = write_and_wait
tiny = dataclasses.replace(datasets.describe("cifar10"), train_size=15, test_size=3)
print(arrays.load(tiny, root, archive)["train"].labels.tolist())
"""


def start_writer(root: pathlib.Path, archive: str, digests: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process that prepares the tiny set and, before it renames the files, waits for a line of input."""
    command = [sys.executable, "-c", WRITER, str(root), archive, digests["train"], digests["test"]]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())


def test_two_processes_prepare_once(
    tmp_path: pathlib.Path, tiny_archive: str, tiny_digests: dict[str, str], tiny_splits: dict[str, Split]
):
    root = tmp_path / "tfds"
    first = start_writer(root, tiny_archive, tiny_digests)
    assert first.stdout is not None and first.stdout.readline() == "writing\n"
    second = start_writer(root, tiny_archive, tiny_digests)
    assert second.stderr is not None
    assert second.stderr.readline() == f"waiting for another process, which prepares cifar10 in {root}\n"
    labels = f"{tiny_splits['train'].labels.tolist()}\n"
    out, err = first.communicate("go on\n", timeout=60)
    assert (first.returncode, out) == (0, labels)
    assert "preparing cifar10" in err and "waiting" not in err
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out, err) == (0, labels, "")  # it has written nothing itself
    assert visible(root) == ["cifar10"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_nothing_that_counts(
    number: signal.Signals,
    tmp_path: pathlib.Path,
    tiny_archive: str,
    tiny_digests: dict[str, str],
    tiny_splits: dict[str, Split],
):
    root = tmp_path / "tfds"
    process = start_writer(root, tiny_archive, tiny_digests)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert datasets.prepared("cifar10", str(root)) is None
    assert_equal(load(TINY, str(root), tiny_archive), tiny_splits)
    assert visible(root) == ["cifar10"]


# The real CIFAR-10.


@pytest.fixture(scope="session")
def cifar10_dir() -> str:
    """Return the data directory with the real CIFAR-10. The tests write nothing there but the cache."""
    root = str(datasets.data_root())
    if datasets.prepared("cifar10", root) is None:
        pytest.skip(f"CIFAR-10 is not prepared in {root} (TFDS_DATA_DIR names another directory)")
    return root


@pytest.fixture(scope="session")
def cifar10_splits(cifar10_dir: str) -> dict[str, Split]:
    return load(CIFAR10, cifar10_dir)


def test_cifar10_is_what_the_table_says(cifar10_dir: str, cifar10_splits: dict[str, Split]):
    found = datasets.prepared("cifar10", cifar10_dir)
    assert found is not None
    described = datasets.describe_prepared("cifar10", found, pathlib.Path(cifar10_dir))
    assert dataclasses.replace(described, version="", fingerprint="") == CIFAR10
    assert [len(cifar10_splits[name]) for name in ("train", "test")] == [50_000, 10_000]
    for split in cifar10_splits.values():
        np.testing.assert_array_equal(np.bincount(split.labels), len(split) // 10)


def test_cifar10_again_decodes_nothing(cifar10_dir: str, cifar10_splits: dict[str, Split]):
    """The second start reads the cached arrays: it imports neither TFDS nor a decoder."""
    code = (
        "import sys; from mobilenet_jax.data import arrays, datasets; "
        "arrays.load(datasets.describe('cifar10'), sys.argv[1])\n"
        "print(*{'tensorflow_datasets', 'PIL', 'jax'} & set(sys.modules))"
    )
    assert python(code, cifar10_dir) == [""]


@pytest.mark.slow
def test_a_real_archive_prepares_and_an_altered_one_does_not(
    tmp_path: pathlib.Path, cifar10_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch
):
    files = archive_files(cifar10_splits)
    if any(
        hashlib.sha256(split.images.tobytes() + split.labels.astype(np.uint8).tobytes()).hexdigest()
        != cifar10.SHA256[name]
        for name, split in cifar10_splits.items()
    ):
        pytest.skip("CIFAR-10 is prepared in another order than the published one")
    archive, root = tmp_path / "cifar-10-binary.tar.gz", str(tmp_path / "tfds")

    archive.write_bytes(tar_gz(altered(files, "data_batch_4.bin")))
    with pytest.raises(InputError, match=re.escape(str(archive)) + ".*its train split has other content"):
        load(CIFAR10, root, str(archive))
    assert not visible(tmp_path / "tfds")

    archive.write_bytes(tar_gz(files))
    assert_equal(load(CIFAR10, root, str(archive)), cifar10_splits)
    label = "source.dataset_info.features['label'].int2str(int(source[49_999]['label']))"
    report = f"(lambda source: [len(source), source[0]['image'].tolist(), {label}])(sources['train'])"
    length, image, label = read_with_plain_tfds(root, report)
    assert length == 50_000
    np.testing.assert_array_equal(image, cifar10_splits["train"].images[0])
    assert label == "automobile"  # the last training image's label is 1
    assert cifar10_splits["train"].labels[-1] == 1
