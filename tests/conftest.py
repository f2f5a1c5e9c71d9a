"""What all tests share: W&B is disabled, JAX is strict, and compiled programs are kept until the session ends."""

import atexit
import contextlib
import hashlib
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import postgres_server
import pytest
import yaml

from mobilenet_jax.data import cifar10
from mobilenet_jax.data.arrays import Split
from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import file as sweep_files

ROOT = pathlib.Path(__file__).parent.parent

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell started this in the background
os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mobilenet_jax-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
# XLA compiles in half the time. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` tests the optimised programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="module")
def settings():
    """Set JAX up as `launch.py` does for a module that trains, and yield that as variables for other processes.

    The promotion of types is JAX's default, which optax's one-cycle schedule needs. Compiled programs go to the
    directory that `launch.py` uses.
    """
    import jax  # it reads the variables above when it is imported
    from jax.experimental.compilation_cache import compilation_cache

    from mobilenet_jax.training import program_cache

    options = {
        "jax_numpy_rank_promotion": "allow",
        "jax_numpy_dtype_promotion": "standard",
        "jax_compilation_cache_dir": os.path.join(os.environ["XDG_CACHE_HOME"], "mobilenet_jax", "compiled"),
        "jax_compilation_cache_max_size": program_cache.CACHE_BYTES,
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


@pytest.fixture(scope="module")
def shared_programs(settings):
    """The processes of a module load the programs that any module of the session has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def small_networks(settings) -> Iterator[None]:
    """Cut networks after their first block, and compile each program once."""
    from training_helpers import compile_once, one_block

    with one_block(), compile_once():
        yield


@pytest.fixture(scope="module")
def start(settings) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the command line in a process of its own, which may send itself a signal."""
    from helpers import flags_of

    def process(
        place: str, overrides: dict[str, Any], stop: str = "SIGTERM 0", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "tests" / "training_helpers.py"), place, *flags_of(overrides)],
            env=os.environ | settings | {"PYTHONPATH": str(ROOT), "STOP": stop} | env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return process


@pytest.fixture(scope="module")
def finished(small_networks, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """Return what an undisturbed run printed, and its directory."""
    from helpers import TINY
    from training_helpers import printed

    directory = tmp_path_factory.mktemp("finished") / "run"
    return printed(TINY, directory), directory


@pytest.fixture(scope="module")
def crashed(small_networks, tmp_path_factory) -> pathlib.Path:
    """Return the directory of a run that ended at step 50, after the checkpoints of 33 and 44; to be copied."""
    from helpers import TINY
    from training_helpers import Crash, after, crash, run, saved

    directory = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.raises(Crash), after(50, crash):
        run(TINY, directory)
    assert saved(directory) == {"33", "44"}
    return directory


@pytest.fixture
def launch(tmp_path):
    """Return a function that runs `python launch.py ARGUMENTS` with `--workdir` in the test's own directory."""

    def run(*arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launch.py"), f"--workdir={tmp_path / 'runs'}", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgres_server.Server]:
    with contextlib.ExitStack() as held:
        try:
            found = held.enter_context(postgres_server.running())
        except NotImplementedError as e:
            pytest.skip(str(e))
        yield found


@pytest.fixture
def database(postgres) -> str:
    """Return the URL of an empty database on a server."""
    return postgres.empty_database()


@pytest.fixture
def no_home(monkeypatch):
    """Take the home directory away, as of a user id that the system does not know."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


CURSOR_ON = "\x1b[?25h"  # how a terminal is asked to show its cursor


def on_a_terminal(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Run a command on a terminal of 24 lines and 100 columns; return its exit code and its output."""
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


# Three images per file of CIFAR-10.
@pytest.fixture(scope="session")
def tiny_splits() -> dict[str, Split]:
    from helpers import random_splits

    return random_splits(0, {"train": 15, "test": 3}, side=32, channels=3, classes=10)


@pytest.fixture
def tiny_digests(tiny_splits: dict[str, Split], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make the content of `tiny_splits` the published one."""
    digests = {
        name: hashlib.sha256(split.images.tobytes() + split.labels.astype("uint8").tobytes()).hexdigest()
        for name, split in tiny_splits.items()
    }
    monkeypatch.setattr(cifar10, "SHA256", digests)
    return digests


@pytest.fixture(scope="session")
def tiny_files(tiny_splits: dict[str, Split]) -> dict[str, bytes]:
    from cifar10_archives import archive_files

    return archive_files(tiny_splits)


# Sweep files.
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
    """Return a function that reads a sweep file with this text, or this tree."""

    def run(content: Any) -> sweep_files.Sweep:
        path = tmp_path / "some.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return sweep_files.read(path)

    return run


@pytest.fixture
def refused(read_sweep, tmp_path):
    """Read a bad sweep file; return the message without the path."""

    def run(content: Any) -> str:
        with pytest.raises(InputError) as caught:
            read_sweep(content)
        sentence, start = str(caught.value), f"{tmp_path / 'some.yaml'}"
        assert sentence.startswith(start) and "\n" not in sentence
        return sentence.removeprefix(start)

    return run


def parameters(**given: Any) -> dict[str, Any]:
    """Return the smallest sweep file with these parameters. A double underscore in a name means a dot."""
    return GRID | {"parameters": {f"config.{key.replace('__', '.')}": value for key, value in given.items()}}


@pytest.fixture
def url(tmp_path) -> str:
    """Return the address of a database in the test's own directory."""
    return f"sqlite:///{tmp_path}/sweeps.db"


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
