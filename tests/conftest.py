"""What all tests share: no W&B unless a test asks for it, and the two strict modes of JAX."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent

os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mobilenet_jax-tests-")  # for compiled programs
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"


@pytest.fixture
def launch(tmp_path):
    """Runs `python launch.py ARGUMENTS` to its end, with `--workdir` in the test's own directory."""

    def run(*arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launch.py"), f"--workdir={tmp_path / 'runs'}", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout
        )

    return run
