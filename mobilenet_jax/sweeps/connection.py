"""The connection of a running sweep to its queue: results wait here while the database is away."""

import time
from collections.abc import Callable, Sequence

from mobilenet_jax.sweeps import queue
from mobilenet_jax.sweeps.database import Unavailable, Unwritable
from mobilenet_jax.sweeps.processes import Job
from mobilenet_jax.sweeps.queue import Entry, Queue

PATIENCE = 600.0  # seconds that an idle sweep waits for its database


class Connection:
    """The queue as one command sees it: the last known state of all points, and the results not yet recorded."""

    def __init__(self, queue: Queue, line: Callable[[str], None]):
        """`line` prints a line for the user."""
        self.queue, self.line = queue, line
        self.entries: list[Entry] = []
        self.open = 1  # waiting or running trials, on all machines
        self.next_heartbeat = self._next_look = 0.0
        self._updates: list[Callable[[], None]] = []
        self._outage: Unavailable | None = None  # why the database does not answer
        self._idle_from = time.monotonic()  # start of an outage without any training
        self._requeue_from = 0.0  # time from which a missing heartbeat means a dead machine
        self._allow_heartbeats()

    @property
    def settled(self) -> bool:
        """Whether the database answers, has all results, and has no open point."""
        return not (self._updates or self.open or self._outage)

    def update(self, action: Callable[[], None]) -> None:
        """Have `synchronize` run an action on the queue; it is tried again until the database answers."""
        self._updates.append(action)
        self._next_look = min(self._next_look, time.monotonic())

    def synchronize(self, jobs: Sequence[Job], drop: Callable[[Job], None]) -> None:
        """Send heartbeats and updates, read the state of all points; call `drop` for jobs whose claim is lost."""
        now = time.monotonic()
        if now >= self.next_heartbeat:
            lost = self.queue.heartbeat([job.claim for job in jobs])
            for job in jobs:
                if job.claim in lost:
                    drop(job)
            self.queue.requeue_dead(stale=now >= self._requeue_from)
            self.next_heartbeat = now + queue.HEARTBEAT
        while self._updates:
            self._updates[0]()
            self._updates.pop(0)
        if now >= self._next_look or self._outage:
            self.entries, self.open = self.queue.entries(), self.queue.count_open()
            self._next_look = now + (1.0 if jobs else 2.0)

    def attempt(self, action: Callable[[], None], training: bool) -> bool:
        """Return whether the database answered while `action` ran; an outage is printed once."""
        try:
            action()
        except Unavailable as e:
            if not self._outage:
                how = "cannot be written" if isinstance(e, Unwritable) else "does not answer"
                self.line(f"the database {how}{', training goes on' if training else ''} ({e})")
            self._outage = e
            self._allow_heartbeats()
            return False
        return True

    def check(self, answers: bool, idle: bool) -> None:
        """Raise the outage if this command is `idle`, and the database is full or has been silent for long."""
        now = time.monotonic()
        if answers:
            self._outage = None
        if not self._outage or not idle:
            self._idle_from = now
        elif isinstance(self._outage, Unwritable) or now - self._idle_from > PATIENCE:
            raise self._outage

    def _allow_heartbeats(self) -> None:
        """Give other machines time for a heartbeat before they count as dead: an outage silences them, too."""
        self._requeue_from = time.monotonic() + 2 * queue.HEARTBEAT
