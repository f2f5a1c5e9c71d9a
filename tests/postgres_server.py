"""A PostgreSQL server of the distribution, started for tests and for the campaign of faults."""

import contextlib
import dataclasses
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import sqlalchemy

PASSWORD = "s3cr3t-of-the-tests"


@dataclasses.dataclass(frozen=True)
class Server:
    """PostgreSQL with its data in `directory`, run by `account` if that is not this process's own."""

    binaries: pathlib.Path
    directory: pathlib.Path
    port: int
    account: str | None

    def call(self, program: str, *arguments: str) -> None:
        as_account: dict[str, Any] = {}
        if self.account:
            as_account = {"user": self.account, "group": pwd.getpwnam(self.account).pw_gid, "extra_groups": []}
        arguments = (str(self.binaries / program), "-D", str(self.directory / "data"), *arguments)
        subprocess.run(
            arguments, cwd=self.directory, check=True, capture_output=True, text=True, timeout=120, **as_account
        )

    def create(self) -> None:
        (self.directory / "password").write_text(PASSWORD)
        if self.account:
            for path in (self.directory, self.directory / "password"):
                shutil.chown(path, self.account)
        with_password = ("--username=tester", "--auth=scram-sha-256", f"--pwfile={self.directory / 'password'}")
        self.call("initdb", *with_password, "--encoding=UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self.call("pg_ctl", "start", "--wait", f"--log={self.directory / 'log'}", f"--options={options}")

    def stop(self) -> None:
        """Stop the server at once, without a shutdown of its own: it recovers at the next start."""
        self.call("pg_ctl", "stop", "--wait", "--mode=immediate")

    def kill(self) -> None:
        """Kill the server's first process. The others notice it and end."""
        pid = int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        while any(os.path.exists(f"/proc/{each}/exe") for each in (pid, *children)):
            time.sleep(0.01)

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://tester:{password}@127.0.0.1:{self.port}/{database}"

    def empty_database(self) -> str:
        """Create a database; return its URL."""
        url, name = self.url("postgres"), f"sweeps_{uuid.uuid4().hex[:8]}"
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        return self.url(name)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def installed() -> pathlib.Path | None:
    """Return the directory of PostgreSQL's programs: on the path, or the newest of Debian's."""
    found = [pathlib.Path(path).resolve() for path in [shutil.which("pg_ctl")] if path]
    found += sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda p: -float(p.parts[-3]))
    return next((path.parent for path in found if (path.parent / "initdb").exists()), None)


def unprivileged() -> str | None:
    """Return the account for the server, which refuses to run as root; None for this process's own."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in accounts)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Start a server. Raise NotImplementedError, with the reason, where it cannot be started."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise NotImplementedError("psycopg is not installed") from None
    if (binaries := installed()) is None:
        raise NotImplementedError("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="mobilenet_jax-postgres-", ignore_cleanup_errors=True) as directory:
        server = Server(binaries, pathlib.Path(directory), free_port(), unprivileged())
        try:
            server.create()
            server.start()
        except (OSError, subprocess.SubprocessError) as e:
            raise NotImplementedError(f"PostgreSQL cannot be started: {e} {getattr(e, 'stderr', '')}") from e
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.SubprocessError):  # it may have been killed
                server.stop()
