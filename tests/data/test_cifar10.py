"""CIFAR-10 from small archives, from a local server, and the real set where it is prepared."""

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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from helpers import assert_equal, environment, python, random_splits

from mobilenet_jax.data import arrays, cifar10, datasets
from mobilenet_jax.data.arrays import Split, load
from mobilenet_jax.data.datasets import describe
from mobilenet_jax.errors import InputError

CIFAR10 = describe("cifar10")
TINY = dataclasses.replace(CIFAR10, train_size=15, test_size=3)  # CIFAR-10 with 3 images per file


# Preparing CIFAR-10 from its archive.


@pytest.fixture(scope="session")
def tiny_splits() -> dict[str, Split]:
    return random_splits(0, {"train": 15, "test": 3}, side=32, channels=3, classes=10)


@pytest.fixture
def tiny_digests(tiny_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make the content of `tiny_splits` the published one."""
    digests = {
        name: hashlib.sha256(split.images.tobytes() + split.labels.astype(np.uint8).tobytes()).hexdigest()
        for name, split in tiny_splits.items()
    }
    monkeypatch.setattr(cifar10, "SHA256", digests)
    return digests


def archive_files(splits: Mapping[str, Split]) -> dict[str, bytes]:
    """Return the binary files: for each image its label, then its red, green and blue planes."""

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


def read_with_plain_tfds(root: str, report: str) -> Any:
    """Evaluate `report` over `sources`, the splits as TFDS alone reads them, in a process without this project."""
    code = textwrap.dedent(
        f"""
        import json
        import tensorflow_datasets as tfds
        sources = tfds.data_source("cifar10", download=False)
        print(json.dumps({report}))
        """
    )
    env = os.environ | {"TFDS_DATA_DIR": root}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def visible(root: pathlib.Path) -> list[str]:
    return [path.name for path in root.iterdir()]


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


def altered(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    content = bytearray(files[name])
    content[len(content) // 2] ^= 1
    return {**files, name: bytes(content)}


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
            pause.wait(60)

    return respond


def assert_three_ways_out(tmp_path: pathlib.Path, url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        load(TINY, str(tmp_path / "tfds"))
    message = str(error.value)
    for way in (url, "--config.data.archive=", "TFDS_DATA_DIR", "--config.data.dir=", "--config configs/digits_v1.py"):
        assert way in message
    assert message.count("\n") == 0
    assert not visible(tmp_path / "tfds")


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "NETWORK_SECONDS", 0.3)


def test_download(
    tmp_path: pathlib.Path,
    tiny_files: dict[str, bytes],
    tiny_digests: dict[str, str],
    tiny_splits: dict[str, Split],
    monkeypatch: pytest.MonkeyPatch,
):
    content = tar_gz(tiny_files)
    with web_server(serve(content, len(content))) as url:
        monkeypatch.setattr(cifar10, "URL", url)
        assert_equal(load(TINY, str(tmp_path / "tfds")), tiny_splits)
    assert visible(tmp_path / "tfds") == ["cifar10"]


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
        (serve(half, len(content)), "."),  # truncated: http.client or gzip notices first
        (serve(half, len(half)), "data_batch_"),
        (serve(half, len(content), pause), "timed out"),  # stalls
        (serve(tar_gz(altered(tiny_files, "test_batch.bin")), 10**7), "its test split has other content"),
        (lambda handler: handler.send_error(404), "404"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "nonsense"),
        (lambda handler: pause.wait(60), "timed out"),
    ]
    for respond, reason in cases:
        with web_server(respond) as url:
            monkeypatch.setattr(cifar10, "URL", url)
            assert_three_ways_out(tmp_path, url, reason)
            pause.set()
            pause.clear()


def test_a_server_that_refuses_and_one_that_never_answers(
    tmp_path: pathlib.Path, short_patience: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(cifar10, "URL", url)
        assert_three_ways_out(tmp_path, url, "timed out")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail(capfd.readouterr().err))
    with pytest.raises(pytest.fail.Exception, match=f"downloading cifar10 from {url}"):  # before the name is looked up
        load(TINY, str(tmp_path / "tfds"))
    monkeypatch.undo()
    monkeypatch.setattr(cifar10, "URL", url)
    assert_three_ways_out(tmp_path, url, "refused")


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
