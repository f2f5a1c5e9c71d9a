"""Several training steps per call: the same result as single steps, and everything acts at the right step."""

import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, result, rows_of, spec_of, summary_of
from training_helpers import Crash, after, crash, one_block, send

from mobilenet_jax.training import compile as compiling
from mobilenet_jax.training import loop, schedules
from mobilenet_jax.training.compile import compile_runs, images_per_evaluation, steps_per_call

# 22 steps per epoch: with 8 per call, the calls of the first two epochs end at 8, 16, 22, 30, 38 and 44.
TAPS = TINY | {"model.depthwise": "taps", "train.epochs": 2, "train.ema_decay": 0.9, "optim.warmup_epochs": 0.5}


@pytest.fixture(scope="module", autouse=True)
def small_networks(settings) -> Iterator[None]:
    with one_block():
        yield


@pytest.fixture
def calls_of(monkeypatch) -> Any:
    """Return a function that sets the number of steps per call."""
    return lambda steps: monkeypatch.setattr(compiling, "steps_per_call", lambda *_: steps)


def run(directory: pathlib.Path) -> int:
    return loop.run(spec_of(TAPS), directory)


def test_several_steps_in_one_call_equal_single_ones(calls_of):
    spec, found = spec_of(TAPS), []
    inputs = loop.prepare(spec)
    for steps in (1, 8):
        calls_of(steps)
        program = compile_runs([spec], inputs)
        state = program.join(program.states)
        shape = spec.steps_per_epoch, 64
        order = program.order([np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)])
        metrics = []
        while len(metrics) < 20:
            state, some = program.train(state, order, program.hyper, min(steps, 20 - len(metrics)))
            metrics += [*np.asarray(some)]
        assert int(state.step) == 20
        found.append((np.array(metrics), state.vectors, state.ema))
    (one, vectors, average), (eight, others, other_average) = found
    assert np.ptp(one[:, 0]) > 0.1
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    for a, b in ((vectors, others), (average, other_average)):
        for name in ("params", "batch_stats"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6)


def test_a_stopped_run_resumes_at_the_start_of_a_call(calls_of, tmp_path):
    calls_of(8)
    assert run(tmp_path / "whole") == 0
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [22, 44]
    with after(27, send(signal.SIGTERM)):
        assert run(tmp_path / "stopped") == 143
    assert run(tmp_path / "stopped") == 0
    assert summary_of(tmp_path / "stopped")["resumed_from"] in (38, 44)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    with pytest.raises(Crash), after(20, crash):
        run(tmp_path / "crashed")
    assert {path.stem for path in (tmp_path / "crashed" / "checkpoints").iterdir()} == {"16"}
    assert run(tmp_path / "crashed") == 0
    assert summary_of(tmp_path / "crashed")["resumed_from"] == 16
    assert result(tmp_path / "crashed") == result(tmp_path / "whole")


def test_a_run_goes_on_with_other_calls(calls_of, tmp_path):
    """A machine with one step per call has stopped it between two calls of this one."""
    calls_of(1)
    assert run(tmp_path / "whole") == 0
    with after(25, send(signal.SIGTERM)):
        assert run(tmp_path / "stopped") == 143
    calls_of(8)
    assert run(tmp_path / "stopped") == 0
    assert summary_of(tmp_path / "stopped")["resumed_from"] == 27
    whole, stopped = (rows_of(tmp_path / name)[-1] for name in ("whole", "stopped"))
    assert stopped["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)


@pytest.mark.parametrize(("steps", "bad"), [(1, 13), (8, 8), (8, 13), (8, 22)])
def test_a_loss_that_is_not_finite_is_reported_at_its_step(steps, bad, calls_of, tmp_path, monkeypatch):
    """The rate of step `bad` is not a number, and so is the loss of the next one."""
    factor = schedules.factor

    def planted(name, step, *lengths):
        return jnp.where(step == bad - 1, jnp.nan, factor(name, step, *lengths))

    monkeypatch.setattr(schedules, "factor", planted)
    calls_of(steps)
    assert run(tmp_path) == 0
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["steps"]) == ("diverged", bad + 1)
    assert rows_of(tmp_path)[-1]["step"] == bad + 1


@pytest.mark.parametrize(
    ("platform", "steps_per_epoch", "mult_adds", "steps"),
    [
        ("cpu", 390, 1e9, 1),
        ("gpu", 390, 1e9, 78),  # 5 calls per epoch
        ("tpu", 1562, 1e8, 71),
        ("gpu", 22, 1e8, 22),
        ("gpu", 257, 1e9, 128),  # a prime: 128, 128 and 1
        ("gpu", 390, 2.4e10, 10),
        ("gpu", 97, 1e11, 1),
        ("gpu", 5000, 1e13, 1),
    ],
)
def test_how_many_steps_a_call_has(platform, steps_per_epoch, mult_adds, steps):
    assert steps_per_call(platform, steps_per_epoch, mult_adds) == steps


@pytest.mark.parametrize(
    ("platform", "batch", "devices", "images"),
    [("cpu", 32, 1, 32), ("gpu", 32, 1, 512), ("gpu", 1024, 8, 1024), ("tpu", 96, 6, 516)],
)
def test_how_many_images_a_call_evaluates(platform, batch, devices, images):
    assert images_per_evaluation(platform, batch, devices) == images
