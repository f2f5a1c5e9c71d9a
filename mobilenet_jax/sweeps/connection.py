"""The connection of a worker to its database, which may not answer for a while."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from mobilenet_jax import console
from mobilenet_jax.sweeps import queue
from mobilenet_jax.sweeps.database import Unavailable, Unwritable

PATIENCE = 600.0  # seconds that a worker with nothing to train waits for its database
T = TypeVar("T")


class Connection:
    """Calls the database, prints an outage once, and waits until it is over.

    Args:
      asked: returns whether a signal came, which ends all waiting.
      training: returns whether the worker trains.
    """

    def __init__(self, asked: Callable[[], bool], training: Callable[[], bool]):
        self._asked, self._training = asked, training
        self._outage = False
        self.requeue_from = 0.0  # when a missing heartbeat means a dead machine, as an outage silences all
        self._allow_heartbeats()

    def call(self, action: Callable[..., T], *arguments: Any) -> T:
        """Return what the action returns; raises what it raises."""
        try:
            result = action(*arguments)
        except Unavailable as e:
            if not self._outage:
                how = "cannot be written" if isinstance(e, Unwritable) else "does not answer"
                console.say(f"the database {how}{', training goes on' if self._training() else ''} ({e})")
            self._outage = True
            self._allow_heartbeats()
            raise
        self._outage = False
        return result

    def reach(self, action: Callable[..., T], *arguments: Any) -> T:
        """Return what the action returns, once the database answers.

        Raises:
          Unavailable: it is full, or was silent for too long, or a signal came.
          Damaged: it is damaged.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.call(action, *arguments)
            except Unavailable as e:
                if isinstance(e, Unwritable) or self._asked() or time.monotonic() > until:
                    raise
                self.pause(1.0)

    def pause(self, seconds: float) -> None:
        """Wait, unless a signal comes."""
        until = time.monotonic() + seconds
        while not self._asked() and time.monotonic() < until:
            time.sleep(0.1)

    def _allow_heartbeats(self) -> None:
        self.requeue_from = time.monotonic() + 2 * queue.HEARTBEAT
