"""The message for the user is one line; other libraries' messages are shortened."""

import errno
import os

import pytest

from mobilenet_jax.errors import InputError, first_line, is_unwritable


def test_a_message_is_one_line():
    assert str(InputError("config.a\nb\x1b[2J\u2028\udcff: α × 2")) == r"config.a\nb\x1b[2J\u2028\udcff: α × 2"
    assert str(InputError()) == ""


def test_first_line():
    assert first_line(OSError("\n  no room \nleft")) == "no room"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("x" * 500)) == "x" * 200
    assert first_line(ValueError(f"{'where ' * 90}: No space left on device {'{}' * 90}")) == "No space left on device"


def wrapped(cause: Exception) -> InputError:
    """Return an InputError with this cause, as the package raises it."""
    try:
        try:
            raise cause
        except Exception as e:
            raise InputError("the checkpoint cannot be written") from (None if isinstance(e, OSError) else e)
    except InputError as e:
        return e


@pytest.mark.parametrize(
    ("cause", "unwritable"),
    [
        *((OSError(number, os.strerror(number)), True) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)),
        *((OSError(number, os.strerror(number)), False) for number in (errno.EACCES, errno.EISDIR, errno.ENOENT)),
        (
            ValueError("RESOURCE_EXHAUSTED: Failed to write to file 11: No space left on device [os_error_code='28']"),
            True,
        ),
        (ValueError("Destination already exists"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_full_disk_is_recognised_in_any_cause(cause, unwritable):
    assert is_unwritable(wrapped(cause)) == unwritable
