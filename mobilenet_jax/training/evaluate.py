"""Evaluate a split: every image once, for any batch size."""

import collections
from collections.abc import Callable, Mapping

import jax
import numpy as np

from mobilenet_jax.data import arrays
from mobilenet_jax.training.compile import Program

_IN_FLIGHT = 2  # batches that the host may be ahead


def evaluate(
    program: Program, vectors: Mapping[str, jax.Array], split: str, after_batch: Callable[[], None]
) -> list[tuple[float, float]]:
    """Return mean cross-entropy and top-1 accuracy of each run of `program` on a split.

    Args:
      vectors: what `TrainState.evaluated` returns, of all runs.
      split: 'val' or 'test'.
      after_batch: called after each batch; may raise to stop.
    """
    size = program.sizes[split]
    sums = dict.fromkeys(("loss", "correct", "count"), np.zeros(program.runs))
    started: collections.deque[dict[str, jax.Array]] = collections.deque()

    def fetch(allowed: int) -> None:
        while len(started) > allowed:
            found = jax.device_get(started.popleft())
            sums.update({name: total + found[name] for name, total in sums.items()})
            after_batch()

    for indices, mask in arrays.eval_batches(size, program.eval_batch):  # the last one is padded, and masked there
        batch = jax.device_put((indices, mask.astype(np.float32)), program.shared)
        started.append(program.eval_on[split](vectors, *batch))
        fetch(_IN_FLIGHT)
    fetch(0)
    assert (sums["count"] == size).all()
    return [(float(sums["loss"][i]) / size, float(sums["correct"][i]) / size) for i in range(program.runs)]
