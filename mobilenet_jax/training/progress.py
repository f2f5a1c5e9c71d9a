"""The progress of one run: a bar on a terminal, plain lines when piped, rows for a program that listens."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from mobilenet_jax import console

_LINE_SECONDS = 30.0  # between plain progress lines inside an epoch
_LISTENER_SECONDS = 1.0  # between positions that a listener gets
_REFRESH_SECONDS = 0.1  # between two states of the bar


class Display:
    """Shows the progress of one run.

    Args:
      listener: gets each row of metrics, and about once a second the position as `step`, `steps`,
        `train_accuracy`, `images_per_second`. With a listener nothing is drawn, and lines go to standard error.
    """

    def __init__(self, listener: Callable[[Mapping[str, Any]], None] | None = None):
        self.step = 0  # steps whose metrics have arrived
        self._listener = listener
        self._bar: Any = None  # rich's Progress, on a terminal
        self._last = time.monotonic()  # when something was shown last

    def begin(self, total_steps: int, step: int, steps_per_epoch: int, batch_size: int) -> None:
        """Start to show a run of `total_steps` that goes on from `step`."""
        self._total, self.step, self._per_epoch, self._batch = total_steps, step, steps_per_epoch, batch_size
        self.log({"step": step, "steps": total_steps})
        if sys.stdout.isatty() and self._listener is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress

            columns = ("{task.description} {task.percentage:3.0f}%", BarColumn(), "{task.fields[figures]}")
            self._bar = Progress(*columns, console=Console(file=sys.stdout, highlight=False), auto_refresh=False)
            console.draw(self._bar.start)
            console.draw(self._bar.console.show_cursor)  # rich hides it, and a kill would leave it hidden
            self._bar.add_task("", total=total_steps, completed=step, figures="")

    def advance(self, steps: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show that more steps are done: mean loss and accuracy (a fraction) of the epoch so far, and the rate."""
        self.step += steps
        since = time.monotonic() - self._last
        if self._listener is not None:
            if since > _LISTENER_SECONDS:
                self._last = time.monotonic()
                figures = {"train_accuracy": accuracy, "images_per_second": images_per_second}
                self._listener({"step": self.step, "steps": self._total, **figures})
            return
        images = (self._total - self.step) * self._batch
        left = console.clock(images / images_per_second) if images_per_second else "unknown"
        figures = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {images_per_second:,.0f} images/s  ETA {left}"
        if self._bar is None:
            if since > _LINE_SECONDS:
                self.line(f"  step {self.step:,}/{self._total:,}  {figures}")
        elif since > _REFRESH_SECONDS or self.step == self._total:
            self._last = time.monotonic()
            epoch = f"epoch {(self.step - 1) // self._per_epoch + 1}/{self._total // self._per_epoch}"
            self._bar.update(0, completed=self.step, description=epoch, figures=figures)
            console.draw(self._bar.refresh)

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._last = time.monotonic()
        if self._bar is not None:
            console.draw(lambda: self._bar.console.print(text, markup=False, soft_wrap=True))
        elif self._listener is not None:
            console.warn(text)
        else:
            console.say(text)

    def log(self, row: Mapping[str, Any]) -> None:
        """Pass a row of metrics to the listener; for people, the loop prints a line."""
        if self._listener is not None:
            self._listener(row)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            console.draw(self._bar.stop)
