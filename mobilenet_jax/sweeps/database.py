"""The database of a sweep: its address, connections, one lock across machines, and errors by what a user can do."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import optuna.exceptions
import sqlalchemy
import sqlalchemy.exc

from mobilenet_jax import files
from mobilenet_jax.errors import InputError, first_line, is_unwritable

# Query keys whose values are shown; drivers accept passwords under several other names.
_SHOWN = {"host", "port", "user", "dbname", "sslmode", "connect_timeout", "application_name", "timeout", "mode", "uri"}
_LOCK = "SELECT pg_advisory_lock(7210531)"  # released with the connection
_LOCK_SECONDS = 20  # that a process waits for the lock
_DAMAGE = ("malformed", "not a database", "no such table")  # in SQLite's messages


FORMS = "allowed is sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"


class Unavailable(Exception):
    """The database does not answer at the moment."""


class Unwritable(Unavailable):
    """The database cannot be written until the user frees space or changes permissions."""


class Damaged(Exception):
    """The database cannot be read any more."""


def sqlite_url(path: pathlib.Path) -> str:
    """Return the address of an SQLite file; characters that mean something in an address are escaped."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def shown(url: str) -> str:
    """Return the address without passwords, also for a mistyped address."""
    without = re.sub(r"(?s)^((?:[\w+]+://)?+[^:@]*):.*@", r"\1:***@", url)
    base, question, query = without.partition("?")
    parts = [part if (key := part.partition("=")[0]) in _SHOWN else f"{key}=***" for part in query.split("&")]
    return base + question + "&".join(parts) * bool(question)


def check(url: str) -> None:
    """Check the form of an address.

    Raises:
      InputError: the address has an unescaped @, or is of another kind of database.
    """
    parsed = sqlalchemy.make_url(url)
    if "@" in (parsed.host or ""):
        raise InputError(f"--storage={shown(url)}: an @ in a user's name or password is written %40; {FORMS}")
    if parsed.get_dialect().name not in ("sqlite", "postgresql"):
        raise InputError(f"--storage={shown(url)}: is another kind of database; {FORMS}")


@contextlib.contextmanager
def lock(url: str) -> Iterator[None]:
    """Exclude all other users of this lock, on all machines."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_dialect().name == "sqlite":
        path = pathlib.Path(parsed.database or "sweeps.db")
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_SECONDS):
            yield
    else:
        engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=connect_args(url),
            pool_reset_on_return=None,  # there is nothing to roll back, and rolling back on a stopped server fails
        )
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(_LOCK))
            yield


def connect_args(url: str) -> dict[str, Any]:
    """Return driver options that detect a lost server or network and store all heartbeats in UTC."""
    if not sqlalchemy.make_url(url).get_driver_name().startswith("psycopg"):
        return {}
    seconds = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    options = {"timezone": "UTC", "lock_timeout": f"{_LOCK_SECONDS}s", **{f"tcp_{k}": v for k, v in seconds.items()}}
    return {"connect_timeout": 10, **seconds, "options": " ".join(f"-c {k}={v}" for k, v in options.items())}


def inode(url: str) -> int | None:
    """Return the inode of an SQLite database's file, or None if there is no file."""
    parsed = sqlalchemy.make_url(url)
    try:
        return os.stat(parsed.database).st_ino if parsed.get_dialect().name == "sqlite" and parsed.database else None
    except OSError:
        return None


@contextlib.contextmanager
def translated(url: str, opened: int | None) -> Iterator[None]:
    """Raise the errors of Optuna and SQLAlchemy as `Unavailable`, `Unwritable` or `Damaged`.

    Args:
      url: the address.
      opened: the inode of the file when it was opened; None without a file.
    """
    try:
        yield
    except (Unavailable, Damaged, InputError, optuna.exceptions.UpdateFinishedTrialError):
        raise
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DatabaseError, OSError) as e:
        if opened is not None and opened != inode(url):
            raise Damaged("its file was removed or replaced") from e
        problem = reason(e)
        if any(words in problem for words in _DAMAGE):
            raise Damaged(problem) from e
        if isinstance(e, sqlalchemy.exc.DatabaseError) and not isinstance(e, sqlalchemy.exc.OperationalError):
            raise
        raise (Unwritable if is_unwritable(e) else Unavailable)(problem) from e
    except (LookupError, ValueError, RuntimeError) as e:  # Optuna cannot interpret the stored values
        raise Damaged(f"{type(e).__name__}: {reason(e)}") from e


def reason(error: BaseException) -> str:
    """Return the first line of the error's cause, which is more specific than Optuna's own message."""
    return first_line(error.__cause__ or error)
