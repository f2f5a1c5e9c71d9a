"""Measure the time that the host needs to start a training step: a program that computes nothing, with a real state.

    python benchmarks/host_time.py --out results/bench/cpu_host.json

Three ways take turns in one process: the state as a tree with an array for each variable, one step per call, with the
indices put on the device and five metrics fetched for each step; the state in a few vectors, with the batches of an
epoch on the device and one array of metrics, one step per call; and the same with 64 steps per call.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from train_step import cpu_name, keep

from mobilenet_jax import console

BATCH, STEPS_PER_EPOCH = 128, 384


def ways(version: str) -> dict[str, tuple[int, Any]]:
    """Return, by name, the number of steps in a call, and a function that makes one call and fetches its metrics."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from configs import cifar_v1, cifar_v2
    from mobilenet_jax import config
    from mobilenet_jax.model.mobilenet import MobileNet
    from mobilenet_jax.training import compile as compiling
    from mobilenet_jax.training.state import Layout, init_state
    from mobilenet_jax.training.step import METRICS

    spec = config.resolve({"v1": cifar_v1, "v2": cifar_v2}[version].get_config())
    model = MobileNet(spec.arch)
    layout = Layout(model)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    device = NamedSharding(mesh, PartitionSpec())
    make = jax.jit(functools.partial(init_state, model, layout, "sgd", False), out_shardings=device)
    images, labels = jax.device_put((np.zeros((100, 32, 32, 3), np.uint8), np.zeros(100, np.int32)), device)
    hyper = jax.device_put(compiling._hyper(spec, jax.random.key(0)), device)
    orders = np.zeros((STEPS_PER_EPOCH, BATCH), np.int32)

    def nothing(state, images, labels, indices, hyper, *, metrics):
        return state, metrics

    def compiled(state, indices, metrics):
        jitted = jax.jit(functools.partial(nothing, metrics=metrics), donate_argnums=0, out_shardings=device)
        return jitted.lower(state, images, labels, indices, hyper).compile()

    def packed(steps):
        state, order = make(jax.random.key(0)), jax.device_put(orders, device)
        call = compiled(state, order, jnp.ones((steps, len(METRICS))))

        def one_call():
            nonlocal state
            state, metrics = call(state, images, labels, order, hyper)
            jax.device_get(metrics)

        return steps, one_call

    def tree():
        before = make(jax.random.key(0))
        state = jax.device_put((before.step, layout.variables(before.vectors), before.opt_state), device)
        row = jax.device_put(orders[0], device)
        call = compiled(state, row, {name: jnp.ones(()) for name in METRICS})

        def one_call():
            nonlocal state
            state, metrics = call(state, images, labels, jax.device_put(orders[0], device), hyper)
            {name: float(each) for name, each in jax.device_get(metrics).items()}

        return 1, one_call

    return {"tree": tree(), "packed, 1 step": packed(1), "packed, 64 steps": packed(64)}


def measure(version: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the median host time per step in ms of each way, and the medians of its ratio to 'tree'."""
    found: dict[str, list[float]] = {}
    known = ways(version)
    for _ in range(rounds + 1):
        for name, (steps, call) in known.items():
            calls, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                call()
                calls += 1
            found.setdefault(name, []).append(1000 * (time.perf_counter() - started) / calls / steps)
    kept = {name: times[1:] for name, times in found.items()}  # the first round warms up
    ratios = {
        name: statistics.median(a / b for a, b in zip(kept["tree"], times, strict=True)) for name, times in kept.items()
    }
    return {"milliseconds": {name: statistics.median(times) for name, times in kept.items()}, "times_faster": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="per round and way")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()
    record: dict[str, Any] = {"machine": cpu_name(), "networks": {}}
    for version in ("v1", "v2"):
        record["networks"][version] = measure(version, args.rounds, args.seconds)
        print(version, json.dumps(record["networks"][version], indent=1))
    keep(record, args.out)


if __name__ == "__main__":
    sys.exit(console.run(main))
