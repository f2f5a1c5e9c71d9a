"""Time each kind of operation of our training step and compare it with the machine's limit.

    python benchmarks/parts.py v1-1 --batch 128

Each operation of each layer is compiled and timed alone, forward and both gradients, at the shapes of the layer. Its
limit is the longer of two times: its mult-adds at the measured rate of a matrix product, and its bytes (each array read
or written once) at the measured memory bandwidth. The last lines compare the sum with the whole step. The difference is
the optimiser, the loss, and buffers that are no longer in the cache.
"""

import argparse
import collections
import functools
import pathlib
import statistics
import sys
import time

from contenders import SIZE, architecture, ours
from layer_latency import median_seconds
from train_step import keep

from mobilenet_jax import console
from mobilenet_jax.networks import cost
from mobilenet_jax.training import host


def seconds(function, *args, least: float = 0.3) -> float:
    """Compile a function and return the median time of its calls, which take `least` seconds in total."""
    import jax

    run = jax.jit(function)
    return median_seconds(lambda: run(*args), least)


def limits() -> tuple[float, float]:
    """Return mult-adds per second of a 2048 x 2048 product, and bytes per second on 256 MB, read and written."""
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048))
    big = jnp.ones(1 << 26)
    return 2048**3 / seconds(jnp.matmul, a, a), 2 * big.nbytes / seconds(lambda x: x + 1.0, big)


def parts_of(layer, size: int, batch: int, epsilon: float):
    """Yield the operations of a layer: kind, direction, function, arrays, mult-adds, bytes read and written."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mobilenet_jax.model import batch_norm, convolution, depthwise

    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    out = -(-size // layer.stride)
    x, y = array(batch, size, size, layer.in_channels), array(batch, out, out, layer.out_channels)
    inputs = 1 if layer.kind == "depthwise" else layer.in_channels
    kernel = array(layer.kernel, layer.kernel, inputs, layer.out_channels)
    macs = layer.kernel**2 * inputs * y.size

    if layer.kind == "depthwise":
        convolve = functools.partial(depthwise.depthwise, stride=layer.stride, implementation="shift")
    else:
        convolve = functools.partial(convolution.convolve, stride=layer.stride, implementation="shift")

    def backward(x, kernel, g):
        return jax.vjp(convolve, x, kernel)[1](g)

    yield layer.kind, "forward", convolve, (x, kernel), macs, x.nbytes + y.nbytes
    if layer.kind == "conv":  # the stem needs no input gradient
        yield layer.kind, "backward", lambda *args: backward(*args)[1], (x, kernel, y), macs, x.nbytes + y.nbytes
    else:
        yield layer.kind, "backward", backward, (x, kernel, y), 2 * macs, 2 * x.nbytes + y.nbytes

    def normalise(y, scale, bias):
        return batch_norm.batch_norm_training(y, scale, bias, epsilon, layer.activation)

    def normalise_backward(y, scale, bias, g):
        return jax.vjp(lambda *args: normalise(*args)[0], y, scale, bias)[1](g)

    scale, bias = jnp.ones(layer.out_channels), jnp.zeros(layer.out_channels)
    yield "bn + act", "forward", normalise, (y, scale, bias), 0, 3 * y.nbytes
    yield "bn + act", "backward", normalise_backward, (y, scale, bias, y), 0, 5 * y.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="v1-1", help="version-alpha")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--layers", action="store_true", help="print each operation of each layer")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()

    arch = architecture(args.network)
    rate, bandwidth = limits()
    print(f"{rate / 1e9:.0f} G mult-adds/s, {bandwidth / 1e9:.1f} GB/s read and written")
    found = collections.defaultdict(lambda: [0.0, 0.0])
    for row in cost.layer_costs(arch, SIZE):
        layer, size = row.layer, row.in_size
        if layer.norm:
            for kind, direction, function, arrays, macs, moved in parts_of(layer, size, args.batch, arch.bn_epsilon):
                took, least = seconds(function, *arrays), max(macs / rate, moved / bandwidth)
                found[kind, direction][0] += took
                found[kind, direction][1] += least
                if args.layers:
                    label = f"{layer.name} {kind} {direction}"
                    print(f"  {label:<44}{size:>4}{1e3 * took:>9.2f} ms{1e3 * least:>9.2f}{took / least:>7.1f}")

    print(f"\n{args.network}, batch {args.batch:<10}{'ms':>10}{'limit':>9}{'ratio':>8}")
    for (kind, direction), (took, least) in found.items():
        print(f"{kind + ', ' + direction:<26}{1e3 * took:>8.1f}{1e3 * least:>9.1f}{took / least:>8.1f}")
    took, least = (sum(values) for values in zip(*found.values(), strict=True))
    print(f"{'sum':<26}{1e3 * took:>8.1f}{1e3 * least:>9.1f}{took / least:>8.1f}")

    step = ours(arch, args.batch, "float32")
    times = []
    for _ in range(12):
        started = time.perf_counter()
        float(step())
        times.append(time.perf_counter() - started)
    whole = statistics.median(times[2:])
    print(f"{'whole step':<26}{1e3 * whole:>8.1f}{1e3 * least:>9.1f}{whole / least:>8.1f}")
    if args.out:
        record = {
            "network": args.network,
            "batch": args.batch,
            "multiply_adds_per_second": rate,
            "bytes_per_second": bandwidth,
            "parts": [
                {"kind": kind, "direction": direction, "seconds": values[0], "limit": values[1]}
                for (kind, direction), values in found.items()
            ],
            "step_seconds": whole,
        }
        keep(record, args.out)


if __name__ == "__main__":
    host.keep_memory()
    sys.exit(console.run(main))
