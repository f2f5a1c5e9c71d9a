"""What a process hears and says: signals, and lines without whose reader it goes on."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def signals(again: bool = False) -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in the list that it yields, but for those that are ignored (by nohup, say).

    After the first they act as if nothing were caught, or with `again` are collected too.
    """
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        asked.append(number)
        if not again:
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()


def say(text: str) -> None:
    """Prints a line. Work goes on, in silence, where whoever reads is gone or the disk full."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:  # a path that is no text in this locale
        print(ascii(text)[1:-1], flush=True)
    except OSError:
        mute()


def warn(text: str) -> None:
    """Prints a line to standard error, where that can be."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def mute() -> None:
    """Has standard output go nowhere from now on, what is still to be written there included."""
    with contextlib.suppress(OSError, ValueError):  # it is no file at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
