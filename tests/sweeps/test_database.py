"""The database of a sweep: its addresses, and what is reported when it is damaged, full or gone."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy
import sqlalchemy.event
from helpers import environment
from sweep_helpers import FINISHED, POINTS, claimed, open_queue, patched, states, write

from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import database
from mobilenet_jax.sweeps.database import Damaged, Unwritable


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:pa/ss@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql+psycopg://u:p:q@h/d", "postgresql+psycopg://u:***@h/d"),
        ("oracle://h/d?user=u&password=secret", "oracle://h/d"),
        ("postgresql//u:secret@h/d", "postgresql//u:***@h/d"),
        ("postgresql:/u:secret@h/d", "postgresql:***@h/d"),
        ("u:secret@h/d", "u:***@h/d"),
        ("postgresql://u/v:se\ncret@h/d", "postgresql://u/v:***@h/d"),
        ("postgresql+psycopg://u:pa?ss@h/d", "postgresql+psycopg://u:***@h/d"),
        ("oracle://u@h/d?pass%77ord=secret&conninfo=password%3Dsecret", "oracle://u@h/d"),
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
def test_a_database_that_disappears_is_reported(how, url, tmp_path):
    queue, path = open_queue(url), tmp_path / "sweeps.db"
    claim = claimed(queue)
    if how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if how == "replaced":
        open_queue(url)
    with pytest.raises((Damaged, Unwritable)):
        queue.finish(claim, FINISHED)


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
        "UPDATE trial_system_attributes SET value_json = '{'",
        "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = 'summary'",
    ):
        copy = tmp_path / f"{len([*tmp_path.iterdir()])}.db"
        shutil.copy(tmp_path / "sweeps.db", copy)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute(statement)
            connection.commit()
        with pytest.raises((Damaged, InputError), match="Error|move it away"):
            open_queue(f"sqlite:///{copy}").entries()


OTHER_FORMS = [
    *("sweeps.db", "runs/s.db", "/data/s.db", "", "nonsense://host/base", "mysql://me@host/base", "oracle://x"),
    *(f"{name}://me@host/base" for name in ("postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg2")),
    *("postgresql+psycopg://me@host", "postgresql+psycopg://me@host/", "postgresql+psycopg://me@host:port/base"),
    *("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///%3Amemory%3A", "sqlite:///file::memory:?uri=true"),
    *("sqlite://runs/s.db", "sqlite+aiosqlite:///s.db", "sqlite:///exp?lr=1/s.db"),
]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *((url, f"{url.partition('?')[0]}: allowed is sqlite:///PATH or ") for url in OTHER_FORMS),
        ("postgresql+psycopg://me:se@cret@host/base", "me:***@host/base: allowed is "),
        ("postgresql+psycopg://me:se@cret@host/base", "%40 for an @"),
        ("sqlite:///exp?lr=1/sweeps.db", "%3F for a ?"),
        ("postgresql+psycopg://me@127.0.0.1:1/base", "cannot be opened"),
        ("sqlite:////dev/null/sweeps.db", "cannot be opened"),
    ],
)
def test_an_address_that_cannot_be_used(url, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^--storage=") as refused:
        open_queue(url)
    assert reason in str(refused.value) and "cret" not in str(refused.value)
    assert "sqlite:///PATH" in str(refused.value) and "postgresql+psycopg://USER@HOST/DATABASE" in str(refused.value)
    assert "such as sqlite:///runs/sweeps.db" in str(refused.value) and "pip install" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_driver_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install .*\.\[postgres\]"):
        open_queue("postgresql+psycopg://me@host/base")


@pytest.mark.parametrize("name", ["exp?lr=1", "a#b", "50%41", "{x}", "user:word@host"])
def test_a_path_is_no_address(name, tmp_path):
    (tmp_path / name).mkdir()
    claimed(open_queue(database.sqlite_url(tmp_path / name / "sweeps.db")))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["sweeps.db", "sweeps.db.lock"]
    assert len(list(tmp_path.iterdir())) == 1


WORKDIRS = ("exp?lr=1", "exp?lr=2", "a#b", "50%41/{x}")


@pytest.mark.slow
def test_each_workdir_has_its_own_database(tmp_path):
    """The whole command, up to the start of its workers."""
    program = patched(
        tmp_path,
        "import os",
        "supervisor._train = lambda *rest: ''",
        f"for directory in {WORKDIRS}:",
        "    if not os.fork():",
        "        sys.argv[-1] = f'--workdir={directory}'",
        "        os._exit(launch.run())",
        "    assert os.wait()[1] == 256",  # exit code 1, as the point is still open
        "os._exit(0)",
    )
    file = write(tmp_path, {"seed": [0]})
    done = subprocess.run(program, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("sweeps.db")}
    assert found == {*WORKDIRS}
    assert {path.name for path in tmp_path.iterdir()} == {file.name, *(name.partition("/")[0] for name in WORKDIRS)}
