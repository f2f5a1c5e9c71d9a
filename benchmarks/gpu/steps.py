"""Time whole training steps. `python steps.py rates|fuse|graphs --out FILE --seconds N`; see README.md."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import adapter
import jax
import measure
import numpy as np
from measure import TINY

OFF = "off"


class Case(NamedTuple):
    """A program to time."""

    network: str
    px: int = 32
    batch: int = 512
    dtype: str = "bfloat16"
    variant: str = "conv"  # of the depthwise convolution
    runs: int = 1  # vmapped
    steps: int = 1  # per call
    autotuning: str = "default"


def compile_case(case: Case) -> tuple[Any, Callable[[], tuple[Any, Any, Any]]]:
    """Return the compiled program and a function that makes its arguments."""
    t = adapter.training(case.network, case.px, case.dtype, case.variant)
    init, step = t.init, t.step
    keys = jax.random.split(jax.random.key(0), case.runs)
    if case.runs > 1:
        init, step = jax.vmap(init), jax.vmap(step, in_axes=(0, 0, None))
    else:
        keys = keys[0]

    def many(state, batches, hyper):
        return jax.lax.scan(lambda s, b: step(s, b, hyper), state, batches)

    batches = [t.batch(case.batch, seed) for seed in range(case.steps * case.runs)]
    axes = [size for size in (case.steps, case.runs) if size > 1]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*axes, *leaves[0].shape), *batches)
    options = measure.UNTUNED if case.autotuning == OFF else None
    program = jax.jit(step if case.steps == 1 else many, donate_argnums=0, compiler_options=options)
    compiled = program.lower(jax.eval_shape(init, keys), batch, t.hyper).compile()
    start = jax.jit(init, compiler_options=measure.UNTUNED)
    return compiled, lambda: (start(keys), jax.device_put(batch), jax.device_put(t.hyper))


def time_case(record: measure.Record, case: Case, row: measure.Row) -> None:
    with record.measuring(row):
        started = time.perf_counter()
        program, arguments = compile_case(case)
        row["compile_seconds"] = time.perf_counter() - started
        state, batch, hyper = arguments()

        def call():
            nonlocal state
            state, metrics = program(state, batch, hyper)
            return metrics["loss"]

        found = measure.windows(call, jax.block_until_ready)
        row |= measure.throughput(case.network, case.px, case.batch * case.runs * case.steps, found)
        row["loss"] = float(np.mean(jax.device_get(call())))


# The cheapest and most telling case comes first: each program may take minutes to compile.

SMALL = Case("v1-0.25", batch=128)
FORMS = ("conv", "taps")  # of the depthwise convolution
UNTUNED = [Case(name, variant=form, autotuning=OFF) for name in ("v1-0.25", "v1-1", "v2-1") for form in FORMS]


def rates() -> list[Case]:
    return [
        *UNTUNED,
        *(case._replace(autotuning="default") for case in UNTUNED),
        SMALL,
        Case("v2-0.35"),
        SMALL._replace(steps=16),
        *(Case(network, px=224, batch=256) for network in ("v1-1", "v2-1")),
        *(Case(network, dtype="float32") for network in ("v1-1", "v1-0.25")),
        *(Case(network, batch=128) for network in ("v1-1", "v2-1")),
        *(Case(network, batch=2048) for network in ("v1-0.25", "v1-1")),
        SMALL._replace(variant="shift"),
    ]


def fuse() -> list[Case]:
    """Return several runs as one vmapped program next to one run alone; `images_per_second` counts all runs."""
    runs = [SMALL._replace(runs=runs) for runs in (1, 4, 16)]
    return [*(case._replace(autotuning=OFF) for case in runs), *runs]


def graphs() -> list[Case]:
    """Return steps to compare with those of `rates`; run.sh sets the XLA_FLAGS for CUDA graphs."""
    cases = [Case("v1-0.25"), SMALL, SMALL._replace(steps=16), Case("v1-1")]
    return [*(case._replace(autotuning=OFF) for case in cases), *cases]


SECTIONS: dict[str, Callable[[], Sequence[Case]]] = {"rates": rates, "fuse": fuse, "graphs": graphs}


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("section", choices=SECTIONS)
    args = parser.parse_args()
    record = measure.record_for(args)
    cases = SECTIONS[args.section]()
    if TINY:
        tiny = Case("v1-0.25", batch=4, dtype="float32", variant="shift")
        cases = [tiny._replace(runs=2) if args.section == "fuse" else tiny._replace(autotuning=OFF)]
    rows = [case._asdict() for case in cases]
    record.plan(rows)
    for case, row in zip(cases, rows, strict=True):
        if record.left() > 5:
            time_case(record, case, row)
    record.close()


if __name__ == "__main__":
    main()
