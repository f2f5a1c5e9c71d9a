"""The database of a sweep: its address, one lock across machines, and errors by what a user can do."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import optuna.exceptions
import sqlalchemy
import sqlalchemy.exc

from mobilenet_jax import files
from mobilenet_jax.errors import InputError, first_line, is_unwritable

_LOCK_SECONDS = 20  # that a process waits for the lock
_DAMAGE = ("malformed", "not a database", "no such table")  # in SQLite's messages
FORMS = "allowed is sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE, such as sqlite:///runs/sweeps.db"


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
    """Return the address without passwords, which may be in its options too, also for a mistyped address."""
    return re.sub(r"(?s)^((?:[\w+]+://)?+[^:@]*):.*@", r"\1:***@", url).partition("?")[0]


def check(url: str) -> None:
    """Raise InputError for an address of another form than `FORMS`; a database in memory has no PATH."""
    with contextlib.suppress(sqlalchemy.exc.ArgumentError, ValueError):  # no address, or a port that is no number
        parsed = sqlalchemy.make_url(url)
        in_file = url.startswith("sqlite:///") and parsed.database != ":memory:" and not parsed.query
        on_server = parsed.drivername == "postgresql+psycopg" and "@" not in (parsed.host or "")
        if parsed.database and (in_file or on_server):
            return
    raise InputError(f"--storage={shown(url)}: {FORMS}, with %40 for an @ in a password and %3F for a ? in a path")


def file_of(url: str) -> pathlib.Path | None:
    """Return the file of an SQLite database, None of a server."""
    return pathlib.Path(sqlalchemy.make_url(url).database or "") if url.startswith("sqlite:") else None


@contextlib.contextmanager
def lock(url: str) -> Iterator[None]:
    """Exclude all other users of this lock, on all machines."""
    if path := file_of(url):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_SECONDS):
            yield
    else:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, connect_args=connect_args(url))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7210531)"))  # until the transaction ends
            yield


def connect_args(url: str) -> dict[str, Any]:
    """Return driver options that detect a lost server or network and store all heartbeats in UTC."""
    if file_of(url):
        return {}
    seconds = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    options = {"timezone": "UTC", "lock_timeout": f"{_LOCK_SECONDS}s", **{f"tcp_{k}": v for k, v in seconds.items()}}
    seconds |= {"connect_timeout": 10, "tcp_user_timeout": 25_000}  # the latter in ms
    return {**seconds, "options": " ".join(f"-c {key}={value}" for key, value in options.items())}


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise the errors of Optuna and SQLAlchemy as ours."""
    try:
        yield
    except (Unavailable, Damaged, InputError, optuna.exceptions.UpdateFinishedTrialError):
        raise
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DatabaseError, OSError) as e:
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
