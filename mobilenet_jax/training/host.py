"""How training processes use their machine: memory they keep, JAX's settings, GPUs, compiled programs, their age."""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import pathlib
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from mobilenet_jax import console, files
from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.records import identity

_IMPORTED = time.monotonic()
COMPILED = "MOBILENET_JAX_COMPILED"  # 'pid:seconds' of a process that restarted; its children ignore it
CACHE_BYTES = 1 << 30  # of compiled programs; JAX evicts the least recently used
PINNED = {  # settings of JAX that change what a seed gives, or refuse a correct program: a user's own are not used
    **{"jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "jax_random_seed_offset": 0},
    **{"jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"},
    **{"jax_transfer_guard": "allow", "jax_no_tracing": False, "jax_no_execution": False},
    **{"jax_debug_nans": False, "jax_debug_infs": False},  # a loss that is not finite is a result
}
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


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen_platform() -> str:
    """Return what the user wants JAX to train on, '' if it may choose."""
    return os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""


def trains_on_cpu() -> bool:
    """Return whether JAX will train on the CPU, without an import of JAX.

    The plugin of another platform counts as its device. Only of NVIDIA GPUs it is known whether the machine has one.
    """
    if chosen := _chosen_platform():
        return chosen.startswith("cpu")
    found = importlib.util.find_spec("jax_plugins")  # a namespace that all plugins but that of TPUs share
    plugins = [plugin.name for plugin in pkgutil.iter_modules(found.submodule_search_locations)] if found else []
    others = any(not name.startswith("xla_cuda") for name in plugins) or importlib.util.find_spec("libtpu")
    return not (others or visible_gpus())


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that JAX may use in this process, by the names that CUDA_VISIBLE_DEVICES takes."""
    plugins = [importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)]
    if not (_chosen_platform() or "cuda").startswith(("cuda", "gpu")) or not any(plugins):
        return []
    listed = _nvidia_smi("--list-gpus")
    numbers, uuids = (re.findall(known, listed or "") for known in (r"(?m)^GPU (\d+)", r"UUID: ([^)]+)"))

    def exists(name: str) -> bool:
        found = name in numbers or "/" in name or sum(uuid.startswith(name) for uuid in uuids) == 1  # MIG-GPU-UUID/1/2
        return (listed is None or found) and bool(re.match(r"\d|(GPU|MIG)-", name))

    # As CUDA reads the list: a name of no device ends it, and with a repeated device all are hidden.
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers)).split(",")
    names = [*itertools.takewhile(exists, map(str.strip, names))]
    return names if len({*names}) == len(names) else []


def _nvidia_smi(*arguments: str) -> str | None:
    """Return what the driver's tool prints, '' if the driver does not work, None without the tool."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else ""


@functools.cache
def device_facts() -> dict[str, str]:
    """Return for `env.json` what a result depends on next to the device: precision, and off CPUs runtime and driver.

    The precision is JAX's for products of float32: 'default' means TF32 on recent NVIDIA GPUs, bfloat16 on TPUs.
    """
    import jax

    client = jax.devices()[0].client
    facts = {"matmul_precision": jax.config.jax_default_matmul_precision or "default"}  # pyright: ignore[reportAttributeAccessIssue]
    if client.platform != "cpu":
        facts["runtime"] = " ".join(client.platform_version.split())
        if drivers := (_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader") or "").split():
            facts["driver"] = drivers[0]
    return facts


def gpu_settings(number: int, count: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that give worker `number` of `count` its share of the GPUs."""
    shared = -(-count // len(gpus))  # workers per GPU
    settings = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number::count]) or gpus[number % len(gpus)]}
    settings["JAX_PLATFORMS"] = "cuda"  # with '' or 'cuda,cpu', JAX trains on the CPU if it cannot use the GPU
    if shared > 1 and not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        # By default, each JAX process takes three quarters of the memory. A process needs some outside its share.
        settings["XLA_CLIENT_MEM_FRACTION"] = f"{(90 - shared) // shared / 100:.2f}"
    return settings


def share_of_cores(number: int, count: int) -> set[int]:
    """Return the CPU cores of worker `number` of `count`: XLA starts one thread for each that its process may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    n = len(cores)
    return {*cores[number * n // count : (number + 1) * n // count]} or {*cores[number % max(1, n) :][:1]}


@contextlib.contextmanager
def starting_jax() -> Iterator[None]:
    """Turn what JAX raises into an InputError that names its settings in the environment: often they are the reason."""
    try:
        yield
    except Exception as e:
        chosen = " and ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(identity.SETTINGS))
        reason = first_line(e) if str(e) else "no device"  # JAX asserts that a platform has a plugin
        reason = reason.partition(" (set JAX_PLATFORMS=")[0]  # workers that have a GPU do not leave the choice to JAX
        hint = "; JAX_PLATFORMS=cpu trains on the CPU" if _chosen_platform()[:3] not in ("", "cpu") else ""
        raise InputError(f"JAX does not start on this machine{chosen and f' with {chosen}'}: {reason}{hint}") from None


def use_compilation_cache() -> None:
    """Keep compiled programs on disk: the next process with the same program starts in a second or two.

    The directory is `JAX_COMPILATION_CACHE_DIR`, with the user's limits, or else one of at most 1 GB under the user's
    cache directory. If that cannot be written, nothing is kept.
    """
    import jax

    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    directory = os.path.expanduser(chosen or os.path.join(base, "mobilenet_jax", "compiled"))
    usable = "://" in directory
    if not usable and (chosen or os.path.isabs(directory)):  # else no home is known
        with contextlib.suppress(OSError):
            os.makedirs(directory, exist_ok=True)
        usable = os.path.isdir(directory) and os.access(directory, os.W_OK)
    jax.config.update("jax_compilation_cache_dir", directory if usable else None)
    if not usable:
        return
    if not chosen:
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        _remove_half_written(pathlib.Path(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # by default JAX skips programs that are
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # quick to compile, and dozens are slow together


def _remove_half_written(directory: pathlib.Path) -> None:
    """Remove programs that JAX was writing when its process was killed or the disk was full.

    JAX writes a program in place and then the time of its last use. Without the second file, JAX compiles the program
    in every process, warns about it, and caches nothing else.
    """
    with contextlib.suppress(OSError), files.lock(directory / ".lockfile", timeout=10):  # JAX's own lock
        for program in directory.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def process_seconds() -> float:
    """Return the seconds since this process started, restarts included; since the import if the system has no /proc."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED
