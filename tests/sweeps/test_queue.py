"""The points of a sweep in a database: claimed once, never lost. (Shared ones: test_postgres.py.)"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys

import optuna
import pytest
import sqlalchemy.event
from helpers import POINTS, claimed, opened
from optuna.trial import TrialState

from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import queue as ledger

DONE = {"status": "finished", "test_accuracy": 0.5}


def states(book: ledger.Ledger) -> dict[str, str]:
    return {entry.digest: entry.state for entry in book.entries()}


def test_each_point_is_enqueued_and_claimed_once(url):
    one, other = opened(url), opened(url)
    claims = [claimed(book) for book in (one, other, one)]
    assert [(claim.digest, claim.values) for claim in claims] == list(POINTS.items())
    assert one.claim() is None and other.claim() is None
    one.finish(claims[0], DONE)
    one.finish(claims[2], {"status": "diverged", "test_accuracy": None})
    other.fail(claims[1], "why")
    assert states(one) == {"aa": "done", "bb": "failed", "cc": "diverged"} and one.open() == 0
    assert [entry.error for entry in other.entries()] == ["", "why", ""]
    opened(url)
    assert states(one) == {"aa": "done", "bb": "waiting", "cc": "diverged"}


def test_a_point_that_does_not_fit_is_left(url):
    book = opened(url)
    assert book.claim(lambda digest: digest == "bb") is None
    assert states(book) == dict.fromkeys(POINTS, "waiting")


def test_given_back(url):
    book = opened(url, aa={"x": 1})
    book.give_back(claimed(book))
    assert states(book) == {"aa": "waiting"}
    again = claimed(book)
    assert (again.digest, again.values) == ("aa", {"x": 1})


def test_a_result_counts_though_the_claim_was_taken_away(url):
    """And nobody trains the point that was put back meanwhile."""
    book, other = opened(url, aa={"x": 1}), opened(url, aa={"x": 1})
    claim = claimed(book)
    other.give_back(claim)  # as for a machine that is thought dead
    assert book.beat([claim]) == [claim]
    book.finish(claim, DONE)
    assert states(other) == {"aa": "done"}
    assert other.claim() is None and other.open() == 0
    (entry,) = other.entries()
    assert (entry.summary, entry.values) == (DONE, {"x": 1})


CLAIMING = """
import sys
from helpers import claimed, opened
claimed(opened(sys.argv[1], aa={"x": 1}))
"""


def test_a_claimer_of_this_machine_that_is_dead(url):
    """Its point waits again at once; a point that killed six, none of which got anywhere, is given up."""
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    book = opened(url, aa={"x": 1})
    for _ in range(ledger.RETRIES + 1):
        subprocess.run([sys.executable, "-c", CLAIMING, url], env=os.environ | {"PYTHONPATH": path}, check=True)
        assert states(book) == {"aa": "running"}
        book.reap(stale=False)
    assert states(book) == {"aa": "failed"}
    (entry,) = book.entries()
    assert entry.error == "6 processes died over it, none of which came to the end of an epoch"
    assert entry.values == {"x": 1}


def test_a_machine_that_is_taken_away_again_and_again_is_not_the_points_fault(url, monkeypatch):
    """Each claimer died after it had come to the end of an epoch."""
    book = opened(url, aa={"x": 1})
    for epoch in range(ledger.RETRIES + 3):
        claim = claimed(book)
        book.report(claim, 0.5, epoch + 1)
        monkeypatch.setattr(ledger, "_dead", lambda owner: True)
        book.reap(stale=False)
        monkeypatch.undo()
        assert states(book) == {"aa": "waiting"}


def test_a_drawn_point_that_was_taken_away_before_it_was_resolved(url):
    book = opened(url, "random")
    claim = claimed(book, draws=2)
    book.fail(claim, "thought dead")
    assert book.resolved(claim, "aa") is None


def test_a_live_claimer_keeps_its_point(url):
    book = opened(url, aa={"x": 1})
    claim = claimed(book)
    book.reap(stale=True)
    assert states(book) == {"aa": "running"} and book.beat([claim]) == []


def test_who_put_a_point_back_died_in_between(url):
    """Its trial has ended, without a word why; no other waits."""
    book = opened(url, aa={"x": 1})
    claim = claimed(book)
    optuna.load_study(study_name="s", storage=url).tell(claim.trial.number, state=TrialState.FAIL)
    assert book.open() == 0
    book.reap(stale=False)
    assert states(book) == {"aa": "waiting"}


def test_a_search_draws_so_many(url):
    book = opened(url, "random")
    outside, inside = claimed(book, draws=2), claimed(book, draws=2)
    assert book.claim(draws=2) is None
    book.reject(outside)
    inside = book.resolved(inside, "b")
    third = book.resolved(claimed(book, draws=2), "c")
    assert inside and third and book.claim(draws=2) is None
    book.fail(third, "no data")
    book.finish(inside, DONE)
    book.reap(stale=False)
    assert states(book) == {"b": "done", "c": "failed"} and book.claim(draws=2) is None
    book.retry()
    again = claimed(book, draws=2)
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
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    with pytest.raises(InputError, match="--storage=") as refused:
        opened(url)
    assert str(refused.value).startswith(f"--storage={shown}: ")


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\0" + bytes(300), b"no database at all, but long enough to be one" * 9]
)
def test_a_damaged_database_is_said(content, tmp_path):
    (tmp_path / "sweeps.db").write_bytes(content)
    with pytest.raises(
        InputError, match=r"sweeps.db: cannot be opened \(.*\); move it away, and the same command finds"
    ):
        opened(f"sqlite:///{tmp_path / 'sweeps.db'}")


@pytest.mark.parametrize("how", ["removed", "emptied", "replaced"])
def test_a_database_that_goes_away_under_a_sweep_is_not_waited_for(how, url, tmp_path):
    book, path = opened(url), tmp_path / "sweeps.db"
    claim = claimed(book)
    if how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if how == "replaced":
        opened(url)
    with pytest.raises(ledger.Damaged):
        book.finish(claim, DONE)


def test_a_result_that_was_lost_is_made_once_more(url):
    book, other = opened(url), opened(url)
    for _ in range(2):
        book.finish(claimed(book), DONE)
    for each in (book, other, other):  # nobody's that is open
        each.reopen({"aa": {"x": 1}, "cc": {"x": 3}})
    assert states(other) == {"aa": "waiting", "bb": "done", "cc": "waiting"}
    assert claimed(other).digest == "cc"
    claim = claimed(other)
    assert (claim.digest, claim.values, states(book)["aa"]) == ("aa", {"x": 1}, "running")
    other.give_back(claim)
    assert (states(book)["aa"], book.open()) == ("waiting", 2)
    book.finish(claimed(book), DONE)
    assert states(other) == {"aa": "done", "bb": "done", "cc": "running"}
    with pytest.raises(AssertionError):
        claimed(book)
    opened(url)
    assert book.open() == 1


@pytest.mark.parametrize("how", ["max_page_count = 1", "query_only = 1"])
def test_a_full_disk_is_for_somebody_to_mend(how, url):
    """SQLite has the same words for a bound of its own as for a full disk."""
    book = opened(url)
    engine = book._storage.engine
    sqlalchemy.event.listen(engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {how}").close())
    engine.dispose()
    with pytest.raises(ledger.Unwritable, match="disk is full|readonly database"):
        book.enqueue({f"{i}": {"x": 1} for i in range(300)})
    assert states(book).items() >= dict.fromkeys(POINTS, "waiting").items()


def test_what_optuna_can_make_nothing_of_is_damage(url, tmp_path):
    """Values that are no values any more, in a database that is whole as such."""
    book = opened(url)
    claimed(book)
    for statement in (
        "UPDATE trials SET state = 'WAATING'",
        "UPDATE trial_user_attributes SET value_json = '{'",
        'UPDATE trial_params SET distribution_json = \'{"name": "None"}\'',
    ):
        copy = tmp_path / f"{len([*tmp_path.iterdir()])}.db"
        shutil.copy(tmp_path / "sweeps.db", copy)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute(statement)
            connection.commit()
        with pytest.raises((ledger.Damaged, InputError), match="Error|move it away"):
            ledger.Ledger(f"sqlite:///{copy}", "s", [], "test_accuracy", "maximize", "grid").entries()


def test_a_password_is_never_shown():
    with pytest.raises(InputError) as e:
        opened("postgresql+psycopg://me:se@cret@nowhere.invalid/base")
    assert "cret" not in str(e.value) and "an @ in a user's name or password is written %40" in str(e.value)
    with pytest.raises(InputError, match="cannot be opened"):
        opened("postgresql+psycopg://me@nowhere.invalid:port/base")
