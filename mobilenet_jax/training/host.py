"""How a training process uses its machine: memory that it keeps, programs compiled once, how long since its start."""

import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

_IMPORTED = time.monotonic()
_COMPILED = (
    "MOBILENET_JAX_COMPILED"  # 'pid:seconds', which `start_anew` carries over; children inherit it, and ignore it
)
CACHE_BYTES = 1 << 30  # of compiled programs; the least recently used go
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # all of these are for GLIBC_TUNABLES
KEPT_MEMORY = ":".join(
    (
        HUGE_PAGES,
        "glibc.malloc.arena_max=1",  # a thread's own arena cannot hold a large buffer: it would be mapped and unmapped
        "glibc.malloc.mmap_max=0",
        f"glibc.malloc.trim_threshold={1 << 40}",
    )
)


def keep_memory() -> None:
    """Starts this process anew with huge pages for malloc and memory that is kept: it takes both at the start only.

    XLA allocates the buffers of a step anew each time, and glibc maps and unmaps a large one each time: the system
    hands it out zeroed, 4 kB at a fault. With pages of 2 MB that are not given back, a step on a CPU takes a quarter
    less time. Returns where hugetlb is set already, by this function or by the user (GLIBC_TUNABLES), or where there
    is no such thing. Call it before anything is opened or started.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb=" not in before:
        _exec(GLIBC_TUNABLES=f"{before}:{KEPT_MEMORY}".lstrip(":"))


def better_anew(compile_seconds: float) -> bool:
    """Whether a process that has compiled for so long should leave the training to a fresh one, which loads.

    A heap in which XLA has compiled is full of small holes that every allocation of a step looks through, and steps
    take 10 to 30 % longer. Not worth it below five seconds, nor known where `keep_memory` is not in force.
    """
    return KEPT_MEMORY in os.environ.get("GLIBC_TUNABLES", "") and compile_seconds > 5


def start_anew(compile_seconds: float, asked: Sequence[int] = ()) -> None:
    """Starts this process anew, once, where that is better after compiling; else returns.

    It also returns where a signal is among the `asked` (see `process.signals`), of which a fresh process would not
    know.
    """
    if better_anew(compile_seconds) and not compiled_before():
        sys.stdout.flush()
        _exec(asked, **{_COMPILED: f"{os.getpid()}:{compile_seconds}"})


def _exec(asked: Sequence[int] = (), **variables: str) -> None:
    """Becomes a fresh process, unless a signal was noted. One that comes from here on ends it, as nothing is begun."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):  # not ignored: noted too late, it would be lost
            signal.signal(number, signal.SIG_DFL)
    if not asked:
        os.execve(sys.executable, sys.orig_argv, os.environ | variables)


def compiled_before() -> float:
    """The seconds for which this process compiled before `start_anew`; 0 where it was not started anew."""
    pid, _, seconds = os.environ.get(_COMPILED, "").partition(":")
    return float(seconds) if pid == str(os.getpid()) else 0.0


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second process with the same program starts in a second or two.

    In `JAX_COMPILATION_CACHE_DIR`, whose size is the user's affair, or else, up to 1 GB, under the user's cache
    directory; not where that cannot be written.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = os.path.join(base, "mobilenet_jax", "compiled")
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError:
            return
        if not os.access(directory, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        _forget_half_written(pathlib.Path(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # JAX's own limits would keep out what is
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # small alone and slow in its dozens


def _forget_half_written(directory: pathlib.Path) -> None:
    """Removes the programs that JAX was writing when its process was killed or the disk was full.

    It writes a program in place, and then beside it when it was last used. Without the second, JAX compiles that
    program in every process, warns of it, and keeps no other.
    """
    import filelock

    with (
        contextlib.suppress(OSError, filelock.Timeout),
        filelock.FileLock(directory / ".lockfile", timeout=10),
    ):  # JAX's
        for program in directory.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def process_seconds() -> float:
    """Seconds since this process was started, `keep_memory` included; where the system does not say, since import."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED
