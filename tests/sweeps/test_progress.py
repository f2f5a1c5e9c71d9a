"""The display of a sweep: a table on a terminal, plain lines when piped; and the time left."""

import os
import platform
import sys
import time

import pytest
from conftest import ROOT, on_a_terminal, parameters
from sweep_helpers import FINISHED, plan_of

from mobilenet_jax.records import summary as summaries
from mobilenet_jax.sweeps.progress import LiveTable, Row, View, view
from mobilenet_jax.sweeps.queue import Entry

ROWS = (
    Row(("0.25", "0"), "3.33 M", "0.9100", 0.51, "1,200", "running", "here"),
    Row(("0.5", "0"), "11.10 M", "", 0.0, "", "waiting", ""),
    Row(("0.25", "[1]"), "3.33 M", "0.9900", 0.0, "1,210", "finished", "there"),
)
NAMES = ("α", "seed")
SHOW = f"""
from mobilenet_jax.sweeps.progress import LiveTable, Row, View
table = LiveTable()
table.show(View({NAMES}, {ROWS}, 75.0))
table.line("done [bold]")
table.show(View({NAMES}, {ROWS}, None))
table.close()
print("the end")
"""


def test_a_table_on_a_terminal():
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"}
    code, text = on_a_terminal([sys.executable, "-c", SHOW], env)
    assert code == 0
    assert "1 finished, 1 waiting, 1 running, ETA 01:15" in text
    assert "ETA unknown until the first point is done" in text
    assert "α" in text and "images/s" in text and "0.25  [1]" in text
    assert "0.9100" in text and "━━━━━━" in text and "1,200" in text
    assert "done [bold]\r\n" in text  # the line remains
    assert text.endswith("the end\r\n")
    assert text.index("running  ") < text.index("waiting  ") < text.index("finished  ")


def test_plain_lines_when_piped(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    table = LiveTable()
    for _ in range(9):
        now[0] += 10
        table.show(View(NAMES, ROWS, 75.0))  # prints once, because nothing changes
    table.line("done")
    table.close()
    assert capsys.readouterr().out == "1 finished, 1 waiting, 1 running, ETA 01:15; α 0.25 seed 0 51%\ndone\n"


def test_points_and_the_time_left(read_sweep):
    plan = plan_of(read_sweep(parameters(seed={"values": [0, 1, 2]}, train__epochs={"value": 3})))
    trained, running, waiting = plan.points
    seconds, steps = waiting.estimated_seconds, running.spec.total_steps
    progress = {"step": steps // 4, "steps": steps, "accuracy": 0.3, "images_per_second": 100.0}
    entries = [
        Entry(trained.spec.digest, "waiting", {"seed": 0}),
        Entry(running.spec.digest, "running", {"seed": 1}, None, "", platform.node()),
        Entry(waiting.spec.digest, "waiting", {"seed": 2}),
    ]
    assert view(plan, entries).seconds_left is None  # nothing is known about this machine
    entries[1] = Entry(running.spec.digest, "running", {"seed": 1}, None, "", platform.node(), progress)
    left = view(plan, entries).seconds_left
    measured = steps * running.spec.config.train.batch_size / 100
    assert left == pytest.approx(measured * (3 - (steps // 4) / steps))

    done = summaries.parse(FINISHED.model_dump() | {"wall_seconds": 2 * seconds})
    entries[0] = Entry(trained.spec.digest, "finished", {"seed": 0}, done, "", "elsewhere")
    assert view(plan, entries).seconds_left == pytest.approx(measured * (2 - (steps // 4) / steps))
    entries[0] = Entry(trained.spec.digest, "finished", {"seed": 0}, done, "", platform.node())
    shown = view(plan, entries)
    assert shown.seconds_left == pytest.approx(2 * seconds * (2 - (steps // 4) / steps))
    assert shown.names == ("seed",)
    assert [(row.values, row.accuracy, row.state, row.rate) for row in shown.rows] == [
        (("0",), "0.5000", "finished", "1,711"),
        (("1",), "0.3000", "running", "100"),
        (("2",), "", "waiting", ""),
    ]
    assert shown.rows[1].done == pytest.approx((steps // 4) / steps)
