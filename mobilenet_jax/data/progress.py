"""Show how far a long task on a data set is."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from mobilenet_jax import console

_REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def progress(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Print the task on standard error and, on a terminal, show a bar until the block ends.

    Yields:
      A function that adds an amount to the work done, of `total` images or bytes.
    """
    from rich.console import Console  # late: most runs find their data cached
    from rich.progress import Progress

    quietly, terminal = contextlib.suppress(OSError), sys.stderr.isatty()  # if the terminal is closed, the work goes on
    console.warn(task)
    stderr = Console(stderr=True, force_terminal=terminal)  # else FORCE_COLOR makes a terminal of a pipe
    bar = Progress(console=stderr, auto_refresh=False, transient=True, disable=not terminal)
    work, shown = bar.add_task("", total=total), 0.0

    def advance(amount: int) -> None:
        nonlocal shown
        bar.advance(work, amount)
        if time.monotonic() - shown > _REFRESH_SECONDS:
            shown = time.monotonic()
            with quietly:
                bar.refresh()

    with quietly:
        bar.start()
        stderr.show_cursor()  # rich hides it, and a kill would leave it hidden
    try:
        yield advance
    finally:
        with quietly:
            bar.stop()
