"""Runs that are trained side by side as one program, against the same runs one after another: images/s of all.

    python benchmarks/fused.py --out results/bench/cpu_fused.json

On the training images of CIFAR-10, in turns within one process. A ratio above 1 is a gain by `--fuse`; a sweep does
not fuse on a CPU where `sweep.py` says that it loses.
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

from mobilenet_jax import config
from mobilenet_jax.training import host

CASES = "v1-0.25-32-4 v1-0.25-32-2 v1-0.5-32-4 v1-1-32-4 v1-0.25-128-4 v2-0.35-32-4"


def measure(version: str, alpha: float, batch: int, runs: int, rounds: int, seconds: float) -> dict:
    """Medians of images/s: one run after another, and all at once."""
    import jax

    from configs import cifar_v1, cifar_v2
    from mobilenet_jax.data import arrays as data
    from mobilenet_jax.training import compile as program
    from mobilenet_jax.training import loop as train

    def spec(seed):
        c = {"v1": cifar_v1, "v2": cifar_v2}[version].get_config()
        c.update_from_flattened_dict({"model.alpha": alpha, "train.batch_size": batch, "seed": seed})
        return config.resolve(c, f"cifar_{version}")

    specs = [spec(seed) for seed in range(runs)]
    inputs = train.prepare(specs[0])
    programs = [
        program.build(specs[:1], inputs.splits, inputs.devices),
        program.build(specs, inputs.splits, inputs.devices),
    ]
    host.start_anew(sum(p.compile_seconds for p in programs))
    gc.freeze()
    orders = [data.epoch_order(programs[0].sizes["train"], seed, 0) for seed in range(runs)]
    states = [p.join(p.states) for p in programs]
    for p in programs:
        p.states = []
    found: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for i, p in enumerate(programs):
            steps, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                at = steps % (len(orders[0]) // batch) * batch
                states[i], metrics = p.train_on(
                    states[i], p.batch([o[at : at + batch] for o in orders[: p.runs]]), p.hyper
                )
                jax.block_until_ready(metrics)
                steps += 1
            found[i].append(steps * p.runs * batch / (time.perf_counter() - started))
    single, fused = (statistics.median(rates[1:]) for rates in found)  # the first round warms up
    ratios = [b / a for a, b in zip(*found, strict=True)][1:]
    device = train.device_name(inputs.devices)
    return {"device": device, "single": single, "fused": fused, "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="version-alpha-batch-runs, separated by blanks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record, to which cases are added")
    parser.add_argument("--one", help="measure this case in this process, and print it as JSON")
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
    main()
