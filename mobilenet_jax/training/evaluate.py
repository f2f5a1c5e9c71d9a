"""Evaluate a split: every image once, for any batch size."""

import collections
from collections.abc import Callable, Mapping

import jax
import numpy as np

from mobilenet_jax.training.compile import Program

_IN_FLIGHT = 2  # batches that the host may be ahead


def evaluate(
    program: Program, vectors: Mapping[str, jax.Array], split: str, after_batch: Callable[[], None]
) -> list[dict[str, float]]:
    """Return the figures of each run of `program` on a split: loss (mean cross-entropy), accuracy (top-1).

    Of a streamed set of more than five classes, `top5` is among them. Pictures that cannot be decoded are left out.

    Args:
      vectors: what `TrainState.evaluated` returns, of all runs.
      split: 'val' or 'test'.
      after_batch: called after each batch; may raise to stop.
    """
    sums: dict[str, np.ndarray] = {}
    masked_in = 0.0  # images
    started: collections.deque[dict[str, jax.Array]] = collections.deque()

    def fetch(allowed: int) -> None:
        while len(started) > allowed:
            found = jax.device_get(started.popleft())
            sums.update({name: sums.get(name, np.zeros(program.runs)) + total for name, total in found.items()})
            after_batch()

    for batch in program.eval_batches(split):  # the last one is padded, and masked there
        masked_in += float(batch[-1].sum())
        started.append(program.eval_on[split](vectors, *jax.device_put(tuple(batch), program.shared)))
        fetch(_IN_FLIGHT)
    fetch(0)
    counts = sums.pop("count")
    assert (counts == masked_in).all()
    sums["accuracy"] = sums.pop("correct")
    return [{name: float(of[i] / counts[i]) for name, of in sums.items()} for i in range(program.runs)]
