"""The lock that the machines of a sweep share on PostgreSQL, and the claims that it protects."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import ROOT
from helpers import environment
from sweep_helpers import claimed, open_queue, trial_states, trials

from mobilenet_jax.sweeps import database as databases
from mobilenet_jax.sweeps.queue import Queue

# Claims points until none is left, and prints what it got; starts at a line on stdin.
CLAIMER = """
import json, sys
from sweep_helpers import FINISHED, open_queue
print("ready", flush=True)
sys.stdin.readline()
points = {f"{i:08x}": {"x": i % 3 + 1} for i in range(20)}
queue = open_queue(sys.argv[1], **points)
claimed = []
while claim := queue.claim():
    assert claim.values == points[claim.digest]
    claimed.append(claim.digest)
    queue.finish(claim, FINISHED)
print(json.dumps(claimed))
"""


def python(program: str, url: str) -> subprocess.Popen[str]:
    """Start a program of these tests on a database."""
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    line = [sys.executable, "-c", program, url]
    return subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def queue(database) -> Iterator[Queue]:
    opened = open_queue(database)
    yield opened
    opened._storage._backend.engine.dispose()  # its connections


def test_the_lock_is_given_up_after_a_while(queue, database, monkeypatch):
    monkeypatch.setattr(databases, "_LOCK_SECONDS", 1)
    with databases.lock(database):
        start = time.monotonic()
        with pytest.raises(databases.Unavailable, match="lock timeout"):
            queue.claim()
        assert 1 <= time.monotonic() - start < 3
        assert queue.entries()[0].state == "waiting"  # reading needs no lock
    assert queue.claim() is not None


def test_the_server_dies_while_a_machine_holds_the_lock(queue, database, postgres):
    with pytest.raises(databases.Unavailable), queue._locked():
        postgres.stop()
        postgres.start()
        with databases.lock(database):  # the new server knows nothing of the lock
            pass
    with pytest.raises(databases.Unavailable):  # by the connection that the queue has kept
        queue.claim()
    assert claimed(queue).digest == "aa"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_four_processes_claim_every_point_once(kind, request, tmp_path):
    """They also create the tables and enqueue the points at the same time."""
    url = f"sqlite:///{tmp_path / 'sweeps.db'}" if kind == "sqlite" else request.getfixturevalue("database")
    digests = [f"{seed:08x}" for seed in range(20)]
    with contextlib.ExitStack() as held:
        processes = [held.enter_context(python(CLAIMER, url)) for _ in range(4)]
        assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(digest for each in found for digest in each) == digests
    assert trial_states(url) == ["COMPLETE"] * 20
    assert sorted(trial.user_attrs["digest"] for trial in trials(url)) == digests
