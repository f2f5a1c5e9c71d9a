"""Evaluate a split: every image once, for any batch size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mobilenet_jax.data import arrays
from mobilenet_jax.training.compile import Program


def evaluate(
    program: Program, variables: dict[str, Any], split: str, batch_size: int, after_batch: Callable[[], None]
) -> list[tuple[float, float]]:
    """Return mean cross-entropy and top-1 accuracy of each run of `program` on a split.

    Args:
      variables: what `TrainState.evaluated` returns, of all runs.
      split: 'val' or 'test'.
      batch_size: images per call; the last batch is padded, and its padding is masked.
      after_batch: called after each batch; may raise to stop.
    """
    size = program.sizes[split]
    sums = dict.fromkeys(("loss", "correct", "count"), np.zeros(program.runs))
    for indices, mask in arrays.eval_batches(size, batch_size):
        batch = jax.device_put((indices, mask.astype(np.float32)), program.shared)
        found = jax.device_get(program.eval_on[split](variables, *batch))
        sums = {name: total + found[name] for name, total in sums.items()}
        after_batch()
    assert (sums["count"] == size).all()
    return [(float(sums["loss"][i]) / size, float(sums["correct"][i]) / size) for i in range(program.runs)]
