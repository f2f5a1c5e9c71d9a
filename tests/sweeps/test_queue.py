"""The queue of a sweep: each point is claimed once and never lost. Queues on PostgreSQL: test_postgres.py."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from unittest import mock

import pytest
import sqlalchemy
import sqlalchemy.event
from conftest import ROOT
from sweep_helpers import FINISHED, POINTS, claimed, open_queue

from mobilenet_jax.errors import InputError
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.sweeps import database, owners
from mobilenet_jax.sweeps.database import Damaged, Unwritable
from mobilenet_jax.sweeps.queue import RETRIES, Queue

DIVERGED = summaries.parse(FINISHED.model_dump() | {"status": "diverged", "test_accuracy": None})


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/sweeps.db"


def states(queue: Queue) -> dict[str, str]:
    return {entry.digest: entry.state for entry in queue.entries()}


def test_each_point_is_enqueued_and_claimed_once(url):
    one, other = open_queue(url), open_queue(url)
    claims = [claimed(queue) for queue in (one, other, one)]
    assert [(claim.digest, claim.values) for claim in claims] == list(POINTS.items())
    assert one.claim() is None and other.claim() is None
    one.finish(claims[0], FINISHED)
    one.finish(claims[2], DIVERGED)
    other.fail(claims[1], "why")
    assert states(one) == {"aa": "finished", "bb": "failed", "cc": "diverged"} and one.count_open() == (0, 0)
    assert [entry.error for entry in other.entries()] == ["", "why", ""]
    open_queue(url)
    assert states(one) == {"aa": "finished", "bb": "waiting", "cc": "diverged"}


def test_a_point_that_does_not_fit_is_left(url):
    queue = open_queue(url)
    assert queue.claim(lambda digest: digest == "bb") is None
    assert states(queue) == dict.fromkeys(POINTS, "waiting")


def test_a_released_point_waits_again(url):
    queue = open_queue(url, aa={"x": 1})
    queue.release(claimed(queue))
    assert states(queue) == {"aa": "waiting"}
    again = claimed(queue)
    assert (again.digest, again.values) == ("aa", {"x": 1})


def test_a_late_result_counts(url):
    """The point was requeued in between; no process trains it again."""
    queue, other = open_queue(url, aa={"x": 1}), open_queue(url, aa={"x": 1})
    claim = claimed(queue)
    other.release(claim)  # as for a machine that counts as dead
    assert queue.heartbeat([claim]) == [claim]
    queue.finish(claim, FINISHED)
    assert states(other) == {"aa": "finished"}
    assert other.claim() is None and other.count_open() == (0, 0)
    (entry,) = other.entries()
    assert (entry.summary, entry.values) == (FINISHED, {"x": 1})


CLAIMING = """
import sys
from sweep_helpers import claimed, open_queue
claimed(open_queue(sys.argv[1], aa={"x": 1}))
"""


def test_the_point_of_a_dead_local_process_is_requeued_at_once(url):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run([sys.executable, "-c", CLAIMING, url], env=os.environ | {"PYTHONPATH": path}, check=True)
    queue = open_queue(url, aa={"x": 1})
    assert states(queue) == {"aa": "running"}
    queue.requeue_dead(stale=False)
    assert states(queue) == {"aa": "waiting"}


def die(queue: Queue, monkeypatch: pytest.MonkeyPatch, epoch: int | None = None) -> str:
    """Claim the only point, report an epoch if one is given, die, and be found; return the point's state."""
    claim = claimed(queue)
    if epoch is not None:
        queue.report(claim, {"step": 1, "steps": 2}, epoch, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "is_dead", lambda identity: True)
        queue.requeue_dead(stale=False)
    return states(queue)["aa"]


def test_a_point_whose_processes_die_in_their_first_epoch_fails(url, monkeypatch):
    queue = open_queue(url, aa={"x": 1})
    assert [die(queue, monkeypatch) for _ in range(RETRIES)] == ["waiting"] * RETRIES
    assert die(queue, monkeypatch) == "failed"
    (entry,) = queue.entries()
    assert entry.error.startswith("6 processes died while training it") and entry.values == {"x": 1}


def test_deaths_after_an_epoch_are_not_counted(url, monkeypatch):
    """A machine that is taken away often says nothing about the point."""
    queue = open_queue(url, aa={"x": 1})
    assert [die(queue, monkeypatch, epoch=i + 1) for i in range(RETRIES + 1)] == ["waiting"] * (RETRIES + 1)


def test_a_lost_claim_changes_nothing(url, monkeypatch):
    """Another process has the point by now."""
    queue = open_queue(url, aa={"x": 1})
    lost = claimed(queue)
    queue.release(lost)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "me", lambda: "another")
        taken = claimed(queue)
    assert queue.heartbeat([lost]) == [lost] and queue.mine() == []
    queue.fail(lost, "why")
    queue.release(lost)
    assert states(queue) == {"aa": "running"}
    queue.finish(lost, FINISHED)  # its result counts
    queue.finish(taken, DIVERGED)
    assert states(queue) == {"aa": "finished"}


def test_a_process_finds_its_claims_again(url):
    queue = open_queue(url)
    claims = [claimed(queue), claimed(queue)]
    again = open_queue(url).mine()
    assert [(claim.trial, claim.digest) for claim in again] == [(claim.trial, claim.digest) for claim in claims]
    assert all(claim.age >= 0 for claim in again)


@pytest.mark.parametrize(
    "write", ["set_trial_user_attr", "record_heartbeat", "set_trial_state_values", "set_trial_param"]
)
def test_a_process_that_dies_while_it_claims(write, url, monkeypatch):
    """No point is lost, whichever write was the last."""

    def die(*args, **kwargs):
        getattr(storage, write)(*args, **kwargs)
        raise KeyboardInterrupt

    queue = open_queue(url, aa={"x": 1})
    storage = queue._storage
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(queue, "_storage", mock.Mock(wraps=storage, **{write: die}))
        patch.setattr(queue._study, "_storage", mock.Mock(wraps=queue._study._storage, **{write: die}))
        claimed(queue)
    monkeypatch.setattr(owners, "is_dead", lambda identity: bool(identity))
    other = open_queue(url, aa={"x": 1})
    other.requeue_dead(stale=False)
    assert states(other) == {"aa": "waiting"} and claimed(other).values == {"x": 1}


def test_a_live_process_keeps_its_point(url):
    queue = open_queue(url, aa={"x": 1})
    claim = claimed(queue)
    queue.requeue_dead(stale=True)
    assert states(queue) == {"aa": "running"} and queue.heartbeat([claim]) == []


def test_a_search_draws_up_to_a_limit(url):
    queue = open_queue(url, "random")
    outside, inside = claimed(queue, draws=2), claimed(queue, draws=2)
    assert queue.claim(draws=2) is None
    queue.fail(outside)
    inside = queue.set_digest(inside, "b")
    third = queue.set_digest(claimed(queue, draws=2), "c")
    assert inside and third and queue.claim(draws=2) is None
    queue.fail(third, "no data")
    queue.finish(inside, FINISHED)
    queue.requeue_dead(stale=False)
    assert states(queue) == {"b": "finished", "c": "failed"} and queue.claim(draws=2) is None
    queue.enqueue({entry.digest: entry.values for entry in queue.entries() if entry.state == "failed"})
    again = claimed(queue, draws=2)
    assert (again.digest, again.values) == ("c", third.values)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:pa/ss@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql+psycopg://u:p:q@h/d", "postgresql+psycopg://u:***@h/d"),
        ("oracle://h/d?user=u&password=secret", "oracle://h/d?user=u&password=***"),
        ("postgresql//u:secret@h/d", "postgresql//u:***@h/d"),
        ("postgresql:/u:secret@h/d", "postgresql:***@h/d"),
        ("u:secret@h/d", "u:***@h/d"),
        ("postgresql://u/v:se\ncret@h/d", "postgresql://u/v:***@h/d"),
        ("oracle://u@h/d?host=h&token=secret", "oracle://u@h/d?host=h&token=***"),
        ("oracle://u@h/d?pass%77ord=secret&conninfo=password%3Dsecret", "oracle://u@h/d?pass%77ord=***&conninfo=***"),
    ],
)
def test_no_password_is_shown(url, shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(InputError, match="--storage=") as refused:
        open_queue(url)
    assert str(refused.value).startswith(f"--storage={shown}: ")


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\0" + bytes(300), b"no database at all, but long enough to be one" * 9]
)
def test_a_damaged_database_is_reported(content, tmp_path):
    (tmp_path / "sweeps.db").write_bytes(content)
    with pytest.raises(InputError, match=r"sweeps.db: is damaged \(.*\); move it away"):
        open_queue(f"sqlite:///{tmp_path / 'sweeps.db'}")


@pytest.mark.parametrize("how", ["removed", "emptied", "replaced"])
def test_a_database_that_disappears_is_damaged(how, url, tmp_path):
    queue, path = open_queue(url), tmp_path / "sweeps.db"
    claim = claimed(queue)
    if how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if how == "replaced":
        open_queue(url)
    with pytest.raises(Damaged):
        queue.finish(claim, FINISHED)


def test_a_lost_result_is_produced_again(url):
    queue, other = open_queue(url), open_queue(url)
    for _ in range(2):
        queue.finish(claimed(queue), FINISHED)
    for each in (queue, other, other):  # open points are left alone
        each.reopen({"aa": {"x": 1}, "cc": {"x": 3}})
    assert states(other) == {"aa": "waiting", "bb": "finished", "cc": "waiting"}
    assert claimed(other).digest == "cc"
    claim = claimed(other)
    assert (claim.digest, claim.values, states(queue)["aa"]) == ("aa", {"x": 1}, "running")
    other.release(claim)
    assert (states(queue)["aa"], queue.count_open()) == ("waiting", (1, 1))
    queue.finish(claimed(queue), FINISHED)
    assert states(other) == {"aa": "finished", "bb": "finished", "cc": "running"}
    with pytest.raises(AssertionError):
        claimed(queue)
    open_queue(url)
    assert queue.count_open() == (0, 1)


@pytest.mark.parametrize("how", ["max_page_count = 1", "query_only = 1"])
def test_a_full_or_read_only_disk(how, url, request, monkeypatch):
    """SQLite reports its own size limit in the words of a full disk."""
    queue = open_queue(url)
    listener = (sqlalchemy.Engine, "before_cursor_execute", lambda _, cursor, *rest: cursor.execute(f"PRAGMA {how}"))
    sqlalchemy.event.listen(*listener)
    request.addfinalizer(lambda: sqlalchemy.event.remove(*listener))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the retries of Optuna
    with pytest.raises(Unwritable, match="disk is full|readonly database"):
        queue.enqueue({"a long name" * 10_000: {"x": 1}})
    assert states(queue).items() >= dict.fromkeys(POINTS, "waiting").items()


def test_values_that_optuna_cannot_read_are_damage(url, tmp_path):
    """The database itself is intact."""
    queue = open_queue(url)
    queue.finish(claimed(queue), FINISHED)
    for statement in (
        "UPDATE trials SET state = 'WAATING'",
        "UPDATE trial_user_attributes SET value_json = '{'",
        'UPDATE trial_params SET distribution_json = \'{"name": "None"}\'',
        "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'summary'",
    ):
        copy = tmp_path / f"{len([*tmp_path.iterdir()])}.db"
        shutil.copy(tmp_path / "sweeps.db", copy)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute(statement)
            connection.commit()
        with pytest.raises((Damaged, InputError), match="Error|move it away"):
            open_queue(f"sqlite:///{copy}").entries()


def test_a_password_is_never_shown():
    with pytest.raises(InputError) as e:
        open_queue("postgresql+psycopg://me:se@cret@nowhere.invalid/base")
    assert "cret" not in str(e.value) and "an @ in a user's name or password is written %40" in str(e.value)
    with pytest.raises(InputError, match="cannot be opened"):
        open_queue("postgresql+psycopg://me@nowhere.invalid:port/base")


@pytest.mark.parametrize("name", ["exp?lr=1", "a#b", "50%41", "{x}", "user:word@host"])
def test_a_path_is_no_address(name, tmp_path):
    (tmp_path / name).mkdir()
    claimed(open_queue(database.sqlite_url(tmp_path / name / "sweeps.db")))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["sweeps.db", "sweeps.db.lock"]
    assert len(list(tmp_path.iterdir())) == 1
