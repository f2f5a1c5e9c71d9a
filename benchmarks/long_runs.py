"""Check whether memory and open files grow in a run of 2,000 epochs and in a sweep of 300 points.

    python benchmarks/long_runs.py --out results/bench/long_runs.json
    python benchmarks/long_runs.py --show results/bench/long_runs.json     # a record as a table

Both train a very small network on the digits, so that most of the time goes into the work around training. Each process
is sampled once per second: the command and, for the sweep, its worker. Reported for each: resident memory and open
files after a twentieth of the work, at the end, and at most.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from train_step import cpu_name, keep

from mobilenet_jax import console
from mobilenet_jax.render.tables import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {"model.rho": 0.25, "model.variant": "shallow", "optim.warmup_epochs": 0, "train.batch_size": 512}
KEYS = ("resident_mb", "open_files")
START = 0.05  # of the work: by then a process has loaded and compiled everything


def watch(command: list[str], work: pathlib.Path, done: Callable[[], int], total: int) -> dict:
    """Sample the processes of a command until it ends; `done` counts the finished epochs or points of `total`."""
    started = time.monotonic()
    samples: dict[str, list[dict]] = {}
    with (work / "output").open("w") as output:
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "disabled"}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *command], cwd=work, env=env, stdout=output
        )
    while process.poll() is None:
        share = done() / total
        for name, pid in {"command": process.pid, **_children(process.pid)}.items():
            if (found := _held(pid)) is not None:
                samples.setdefault(name, []).append({"share": round(share, 3), **found})
        time.sleep(1)
    if process.returncode or done() < total:
        sys.exit(f"exit code {process.returncode}, {done()} of {total} done\n{(work / 'output').read_text()[-2000:]}")
    record: dict = {"total": total, "minutes": (time.monotonic() - started) / 60, "processes": {}}
    for name, held in samples.items():
        late = [each for each in held if each["share"] >= START]
        most = {key: max(each[key] for each in late) for key in KEYS}
        course = [next((x["resident_mb"] for x in late if x["share"] >= i / 10), None) for i in range(1, 11)]
        record["processes"][name] = {"start": late[0], "end": late[-1], "most": most, "resident_mb_by_tenths": course}
    return record


def _children(pid: int) -> dict[str, int]:
    """Return the process id of a sweep's worker."""
    found = {}
    try:
        lists = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children")]  # of each thread
        for child in " ".join(lists).split():
            if b"--worker=" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                found["worker"] = int(child)
    except FileNotFoundError:  # it has just ended
        pass
    return found


def _held(pid: int) -> dict[str, float] | None:
    """Return the resident memory and open files of a process; None if it has ended."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        handles = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return {"resident_mb": round(pages * os.sysconf("SC_PAGESIZE") / 1e6, 1), "open_files": handles}


def long_run(work: pathlib.Path, epochs: int) -> dict:
    metrics = work / "run" / "metrics.jsonl"
    command = [f"--config.{key}={value}" for key, value in TINY.items()]
    command += [f"--config.train.epochs={epochs}", f"--run_dir={work / 'run'}"]
    found = watch(command, work, lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0, epochs)
    files = {path.name: path.stat().st_size for path in (work / "run").iterdir() if path.is_file()}
    checkpoints = sum(path.stat().st_size for path in (work / "run" / "checkpoints").rglob("*") if path.is_file())
    return found | {"bytes": files | {"checkpoints": checkpoints}}


def long_sweep(work: pathlib.Path, points: int) -> dict:
    options = [f"--config.{key}={value}" for key, value in (TINY | {"train.epochs": 2}).items()]
    sweep = {
        "program": "launch.py",
        "method": "grid",
        "parameters": {"config.seed": {"values": [*range(points)]}},
        "command": ["${env}", "${interpreter}", "${program}", "--config=configs/digits_v1.py", *options, "${args}"],
    }
    (work / "sweep.yaml").write_text(json.dumps(sweep))
    finished = work / "runs"
    return watch(
        [f"--sweep={work / 'sweep.yaml'}", "--fuse=1", f"--workdir={finished}"],
        work,
        lambda: sum(1 for _ in finished.glob("*/summary.json")),
        points,
    )


def table(record: dict) -> str:
    """Return a record as Markdown: memory and open files of each process at the start, at the end, and at most."""
    header = ("work", "process", "resident MB: start", "end", "most", "open files: start", "end", "most", "minutes")
    rows = []
    for name, unit in (("run", "epochs of a run"), ("sweep", "points of a sweep")):
        found = record.get(name, {"processes": {}})
        for process, held in found["processes"].items():
            figures = [f"{held[at][key]:,.0f}" for key in KEYS for at in ("start", "end", "most")]
            rows.append((f"{found['total']:,} {unit}", process, *figures, f"{found['minutes']:.1f}"))
    return Table("long_runs", "", header, tuple(rows)).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000, help="of the run; 0 skips it")
    parser.add_argument("--points", type=int, default=300, help="of the sweep; 0 skips it")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    parser.add_argument("--show", type=pathlib.Path, help="print this record as a table instead")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text(encoding="utf-8"))))
        return
    record: dict = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    for name, measure, total in (("run", long_run, args.epochs), ("sweep", long_sweep, args.points)):
        if total:
            with tempfile.TemporaryDirectory() as work:
                record[name] = measure(pathlib.Path(work), total)
            keep(record, args.out)
    print(table(record))


if __name__ == "__main__":
    sys.exit(console.run(main))
