"""What the tests of whole sweeps share: a small sweep, its command, its workers."""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import yaml
from conftest import ROOT

GRID = """
program: launch.py
method: grid
metric: {name: test_accuracy, goal: maximize}
parameters:
%s
command: ["${env}", "${interpreter}", "${program}", "--config", "configs/digits_v1.py", "${args}"]
"""


def write(directory: pathlib.Path, parameters: dict[str, Any], source: str = GRID) -> pathlib.Path:
    """A sweep file; lists vary."""
    lines = []
    for key, value in parameters.items():
        of = value if isinstance(value, dict) else {"values" if isinstance(value, list) else "value": value}
        lines.append(f"  config.{key}: {yaml.safe_dump(of, default_flow_style=True).strip()}")
    path = directory / "tiny.yaml"
    path.write_text(source % "\n".join(lines))
    return path


def command(directory: pathlib.Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "launch.py"), f"--sweep={directory / 'tiny.yaml'}"),
        *(f"--workdir={directory / 'runs'}", *arguments),
    ]


def run(directory: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(directory, *arguments), cwd=directory, capture_output=True, text=True, timeout=400)


def results(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Run directory -> summary, of the runs that have one."""
    return {path.parent.name: json.loads(path.read_text()) for path in (directory / "runs").glob("*/summary.json")}


def table(text: str) -> list[list[str]]:
    """The rows of the last table that a sweep printed."""
    head = next(i for i, line in enumerate(text.splitlines()) if line.endswith("  state"))
    rows = text.splitlines()[head + 1 :]
    return [line.split() for line in rows[: rows.index("")]]


def workers(command: int) -> list[int]:
    try:
        return [int(pid) for pid in pathlib.Path(f"/proc/{command}/task/{command}/children").read_text().split()]
    except OSError:
        return []


def training(command: int) -> dict[int, pathlib.Path]:
    """The workers that train, with the directory of the run; past its first checkpoint."""
    found = {}
    for pid in workers(command):
        try:
            held = [pathlib.Path(os.readlink(fd)) for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        for path in held:
            directory = path.parent
            saved = directory.glob("checkpoints/*/commit_success.txt") if path.name == ".lock" else ()
            begun = any(file.parent.name.isdigit() for file in saved)  # not one that is being written
            if begun and not (directory / "summary.json").exists():
                found[pid] = directory
    return found


def wait(what, process: subprocess.Popen[Any], seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
