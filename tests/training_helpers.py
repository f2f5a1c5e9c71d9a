"""Training that takes a second: a network of one block, and runs that something ends after a given step.

    STOP="SIGTERM 30" python tests/training_helpers.py ARGUMENTS

does what `python launch.py ARGUMENTS` does, with that network, and sends the process a signal after that step.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mobilenet_jax import config
from mobilenet_jax.config import RunSpec
from mobilenet_jax.networks.arch import Architecture, Layer


class Crash(BaseException):
    """Ends a run as a crash ends its process: at once."""


def crash() -> None:
    raise Crash


def send(signum: int) -> Callable[[], None]:
    """Return a function that sends this process a signal."""
    return lambda: os.kill(os.getpid(), signum)


@contextlib.contextmanager
def one_block() -> Iterator[None]:
    """Cut every MobileNet v1 that is built after its first block: three convolutions compile within two seconds."""
    whole = config._build

    def cut(version: str, **options: Any) -> Architecture:
        network = whole(version, **options)
        if version != "v1":
            return network
        layers = network.layers[:3]
        width = layers[-1].out_channels
        top = (Layer("pool", "pool", width, width), Layer("classifier", "dense", width, network.num_classes))
        return dataclasses.replace(network, layers=layers + top)

    config._build = cut
    try:
        yield
    finally:
        config._build = whole


@contextlib.contextmanager
def compile_once() -> Iterator[None]:
    """Let this process compile and trace each run's program once. A run gets its own copy of the first states."""
    import jax
    import numpy as np

    from mobilenet_jax.training import loop

    real, kept = loop.compile_runs, {}

    def compile_runs(specs: Sequence[RunSpec], inputs: Any) -> Any:
        key = tuple(spec.digest for spec in specs)
        if key not in kept:
            program = real(specs, inputs)
            kept[key] = dataclasses.replace(program, states=jax.device_get(program.states))
        return dataclasses.replace(kept[key], states=jax.tree.map(np.array, kept[key].states))

    loop.compile_runs = compile_runs
    try:
        yield
    finally:
        loop.compile_runs = real


@contextlib.contextmanager
def after(step: int, action: Callable[[], Any]) -> Iterator[None]:
    """Call `action` each time that a run has shown that many steps. Up to two more have then started."""
    from mobilenet_jax.training.progress import Display

    advance = Display.advance

    def stopping(self: Display, steps: int, loss: float, accuracy: float, images_per_second: float) -> None:
        advance(self, steps, loss, accuracy, images_per_second)
        if self.step - steps < step <= self.step:
            action()

    Display.advance = stopping
    try:
        yield
    finally:
        Display.advance = advance


def run(overrides: dict[str, Any], directory: pathlib.Path) -> int:
    """Train in this process; return the exit code."""
    from helpers import spec_of

    from mobilenet_jax.training import loop

    return loop.run(spec_of(overrides), directory)


def printed(overrides: dict[str, Any], directory: pathlib.Path) -> str:
    """Run to the end; return what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run(overrides, directory) == 0
    return output.getvalue()


def saved(directory: pathlib.Path) -> set[str]:
    """Return the steps of the checkpoints."""
    return {path.stem for path in (directory / "checkpoints").iterdir()}


def main() -> int:
    import launch

    name, step, *checkpoint = os.environ.get("STOP", "SIGTERM 0").split()

    def stop() -> None:
        while not all(pathlib.Path(path).exists() for path in checkpoint):  # it is written in the background
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, name))

    with one_block(), after(int(step), stop):
        return launch.run()


if __name__ == "__main__":
    sys.exit(main())
