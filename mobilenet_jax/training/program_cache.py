"""The cache of compiled programs: a process that needs the same program as an earlier one does not compile it."""

import contextlib
import os
import pathlib

from mobilenet_jax import files

CACHE_BYTES = 1 << 30  # of compiled programs; JAX evicts the least recently used


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
