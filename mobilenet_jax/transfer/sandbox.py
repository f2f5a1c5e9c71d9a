"""Read a foreign file in a child process with limits on time and memory.

HDF5 is parsed by a library in C, which damaged files can crash or keep busy. In a child, that is one sentence.

    python -m mobilenet_jax.transfer.sandbox PATH VARIABLES > SOURCE.safetensors
"""

import importlib.util
import os
import pathlib
import resource
import signal
import subprocess
import sys

from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.transfer.source import Source

_SECONDS = 60  # a network of 14 MB takes one
_BYTES = 4 * 2**30  # of address space


def read(path: pathlib.Path, variables: str = "auto") -> Source:
    """Return the network in a file (`formats.read`); raises InputError over anything else that it holds."""
    command = [sys.executable, "-m", "mobilenet_jax.transfer.sandbox", os.path.abspath(path), variables]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PATH": os.devnull, "PYTHONPATH": _import_path()}
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: cannot be read within {_SECONDS} seconds") from None
    if done.returncode == 0:
        return Source.from_bytes(done.stdout)
    lines = done.stderr.decode(errors="replace").splitlines()
    if done.returncode == 1 and lines and lines[-1].startswith("error: "):
        raise InputError(f"{path}: {lines[-1].removeprefix('error: ')}")
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"code {done.returncode}"
    raise InputError(f"{path}: is damaged: its reader ended with {how}")


def _import_path() -> str:
    """Return the path of this package, for a child that starts in another directory."""
    spec = importlib.util.find_spec("mobilenet_jax")
    assert spec is not None and spec.origin is not None
    here = str(pathlib.Path(spec.origin).parent.parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def _child(path: str, variables: str) -> None:
    for kind, most in ((resource.RLIMIT_AS, _BYTES), (resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_CORE, 0)):
        allowed = resource.getrlimit(kind)[1]  # which a machine may have set lower
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (most, most))
    from mobilenet_jax.transfer import formats  # late: within the limits

    try:
        content = formats.read(pathlib.Path(path), variables).to_bytes()
    except InputError as e:
        raise SystemExit(f"error: {e}") from None
    except ModuleNotFoundError as e:
        if e.name not in ("h5py", "tflite"):
            raise
        command = "pip install -c constraints.txt -e '.[weights]'"
        raise SystemExit(f"error: needs the package {e.name!r}: `{command}` installs it") from None
    except OSError as e:
        raise SystemExit(f"error: {e.strerror or InputError(first_line(e))}") from None
    except Exception as e:  # a parser of damaged files may raise anything
        reason = InputError(f"{type(e).__name__}: {first_line(e)}")
        raise SystemExit(f"error: is damaged, or is no network that can be read ({reason})") from None
    sys.stdout.buffer.write(content)


if __name__ == "__main__":
    _child(*sys.argv[1:])
