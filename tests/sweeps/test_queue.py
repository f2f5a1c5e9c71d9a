"""The queue of a sweep: each point is claimed once and never lost. Queues on PostgreSQL: test_postgres_lock.py."""

import contextlib
import sqlite3
from typing import Any

import pytest
from sweep_helpers import FINISHED, POINTS, claimed, open_queue, states

from mobilenet_jax.records import summary as summaries
from mobilenet_jax.sweeps import database
from mobilenet_jax.sweeps.queue import GRACE, RETRIES, Queue

DIVERGED = summaries.parse(FINISHED.model_dump() | {"status": "diverged", "test_accuracy": None})


def age_heartbeats(url: str, seconds: int) -> None:
    with contextlib.closing(sqlite3.connect(database.file_of(url) or "")) as connection:
        connection.execute(f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-{seconds} seconds')")
        connection.commit()


def test_each_point_is_enqueued_and_claimed_once(url):
    one, other = open_queue(url), open_queue(url)
    claims = [claimed(queue) for queue in (one, other, one)]
    assert [(claim.digest, claim.values) for claim in claims] == list(POINTS.items())
    assert one.claim() is None and other.claim() is None
    one.finish(claims[0], FINISHED)
    one.finish(claims[2], DIVERGED)
    other.release(claims[1], "why")
    assert states(one) == {"aa": "finished", "bb": "failed", "cc": "diverged"}
    assert not any(entry.is_open for entry in one.entries())
    assert [entry.error for entry in other.entries()] == ["", "why", ""]
    open_queue(url)
    assert states(one) == {"aa": "finished", "bb": "waiting", "cc": "diverged"}


def test_a_point_that_does_not_fit_is_left(url):
    queue = open_queue(url)
    claim = queue.claim(lambda digest: digest == "bb")
    assert claim is not None and claim.digest == "bb"
    assert queue.claim(lambda digest: digest == "bb") is None
    assert states(queue) == {"aa": "waiting", "bb": "running", "cc": "waiting"}


def test_a_released_point_waits_again(url):
    queue = open_queue(url, aa={"x": 1})
    queue.release(claimed(queue))
    assert states(queue) == {"aa": "waiting"}
    again = claimed(queue)
    assert (again.digest, again.values) == ("aa", {"x": 1})


def test_a_late_result_counts(url):
    """The point was requeued in between; no process trains it again."""
    queue = open_queue(url, owner="a/0/", aa={"x": 1})
    claim = claimed(queue)
    queue.requeue_dead("a/0/")
    assert states(queue) == {"aa": "waiting"} and not queue.heartbeat(claim, {})
    queue.finish(claim, FINISHED)
    assert states(queue) == {"aa": "finished"} and queue.claim() is None
    (entry,) = queue.entries()
    assert (entry.summary, entry.values) == (FINISHED, {"x": 1})


def test_a_lost_claim_changes_nothing(url):
    """Another process has the point by now."""
    one, other = open_queue(url, owner="a/0/", aa={"x": 1}), open_queue(url, owner="b/0/", aa={"x": 1})
    lost = claimed(one)
    other.requeue_dead("a/0/")
    taken = claimed(other)
    assert not one.heartbeat(lost, {"step": 1, "steps": 2}) and other.heartbeat(taken, {})
    one.release(lost, "why")
    one.release(lost)
    (entry,) = other.entries()
    assert (entry.state, entry.error, entry.progress) == ("running", "", {})
    one.finish(lost, FINISHED)  # its result counts
    assert not other.heartbeat(taken, {})
    other.finish(taken, DIVERGED)
    assert states(other) == {"aa": "finished"}


# Processes that die.


def test_a_worker_that_starts_again_requeues_its_own_points(url):
    """Points of all other processes stay, even if one number starts with the other one."""
    for owner in ("a/1/", "a/10/", "b/1/"):
        claimed(open_queue(url, owner=owner))
    queue = open_queue(url, owner="a/1/")
    for name in ("a/0/", "a/2/", "c/", "1/"):
        assert queue.requeue_dead(name) == []
    assert queue.requeue_dead(queue.owner) == ["aa"]
    assert states(queue) == {"aa": "waiting", "bb": "running", "cc": "running"}
    assert claimed(queue).values == {"x": 1}
    assert queue.requeue_dead("a/") == ["aa", "bb"]  # as a command does for all its workers
    assert states(queue) == {"aa": "waiting", "bb": "waiting", "cc": "running"}


def test_points_without_heartbeats_are_requeued(url):
    one, other = open_queue(url, owner="a/0/"), open_queue(url, owner="b/0/")
    claims = [claimed(one), claimed(one)]
    age_heartbeats(url, GRACE - 20)
    assert other.requeue_dead() == []
    assert one.heartbeat(claims[1], {})
    age_heartbeats(url, 21)
    assert other.requeue_dead("b/0/") == []  # an outage of the database may have silenced the heartbeats
    assert other.requeue_dead() == ["aa"]
    assert states(other) == {"aa": "waiting", "bb": "running", "cc": "waiting"}
    assert not one.heartbeat(claims[0], {}) and one.heartbeat(claims[1], {})


def die(queue: Queue, epoch: int | None = None) -> str:
    """Claim the only point, report an epoch if one is given, die, and be found; return the point's state."""
    claim = claimed(queue)
    if epoch is not None:
        assert queue.heartbeat(claim, {"epoch": float(epoch), "test_accuracy": 0.5})
    found, state = queue.requeue_dead(queue.owner), states(queue)["aa"]
    assert found == (["aa"] if state == "waiting" else [])
    return state


def test_a_point_whose_processes_die_in_their_first_epoch_fails(url):
    queue = open_queue(url, owner="a/0/", aa={"x": 1})
    assert [die(queue) for _ in range(RETRIES)] == ["waiting"] * RETRIES == ["waiting"] * 5
    assert die(queue) == "failed" and queue.claim() is None
    (entry,) = queue.entries()
    assert entry.error.startswith("6 processes died while training it") and entry.values == {"x": 1}
    queue.enqueue({"aa": {"x": 1}})  # the next command tries again, and counts from the start
    assert [die(queue) for _ in range(RETRIES + 1)] == ["waiting"] * RETRIES + ["failed"]


def test_an_epoch_resets_the_count_of_deaths(url):
    """A machine that is taken away often says nothing about the point. An epoch counts once."""
    queue = open_queue(url, owner="a/0/", aa={"x": 1})
    epochs = [None] * RETRIES + [1] + [1] * (RETRIES - 1) + [2, 3]
    assert [die(queue, epoch) for epoch in epochs] == ["waiting"] * len(epochs)
    assert [die(queue, 3) for _ in range(RETRIES)] == ["waiting"] * (RETRIES - 1) + ["failed"]


def test_a_command_that_stops_its_workers_counts_no_death(url):
    queue = open_queue(url, owner="a/0/", aa={"x": 1})
    assert [die(queue) for _ in range(RETRIES)] == ["waiting"] * RETRIES
    for _ in range(2):
        claimed(queue)
        assert queue.requeue_dead("a/", stopped=True) == ["aa"]
    assert die(queue) == "failed"


@pytest.mark.parametrize("found_by", ["name", "heartbeat"])
@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_process_that_dies_while_it_claims(method, found_by, url, monkeypatch):
    """No point is lost, whichever write was the last."""
    queue = open_queue(url, method, owner="a/0/", **({"aa": {"x": 1}} if method == "grid" else {}))
    storage, left = queue._storage, 0

    def dying(name: str) -> Any:
        def call(*args, **kwargs):
            nonlocal left
            result = original(*args, **kwargs)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return result

        original = getattr(storage, name)
        return call

    for name in ("create_new_trial", "set_trial_user_attr", "record_heartbeat", "set_trial_state_values"):
        monkeypatch.setattr(storage, name, dying(name))
    monkeypatch.setattr(storage, "set_trial_param", dying("set_trial_param"))
    drawn, claim, deaths = [], None, 0
    while claim is None:
        left = deaths + 1
        try:
            claim = claimed(queue, draws=1)
        except KeyboardInterrupt:
            left, deaths = 0, deaths + 1
            running = [entry for entry in queue.entries() if entry.state == "running"]
            drawn += [entry.values["x"] for entry in running if entry.values]
            if found_by == "heartbeat":
                age_heartbeats(url, GRACE + 1)
            assert len(queue.requeue_dead(*["a/0/"] * (found_by == "name"))) == len(running)
            assert [*states(queue).values()] == ["waiting"]
    assert deaths > 3 and {*drawn} == {claim.values["x"]}  # values that were drawn stay
    assert len(queue.entries()) == 1 and (method == "random" or claim.values == {"x": 1})


# Searches, results that are lost.


def test_a_search_draws_up_to_a_limit(url):
    queue = open_queue(url, "random")
    outside, inside = claimed(queue, draws=2), claimed(queue, draws=2)
    assert queue.claim(draws=2) is None
    queue.release(outside, "")
    inside = queue.set_digest(inside, "b")
    third = queue.set_digest(claimed(queue, draws=2), "c")
    assert inside and third and queue.claim(draws=2) is None
    queue.release(third, "no data")
    queue.finish(inside, FINISHED)
    assert states(queue) == {"b": "finished", "c": "failed"} and queue.claim(draws=2) is None
    queue.enqueue({entry.digest: entry.values for entry in queue.entries() if entry.state == "failed"})
    again = claimed(queue, draws=2)
    assert (again.digest, again.values) == ("c", third.values)


def test_a_lost_result_is_produced_again(url):
    queue, other = open_queue(url), open_queue(url)
    for summary in (FINISHED, DIVERGED):
        queue.finish(claimed(queue), summary)
    for each in (queue, other, other):  # one command after another finds the same; open points are left alone
        each.enqueue(POINTS, lost=["aa", "cc"])
    assert states(other) == {"aa": "waiting", "bb": "diverged", "cc": "waiting"}
    assert claimed(other).digest == "aa"
    queue.enqueue(POINTS, lost=["aa", "bb"])
    assert states(other) == {"aa": "running", "bb": "waiting", "cc": "waiting"}
    queue.enqueue(POINTS)
    assert len(queue._study.trials) == 5


def test_the_last_trial_of_a_point_decides(url):
    """Earlier ones are history: the point keeps its place, and has one entry."""
    queue = open_queue(url)
    queue.finish(claimed(queue), FINISHED)
    queue.enqueue(POINTS, lost=["aa"])
    first = queue.entries()[0]
    assert (first.digest, first.state, first.summary) == ("aa", "waiting", None) and len(queue.entries()) == 3
    queue.release(claimed(queue), "why")
    assert states(queue) == {"aa": "failed", "bb": "waiting", "cc": "waiting"}
    queue.enqueue(POINTS)
    assert (states(queue)["aa"], queue.entries()[0].error) == ("waiting", "")
    assert [claimed(queue).digest for _ in POINTS] == ["aa", "bb", "cc"] and queue.claim() is None
