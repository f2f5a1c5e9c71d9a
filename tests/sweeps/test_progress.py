"""The display of a sweep: a table on a terminal, plain lines when piped; and the time left."""

import os
import platform
import re
import sys
import time

import pytest
from conftest import ROOT, on_a_terminal, parameters
from sweep_helpers import FINISHED, plan_of

from mobilenet_jax.records import summary as summaries
from mobilenet_jax.sweeps.points import Plan
from mobilenet_jax.sweeps.progress import Screen, seconds_left
from mobilenet_jax.sweeps.queue import Entry

HERE = platform.node()
V2 = {"model__version": {"value": "v2"}, "model__expansion": {"values": [1, 6]}}
GRID = parameters(model__alpha={"values": [0.25, 0.5]}, model__rho={"value": 0.5}, seed={"value": 0}, **V2)
RUNNING = {"step": 51, "steps": 100, "train_accuracy": 0.91, "images_per_second": 1200.0}


def entries_of(plan: Plan) -> list[Entry]:
    """Return the four points of GRID: one waits, one fails, one is being trained, one is finished."""
    values = [{key: point.assignment[key] for key in ("model.alpha", "model.expansion")} for point in plan.points]
    names = [point.spec.digest for point in plan.points]
    return [
        Entry(1, names[0], "waiting", values[0]),
        Entry(2, names[1], "failed", values[1], None, "why"),
        Entry(3, names[2], "running", values[2], None, "", "this one", RUNNING),
        Entry(4, names[3], "finished", values[3], FINISHED, "", "that one"),
    ]


SHOW = """
import pathlib, sys
from mobilenet_jax.sweeps import file, progress
from mobilenet_jax.sweeps.progress import Screen
from sweep_helpers import plan_of
from test_progress import entries_of
plan = plan_of(file.read(pathlib.Path(sys.argv[1])))
screen = Screen(plan)
screen.show(entries_of(plan))
screen.say("done [bold]")
progress.seconds_left = lambda *_: 75.0
screen.show(entries_of(plan))
screen.close()
print("the end")
"""


def test_a_table_on_a_terminal(read_sweep, tmp_path):
    read_sweep(GRID)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "sweeps")))
    env = os.environ | {"PYTHONPATH": path, "TERM": "xterm", "PYTHONUTF8": "1"}
    code, text = on_a_terminal([sys.executable, "-c", SHOW, str(tmp_path / "some.yaml")], env)
    assert code == 0, text
    assert "1 finished, 1 failed, 1 waiting, 1 running, ETA unknown until the first point is done" in text
    assert "ETA 01:15" in text
    assert "done [bold]\r\n" in text  # the line remains
    assert text.endswith("the end\r\n")
    assert "\x1b[2K" in text.rpartition("ETA 01:15")[2]  # the table does not remain
    table = [" ".join(line.split()) for line in plain(text.partition("done [bold]")[0]).splitlines()]
    head = table.index("α t mult-adds accuracy progress images/s state machine")
    rows = table[head + 1 : head + 5]
    costs = [f"{point.mult_adds / 1e6:.2f} M" for point in plan_of(read_sweep(GRID)).points]
    assert rows[0].startswith(f"0.5 1 {costs[2]} 0.9100 ━") and rows[0].endswith("1,200 running this one")
    assert rows[1:] == [
        f"0.25 1 {costs[0]} waiting",
        f"0.25 6 {costs[1]} failed",
        f"0.5 6 {costs[3]} 0.5000 1,711 finished that one",
    ]


def plain(text: str) -> str:
    """Return a text without the terminal's codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_plain_lines_when_piped(read_sweep, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = plan_of(read_sweep(GRID))
    screen, entries = Screen(plan), entries_of(plan)

    def shown(*steps: int) -> list[str]:
        for first in steps:
            now[0] += 10
            screen.show(entries[first:])
        return capsys.readouterr().out.splitlines()

    (line,) = shown(0, 1, 2, 0)  # one line for the last 30 seconds
    assert line == "1 finished, 1 failed, 1 waiting, 1 running, ETA unknown until the first point is done"
    assert shown(*[0] * 9) == []  # nothing has changed
    screen.say("done")
    assert capsys.readouterr().out == "done\n"
    (line,) = shown(2, 2, 2, 2)
    assert line.startswith("1 finished, 1 running, ETA ")
    screen.close()
    assert capsys.readouterr().out == ""


def test_the_time_left_is_measured_on_this_machine(read_sweep):
    plan = plan_of(read_sweep(parameters(model__alpha={"values": [0.25, 0.5, 1.0]}, train__epochs={"value": 3})))
    small, middle, large = plan.points
    work, steps = [point.work for point in plan.points], middle.spec.total_steps

    def left(*entries: Entry) -> float | None:
        return seconds_left(plan, entries)

    progress = {"step": steps // 4, "steps": steps, "images_per_second": 100.0}
    waiting = [Entry(1, small.spec.digest, "waiting", {}), Entry(3, large.spec.digest, "waiting", {})]
    started = Entry(2, middle.spec.digest, "running", {}, None, "", HERE)
    elsewhere = Entry(2, middle.spec.digest, "running", {}, None, "", "elsewhere", progress)
    running = Entry(2, middle.spec.digest, "running", {}, None, "", HERE, progress)
    assert left(*waiting) is None and left(waiting[0], started, waiting[1]) is None
    assert left(waiting[0], elsewhere, waiting[1]) is None

    still = (1 - (steps // 4) / steps) * work[1]
    measured = steps * middle.spec.config.train.batch_size / 100
    assert left(waiting[0], running, waiting[1]) == pytest.approx(measured / work[1] * (work[0] + still + work[2]))
    second = Entry(3, large.spec.digest, "running", {}, None, "", "elsewhere")  # two train at once
    assert left(waiting[0], running, second) == pytest.approx(measured / work[1] * (work[0] + still + work[2]) / 2)

    done = summaries.parse(FINISHED.model_dump() | {"wall_seconds": 50.0, "fused": 2})
    there = Entry(1, small.spec.digest, "finished", {}, done, "", "elsewhere")
    assert left(there, *waiting[1:]) is None
    assert left(there, running, waiting[1]) == pytest.approx(measured / work[1] * (still + work[2]))
    here = Entry(1, small.spec.digest, "finished", {}, done, "", HERE)
    assert left(here, waiting[1]) == pytest.approx(50 / work[0] * work[2])
    assert left(here, running, waiting[1]) == pytest.approx(50 / work[0] * (still + work[2]))
