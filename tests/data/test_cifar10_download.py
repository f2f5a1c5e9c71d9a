"""The download of CIFAR-10, from a local server: what is prepared, and what a failure leaves and advises."""

import contextlib
import http.server
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cifar10_archives import TINY, altered, tar_gz, visible
from helpers import assert_equal

from mobilenet_jax.data import cifar10
from mobilenet_jax.data.arrays import Split, load
from mobilenet_jax.errors import InputError


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
