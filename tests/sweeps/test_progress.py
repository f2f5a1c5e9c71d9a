"""The display of a sweep: a table on a terminal, plain lines when piped; and the time left."""

import os
import pathlib
import sys
import time
from unittest import mock

import pytest
from conftest import ROOT, on_a_terminal, parameters
from sweep_helpers import FINISHED

from configs import default
from mobilenet_jax.sweeps.points import points
from mobilenet_jax.sweeps.processes import Job
from mobilenet_jax.sweeps.progress import LiveTable, Status, seconds_left, statuses
from mobilenet_jax.sweeps.queue import Claim, Entry

ROWS = [
    Status("running", "narrow", 0.91, "51%", "here"),
    Status("waiting", "wide", None, "", ""),
    Status("finished", "seed [1]", 0.99, "", "there"),
]
SHOW = f"""
from mobilenet_jax.sweeps.progress import LiveTable, Status
rows = {ROWS}
table = LiveTable()
table.show(rows, 75.0)
table.line("done [bold]")
table.show(rows, 3665.0)
table.close()
print("the end")
"""


def test_a_table_on_a_terminal():
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    code, text = on_a_terminal([sys.executable, "-c", SHOW], env)
    assert code == 0
    assert "1 finished, 1 waiting, 1 running, ETA 01:15" in text and "ETA 1:01:05" in text
    assert "running   narrow    0.9100    51%       here" in text and "seed [1]" in text
    assert "done [bold]\r\n" in text  # the line remains
    assert text.endswith("the end\r\n")
    assert text.index("running   narrow") < text.index("waiting   wide") < text.index("finished  seed [1]")


def test_plain_lines_when_piped(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    table = LiveTable()
    for _ in range(9):
        now[0] += 10
        table.show(ROWS, 75.0)  # prints once, because nothing changes
    table.line("done")
    table.close()
    assert capsys.readouterr().out == "1 finished, 1 waiting, 1 running, ETA 01:15; narrow 51%\ndone\n"


def test_points_and_the_time_left(read_sweep):
    sweep = read_sweep(parameters(seed={"values": [0, 1, 2]}))
    trained, running, waiting = points(sweep, default.get_config(), "x")
    by_digest = {p.spec.digest: p for p in (trained, running, waiting)}
    entries = [
        Entry(trained.spec.digest, "finished", {"seed": 0}, FINISHED, "", "there"),
        Entry(running.spec.digest, "running", {"seed": 1}, None, "", "here"),
        Entry(waiting.spec.digest, "waiting", {"seed": 2}, None, "", ""),
    ]
    job = Job(mock.Mock(spec=Claim), running, pathlib.Path("x"), row={"step": 1, "steps": 4, "train_accuracy": 0.3})
    assert [*statuses(entries, by_digest, [job], "test_accuracy")] == [
        Status("finished", trained.spec.run_name, 0.5, "", "there"),
        Status("running", running.spec.run_name, 0.3, "25%", "here"),
        Status("waiting", waiting.spec.run_name, None, "", ""),
    ]
    left = seconds_left(entries, by_digest, [job], [2.0, 1.5, 9.0], workers=2)
    assert left == pytest.approx(2.0 * 1.75 * waiting.estimated_seconds / 2)
    del job.row["steps"]  # a row of metrics came before the first row of progress
    assert [row.progress for row in statuses(entries, by_digest, [job], "test_accuracy")] == ["", "", ""]
    left = seconds_left(entries, by_digest, [job], [], workers=1)
    assert left == pytest.approx(2 * waiting.estimated_seconds)
