"""Compare several runs as one vmapped program with the same runs one after another: images/s of all runs.

    python benchmarks/fused.py --out results/bench/cpu_fused.json

Both train on CIFAR-10, in turns within one process. A ratio above 1 is a gain from `--fuse`.
"""

import argparse
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from mobilenet_jax import config, console
from mobilenet_jax.training import devices, host

CASES = "v1-0.25-32-4 v1-0.25-32-2 v1-0.5-32-4 v1-1-32-4 v1-0.25-128-4 v2-0.35-32-4"


def measure(version: str, alpha: float, batch: int, runs: int, rounds: int, seconds: float) -> dict:
    """Return the medians of images/s, one run after another and all at once, and their ratios."""
    import jax

    from configs import cifar_v1, cifar_v2
    from mobilenet_jax.data.arrays import epoch_order
    from mobilenet_jax.training import loop
    from mobilenet_jax.training.compile import compile_runs

    def spec(seed):
        c = {"v1": cifar_v1, "v2": cifar_v2}[version].get_config()
        c.update_from_flattened_dict({"model.alpha": alpha, "train.batch_size": batch, "seed": seed})
        return config.resolve(c, f"cifar_{version}")

    specs = [spec(seed) for seed in range(runs)]
    inputs = loop.prepare(specs[0])
    programs = [compile_runs(specs[:1], inputs), compile_runs(specs, inputs)]
    host.restart_after_compiling(sum(p.compile_seconds for p in programs))
    gc.freeze()
    shape = specs[0].steps_per_epoch, batch
    rows = [epoch_order(programs[0].sizes["train"], seed, 0)[: shape[0] * batch].reshape(shape) for seed in range(runs)]
    orders = [p.order(rows[: p.runs]) for p in programs]
    states = [p.join(p.states) for p in programs]
    for p in programs:
        p.states = []
    found: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for i, p in enumerate(programs):
            steps, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                states[i], metrics = p.call(p.lengths[-1])(states[i], orders[i], p.hyper)
                jax.block_until_ready(metrics)
                steps += p.lengths[-1]
            found[i].append(steps * p.runs * batch / (time.perf_counter() - started))
    single, fused = (statistics.median(rates[1:]) for rates in found)  # the first round warms up
    ratios = [b / a for a, b in zip(*found, strict=True)][1:]
    device = devices.device_name(inputs.devices)
    return {"device": device, "single": single, "fused": fused, "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="version-alpha-batch-runs, separated by spaces")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per round")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record; cases are added to it")
    parser.add_argument("--one", help="measure this case here and print it as JSON")
    args = parser.parse_args()
    if args.one:
        host.keep_memory()
        version, alpha, batch, runs = args.one.split("-")
        print(json.dumps(measure(version, float(alpha), int(batch), int(runs), args.rounds, args.seconds)))
        return
    record = json.loads(args.out.read_text()) if args.out and args.out.exists() else {"cases": {}}
    for case in args.cases.split():
        command = [sys.executable, __file__, f"--one={case}", f"--rounds={args.rounds}", f"--seconds={args.seconds}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        record["cases"][case] = found = json.loads(done.stdout.splitlines()[-1])
        print(f"{case:<16}{found['single']:>10,.0f}{found['fused']:>10,.0f}{found['ratio']:>8.2f}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run(main))
