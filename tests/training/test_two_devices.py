"""Training on two devices has the results of training on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from step_helpers import TOLERANCE

TWO_DEVICES = """
import functools, json, sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import step_helpers as t
from mobilenet_jax.networks.arch import mobilenet_v1

def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, tree)


def train(network, side, rate, devices):
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    model = t.MobileNet(network, dropout=0.1, dtype="float64")
    view = functools.partial(
        t.augment.training_view, pad=2, crop=side, flip=True, resolution=side, input_range=(-1.0, 1.0)
    )
    step = jax.jit(t.make_step(model, view=view), donate_argnums=0, out_shardings=everywhere)
    with jax.enable_x64(False):
        state, start = t.random_state(model, with_ema=True), t.random_state(model).evaluated
    state, start = jax.device_put(double(state), everywhere), double(start)
    hyper = t.hyper(learning_rate=rate, weight_decay=1e-4, ema_decay=0.9, clip_norm=5.0)
    hyper = jax.device_put(double(hyper), everywhere)
    losses = []
    for seed in range(5):
        batch = jax.device_put(t.batch(16, side, network.num_classes, seed), sharded)
        assert len(batch.images.sharding.device_set) == len(devices)
        state, metrics = step(state, batch, hyper)
        losses.append(float(metrics["loss"]))
    return losses, t.distance(state.evaluated, start)


# In float64, as a random v1 grows rounding errors a hundredfold a step.
case = {"small": (t.SMALL, 12, 0.1), "v1": (mobilenet_v1(0.25, 10, "cifar"), 32, 0.001)}[sys.argv[1]]
assert len(jax.devices()) == 2
jax.config.update("jax_enable_x64", True)
print(json.dumps([train(*case, jax.devices()[:n]) for n in (1, 2)]))
"""


@pytest.mark.slow  # test_compile.py has a shorter one
@pytest.mark.parametrize("network", ["small", "v1"])
def test_two_devices_train_as_one(network, tmp_path):
    path = [ROOT / "tests", ROOT]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",  # images and schedule stay float32
    }
    command = [sys.executable, "-c", TWO_DEVICES, network]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one, moved_by_one), (two, moved_by_two) = json.loads(done.stdout)
    assert len(one) == 5 and np.ptp(one) > 0.001
    np.testing.assert_allclose(two, one, rtol=TOLERANCE[network] / 5)
    assert moved_by_two == pytest.approx(moved_by_one, rel=TOLERANCE[network])
