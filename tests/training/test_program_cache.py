"""The cache of compiled programs: seen from inside processes that use it."""

from helpers import python

CACHED = """
from mobilenet_jax.training import program_cache
program_cache.use_compilation_cache()
import jax
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_compilation_cache_max_size)
jax.jit(lambda x: x + 1)(1)
"""


MANY = """
import jax
from mobilenet_jax.training import program_cache
program_cache.CACHE_BYTES = 20_000
program_cache.use_compilation_cache()
for i in range(20):
    jax.jit(lambda x: x + i)(1)
"""


def test_the_cache_is_bounded(tmp_path):
    python(MANY, XDG_CACHE_HOME=str(tmp_path))
    kept = [path for path in (tmp_path / "mobilenet_jax" / "compiled").iterdir() if path.name.endswith("-cache")]
    assert 0 < len(kept) < 20 and sum(path.stat().st_size for path in kept) <= 20_000


def test_a_small_program_is_cached_and_removed_if_half_written(tmp_path):
    directory = tmp_path / "mobilenet_jax" / "compiled"
    assert python(CACHED, XDG_CACHE_HOME=str(tmp_path)) == [str(directory), str(1 << 30)]
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
