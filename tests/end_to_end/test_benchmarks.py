"""Tests of the benchmarks: their arithmetic and tables, and a short run of each."""

import importlib.util
import json
import subprocess
import sys

import helpers
import pytest
from conftest import ROOT

from mobilenet_jax.analysis import latency

sys.path.insert(0, str(ROOT / "benchmarks"))  # they import each other


def load(name: str):
    """Import a benchmark's script."""
    found = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


train_step, faults = load("train_step"), load("faults")


def row(rate: float) -> dict:
    return {"images_per_second": rate, "rounds": [rate - 1, rate, rate + 2], "start_seconds": 3.0, "peak_bytes": 5e8}


def run(script: str, *options: str, **popen) -> subprocess.CompletedProcess[str]:
    """Run a benchmark and check that it succeeds without a line on stderr."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, **popen)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done


def test_ratios_to_the_fastest_pytorch(capsys):
    found = {"ours": row(300.0), "torch": row(100.0), "torch.compile + huge pages": row(200.0)}
    found |= {"torch + kept memory": row(250.0), "keras": row(10.0)}
    ratios = train_step.ratios_of(found)
    assert ratios == {
        **{"torch": 3.0, "torch.compile + huge pages": 1.5, "torch + kept memory": 1.2, "keras": 30.0},
        **{"torch, best": 1.2, "torch, best without kept memory": 1.5},
    }
    train_step.show("v1-0.25", found)
    header, *lines = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["v1-0.25", "images/s", "lowest", "highest", "ours", "/", "peak", "MB", "start", "s"]
    shown = {line[:28].strip(): line[28:].split() for line in lines}
    assert shown["ours"] == ["300", "299", "302", "1.00", "500", "3.0"]
    assert {label: cells[3] for label, cells in shown.items()} == {
        label: f"{ratios[label]:.2f}" if label != "ours" else "1.00" for label in found
    }
    assert train_step.table({"networks": {"v1-0.25": {"contenders": found}}}).splitlines()[2] == (
        "| v1-0.25 | 300 | 1.50 | 1.20 | 30.0 |  | 500 | 500 |"
    )


@pytest.mark.slow
def test_a_contender_answers_each_line():
    done = run("contenders.py", "ours", "v1-0.25", "8", input="0.2\n0.1\n")
    first, *rounds, last = (json.loads(line) for line in done.stdout.splitlines())
    assert first["start_seconds"] > 0 and last["peak_bytes"] > 1e8
    assert len(rounds) == 2 and all(found["steps"] > 0 and found["images_per_second"] > 0 for found in rounds)
    assert rounds[1]["loss"] < 2.5  # chance is ln 10 = 2.3: the batch is learned


@pytest.mark.slow
def test_one_process_on_all_cores_and_one_per_core(tmp_path):
    record = tmp_path / "record.json"
    run("workers.py", "--cases=v1-0.25-8", f"--out={record}", "--rounds=2", "--seconds=0.1")
    found = json.loads(record.read_text())["cases"]["v1-0.25-8"]
    assert found["ratio"] == pytest.approx(sum(found["ratios"]) / 2) and found["one_a_core"] > 0
    assert min(found["peak_bytes"]) > 1e8


@pytest.mark.slow
def test_latencies_of_a_small_network(tmp_path):
    """The record has a time for the network and for each layer, and the report reads it."""
    record = tmp_path / "record.json"
    options = ["--networks=v1-0.25", "--batches=2", "--resolution=32", "--seconds=0.01", f"--out={record}"]
    run("layer_latency.py", *options)
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
        "| fault | n | as undisturbed | message, then as undisturbed | wrong |",
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
    run("faults.py", f"--out={record}", "--sweeps=0", "--only=finished run, a file removed", "--training=2")
    found = json.loads(record.read_text())["faults"]
    assert len(found) == 2 and {each["end"] for each in found} <= {"as undisturbed", "said, then as undisturbed"}


@pytest.mark.slow
def test_memory_and_open_files_of_a_run(tmp_path):
    record = tmp_path / "record.json"
    done = run("long_runs.py", "--epochs=40", "--points=0", f"--out={record}")
    assert "40 epochs of a run" in done.stdout
    held = json.loads(record.read_text())["run"]["processes"]["command"]
    assert held["start"]["resident_mb"] > 100
    assert held["most"]["open_files"] > 3  # the last sample may be of a process that is closing its files


GPU = ROOT / "benchmarks" / "gpu"
UNFINISHED = """
import measure, pathlib, sys, time
record = measure.Record(pathlib.Path(sys.argv[1]), "a device", seconds=1.0)
rows = [{"op": name} for name in ("whole", "fails", "compiles", "runs", "later")]
record.plan(rows)
with record.measuring(rows[0]):
    rows[0]["seconds"] = 0.5
with record.measuring(rows[1]):
    raise MemoryError("all of it")
if sys.argv[2] == "runs":
    rows[2], rows[3] = rows[3], rows[2]
with record.measuring(rows[2]):
    if sys.argv[2] == "runs":
        rows[2]["compile_seconds"] = 0.1
    time.sleep(60)
"""


@pytest.mark.parametrize(("slow", "failed"), [("compiles", "not compiled in 1 s"), ("runs", "not measured in 1 s")])
def test_a_gpu_record_is_complete_when_the_time_is_over(slow, failed, tmp_path):
    record = tmp_path / "record.json"
    done = subprocess.run([sys.executable, "-c", UNFINISHED, str(record), slow], cwd=GPU, timeout=60)
    *rows, took = json.loads(record.read_text())["rows"]
    found = {row.pop("op"): row for row in rows}
    other = ({"compiles", "runs"} - {slow}).pop()
    assert done.returncode == 0 and took["took"] < 30
    assert found["whole"] == {"seconds": 0.5} and found["fails"] == {"failed": "MemoryError: all of it"}
    assert found[slow]["failed"] == failed
    assert found[other] == found["later"] == {"skipped": "no time left"}


@pytest.mark.slow
def test_gpu_checks_on_a_cpu(tmp_path):
    """Every section writes its rows, and none fails."""
    cache, out = tmp_path / "programs", tmp_path / "out"
    tiny = {"TINY": "1", "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "SECONDS_IN_ALL": "3000", "OUT": str(out)}
    usual = dict.fromkeys(["JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION"])
    env = helpers.environment(**tiny, **usual, JAX_COMPILATION_CACHE_DIR=str(cache))
    sections = {"ops", "rates", "fuse", "layers", "graphs"}
    for mode in ("check", "graphs"):
        command = ["bash", str(GPU / "run.sh"), mode]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0 and "exit code" not in done.stdout, done.stdout
    records = {path.stem: json.loads(path.read_text())["rows"] for path in out.glob("*.json")}
    assert records.keys() >= sections
    for rows in records.values():
        assert len(rows) > 1 and not any({"failed", "skipped"} & row.keys() for row in rows), rows
    (step,) = (row for row in records["ops"] if row.get("op", "").startswith("step"))
    assert step["error"] < 0.1  # eight images: one ReLU that rounding switches changes a percent
    assert records["rates"][0]["images_per_second"] > 0
