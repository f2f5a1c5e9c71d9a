"""Memory, restarts, the cache of compiled programs: seen from inside processes that use them."""

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
from mobilenet_jax.training import host
print(os.getpid(), sys.argv[1:], host.compiled_before())
host.restart_after_compiling(
    float(sys.argv[1]), before=lambda: print("before"), mult_adds=float(sys.argv[2]) * host.cores()
)
"""
CACHED = """
from mobilenet_jax.training import host
host.use_compilation_cache()
import jax
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_compilation_cache_max_size)
jax.jit(lambda x: x + 1)(1)
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


def test_a_small_program_is_cached(tmp_path):
    directory = tmp_path / "mobilenet_jax" / "compiled"
    assert python(CACHED, XDG_CACHE_HOME=str(tmp_path)) == [str(directory), str(1 << 30)]
    assert any("lambda" in path.name for path in directory.iterdir())


MANY = """
import jax
from mobilenet_jax.training import host
host.CACHE_BYTES = 20_000
host.use_compilation_cache()
for i in range(20):
    jax.jit(lambda x: x + i)(1)
"""


def test_the_cache_is_bounded(tmp_path):
    python(MANY, XDG_CACHE_HOME=str(tmp_path))
    kept = [path for path in (tmp_path / "mobilenet_jax" / "compiled").iterdir() if path.name.endswith("-cache")]
    assert 0 < len(kept) < 20 and sum(path.stat().st_size for path in kept) <= 20_000


def test_a_half_written_program_is_removed(tmp_path):
    python(CACHED, XDG_CACHE_HOME=str(tmp_path))
    directory = tmp_path / "mobilenet_jax" / "compiled"
    (program,) = directory.glob("*lambda*-cache")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])  # JAX writes in place, and was killed
    program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
    python(CACHED, XDG_CACHE_HOME=str(tmp_path))  # nothing on stderr
    assert len(program.read_bytes()) == len(whole)


def test_the_users_directory_is_used(tmp_path):
    assert python(CACHED, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=f"{tmp_path}/own") == [
        f"{tmp_path}/own",
        "-1",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_no_cache_without_a_writable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    assert python(CACHED, XDG_CACHE_HOME=f"{tmp_path}/file") == ["None", "-1"]
    assert python(CACHED, JAX_COMPILATION_CACHE_DIR=f"{tmp_path}/file") == ["None", "-1"]


NO_HOME = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
os.chdir(sys.argv[1])
"""


def test_no_cache_without_a_home(tmp_path):
    assert python(NO_HOME + CACHED, str(tmp_path)) == ["None", "-1"]
    assert not [*tmp_path.iterdir()]
