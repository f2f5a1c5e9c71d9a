"""How training processes use their machine: the memory they keep, their restarts, their age."""

import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence

from mobilenet_jax import console
from mobilenet_jax.training.devices import cores, trains_on_cpu

_IMPORTED = time.monotonic()
COMPILED = "MOBILENET_JAX_COMPILED"  # 'pid:seconds' of a process that restarted; its children ignore it
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # these settings go into GLIBC_TUNABLES
KEPT_MEMORY = ":".join(
    (
        HUGE_PAGES,
        "glibc.malloc.arena_max=1",  # another arena cannot hold a large buffer, which would be mapped and unmapped
        "glibc.malloc.mmap_max=0",
        f"glibc.malloc.trim_threshold={1 << 40}",
    )
)
_WORTH_A_RESTART = 5.0  # seconds of compiling
_RESTART_MULT_ADDS = 2e11  # of the images to train on, per core: about 15 s, of which a restart saves what it costs


def keep_memory() -> None:
    """Restart this process with huge pages for malloc and with memory that is kept between steps, on Linux.

    XLA allocates the buffers of each step again, and glibc maps and unmaps a large one each time: the kernel zeroes it
    page by page. With pages of 2 MB that stay mapped, a step on a CPU takes a quarter less time. glibc reads these
    settings only at the start of a process. Call this function before anything is opened or started. It returns if the
    settings are there already, from a restart or from the user (GLIBC_TUNABLES), if the system has none, or if JAX
    does not train on the CPU.
    """
    if (tunables := kept_memory())["GLIBC_TUNABLES"] != os.environ.get("GLIBC_TUNABLES", ""):
        restart(GLIBC_TUNABLES=tunables["GLIBC_TUNABLES"])


def kept_memory() -> dict[str, str]:
    """Return the environment variable with which a process needs no restart by `keep_memory`."""
    before = os.environ.get("GLIBC_TUNABLES", "")
    missing = sys.platform == "linux" and "glibc.malloc.hugetlb=" not in before and trains_on_cpu()
    return {"GLIBC_TUNABLES": f"{before}:{KEPT_MEMORY}".lstrip(":") if missing else before}


def restart_after_compiling(
    compile_seconds: float,
    asked: Sequence[int] = (),
    before: Callable[[], object] = lambda: None,
    mult_adds: float = math.inf,
) -> None:
    """Restart this process once after a long compilation, if that makes a long training faster. Else return.

    XLA leaves a fragmented heap behind, which makes every allocation of a step slower: steps take 10 to 30 % longer
    than in a fresh process, which loads the compiled programs from the cache. This was measured on CPUs with the
    settings of `keep_memory`; without them, nothing restarts.

    Args:
      compile_seconds: spent in this process.
      asked: signals that have come (`console.signals`); with any, return, as a fresh process would not know of them.
      before: is called before a restart.
      mult_adds: of one forward pass over all images of the training, epoch by epoch.
    """
    long = compile_seconds > _WORTH_A_RESTART and mult_adds > _RESTART_MULT_ADDS * cores()
    kept = KEPT_MEMORY in os.environ.get("GLIBC_TUNABLES", "")
    if kept and long and not compiled_before():
        before()
        sys.stdout.flush()
        restart(asked, **{COMPILED: f"{os.getpid()}:{compile_seconds}"})


def restart(asked: Sequence[int] = (), **variables: str) -> None:
    """Replace this process by a fresh one, unless a signal was noted. A signal from here on ends the process.

    Args:
      asked: the signals that were noted.
      variables: to set in the environment.
    """
    for number in console.SIGNALS:
        if callable(signal.getsignal(number)):  # our handler would note the signal, and the restart would lose it
            signal.signal(number, signal.SIG_DFL)
    if not asked:
        os.execve(sys.executable, sys.orig_argv, os.environ | variables)


def compiled_before() -> float:
    """Return the seconds that this process compiled before `restart_after_compiling`, 0 if it did not restart."""
    pid, _, seconds = os.environ.get(COMPILED, "").partition(":")
    return float(seconds) if pid == str(os.getpid()) else 0.0


def process_seconds() -> float:
    """Return the seconds since this process started, restarts included; since the import if the system has no /proc."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED
