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


TEXT = """
import sys
from mobilenet_jax import console
sys.exit(console.run(lambda: console.say("run  caf\\udce9\\n\\u03b1")))
"""


@pytest.mark.parametrize(
    ("variables", "alpha"),
    [
        ({"PYTHONUTF8": "1"}, "\u03b1"),
        ({"PYTHONIOENCODING": "ascii"}, r"\u03b1"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"\u03b1"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(variables, alpha):
    assert python(TEXT, **variables) == [r"run  caf\udce9", alpha]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "/home/me"),
        ("~/a b", "/home/me/a b"),
        ("--workdir=~/runs", "--workdir=/home/me/runs"),
        ("-config.data.dir=~/a=~", "-config.data.dir=/home/me/a=~"),
        ("--storage=sqlite:///~/s.db", "--storage=sqlite:////home/me/s.db"),
        ("--storage=sqlite+pysqlite:///~/s.db", "--storage=sqlite+pysqlite:////home/me/s.db"),
        *((text, text) for text in ("", "--dry_run", "./~/runs", "a~", "--config.point=alpha=1", "/~", "a\n~")),
    ],
)
def test_a_home_is_expanded(text, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert console.expand_home(text) == expanded


@pytest.mark.parametrize("text", ["~", "--workdir=~/runs", "~nobody-of-this-name/runs"])
def test_a_home_that_is_not_known(text, no_home, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", text])
    assert console.run(lambda: 0) == 1
    assert f"error: {text}: no home directory" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.9, "00:59"), (125, "02:05"), (3725, "1:02:05")])
def test_a_duration(seconds, text):
    assert console.clock(seconds) == text


def test_a_closed_standard_output():
    command = f"{sys.executable} -m mobilenet_jax.report --published"
    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
