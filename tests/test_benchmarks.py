"""The benchmark's own arithmetic, and one contender for real."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from mobilenet_jax import latency


def load(name: str):
    """A benchmark's script as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


train_step = load("train_step")


def row(rate: float) -> dict:
    return {"images_per_second": rate, "rounds": [rate - 1, rate, rate + 2], "start_seconds": 3.0, "peak_bytes": 5e8}


def test_the_best_of_pytorch_counts(capsys):
    found = {"ours": row(300.0), "torch": row(100.0), "torch.compile + huge pages": row(200.0)}
    found |= {"torch + kept memory": row(250.0), "keras": row(10.0)}
    ratios = train_step.over(found)
    assert ratios == {
        **{"torch": 3.0, "torch.compile + huge pages": 1.5, "torch + kept memory": 1.2, "keras": 30.0},
        **{"torch, best": 1.2, "torch, best without kept memory": 1.5},
    }
    train_step.show("v1-0.25", found)
    assert len(capsys.readouterr().out.strip().splitlines()) == 6
    assert train_step.table({"networks": {"v1-0.25": {"contenders": found}}}).splitlines()[2] == (
        "| v1-0.25 | 300 | 1.50 | 1.20 | 30.0 |  | 500 | 500 |"
    )


def test_a_contender_answers_each_line():
    command = [sys.executable, str(ROOT / "benchmarks" / "contenders.py"), "ours", "v1-0.25", "8"]
    done = subprocess.run(command, input="0.2\n0.1\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rounds, last = (json.loads(line) for line in done.stdout.splitlines())
    assert first["start_seconds"] > 0 and last["peak_bytes"] > 1e8
    assert len(rounds) == 2 and all(found["steps"] > 0 and found["images_per_second"] > 0 for found in rounds)
    assert rounds[1]["loss"] < 2.5  # it trains: ln 10 is chance


@pytest.mark.slow
def test_one_process_on_all_cores_and_one_on_each(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "workers.py"), "--cases=v1-0.25-8", f"--out={record}"]
    done = subprocess.run([*command, "--rounds=2", "--seconds=0.1"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(record.read_text())["cases"]["v1-0.25-8"]
    assert found["ratio"] == pytest.approx(sum(found["ratios"]) / 2) and found["one_a_core"] > 0
    assert min(found["peak_bytes"]) > 1e8


@pytest.mark.slow
def test_latencies_of_a_small_network(tmp_path):
    """The record has a time for the network and for each of its layers, and the report reads it."""
    record = tmp_path / "record.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "layer_latency.py"), "--networks=v1-0.25", "--batches=2"]
    options = ["--resolution=32", "--seconds=0.01", f"--out={record}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = latency.networks(json.loads(record.read_text()))
    assert [(n.version, n.alpha, n.batch, len(n.layers)) for n in found] == [("v1", 0.25, 2, 29)]
    assert 0 < found[0].measured < 1
    assert all(0 < layer.measured < 1 and layer.predicted > 0 for layer in found[0].layers)
