"""The display of a run: a bar on a terminal, lines when piped, rows for a listener."""

import re
import subprocess

import pytest
from conftest import CURSOR_ON, on_a_terminal
from helpers import environment, python_command

from mobilenet_jax.training import progress
from mobilenet_jax.training.progress import Display

SHOW = """
from mobilenet_jax.training import progress
progress._REFRESH_SECONDS = 0.0
display = progress.Display()
display.begin(total_steps=8, step=0, steps_per_epoch=4, batch_size=16)
for step in range(8):
    display.advance(1, 1 / (step + 1), step / 8, 1234.5)
    if step == 3:
        display.line("epoch 1 done [bold]")
display.close()
"""


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Return the time that the display sees, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_on_a_terminal():
    code, text = on_a_terminal(python_command(SHOW), environment(TERM="xterm"))
    assert code == 0
    assert text.index(CURSOR_ON) < text.index("epoch")  # a kill leaves it visible
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"epoch 1/2 +50% [━╸]+ loss 0\.2500  accuracy 0\.3750  1,234 images/s  ETA 00:00", plain)
    assert re.search(r"epoch 2/2 100% [━╸]+ loss 0\.1250  accuracy 0\.8750  1,234 images/s  ETA 00:00\r\n", plain)
    assert "\repoch 1 done [bold]\r\n" in plain  # on a line of its own, above the bar


def test_only_lines_when_piped():
    done = subprocess.run(python_command(SHOW), env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "epoch 1 done [bold]\n", "")


def test_a_long_epoch_prints_a_line_every_30_seconds(capsys, clock):
    display = Display()
    display.begin(total_steps=100, step=40, steps_per_epoch=50, batch_size=10)
    for _ in range(10):
        clock[0] += 11
        display.advance(1, 0.5, 0.25, 20.0)
    display.close()
    assert display.step == 50
    assert capsys.readouterr().out.splitlines() == [
        "  step 43/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:28",
        "  step 46/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:27",
        "  step 49/100  loss 0.5000  accuracy 0.2500  20 images/s  ETA 00:25",
    ]


def test_a_listener_gets_rows_and_a_position_per_second(capsys, clock):
    heard = []
    display = Display(heard.append)
    display.begin(total_steps=100, step=40, steps_per_epoch=50, batch_size=10)
    for _ in range(5):
        clock[0] += 0.6
        display.advance(1, 0.5, 0.25, 20.0)
    display.log({"epoch": 1.0})
    display.close()
    figures = {"steps": 100, "train_accuracy": 0.25, "images_per_second": 20.0}
    positions = [{"step": step} | figures for step in (42, 44)]
    assert heard == [{"step": 40, "steps": 100}, *positions, {"epoch": 1.0}]
    assert capsys.readouterr().out == ""
