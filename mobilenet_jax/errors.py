"""InputError, an error with a one-line message for the user, checks that raise it, and helpers that shorten others."""

import contextlib
import errno
import operator
import os
from collections.abc import Callable
from typing import Any

# A full, read-only or broken disk, in the words of the system, of SQLite and of PostgreSQL.
_UNWRITABLE = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)]
_UNWRITABLE += ["disk is full", "readonly database", "read-only transaction"]


class InputError(ValueError):
    """Bad input in one sentence: what is wrong, where, and what is allowed.

    The command prints the sentence and exits with 1. Every other exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        """Return one line: characters that do not print, such as line ends in a user's text, are escaped."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class Busy(InputError):
    """Another process works on the run."""


def number(name: str, value: Any, allowed: str, test: Callable[[Any], bool], whole: bool = False) -> Any:
    """Return an argument as a float or an int; raises InputError if it is no number, or does not pass the test."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool | str | bytes) and test(n := operator.index(value) if whole else float(value)):
            return n
    raise InputError(f"{name}={value!r}: allowed is {allowed}")


def first_line(error: BaseException) -> str:
    """Return the message of another library's exception, short enough for a sentence; its type if it has none."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if len(line) <= 200:
        return line
    return next((words for words in _UNWRITABLE if words in str(error)), line[:200])  # of a long message, its end


def is_unwritable(error: BaseException | None) -> bool:
    """Return whether the error or its cause is a full, read-only or broken disk: the next write would fail too."""
    while error is not None:
        if any(words in str(error) for words in _UNWRITABLE):
            return True
        error = error.__cause__ or error.__context__
    return False
