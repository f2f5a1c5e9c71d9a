"""Run directories as a table: `python -m mobilenet_jax.report RUNS_DIR...`."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

_HEADER = ("network", "data", "test top-1", "mult-adds", "params", "epochs", "seed", "images/s", "minutes", "device")


def summaries(directories: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """The `summary.json` of every finished run below `directories`, by mult-adds, then by seed."""
    paths = sorted({path for directory in directories for path in directory.rglob("summary.json")})
    found = [json.loads(path.read_text()) for path in paths]
    return sorted(
        (s for s in found if s["status"] == "finished"), key=lambda s: (s["dataset"], s["mult_adds"], s["seed"])
    )


def table(runs: Iterable[dict[str, Any]]) -> str:
    """One row a run, in Markdown: accuracies of the last epoch, in percent; costs in millions."""
    rows = [_HEADER, ("---",) * len(_HEADER)]
    for run in runs:
        rows.append(
            (
                run["title"].partition(f", {run['resolution']}x")[0],
                f"{run['dataset']} {run['resolution']}x{run['resolution']}",
                f"{run['test_accuracy']:.2%}",
                f"{run['mult_adds'] / 1e6:.2f} M",
                f"{run['params'] / 1e6:.2f} M",
                str(run["epochs"]),
                str(run["seed"]),
                f"{run['train_images_per_second']:,.0f}",
                f"{run['wall_seconds'] / 60:.1f}",
                run["device"],
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mobilenet_jax.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="directories that hold runs, at any depth")
    directories = parser.parse_args().runs
    for directory in directories:
        if not directory.is_dir():
            print(f"error: {directory} is not a directory", file=sys.stderr)
            return 1
    print(table(summaries(directories)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
