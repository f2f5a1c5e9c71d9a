"""Signals, and output that nobody takes, looked at from outside."""

import subprocess
import sys

from conftest import ROOT
from helpers import python

SIGNALS = """
import os, signal, sys
from mobilenet_jax import process
signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in sys.argv else signal.SIG_DFL)  # as by nohup
with process.signals(again="again" in sys.argv) as asked:
    for number in (signal.SIGHUP, signal.SIGINT):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            print("interrupted")
    print([signal.Signals(number).name for number in asked])
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_signals_are_collected():
    """The first alone, after which they act as before, or all; not those that are ignored."""
    assert python(SIGNALS) == ["interrupted", "['SIGHUP']", "True"]
    assert python(SIGNALS, "again") == ["['SIGHUP', 'SIGINT']", "True"]
    assert python(SIGNALS, "ignored") == ["['SIGINT']", "True"]


SAY = """
import sys, time
from mobilenet_jax import process
for i in range(3):
    process.say(f"line {i}")
    time.sleep(0.3)
print("on", file=sys.stderr)
"""


def test_work_goes_on_where_nobody_reads():
    command = [sys.executable, "-c", SAY]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout and started.stderr
        assert started.stdout.readline() == "line 0\n"
        started.stdout.close()
        assert started.stderr.read() == "on\n"
    assert started.returncode == 0


PATH = """
import sys
from mobilenet_jax import process
sys.stdout.reconfigure(errors="strict")
process.say("run  caf\\udce9")
"""


def test_a_path_that_is_no_text_is_escaped():
    assert python(PATH) == [r"run  caf\udce9"]
