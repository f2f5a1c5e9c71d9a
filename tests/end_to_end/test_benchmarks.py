"""The benchmarks' own arithmetic, and a piece of each for real."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from mobilenet_jax.analysis import latency

sys.path.insert(0, str(ROOT / "benchmarks"))  # they import each other


def load(name: str):
    """A benchmark's script as a module."""
    found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


train_step, faults = load("train_step"), load("faults")


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


def test_faults_in_tables():
    found = [
        {"kind": "disk full", "end": "said, then as undisturbed", "said": ["error: 12 of a|b", "(cut: x)"]},
        {"kind": "disk full", "end": "wrong", "said": ["error: 345 of a|b"]},
        {"kind": "clock set back", "end": "as undisturbed", "said": []},
    ]
    record = {"commit": "0123456789", "seed": 3, "minutes": 1.6, "machine": "a CPU", "jobs": 2, "faults": found}
    text = faults.tables([record, record | {"faults": found[:1], "note": "cut"}])
    assert "4 faults of training and 0 of sweeps: 1 with a wrong end." in text
    assert "- 1 from seed 3, commit 0123456, in 2 minutes on a CPU, 2 at a time; cut" in text
    assert [" ".join(line.split()) for line in text.splitlines() if line.startswith("| ") and "--" not in line] == [
        "| fault | n | as undisturbed | said, then as undisturbed | wrong |",
        *("| disk full | 3 | | 2 | 1 |", "| clock set back | 1 | 1 | | 0 |", "| printed | times | after |"),
        r"| error: 12 of a\|b | 3 | disk full |",
    ]


def test_faults_are_those_of_the_seed():
    kinds = {"often": (None, 2), "seldom": (None, 1)}
    chosen = faults.chosen(kinds, "", 4, 7)
    assert chosen == [("often", "7-0"), ("often", "7-1"), ("seldom", "7-2"), ("often", "7-3")]
    assert faults.chosen(kinds, "sel", 1, 7) == [("seldom", "7-0")] and faults.chosen(kinds, "none", 1, 7) == []


@pytest.mark.slow
def test_a_few_faults(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), f"--out={record}", "--sweeps=0"]
    command += ["--only=finished run, a file removed", "--training=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout
    found = json.loads(record.read_text())["faults"]
    assert len(found) == 2 and {each["end"] for each in found} <= {"as undisturbed", "said, then as undisturbed"}


@pytest.mark.slow
def test_a_run_watched_from_outside(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "long_runs.py"), "--epochs=40", "--points=0"]
    done = subprocess.run([*command, f"--out={record}"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and "40 epochs of a run" in done.stdout
    held = json.loads(record.read_text())["run"]["processes"]["command"]
    assert held["start"]["resident_mb"] > 100 and held["end"]["open_files"] > 3
