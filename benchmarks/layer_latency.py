"""Time the inference of networks and of each of their layers on this machine, and its limits for a roofline.

    python benchmarks/layer_latency.py --out results/bench/cpu_latency.json
    python -m mobilenet_jax.report --latency results/bench/cpu_latency.json

Each network has a process of its own. It compiles all programs, restarts with a fresh heap, then measures the network
and each of its layers alone in turns (convolution, batch norm and activation as one program, without the shortcut).
Times are medians over calls. The limits of the machine are measured first, in the same way.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from mobilenet_jax import console
from mobilenet_jax.networks import arch
from mobilenet_jax.training import host, program_cache

ROUNDS = 5
NETWORKS = "v1-0.25 v1-0.5 v1-0.75 v1-1 v2-0.35 v2-0.5 v2-0.75 v2-1 v2-1.3 v2-1.4"


def all_seconds(call, seconds: float) -> list[float]:
    """Return the times of at least five calls, and of as many as fit into `seconds`, after one warm-up call."""
    import jax

    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return times


def median_seconds(call, seconds: float) -> float:
    return statistics.median(all_seconds(call, seconds))


def compiled(network: arch.Architecture, size: int, batch: int):
    """Compile the inference of `network` on maps of `size` pixels; return a function without arguments."""
    import jax

    from mobilenet_jax.model.mobilenet import MobileNet

    first = network.layers[0]
    shape = (batch, first.in_channels) if first.kind == "dense" else (batch, size, size, first.in_channels)
    x = jax.random.normal(jax.random.key(0), shape)
    module = MobileNet(network)
    variables = jax.jit(module.init)(jax.random.key(0), x[:1])
    run = jax.jit(module.apply).lower(variables, x).compile()
    return lambda: run(variables, x)


def measure(name: str, batch: int, resolution: int, seconds: float) -> dict:
    """Return the time of one network at one batch size and the times of its layers, in seconds."""
    from mobilenet_jax.networks import cost

    program_cache.use_compilation_cache()
    version, alpha = name.split("-")
    network = arch.mobilenet(version, float(alpha))
    started = time.perf_counter()
    whole = compiled(network, resolution, batch)
    alone, layers = {}, {}
    for row in cost.layer_costs(network, resolution):
        layer = dataclasses.replace(row.layer, name="layer", shortcut=None)  # equal layers are measured once
        layers[row.layer.name] = layer, row.in_size
        if (layer, row.in_size) not in alone:
            single = arch.Architecture(version, (layer,), network.bn_epsilon)
            alone[layer, row.in_size] = compiled(single, row.in_size, batch)
    host.restart_after_compiling(time.perf_counter() - started)
    took, times = [], {key: [] for key in alone}
    for _ in range(ROUNDS):  # in turns, so that a busy second of the machine affects them all
        took += all_seconds(whole, seconds)
        for key, call in alone.items():
            times[key] += all_seconds(call, seconds / ROUNDS)
    return {
        "version": version,
        "alpha": float(alpha),
        "batch": batch,
        "resolution": resolution,
        "seconds": statistics.median(took),
        "quartiles": statistics.quantiles(took, n=4)[::2],
        "layers": {name: statistics.median(times[key]) for name, key in layers.items()},
    }


def limits(seconds: float) -> dict:
    """Measure the limits for a roofline.

    They are mult-adds per second of a 2048 x 2048 matrix product, bytes per second of `x + 1` (read and written) on
    256 MB and on 4 MB, which stay in the cache, the size of the last cache, and the time of the smallest layer.
    """
    import jax
    import jax.numpy as jnp

    from mobilenet_jax.training.devices import device_name

    def rate(size: int) -> float:
        held = [jnp.ones(size // 4)]
        add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place, without new memory

        def call():
            held.append(add(held.pop()))
            return held[0]

        return 2 * size / median_seconds(call, seconds)

    a, multiply = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)
    least = compiled(arch.Architecture("v1", (arch.Layer("layer", "pointwise", 8, 8, activation="relu"),)), 1, 1)
    return {
        "name": device_name(jax.devices()),
        "mult_adds_per_second": 2048**3 / median_seconds(lambda: multiply(a, a), seconds),
        "bytes_per_second": rate(1 << 28),
        "cache_bytes": last_cache(),
        "cache_bytes_per_second": rate(1 << 22),
        "launch_seconds": median_seconds(least, seconds),
        "cpu": processor(),
        "dtype": "float32",
        "jax": jax.__version__,
    }


def processor() -> str:
    """Return the processor's name, family and model."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{fields.get('model name', '')}, family {fields.get('cpu family', '')}, model {fields.get('model', '')}"


def last_cache() -> int:
    """Return the size of the largest cache in bytes, 0 if the system does not report one."""
    sizes = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(t[:-1]) * units[t[-1]] for t in (path.read_text().strip() for path in sizes)), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS, help="version-alpha, separated by spaces")
    parser.add_argument("--batches", default="1 32")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="of calls per layer; networks and limits get five times as many"
    )
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    parser.add_argument("--one", help="measure this network and batch, or 'limits', here and print them as JSON")
    args = parser.parse_args()
    if args.one:
        host.keep_memory()
        name, _, batch = args.one.partition(" ")
        found = measure(name, int(batch), args.resolution, args.seconds) if batch else limits(5 * args.seconds)
        print(json.dumps(found))
        return

    def child(one: str) -> dict:
        options = [f"--one={one}", f"--resolution={args.resolution}", f"--seconds={args.seconds}"]
        done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    record = {"device": child("limits"), "networks": []}
    print(json.dumps(record["device"], indent=1))
    for batch in args.batches.split():
        for name in args.networks.split():
            record["networks"].append(found := child(f"{name} {batch}"))
            total = sum(found["layers"].values())
            print(f"{name:<8} batch {batch:<4}{1e3 * found['seconds']:>9.2f} ms, layers {1e3 * total:.2f}", flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(console.run(main))
