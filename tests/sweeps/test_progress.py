"""What a sweep shows: a table on a terminal, plain lines when piped."""

import os
import sys

from conftest import ROOT, on_a_terminal
from helpers import LINES

from mobilenet_jax.sweeps import progress as board
from mobilenet_jax.sweeps.progress import Board

SHOW = """
from helpers import LINES
from mobilenet_jax.sweeps.progress import Board
shown = Board()
shown.show(LINES, 75.0)
shown.line("done [bold]")
shown.show(LINES, 3665.0)
shown.close()
print("the end")
"""


def test_a_table_on_a_terminal():
    path = os.pathsep.join([str(ROOT), os.path.dirname(os.path.dirname(__file__))])
    env = os.environ | {"PYTHONPATH": path, "TERM": "xterm"}
    code, text = on_a_terminal([sys.executable, "-c", SHOW], env)
    assert code == 0
    assert "1 done, 1 waiting, 1 running, ETA 0:01:15" in text and "ETA 1:01:05" in text
    assert "running  narrow    0.9100    51%       here" in text and "seed [1]" in text
    assert "done [bold]\r\n" in text  # a line stays
    assert text.endswith("the end\r\n")
    assert text.index("running  narrow") < text.index("waiting  wide") < text.index("done     seed [1]")


def test_plain_lines_when_piped(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    shown = Board()
    for _ in range(9):
        now[0] += 10
        shown.show(LINES, 75.0)  # says it once, as nothing changes
    shown.line("done")
    shown.close()
    assert capsys.readouterr().out == "1 done, 1 waiting, 1 running, ETA 0:01:15; narrow 51%\ndone\n"
