"""Collect signals, and print in a way that survives a closed pipe."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is SLURM's warning


@contextlib.contextmanager
def signals(again: bool = False) -> Iterator[list[int]]:
    """Collect SIGNALS in the list that this yields, except those that are ignored (by nohup, say).

    After the first signal, they act as usual, unless `again` is set.
    """
    asked: list[int] = []
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}

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


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line on standard output or on `stream`. Once that is closed or full, later output is dropped."""
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:  # a path that this locale cannot show
        print(ascii(text)[1:-1], file=stream, flush=True)
    except OSError:
        mute(stream)  # else Python would fail to flush it at the end, and exit with 120


def warn(text: str) -> None:
    """Print a line to standard error, if that is possible."""
    say(text, sys.stderr)


def mute(stream: TextIO | None = None) -> None:
    """Send standard output, or `stream`, nowhere from now on, text that is still buffered included."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (stream or sys.stdout).fileno())
        os.close(nowhere)


def draw(action: Callable[[], Any]) -> None:
    """Draw on the terminal; once that is closed, later output is dropped."""
    try:
        action()
    except OSError:
        mute()


def clock(seconds: float) -> str:
    """Return a duration as minutes:seconds or hours:minutes:seconds, '02:05' or '1:02:05'."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"
