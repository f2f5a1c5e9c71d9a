"""Run commands, collect signals, and print in a way that survives a closed pipe."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from mobilenet_jax.errors import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is SLURM's warning


def run(command: Callable[[], int | None]) -> int:
    """Run a command on the arguments of the process; return its exit code. Errors of the user become one line."""
    if hasattr(sys.stdout, "reconfigure"):  # a stand-in for standard output may lack it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.argv[1:] = map(expand_home, sys.argv[1:])  # a shell leaves --flag=~/path as it is
        code = command() or 0
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as e:
        if isinstance(e, OSError):  # it may be standard output that cannot be written
            mute()
        if isinstance(e, BrokenPipeError):  # the reader has seen enough
            return 0
        warn(f"error: {e}")
        return 1


def expand_home(text: str, where: str = "") -> str:
    """Return a path, or an argument that ends with one, with ~ or ~USER expanded; InputError without such a home."""
    head, path = re.fullmatch(r"(?s)((?:--?[\w.-]+=)?(?:sqlite[\w+]*:///)?)(.*)", text).groups()  # type: ignore[union-attr]
    if (expanded := os.path.expanduser(path)).startswith("~"):
        raise InputError(f"{where}{text}: no home directory is known for {path.partition('/')[0]}; give the whole path")
    return head + expanded


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
    draw(lambda: print(text, file=stream, flush=True), stream)


def warn(text: str) -> None:
    """Print a line to standard error, if that is possible."""
    say(text, sys.stderr)


def mute(stream: TextIO | None = None) -> None:
    """Send standard output, or `stream`, nowhere from now on, text that is still buffered included."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be no file, or None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (stream or sys.stdout).fileno())
        os.close(nowhere)


def draw(action: Callable[[], Any], stream: TextIO | None = None) -> None:
    """Draw on the terminal, or write to `stream`. Once that is closed or full, later output is dropped."""
    try:
        action()
    except OSError:
        mute(stream)  # else Python would fail to flush it at the end, and exit with 120


def clock(seconds: float) -> str:
    """Return a duration as minutes:seconds or hours:minutes:seconds, '02:05' or '1:02:05'."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"
