"""Memory, restarts and age of a process: seen from inside."""

import signal
import sys

import pytest
from helpers import python

from mobilenet_jax.training import host

KEPT = """
import os, sys
from mobilenet_jax.training import host
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
host.keep_memory()
print("on")
"""
RESTARTED = """
import os, sys
from mobilenet_jax.training import devices, host
print(os.getpid(), sys.argv[1:], host.compiled_before())
host.restart_after_compiling(
    float(sys.argv[1]), before=lambda: print("before"), mult_adds=float(sys.argv[2]) * devices.cores()
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_keeping_memory_restarts_the_process_once(before):
    first, second, last = python(KEPT, "an argument", **({"GLIBC_TUNABLES": before} if before else {}))
    pid = first.split()[0]
    assert first == f"{pid} ['an argument'] {before or None}"
    assert second == f"{pid} ['an argument'] {before}{':' if before else ''}{host.KEPT_MEMORY}"
    assert last == "on"


def test_the_users_own_setting_of_huge_pages_wins():
    assert len(python(KEPT, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")) == 2


@pytest.mark.parametrize(
    ("seconds", "mult_adds", "tunables", "printed"),
    [
        ("5.5", "3e11", host.KEPT_MEMORY, ["{} ['5.5', '3e11'] 0.0", "before", "{} ['5.5', '3e11'] 5.5"]),
        ("4.5", "3e11", host.KEPT_MEMORY, ["{} ['4.5', '3e11'] 0.0"]),
        ("5.5", "1e11", host.KEPT_MEMORY, ["{} ['5.5', '1e11'] 0.0"]),
        ("5.5", "3e11", "", ["{} ['5.5', '3e11'] 0.0"]),
    ],
)
def test_a_process_that_compiled_for_long_restarts_once(seconds, mult_adds, tunables, printed):
    lines = python(RESTARTED, seconds, mult_adds, GLIBC_TUNABLES=tunables)
    assert lines == [line.format(lines[0].split()[0]) for line in printed]


SIGNALLED = """
import os, signal, sys
from mobilenet_jax import console
from mobilenet_jax.training import host
print("start", flush=True)
with console.signals() as asked:
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # between the last check and the restart
        os.execve = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    host.restart_after_compiling(6.0, asked)
    print("on", asked)
"""


def test_a_signal_before_a_restart_is_not_lost():
    """A collected signal stops the run. A later one ends the process, which has not begun anything."""
    assert python(SIGNALLED, "before", GLIBC_TUNABLES=host.KEPT_MEMORY) == ["start", f"on [{signal.SIGTERM:d}]"]
    assert python(SIGNALLED, "after", GLIBC_TUNABLES=host.KEPT_MEMORY, code=-signal.SIGTERM) == ["start"]


def test_a_child_of_a_restarted_process_did_not_restart():
    assert python(
        "from mobilenet_jax.training import host; print(host.compiled_before())", MOBILENET_JAX_COMPILED="1:9"
    ) == ["0.0"]


def test_seconds_of_a_process_count_from_its_start():
    (line,) = python(
        "import time; time.sleep(0.5); from mobilenet_jax.training import host; print(host.process_seconds())"
    )
    assert 0.5 <= float(line) < 60
