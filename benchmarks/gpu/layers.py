"""Time single operations, forward and backward, and compare them with the memory bandwidth. `layers.py --out FILE`."""

import functools
import time

import adapter
import jax
import jax.numpy as jnp
import measure
from measure import TINY

SHAPES = [(8, 16, 1)] if TINY else [(32, 64, 1), (32, 64, 2), (16, 128, 1), (8, 256, 1), (4, 512, 1), (16, 192, 1)]
BATCH, COPIED = (4, 2**18) if TINY else (2048, 2**30)  # images; values


def gradients(function):
    """Return a function of the output's gradient and the arguments that computes the gradients alone."""
    return lambda g, *arguments: jax.vjp(function, *arguments)[1](g)


def jobs_of(size: int, channels: int, stride: int):
    """Yield the operations at one shape: name, function, shapes of its arguments, bytes that it must move."""
    out = -(-size // stride)
    x = jax.ShapeDtypeStruct((BATCH, size, size, channels), jnp.bfloat16)
    g = jax.ShapeDtypeStruct((BATCH, out, out, channels), jnp.bfloat16)
    k, p = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((3, 3, 1, channels), (1, 1, channels, channels)))
    s = jax.ShapeDtypeStruct((channels,), jnp.float32)
    shape = f"{size}x{size}x{channels} /{stride}"
    candidates = {name: functools.partial(adapter.depthwise, implementation=name) for name in adapter.DEPTHWISE}
    for name, f in candidates.items():
        if name == "shift" and size >= 16 and not TINY:
            continue  # its gradient is a loop over the batch, which is known to be slow for large maps
        f = functools.partial(f, stride=stride)
        yield f"depthwise {name} {shape}", f, (x, k), 2 * (x.size + g.size)
        yield f"depthwise {name} {shape}, gradients", gradients(f), (g, x, k), 2 * (2 * x.size + g.size)
    if stride == 1:
        f = functools.partial(adapter.batch_norm, epsilon=1e-3, activation="relu6")
        yield f"batch norm {shape}", f, (x, s, s), 2 * 3 * x.size
        yield f"batch norm {shape}, gradients", gradients(f), (x, x, s, s), 2 * 5 * x.size
        yield f"pointwise {shape}", adapter.pointwise, (x, p), 2 * 2 * x.size
        yield f"pointwise {shape}, gradients", gradients(adapter.pointwise), (x, x, p), 2 * 3 * x.size


def main() -> None:
    record = measure.record_for(measure.arguments(__doc__).parse_args())
    jobs = [({"op": name}, *job) for shape in SHAPES for name, *job in jobs_of(*shape)]
    copy_row: measure.Row = {"op": "copy"}
    record.plan([copy_row, *(row for row, *_ in jobs)])
    bandwidth = 0.0
    with record.measuring(copy_row):
        copy = functools.partial(jax.jit(lambda x: x + jnp.bfloat16(1)), jnp.ones(COPIED, jnp.bfloat16))
        found = measure.windows(copy, jax.block_until_ready)
        bandwidth = 4 * COPIED / found["seconds"]  # bytes read and written
        copy_row |= {"gigabytes_per_second": bandwidth / 1e9, **found}
        del copy
    key = jax.random.key(int(time.time()))
    for row, function, shapes, least in jobs:
        if record.left() < 3:
            break
        # One at a time: XLA times candidates on the same GPU while it compiles.
        with record.measuring(row):
            started = time.perf_counter()
            program = jax.jit(function).lower(*shapes).compile()
            row["compile_seconds"] = time.perf_counter() - started
            call = functools.partial(program, *(jax.random.normal(key, a.shape, a.dtype) for a in shapes))
            row |= (found := measure.windows(call, jax.block_until_ready))
            row["of_bandwidth"] = least / bandwidth / found["seconds"]
    record.close()


if __name__ == "__main__":
    main()
