"""Compare one process on all cores with one process per core: images/s of training steps.

    python benchmarks/workers.py --out results/bench/cpu_workers.json

The single process and the group take turns. A ratio above 1 is a gain from `--sweep FILE --workers N` on N cores.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys

from train_step import Contender, cpu_name, keep

from mobilenet_jax import console

CASES = "v1-0.25-32 v1-0.5-32 v1-1-32 v2-0.35-32 v2-1-32 v1-0.25-128 v2-0.35-128"


@contextlib.contextmanager
def pinned(cores: set[int]):
    """Start processes on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(network: str, batch: int, rounds: int, seconds: float) -> dict:
    """Return the medians of images/s of the single process, of the group as a whole, and of their ratios."""
    cores = sorted(os.sched_getaffinity(0))
    groups = []
    for shares in ([set(cores)], [{core} for core in cores]):
        group = []
        for share in shares:
            with pinned(share):
                group.append(Contender("ours", network, batch, "float32"))
        groups.append(group)
    for _ in range(rounds + 1):
        for group in groups:
            for contender in group:
                contender.begin(seconds)
            for contender in group:
                contender.finish()
    # The first round is the warm-up.
    rates = [[sum(each) for each in zip(*(c.rounds for c in group), strict=True)][1:] for group in groups]
    peaks = [sum(float(c.close()["peak_bytes"]) for c in group) for group in groups]
    ratios = [many / one for one, many in zip(*rates, strict=True)]
    one, many = (statistics.median(each) for each in rates)
    return {"one": one, "one_a_core": many, "ratio": statistics.median(ratios), "ratios": ratios, "peak_bytes": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="version-alpha-batch, separated by spaces")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per round")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()
    record: dict = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "cases": {}}
    for case in args.cases.split():
        network, _, batch = case.rpartition("-")
        record["cases"][case] = found = measure(network, int(batch), args.rounds, args.seconds)
        print(f"{case:<14}{found['one']:>8,.0f}{found['one_a_core']:>8,.0f}{found['ratio']:>7.2f}", flush=True)
        keep(record, args.out)


if __name__ == "__main__":
    sys.exit(console.run(main))
