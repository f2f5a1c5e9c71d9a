"""Steps with every option of the recipe, pinned."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from step_helpers import CLASSES, SMALL, TOLERANCE, batch, distance, hyper, make_step, random_state

from mobilenet_jax.data import augment
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import mobilenet_v1

# For each of three steps: the loss, and the distance that the average of parameters and of statistics has moved.
GOLDEN = {
    "small": [
        [1.611912, 0.000341921, 0.0713596],
        [1.608889, 0.001029122, 0.1419921],
        [1.614299, 0.00197720, 0.2093651],
    ],
    "v1": [[1.623208, 0.000786897, 0.310203], [1.612532, 0.00284297, 0.613614], [1.629134, 0.00610645, 0.914192]],
}


@pytest.mark.parametrize("name", ["small", pytest.param("v1", marks=pytest.mark.slow)])
def test_golden_steps(name):
    """Three steps with every option of the recipe."""
    network = SMALL if name == "small" else mobilenet_v1(0.25, CLASSES, "cifar")
    model = MobileNet(network, dropout=0.1)
    view = functools.partial(
        augment.training_view, pad=4, crop=28, flip=True, resolution=24, input_range=network.input_range
    )
    step = jax.jit(make_step(model, "rmsprop", view, "cosine"))
    start: Any = random_state(model, "rmsprop", with_ema=True)
    state = start
    scalars = hyper(
        learning_rate=0.01,
        weight_decay=4e-3,
        label_smoothing=0.1,
        clip_norm=0.1,
        ema_decay=0.99,
        total_steps=10,
        rise_steps=2,
    )
    found = []
    for seed in range(3):
        state, metrics = step(state, batch(16, 32, seed=seed), scalars)
        moved = [distance(state.ema[part], start.ema[part]) for part in ("params", "batch_stats")]
        found.append([float(metrics["loss"]), *moved])
    np.testing.assert_allclose(found, GOLDEN[name], rtol=TOLERANCE[name])
