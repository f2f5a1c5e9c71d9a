"""The exceptions whose message is written for the user, and what others come to in such a message."""


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what is allowed.

    `launch.py` prints the sentence and exits with 1; every other exception is a bug and keeps its traceback.
    """

    def __str__(self) -> str:
        """One line, whatever was typed: what does not print, such as a line's end, is escaped as in Python."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class Unwritable(InputError):
    """What a run needs or leaves cannot be written for now, for want of room or permission: no fault of the run."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough to be part of a sentence; its type where it says nothing."""
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
