"""Compare operations with float64, and one training step with the CPU's. `python ops.py --out FILE --seconds N`."""

import functools
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import adapter
import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import TINY

SHAPES = [(16, 32, 1)] if TINY else [(32, 32, 1), (32, 64, 2), (15, 24, 1), (7, 20, 2), (4, 512, 1), (2, 1024, 2)]
LIMITS = {"float32": 2e-3, "bfloat16": 5e-3}  # TF32 gives 3e-4, rounding the result to bfloat16 1.7e-3
STEP_LIMIT = 5e-3  # at full precision
STEPS = [("float32", "conv", "highest")]  # dtype, depthwise convolution, precision
if not TINY:
    STEPS += [("float32", "shift", "highest"), ("float32", "conv", "default"), ("bfloat16", "conv", "default")]


def error(found: Any, reference: Any) -> float:
    """Return ‖found - reference‖ / ‖reference‖ over all leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True)
    both = [(np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()) for a, b in pairs]
    difference = np.concatenate([a - b for a, b in both])
    return float(np.linalg.norm(difference) / np.linalg.norm(np.concatenate([b for _, b in both])))


def same_padding(size: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


def reference_depthwise(x, k, g, stride):
    """Return, in float64, the output and both gradients for the output's gradient `g`."""
    n, h, w, _ = x.shape
    (top, bottom), (left, right) = same_padding(h, stride), same_padding(w, stride)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = -(-h // stride), -(-w // stride)
    y, dx, dk = np.zeros((n, rows, columns, x.shape[3])), np.zeros(padded.shape), np.zeros(k.shape)
    for i, j in itertools.product(range(3), range(3)):
        part = np.s_[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        y += padded[part] * k[i, j, 0]
        dx[part] += g * k[i, j, 0]
        dk[i, j, 0] = (padded[part] * g).sum((0, 1, 2))
    return y, dx[:, top : top + h, left : left + w], dk


def reference_norm(x, scale, bias, g, epsilon, high):
    """Return, in float64, batch norm clipped to [0, high] and its gradients by x, scale and bias."""
    axes = (0, 1, 2)
    inv = 1 / np.sqrt(x.var(axes) + epsilon)
    hat = (x - x.mean(axes)) * inv
    y = hat * scale + bias
    g = np.where((y > 0) & (y < high), g, 0.0)
    dx = scale * inv * (g - g.mean(axes) - hat * (g * hat).mean(axes))
    return np.clip(y, 0, high), dx, (g * hat).sum(axes), g.sum(axes)


def drawn(rng: np.random.Generator, dtype: str, *shape: int, mean: float = 0.0) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape) + mean, dtype)


def with_gradients(function, arguments, g):
    """Return the output and the gradients for the output's gradient `g`, compiled as one program."""

    @jax.jit
    def both(arguments, g):
        y, pull = jax.vjp(function, *arguments)
        return y, *pull(g)

    return both(arguments, g)


def depthwise_error(size: int, channels: int, stride: int, implementation: str, dtype: str, seed: int) -> float:
    rng, out = np.random.default_rng(seed), -(-size // stride)
    x, k = drawn(rng, dtype, 16, size, size, channels), drawn(rng, dtype, 3, 3, 1, channels)
    g = drawn(rng, dtype, 16, out, out, channels)
    found = with_gradients(lambda x, k: adapter.depthwise(x, k, stride, implementation), (x, k), g)
    return worst(found, reference_depthwise(*map(exact, (x, k, g)), stride))


def norm_error(mean: float, dtype: str, seed: int) -> float:
    rng = np.random.default_rng(seed)
    x, g = drawn(rng, dtype, 16, 8, 8, 48, mean=mean), drawn(rng, dtype, 16, 8, 8, 48)
    scale, bias = drawn(rng, "float32", 48), drawn(rng, "float32", 48)
    found = with_gradients(lambda *a: adapter.batch_norm(*a, 1e-3, "relu6"), (x, scale, bias), g)
    return worst(found, reference_norm(*map(exact, (x, scale, bias, g)), 1e-3, 6.0))


def exact(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64)


def worst(found, reference) -> float:
    return max(error(a, b) for a, b in zip(found, reference, strict=True))


def after_step(device: Any, network: str, dtype: str, depthwise: str, precision: str):
    """Return the loss, the change of the parameters and the statistics after one step."""
    t = adapter.training(network, 32, dtype, depthwise, learning_rate=1.0)
    # Correctness needs no autotuning, which takes minutes for a whole step.
    options = None if device.platform == "cpu" else measure.UNTUNED
    with jax.default_device(device), jax.default_matmul_precision(precision):
        before = jax.jit(t.init, compiler_options=options)(jax.random.key(0))
        batch = jax.tree.map(jnp.asarray, t.batch(8 if TINY else 64, 0))
        new, metrics = jax.jit(t.step, compiler_options=options)(before, batch, t.hyper)
        new, before, metrics = jax.device_get((new, before, metrics))
    change = jax.tree.map(np.subtract, t.parameters(new), t.parameters(before))
    return float(metrics["loss"]), change, t.statistics(new)


def compare_step(record: measure.Record, row: measure.Row, found, reference) -> None:
    with record.measuring(row):
        (loss, change, statistics), (loss_0, change_0, statistics_0) = found(), reference.result()
        row |= {"loss": loss, "loss_on_cpu": loss_0, "error": error(change, change_0)}
        row |= {"statistics_error": error(statistics, statistics_0)}
        if row["precision"] == "highest":
            row |= {"limit": STEP_LIMIT, "ok": bool(row["error"] <= STEP_LIMIT)}


def compare_op(record: measure.Record, row: measure.Row, found) -> None:
    with record.measuring(row):
        row["error"], row["limit"] = found(), LIMITS[row["dtype"]]
        row["ok"] = bool(row["error"] <= row["limit"])


def main() -> None:
    args = measure.arguments(__doc__).parse_args()
    record = measure.record_for(args)
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    seeds = itertools.count(int(time.time()))  # other inputs in each run
    pool, jobs = ThreadPoolExecutor(8), []
    for network in ("v1-0.25",) if TINY else ("v1-0.25", "v2-0.35"):
        reference = pool.submit(after_step, cpu, network, "float32", "shift", "highest")
        for case in STEPS:
            row = {"op": f"step {network} {case[1]}", "dtype": case[0], "precision": case[2], "autotuning": "off"}
            found = functools.partial(after_step, device, network, *case)
            jobs.append((compare_step, row, found, reference))
    for (size, c, stride), implementation, dtype in itertools.product(SHAPES, adapter.DEPTHWISE, LIMITS):
        row = {"op": f"depthwise {implementation} {size}x{size}x{c} /{stride}", "dtype": dtype}
        jobs.append((compare_op, row, functools.partial(depthwise_error, size, c, stride, implementation, dtype)))
    for mean, dtype in itertools.product((0.0, 3.0), LIMITS):  # |mean| / standard deviation of a channel
        row = {"op": f"batch norm, |mean| / sd {mean:g}", "dtype": dtype}
        jobs.append((compare_op, row, functools.partial(norm_error, mean, dtype)))
    record.plan([row for _, row, *_ in jobs])
    futures = []
    for compare, row, found, *more in jobs:
        seeded = functools.partial(found, next(seeds)) if compare is compare_op else found
        futures.append(pool.submit(compare, record, row, seeded, *more))
    for future in futures:
        future.result()
    record.close()


if __name__ == "__main__":
    main()
