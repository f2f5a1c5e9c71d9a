"""Where the points of a sweep are kept: addresses of databases, connections, and a lock across machines."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import filelock
import sqlalchemy

from mobilenet_jax.errors import InputError

# What a query may say openly; drivers take passwords under several names.
_OPEN = {"host", "port", "user", "dbname", "sslmode", "connect_timeout", "application_name", "timeout", "mode", "uri"}
_LOCK = "SELECT pg_advisory_lock(7210531)"  # goes with the connection


def shown(url: str) -> str:
    """The address without a password."""
    without = re.sub(r"(?s)^((?:[\w+]+://)?+[^:@]*):.*@", r"\1:***@", url)  # of a mistyped one too
    base, question, query = without.partition("?")
    parts = [part if (key := part.partition("=")[0]) in _OPEN else f"{key}=***" for part in query.split("&")]
    return base + question + "&".join(parts) * bool(question)


def check(url: str) -> None:
    """Raises InputError where the address is of no database that a sweep can have."""
    parsed = sqlalchemy.make_url(url)
    if "@" in (parsed.host or ""):
        raise InputError(f"--storage={shown(url)}: an @ in a user's name or password is written %40")
    if parsed.get_dialect().name not in ("sqlite", "postgresql"):
        raise InputError(f"--storage={shown(url)}: allowed are databases of SQLite and PostgreSQL")


@contextlib.contextmanager
def lock(url: str) -> Iterator[None]:
    """Keeps out all other processes that use this, on any machine."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_dialect().name == "sqlite":
        path = pathlib.Path(parsed.database or "sweeps.db")
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock", timeout=20):
            yield
    else:
        engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.pool.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=connect_args(url),
            pool_reset_on_return=None,  # nothing is to be taken back, and a server that is gone could not do it
        )
        with engine.connect() as connection:  # whose end gives the lock back
            connection.execute(sqlalchemy.text(_LOCK))
            yield


def connect_args(url: str) -> dict[str, Any]:
    """Arguments with which a server or a network that is gone is noticed, and all heartbeats are in one time zone."""
    if not sqlalchemy.make_url(url).get_driver_name().startswith("psycopg"):
        return {}
    seconds = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    options = {"timezone": "UTC", "lock_timeout": "20s", **{f"tcp_{key}": value for key, value in seconds.items()}}
    return {"connect_timeout": 10, **seconds, "options": " ".join(f"-c {k}={v}" for k, v in options.items())}


def inode(url: str) -> int | None:
    """What tells the file of an SQLite database from another in its place; None where there is none."""
    parsed = sqlalchemy.make_url(url)
    try:
        return os.stat(parsed.database).st_ino if parsed.get_dialect().name == "sqlite" and parsed.database else None
    except OSError:
        return None


def is_damage(reason: str) -> bool:
    """By SQLite's words for it."""
    return any(words in reason for words in ("malformed", "not a database", "no such table"))
