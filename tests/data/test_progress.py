"""The bar of long tasks: on a terminal, in a pipe, and where the reader has gone."""

import sys

import pytest
from conftest import CURSOR_ON, on_a_terminal
from helpers import environment, python

from mobilenet_jax.data.progress import progress

WORK = """if True:
    import os, sys
    from mobilenet_jax.data import progress
    progress._REFRESH_SECONDS = 0

    def work(before_the_last=lambda: None):
        with progress.progress("decoding shapes", 3) as advance:
            for i in range(3):
                if i == 2:
                    before_the_last()
                advance(1)
        print("done")
"""


def test_a_pipe_gets_one_line(capfd: pytest.CaptureFixture[str]):
    with progress("decoding shapes", 3) as advance:
        advance(3)
    assert capfd.readouterr() == ("", "decoding shapes\n")
    assert python(f"{WORK}\n    os.dup2(1, 2); work()", FORCE_COLOR="1") == ["decoding shapes", "done"]


def test_a_terminal_shows_a_bar():
    code, shown = on_a_terminal([sys.executable, "-c", f"{WORK}\n    work()"], environment())
    assert code == 0
    assert shown.startswith("decoding shapes\r\n") and shown.endswith("done\r\n")
    assert "\u2501" in shown and "67%" in shown and "100%" in shown
    assert shown.index(CURSOR_ON) < shown.index("67%")  # a kill leaves it visible


@pytest.mark.parametrize("reader_and_writer", ["os.openpty()", "os.pipe()"])
def test_work_goes_on_without_a_reader(reader_and_writer: str):
    code = f"""{WORK}
    reader, writer = {reader_and_writer}
    os.dup2(writer, 2)
    work(lambda: os.close(reader))
    work()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Python flushes standard error when it exits
    """
    assert python(code, FORCE_COLOR="1") == ["done", "done"]  # or else rich finds out that the terminal has gone
