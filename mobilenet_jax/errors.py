"""The one exception whose message is written for the user, and what others come to in such a message."""

import errno
import os

# No room, or nothing may be written: in the words of the system, of SQLite, of PostgreSQL.
_UNWRITABLE = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)]
_UNWRITABLE += ["disk is full", "readonly database", "read-only transaction"]


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what is allowed.

    `launch.py` prints the sentence and exits with 1; every other exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        """One line, whatever was typed: what does not print, such as a line's end, is escaped as in Python."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough to be part of a sentence; its type where it says nothing."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if len(line) <= 200:
        return line
    return next(
        (words for words in _UNWRITABLE if words in str(error)), line[:200]
    )  # it stands deep in what Orbax says


def is_unwritable(error: BaseException | None) -> bool:
    """Whether it, or what it came of, is a disk without room or not to be written: the next to try would fail too."""
    while error is not None:
        if any(words in str(error) for words in _UNWRITABLE):
            return True
        error = error.__cause__ or error.__context__
    return False
