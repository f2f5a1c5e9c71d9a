"""Time whole runs of `launch.py` on CIFAR-10: how soon they train, and how fast compared with the bare step.

    python benchmarks/whole_run.py --out results/bench/cpu_runs.json

Each network trains for one epoch twice: with an empty cache of compiled programs, then with the cache of the first run.
The bare step of `train_step.py` runs before, between and after. Reported: the seconds to compile both steps (training
and evaluation), the seconds from the start of the process to the end of the first step, images/s of training and of
evaluation, the ratio to the bare step, and the share of the wall-clock time that compiling, training and evaluation
explain.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from train_step import Contender, cpu_name, keep

from mobilenet_jax import console

ROOT = pathlib.Path(__file__).parent.parent
TITLES = ("compile s", "first step s", "images/s", "/ bare step", "eval images/s", "of wall time")


def run(network: str, batch: int, epochs: int, scratch: str, name: str) -> dict:
    """Train once, with the program cache in `scratch`, and return the summary."""
    version, alpha = network.split("-")
    train = {"batch_size": batch, "epochs": epochs}
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={ROOT}/configs/cifar_{version}.py"]
    command += [f"--config.model.alpha={alpha}", *(f"--config.train.{key}={value}" for key, value in train.items())]
    command += ["--config.optim.warmup_epochs=0", "--config.wandb.mode=disabled", f"--run_dir={scratch}/{name}"]
    subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": scratch}, check=True, stdout=subprocess.DEVNULL)
    return json.loads(pathlib.Path(scratch, name, "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="v1-0.25 v2-0.35", help="version-alpha, separated by spaces")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="per turn of the bare step")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()

    record = {"cpu": cpu_name(), "cores": os.cpu_count(), "batch": args.batch, "epochs": args.epochs, "networks": {}}
    for network in args.networks.split():
        print(f"\n{network:<10}" + "".join(f"{title:>14}" for title in TITLES))
        bare = Contender("ours", network, args.batch, "float32")
        bare.run(3.0)
        bare.rounds.clear()
        found = {}
        with tempfile.TemporaryDirectory() as scratch:
            for cache in ("cold", "warm"):
                bare.run(args.seconds)
                found[cache] = run(network, args.batch, args.epochs, scratch, cache)
        bare.run(args.seconds)
        rate = statistics.median(bare.rounds)
        for cache, s in found.items():
            known = sum(s[f"{part}_seconds"] for part in ("compile", "train", "eval"))
            evaluated = 10_000 * args.epochs / s["eval_seconds"]
            speed = s["train_images_per_second"]
            cells = [f"{s['compile_seconds']:.1f}", f"{s['first_step_seconds']:.1f}", f"{speed:,.0f}"]
            cells += [f"{speed / rate:.2f}", f"{evaluated:,.0f}", f"{known / s['wall_seconds']:.2f}"]
            print(f"  {cache:<8}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
        bare.close()
        record["networks"][network] = {"bare": rate, **found}
        keep(record, args.out)


if __name__ == "__main__":
    sys.exit(console.run(main))
