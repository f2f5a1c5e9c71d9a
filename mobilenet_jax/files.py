"""Write files whole or not at all, read JSON objects, and lock paths between processes."""

import contextlib
import errno
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replace the file at `path` with `text`, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Replace the file at `path` with the temporary file that the block writes: a reader sees the old or the new one.

    The content is on the disk before the name is. The temporary name is fixed: writers of the same file need a lock.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: pathlib.Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, which the kernel releases when the process ends.

    Another holder is waited for, `timeout` seconds or, by default, without limit.

    Raises:
      TimeoutError: another process still holds the lock.
      OSError: the lock file cannot be written.
    """
    import filelock  # late: listing a sweep or counting a network needs no lock

    with filelock.FileLock(path, timeout):  # filelock.Timeout is a TimeoutError
        yield


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises:
      OSError: there is no such file, or it cannot be read, or it is no regular file.
      ValueError: it holds no JSON object, or a whole number that no float holds; the message says which.
    """
    content = read_regular_file(path)
    try:
        value = json.loads(content.decode(), parse_int=_parse_int)
    except (ValueError, RecursionError):  # the latter of deep nesting
        raise ValueError("it is no JSON") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def read_regular_file(path: pathlib.Path) -> bytes:
    """Return the bytes of the file at `path`; a pipe or a device, whose reader may wait forever, is an OSError."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a directory raises an OSError by itself
        raise OSError(errno.EINVAL, "no plain file")
    return path.read_bytes()


def _parse_int(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError("beyond what a float holds")
    return int(digits)
