"""Compare whole training steps with PyTorch, plain Flax and Keras on JAX, in alternation.

    pip install -e ".[bench]" && python benchmarks/train_step.py --out results/bench/cpu.json

Each contender is a process of its own (`contenders.py`). All are ready before the first is timed, and sleep while
another one runs. Each round runs all of them in turn. PyTorch runs eager and compiled, each with glibc's usual malloc,
with huge pages, and with memory kept as our runs keep it (`training/host.py`), and the fastest counts. Plain Flax and
Keras are slow, so they train only the smallest networks. Reported: the median of the rounds, their lowest and highest,
the ratio of medians, and the peak memory of the process (libraries and data included).
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata

from mobilenet_jax import console
from mobilenet_jax.training import host

CONTENDERS = pathlib.Path(__file__).with_name("contenders.py")
NETWORKS = "v1-0.25 v1-0.5 v1-1 v2-0.35 v2-0.5 v2-1"
SLOW = {"v1-0.25": ("flax", "keras"), "v2-0.35": ("flax", "keras")}
MEMORY = {"huge pages": host.HUGE_PAGES, "kept memory": host.KEPT_MEMORY}  # of malloc; kept memory includes huge pages
BEST, BEST_PLAIN = "torch, best", "torch, best without kept memory"
PACKAGES = ("jax", "jaxlib", "flax", "torch", "keras")


class Contender:
    """A contender's process, which runs one round at a time."""

    def __init__(self, label: str, network: str, batch: int, dtype: str):
        self.label, self.rounds = label, []
        name, _, memory = label.partition(" + ")
        memory = memory or ("kept memory" if name.startswith("ours") else "")  # as all our runs
        env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        env |= {"GLIBC_TUNABLES": MEMORY[memory]} if memory else {}
        command = [sys.executable, str(CONTENDERS), name, network, str(batch), dtype]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.start_seconds = self._read()["start_seconds"]

    def _read(self) -> dict[str, float]:
        line = self.answers.readline()
        if not line:
            sys.exit(f"{self.label} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def run(self, seconds: float) -> None:
        self.begin(seconds)
        self.finish()

    def begin(self, seconds: float) -> None:
        self.requests.write(f"{seconds}\n")
        self.requests.flush()

    def finish(self) -> None:
        self.rounds.append(self._read()["images_per_second"])

    def close(self) -> dict[str, float | list[float]]:
        self.requests.close()
        peak = self._read()["peak_bytes"]
        self.process.wait()
        return {
            "images_per_second": statistics.median(self.rounds),
            "rounds": self.rounds,
            "start_seconds": self.start_seconds,
            "peak_bytes": peak,
        }


def measure(network: str, labels: list[str], args) -> dict[str, dict]:
    contenders = [Contender(label, network, args.batch, args.dtype) for label in labels]
    for _ in range(args.rounds + 1):
        for contender in contenders:
            contender.run(args.seconds)
    for contender in contenders:
        del contender.rounds[0]  # the warm-up
    return {contender.label: contender.close() for contender in contenders}


def ratios_of(found: dict[str, dict]) -> dict[str, float]:
    """Return our rate over each contender's, over the best of PyTorch, and over its best without kept memory."""
    own = found["ours"]["images_per_second"]
    ratios = {label: own / row["images_per_second"] for label, row in found.items() if label != "ours"}
    torch = [label for label in ratios if label.startswith("torch")]
    best = {BEST: torch, BEST_PLAIN: [label for label in torch if "kept memory" not in label]}
    return ratios | {name: min(ratios[label] for label in labels) for name, labels in best.items() if labels}


def show(network: str, found: dict[str, dict]) -> None:
    """Prints a network's rows."""
    ratios = {"ours": 1.0} | ratios_of(found)
    print(f"\n{network:<28}{'images/s':>10}{'lowest':>10}{'highest':>10}{'ours /':>11}{'peak MB':>9}{'start s':>9}")
    for label, row in found.items():
        rounds = row["rounds"]
        print(
            f"  {label:<26}{row['images_per_second']:>10,.0f}{min(rounds):>10,.0f}{max(rounds):>10,.0f}"
            f"{ratios[label]:>11.2f}{row['peak_bytes'] / 1e6:>9,.0f}{row['start_seconds']:>9.1f}",
            flush=True,
        )


def table(record: dict) -> str:
    """Return a record as Markdown: our images/s, the ratios to the others, the peak memory."""
    lines = [
        "| network | images/s | / PyTorch | / PyTorch, memory kept | / Keras | / plain Flax | peak MB | PyTorch, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network, found in record["networks"].items():
        rows, ratios = found["contenders"], ratios_of(found["contenders"])
        plain = [label for label in rows if label.startswith("torch") and "kept memory" not in label]
        peer = max(plain, key=lambda label: rows[label]["images_per_second"])
        peaks = [f"{rows[label]['peak_bytes'] / 1e6:,.0f}" for label in ("ours", peer)]
        shown = [f"{ratios[name]:.2f}" if name in ratios else "" for name in (BEST_PLAIN, BEST)]
        shown += [f"{ratios[name]:.1f}" if name in ratios else "" for name in ("keras", "flax")]
        lines.append(f"| {' | '.join([network, format(rows['ours']['images_per_second'], ',.0f'), *shown, *peaks])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS, help="version-alpha, separated by spaces")
    parser.add_argument("--contenders", default="", help="labels, separated by commas")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per contender and round")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    parser.add_argument("--show", type=pathlib.Path, help="print this record as a table instead")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text())))
        return

    peers = [f"{name}{memory}" for name in ("torch", "torch.compile") for memory in ("", *(f" + {m}" for m in MEMORY))]
    usual = ["ours", "ours evaluation", *peers]
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "batch": args.batch,
        "dtype": args.dtype,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "packages": {name: version(name) for name in PACKAGES},
        "networks": {},
    }
    for network in args.networks.split():
        labels = [name.strip() for name in args.contenders.split(",") if name.strip()]
        found = measure(network, labels or [*usual, *SLOW.get(network, ())], args)
        show(network, found)
        record["networks"][network] = {"contenders": found, "ours_over": ratios_of(found)}
        keep(record, args.out)
    for name in (BEST, BEST_PLAIN):
        ratios = [found["ours_over"][name] for found in record["networks"].values() if name in found["ours_over"]]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            print(f"\nours / {name}: lowest {min(ratios):.2f}, geometric mean {mean:.2f}")


def keep(record: dict, out: pathlib.Path | None) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


def cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(console.run(main))
