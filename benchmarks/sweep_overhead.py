"""Measure what a sweep costs beyond its runs: seconds per point, and the memory of the command.

    python benchmarks/sweep_overhead.py --out results/bench/cpu_sweep.json

The overhead of a sweep is the wall time of its workers less the time that their runs compile, train and evaluate,
divided by the number of points. It is measured on `sweeps/digits_demo.yaml`, and on many points of about a second each,
whose first and last hundred are compared.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import optuna
from train_step import cpu_name

from mobilenet_jax import console

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ["--config.model.rho=0.25", "--config.model.variant=shallow", "--config.optim.warmup_epochs=0.5"]


def sweep_of(directory: pathlib.Path, points: int, epochs: int) -> pathlib.Path:
    """Write a sweep of one small network over `points` seeds."""
    head = ["${env}", "${interpreter}", "${program}", "--config=configs/digits_v1.py", *SMALL]
    command = [*head, f"--config.train.epochs={epochs}", "${args}"]
    parameters = {"config.seed": {"values": [*range(points)]}}
    path = directory / "many.yaml"
    path.write_text(
        json.dumps({"program": "launch.py", "method": "grid", "parameters": parameters, "command": command})
    )
    return path


def run(sweep: pathlib.Path, directory: pathlib.Path, workers: int) -> dict:
    """Train a sweep; return its wall time, the peak memory of the command in bytes, and the records of its points.

    The memory is all that is resident, and what of it the process shares with no file.
    """
    runs, peak = directory / sweep.stem, {"VmRSS": 0, "RssAnon": 0}
    command = [sys.executable, str(ROOT / "launch.py"), f"--sweep={sweep}", f"--workdir={runs}", f"--workers={workers}"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = {key: max(peak[key], 1024 * int(status.split(f"{key}:")[1].split()[0])) for key in peak}
        except (OSError, IndexError):  # it has ended
            pass
        time.sleep(0.2)
    wall = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"the sweep failed with exit code {process.returncode}")
    url = f"sqlite:///{runs / 'sweeps.db'}"
    (name,) = optuna.get_all_study_names(url)
    trials = [t for t in optuna.load_study(study_name=name, storage=url).get_trials() if t.state.name == "COMPLETE"]
    return {"wall": wall, "peak": peak, "trials": sorted(trials, key=lambda t: t.datetime_complete)}


def busy(trial: optuna.trial.FrozenTrial) -> float:
    """Return the seconds that a run compiled, trained and evaluated."""
    summary = trial.user_attrs["summary"]
    return summary["compile_seconds"] + summary["train_seconds"] + summary["eval_seconds"]


def overheads(trials: list[optuna.trial.FrozenTrial]) -> list[float]:
    """Return for each point but the first of each worker the time since that worker's last record, less `busy`."""
    last, found = {}, []
    for trial in trials:
        before = last.get(owner := trial.user_attrs["owner"])
        if before is not None:
            found.append((trial.datetime_complete - before).total_seconds() - busy(trial))
        last[owner] = trial.datetime_complete
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help="of about a second each")
    parser.add_argument("--epochs", type=int, default=2, help="of each of these points")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        demo = run(ROOT / "sweeps" / "digits_demo.yaml", directory, args.workers)
        many = run(sweep_of(directory, args.points, args.epochs), directory, args.workers)
    found, record = overheads(many["trials"]), {"cpu": cpu_name(), "workers": args.workers}
    for name, result in (("demo", demo), ("many", many)):
        spent, count = sum(map(busy, result["trials"])), len(result["trials"])
        record[name] = {
            "points": count,
            "wall_seconds": round(result["wall"], 1),
            "busy_seconds_per_point": round(spent / count, 3),
            "overhead_seconds_per_point": round((args.workers * result["wall"] - spent) / count, 3),
            "command_peak_bytes": result["peak"]["VmRSS"],
            "command_private_peak_bytes": result["peak"]["RssAnon"],
        }
    record["many"] |= {
        "first_hundred_overhead": round(statistics.median(found[:100]), 3),
        "last_hundred_overhead": round(statistics.median(found[-100:]), 3),
    }
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run(main))
