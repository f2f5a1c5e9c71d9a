"""How a training process uses its machine: huge memory pages, and programs that are compiled once."""

import os
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"  # for GLIBC_TUNABLES


def use_huge_pages() -> None:
    """Starts this process anew with huge pages for malloc, which is told so only through the environment at the start.

    XLA allocates the buffers of a step anew each time, and the system hands them out zeroed, 4 kB at a fault; with
    pages of 2 MB a step on a CPU takes a fifth less time. Returns where they are set already, by this function or by
    the user (GLIBC_TUNABLES), or where there is no such thing. Call it before anything is opened or started.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb=" not in before:
        tunables = f"{before}:{HUGE_PAGES}".lstrip(":")
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": tunables})


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
        jax.config.update("jax_compilation_cache_max_size", 1 << 30)  # bytes; the least recently used go
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # JAX's own limits would keep out what is
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # small alone and slow in its dozens
