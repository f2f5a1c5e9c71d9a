"""What all tests share: no W&B unless a test asks for it, and the two strict modes of JAX."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import warnings
from typing import Any

import pytest
import yaml

from mobilenet_jax.sweeps import file as sweepfile

ROOT = pathlib.Path(__file__).parent.parent

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell started this in the background
os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mobilenet_jax-tests-")  # for compiled programs
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """JAX's settings for a module that trains, as the environment of other processes: its usual promotion, which
    optax's one-cycle schedule needs, and compiled programs kept for the session, as most runs are the same program."""
    import jax  # it reads the environment above when it is imported
    from jax.experimental.compilation_cache import compilation_cache

    compiled = tmp_path_factory.getbasetemp() / "compiled"
    options = {
        "jax_numpy_rank_promotion": "allow",
        "jax_numpy_dtype_promotion": "standard",
        "jax_compilation_cache_dir": str(compiled),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for chosen in (options, before):
        for name, value in chosen.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if chosen is options:
            yield {name.upper(): str(value) for name, value in options.items()}


@pytest.fixture
def launch(tmp_path):
    """Runs `python launch.py ARGUMENTS` to its end, with `--workdir` in the test's own directory."""

    def run(*arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launch.py"), f"--workdir={tmp_path / 'runs'}", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout
        )

    return run


def on_a_terminal(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """The exit code of a command whose output is a terminal of 24 lines and 100 columns, and what it wrote there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs) as shown:
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 4096):
                output += data
        except OSError:  # how Linux ends a terminal whose other side is closed
            pass
        finally:
            os.close(ours)
    return shown.returncode, output.decode()


# Sweep files, by three test files.
GRID = {"program": "launch.py", "method": "grid", "parameters": {"config.model.alpha": {"values": [0.25, 0.5]}}}
SEARCH = GRID | {
    "method": "random",
    "run_cap": 10,
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "parameters": {
        "config.data.holdout": {"value": 0.1},
        "config.optim.lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
    },
}


@pytest.fixture
def read_sweep(tmp_path):
    """Reads a sweep file that holds this text, or this tree."""

    def run(content: Any) -> sweepfile.Sweep:
        path = tmp_path / "some.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return sweepfile.read(path)

    return run


def parameters(**given: Any) -> dict[str, Any]:
    """The smallest file with these parameters, a double underscore standing for a dot."""
    return GRID | {"parameters": {f"config.{key.replace('__', '.')}": value for key, value in given.items()}}


@pytest.fixture(scope="session")
def wandb_points():
    """Enumerates the points of a file's tree with W&B's `sweeps` package; none of a search."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = pytest.importorskip("sweeps.config.cfg")  # a mere folder named `sweeps` has no such module
        search = pytest.importorskip("sweeps.grid_search")

    def enumerate_points(tree: dict[str, Any]) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checked = cfg.SweepConfig({key: value for key, value in tree.items() if key != "run_cap"})  # unknown to it
            if tree["method"] != "grid":
                return []
            runs = search.grid_search_next_runs([], checked, n=10**6)
        return [{key: value["value"] for key, value in run.config.items()} for run in runs if run is not None]

    return enumerate_points
