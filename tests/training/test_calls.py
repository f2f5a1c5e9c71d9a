"""Several training steps per call: the same result as single steps, and everything acts at the right step."""

import dataclasses
import pathlib
import signal
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, result, rows_of, spec_of, summary_of
from training_helpers import Crash, after, crash, one_block, send

from mobilenet_jax.training import compile as compiling
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import Program, compile_runs, images_per_evaluation, steps_per_call

# 22 steps per epoch: with 8 per call, the calls of the first two epochs end at 8, 16, 22, 30, 38 and 44.
TAPS = TINY | {"model.depthwise": "taps", "train.epochs": 2, "train.ema_decay": 0.9}
TAPS |= {"optim.schedule": "exponential", "optim.warmup_epochs": 0.5}


@pytest.fixture(scope="module", autouse=True)
def small_networks(settings) -> Iterator[None]:
    with one_block():
        yield


@pytest.fixture(scope="module")
def programs(small_networks) -> dict[int, Program]:
    """Return the program by the number of steps per call. The states are on the host, as training donates them."""
    spec, found = spec_of(TAPS), {}
    inputs = loop.prepare(spec)
    with pytest.MonkeyPatch.context() as patch:
        for steps in (1, 8):
            patch.setattr(compiling, "steps_per_call", lambda *_, steps=steps: steps)
            program = compile_runs([spec], inputs)
            found[steps] = dataclasses.replace(program, states=jax.device_get(program.states))
    return found


@pytest.fixture
def run(programs, monkeypatch) -> Callable[..., int]:
    """Return a function that trains with so many steps per call, and with other scalars of the recipe."""

    def train(directory: pathlib.Path, steps: int, **scalars: float) -> int:
        program = programs[steps]
        numbers = {name: jnp.float32(value) for name, value in scalars.items()}
        changed = {"states": jax.tree.map(np.array, program.states), "hyper": program.hyper.replace(**numbers)}
        monkeypatch.setattr(loop, "compile_runs", lambda *_: dataclasses.replace(program, **changed))
        return loop.run(spec_of(TAPS), directory)

    return train


def test_a_program_keeps_no_state_on_the_device(programs):
    size = programs[1].states[0].params.size
    assert not [array for array in jax.live_arrays() if array.shape == (size,)]


def test_several_steps_in_one_call_equal_single_ones(programs):
    found = []
    for steps, program in programs.items():
        state, rows = program.join(program.states), program.order([np.arange(22 * 64, dtype=np.int32).reshape(22, 64)])
        metrics = []
        while len(metrics) < 22:
            state, some = program.call(min(steps, 22 - len(metrics)))(state, rows, program.hyper)
            metrics += [*np.asarray(some)]
        assert int(state.step) == 22
        found.append((np.array(metrics), state.vectors, state.ema))
    (one, vectors, average), (eight, others, other_average) = found
    assert np.ptp(one[:, 0]) > 0.1
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    for a, b in ((vectors, others), (average, other_average)):
        for name in ("params", "batch_stats"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6)


def test_a_stopped_run_resumes_at_the_start_of_a_call(run, tmp_path):
    assert run(tmp_path / "whole", 8) == 0
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [22, 44]
    with after(27, send(signal.SIGTERM)):
        assert run(tmp_path / "stopped", 8) == 143
    assert run(tmp_path / "stopped", 8) == 0
    assert summary_of(tmp_path / "stopped")["resumed_from"] == 30
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    with pytest.raises(Crash), after(20, crash):
        run(tmp_path / "crashed", 8)
    assert {path.stem for path in (tmp_path / "crashed" / "checkpoints").iterdir()} == {"16"}
    assert run(tmp_path / "crashed", 8) == 0
    assert summary_of(tmp_path / "crashed")["resumed_from"] == 16
    assert result(tmp_path / "crashed") == result(tmp_path / "whole")


@pytest.mark.slow  # it compiles another call
def test_a_run_goes_on_with_other_calls(run, tmp_path):
    """A machine with one step per call has stopped it between two calls of this one."""
    assert run(tmp_path / "whole", 1) == 0
    with after(25, send(signal.SIGTERM)):
        assert run(tmp_path / "stopped", 1) == 143
    assert run(tmp_path / "stopped", 8) == 0
    assert summary_of(tmp_path / "stopped")["resumed_from"] == 27
    whole, stopped = (rows_of(tmp_path / name)[-1] for name in ("whole", "stopped"))
    assert stopped["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)


@pytest.mark.parametrize(("steps", "bad"), [(1, 13), (8, 8), (8, 13), (8, 22)])
def test_a_loss_that_is_not_finite_is_reported_at_its_step(steps, bad, run, tmp_path):
    """From the second stair on, the rate is not a number, and so is the loss of the step after the first such one."""
    assert run(tmp_path, steps, stair_steps=bad - 1, lr_decay=np.nan) == 0
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["steps"]) == ("diverged", bad + 1)
    assert rows_of(tmp_path)[-1]["step"] == bad + 1


@pytest.mark.parametrize(
    ("platform", "steps_per_epoch", "images", "mult_adds", "steps"),
    [
        ("cpu", 390, 128, 1e9, 1),
        ("gpu", 390, 128, 1e9, 30),  # 13 calls per epoch
        ("tpu", 1562, 32, 1e8, 71),
        ("gpu", 22, 64, 1e8, 22),
        ("gpu", 257, 32, 1e8, 128),  # a prime: 128, 128 and 1
        ("gpu", 97, 512, 1e9, 8),  # 12 calls of 8, one of 1
        ("gpu", 390, 128, 2.4e10, 3),
        ("gpu", 5000, 256, 1e13, 1),
    ],
)
def test_how_many_steps_a_call_has(platform, steps_per_epoch, images, mult_adds, steps):
    assert steps_per_call(platform, steps_per_epoch, images, mult_adds) == steps


@pytest.mark.parametrize(
    ("platform", "batch", "devices", "images"),
    [("cpu", 32, 1, 32), ("gpu", 32, 1, 512), ("gpu", 1024, 8, 1024), ("tpu", 96, 6, 516)],
)
def test_how_many_images_a_call_evaluates(platform, batch, devices, images):
    assert images_per_evaluation(platform, batch, devices) == images
