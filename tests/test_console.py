"""Signals, and output that nobody reads, seen from another process."""

import subprocess
import sys

import pytest
from conftest import ROOT
from helpers import python

from mobilenet_jax import console

SIGNALS = """
import os, signal, sys
from mobilenet_jax import console
first = signal.Signals[sys.argv[1]]
signal.signal(first, signal.SIG_IGN if "ignored" in sys.argv else signal.SIG_DFL)  # as by nohup
with console.signals(again="again" in sys.argv) as asked:
    for number in (first, signal.SIGINT):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            print("interrupted")
    print([signal.Signals(number).name for number in asked])
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGUSR1"])
def test_signals_are_collected(name):
    """By default only the first one is collected. Ignored signals never are."""
    assert python(SIGNALS, name) == ["interrupted", f"['{name}']", "True"]
    assert python(SIGNALS, name, "again") == [f"['{name}', 'SIGINT']", "True"]
    assert python(SIGNALS, name, "ignored") == ["['SIGINT']", "True"]


SAY = """
import sys, time
from mobilenet_jax import console
for i in range(3):
    console.say(f"line {i}")
    time.sleep(0.3)
print("on", file=sys.stderr)
"""


def test_work_goes_on_when_nobody_reads():
    command = [sys.executable, "-c", SAY]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout and started.stderr
        assert started.stdout.readline() == "line 0\n"
        started.stdout.close()
        assert started.stderr.read() == "on\n"
    assert started.returncode == 0


WARN = """
import os, sys
from mobilenet_jax import console
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
console.warn("a warning")
print("done")
"""


def test_a_warning_that_cannot_be_written_changes_no_exit_code():
    assert python(WARN) == ["done"]


PATH = """
import sys
from mobilenet_jax import console
sys.stdout.reconfigure(errors="strict")
console.say("run  caf\\udce9")
"""


def test_a_path_that_cannot_be_shown_is_escaped():
    assert python(PATH) == [r"run  caf\udce9"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.9, "00:59"), (125, "02:05"), (3725, "1:02:05")])
def test_a_duration(seconds, text):
    assert console.clock(seconds) == text
