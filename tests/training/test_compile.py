"""Compiled programs: which runs share one, and that the number of devices and of runs changes no result."""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import TINY, spec_of

from configs import cifar_v1
from mobilenet_jax import config
from mobilenet_jax.config import RunSpec
from mobilenet_jax.data import arrays, datasets
from mobilenet_jax.training import compile as compiling
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import Inputs, Program, compile_runs
from mobilenet_jax.training.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("settings")


def test_runs_of_a_program_differ_only_in_what_is_traced():
    key = spec_of(TINY).program_key
    same = {"optim.lr": 0.3, "optim.momentum": 0.5, "optim.weight_decay": 0.1, "optim.decay_depthwise": True, "seed": 9}
    same |= {"train.label_smoothing": 0.1, "optim.clip_norm": 1.0, "optim.decay": 0.5, "optim.epsilon": 0.1}
    same |= {"train.epochs": 9, "optim.warmup_epochs": 1, "optim.lr_decay": 0.5, "optim.lr_decay_epochs": 2.0}
    assert spec_of(TINY | same).program_key == key
    for name, value in {
        "model.alpha": 0.5,
        "optim.schedule": "constant",
        "train.ema_decay": 0.9,
        "data.holdout": 0.1,
    }.items():
        assert spec_of(TINY | {name: value}).program_key != key
    assert spec_of(TINY | {"train.ema_decay": 0.9}).program_key == spec_of(TINY | {"train.ema_decay": 0.99}).program_key


def first_order(program: Program, specs: list[RunSpec]) -> tuple[jax.Array, ...]:
    """Return the batches of the first epoch, as `Program.train` takes them."""
    shape = specs[0].steps_per_epoch, specs[0].config.train.batch_size
    orders = [arrays.epoch_order(program.sizes["train"], spec.config.seed, 0) for spec in specs]
    return program.order([order[: shape[0] * shape[1]].reshape(shape) for order in orders])


def five_steps(specs: list[RunSpec], inputs: Inputs) -> dict[str, Any]:
    """Return the losses of five steps, `[5, K]`, and the figures of an evaluation, per run."""
    program = compile_runs(specs, inputs)
    state, order, losses = program.join(program.states), first_order(program, specs), []
    assert len(order[0].sharding.device_set) == len(inputs.devices)
    for _ in range(5):
        state, metrics = program.call(1)(state, order, program.hyper)
        losses.append([float(found[0, 0]) for found in program.split(metrics)])
    found = evaluate(program, state.evaluated, "test", lambda: None)
    return {"losses": losses, "test": [[figures["loss"], figures["accuracy"]] for figures in found]}


RECIPE = TINY | {"model.dropout": 0.2, "augment.flip": True, "train.ema_decay": 0.9, "optim.clip_norm": 1.0}
TWO_DEVICES = """
import json, sys
import jax
from helpers import spec_of
from training.test_compile import RECIPE, five_steps
from training_helpers import one_block
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import Inputs

assert len(jax.devices()) == 2
with one_block():
    specs = [spec_of(RECIPE | {"seed": seed}) for seed in range(int(sys.argv[1]))]
splits = loop.prepare(specs[0]).splits
print(json.dumps([five_steps(specs, Inputs(splits, jax.devices()[:n])) for n in (1, 2)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_two_devices_train_and_evaluate_as_one(runs, settings):
    env = os.environ | settings | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", TWO_DEVICES, str(runs)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout)
    losses = np.array(one["losses"])
    assert losses.shape == (5, runs) and np.ptp(losses, axis=0).min() > 0.01
    np.testing.assert_allclose(two["losses"], losses, rtol=1e-4)
    np.testing.assert_allclose(two["test"], one["test"], rtol=1e-3)


GATHERS = """
import sys
from helpers import spec_of
from training.test_compile import RECIPE
from training_helpers import one_block
from mobilenet_jax.training import compile as compiling
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import compile_runs

compiling.steps_per_call = lambda *_: int(sys.argv[3])
with one_block():
    spec = spec_of(RECIPE | {"model.depthwise": sys.argv[1], "train.devices": int(sys.argv[2])})
compile_runs([spec], loop.prepare(spec))
"""


@pytest.mark.parametrize(
    ("implementation", "devices", "steps", "gathers"),
    [
        pytest.param("taps", 2, 4, False, marks=pytest.mark.slow),
        pytest.param("shift", 2, 1, True, marks=pytest.mark.slow),  # so the test would see them
        *(
            pytest.param(*case, False, marks=pytest.mark.slow)
            for case in (("taps", 4, 1), ("conv", 2, 1), ("conv", 4, 4))
        ),
    ],
)
def test_no_device_gathers_the_maps_of_others(implementation, devices, steps, gathers, settings, tmp_path):
    env = os.environ | settings | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_steps.*"
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {dump}"
    env["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    command = [sys.executable, "-c", GATHERS, implementation, str(devices), str(steps)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = [path.read_text() for path in tmp_path.glob("*after_optimizations.txt")]  # one per length of a call
    assert texts and all("all-reduce" in text and ("all-gather" in text) == gathers for text in texts)


@pytest.mark.slow
@pytest.mark.skipif(datasets.prepared("cifar10") is None, reason=f"CIFAR-10 is not prepared in {datasets.data_root()}")
def test_twenty_steps_on_cifar10_equal_those_of_separate_runs(monkeypatch):
    """The recipe of `cifar_v1` at alpha 0.25 and a tenth of its rate, four seeds, in float64.

    A new v1 without residual paths multiplies rounding errors by ten to a thousand per step: float32 would show that.
    """

    def double(tree):
        return jax.tree.map(lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf, tree)

    def doubled(function):
        return lambda *arguments: double(function(*arguments))

    model = compiling.MobileNet
    monkeypatch.setattr(compiling, "MobileNet", lambda *a, **k: model(*a, **{**k, "dtype": "float64"}))
    monkeypatch.setattr(compiling, "init_state", doubled(compiling.init_state))
    monkeypatch.setattr(compiling, "_hyper", doubled(compiling._hyper))
    specs = []
    for seed in range(4):
        c = cifar_v1.get_config()
        c.update_from_flattened_dict({"model.alpha": 0.25, "optim.lr": 0.04, "seed": seed})
        specs.append(config.resolve(c, "cifar_v1"))
    inputs = loop.prepare(specs[0])

    def losses(specs):
        built = compile_runs(specs, inputs)
        state, order, found = built.join(built.states), first_order(built, specs), []
        for _ in range(20):
            state, metrics = built.call(1)(state, order, built.hyper)
            found.append([each[0, 0] for each in built.split(metrics)])
        return np.stack(found, axis=1)

    with jax.enable_x64(True):
        separate = np.concatenate([losses([spec]) for spec in specs])
        assert np.ptp(separate, axis=0).min() > 1e-3  # four runs, not one
        np.testing.assert_allclose(losses(specs), separate, rtol=1e-4)
