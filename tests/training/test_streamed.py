"""Whole runs on pictures in folders: what they record, and that a stop at any moment does not change the result."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import TINY, flags_of, result, rows_of, spec_of, summary_of
from picture_sets import write
from training_helpers import Crash, after, crash, one_block, send

from mobilenet_jax.data import augment, crops, decoding, images, views
from mobilenet_jax.errors import InputError
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.records import weights
from mobilenet_jax.training import loop
from mobilenet_jax.training.compile import compile_runs

# 16x16 pixels, 10 steps per epoch, 30 in all.
STREAMED = TINY | {
    "data.name": "folder",
    "augment.pad": 0,
    "augment.crop": 32,
    "augment.flip": True,
    "model.rho": 0.5,
    "optim.warmup_epochs": 0.5,
    "train.batch_size": 4,
    "train.checkpoint_epochs": 0.3,
}
CLASSES = "abcdefg"


@pytest.fixture(scope="module", autouse=True)
def small_networks(settings) -> Iterator[None]:
    with one_block():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Any]:
    """Return the config of runs on 42 training pictures and 16 others of 7 classes."""
    counts = {f"train/{name}": 6 for name in CLASSES} | {f"val/{name}": i // 2 + 1 for i, name in enumerate(CLASSES)}
    return STREAMED | {"data.dir": str(write(tmp_path_factory.mktemp("pictures"), counts))}


def test_a_missing_package_is_named_with_the_command(pictures, monkeypatch):
    monkeypatch.setattr(crops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'cv2'.*pip install .*\.\[images\]"):
        loop.prepare(spec_of(pictures))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert loop.run(spec_of(pictures), directory) == 0
    return directory


def test_the_record(finished, pictures):
    summary = summary_of(finished)
    assert (summary["dataset"], summary["num_classes"], summary["steps"]) == ("folder", 7, 30)
    assert (summary["protocol"], summary["undecodable"]) == ("slim", 0)
    assert 0 < summary["input_wait_share"] < 1
    stored = json.loads((finished / "config.json").read_text())
    assert stored["dataset"]["class_names"] == list(CLASSES)
    assert stored["dataset"]["fingerprint"]
    assert stored["augment"] == {"pad": 0, "crop": 32, "scale": 0.08, "ratio": 4 / 3, "resize": 0, "flip": True}
    _, network = weights.read(finished / "weights.safetensors")
    assert (network.class_names, network.protocol) == (tuple(CLASSES), "slim")


def test_the_figures_are_those_of_each_picture_once(finished, pictures):
    """Computed again from the weights, a picture at a time."""
    spec, row = spec_of(pictures), rows_of(finished)[-1]
    variables, network = weights.read(finished / "weights.safetensors")
    assert (network.image_size, network.resolution) == (16, 16)
    split = images.load(spec.dataset, pictures["data.dir"])["test"]
    stored = [split.read(i) for i in range(16)]
    views_of = np.stack([views.slim(decoding.decode(each.content), 16) for each in stored])
    labels = np.array([each.label for each in stored])
    inputs = augment.evaluation_view(jax.numpy.asarray(views_of), 16, 16, spec.arch.input_range)
    logits = np.asarray(jax.jit(MobileNet(spec.arch).apply)(variables, inputs))
    assert len(logits) == 16
    assert row["test_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    ranks = (logits > np.take_along_axis(logits, labels[:, None], -1)).sum(-1)
    assert row["test_top5"] == pytest.approx((ranks < 5).mean())
    losses = jax.nn.logsumexp(logits, axis=-1) - np.take_along_axis(logits, labels[:, None], -1)[:, 0]
    assert row["test_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_crashes_do_not_change_the_result(finished, pictures, tmp_path: pathlib.Path):
    for step in (5, 14, 26):
        with pytest.raises(Crash), after(step, crash):
            loop.run(spec_of(pictures), tmp_path)
    assert loop.run(spec_of(pictures), tmp_path) == 0
    assert summary_of(tmp_path)["resumed_from"] > 20
    assert result(tmp_path) == result(finished)


def test_a_signal_saves_and_the_run_goes_on(finished, pictures, tmp_path: pathlib.Path):
    with after(7, send(signal.SIGTERM)):
        assert loop.run(spec_of(pictures), tmp_path) == 128 + signal.SIGTERM
    assert loop.run(spec_of(pictures), tmp_path) == 0
    assert result(tmp_path) == result(finished)


@pytest.mark.slow
def test_kills_do_not_change_the_result(pictures, tmp_path: pathlib.Path, settings):
    def start(name: str, stop: str) -> int:
        return subprocess.run(
            [
                *(sys.executable, str(ROOT / "tests" / "training_helpers.py")),
                *(f"--run_dir={tmp_path / name}", *flags_of(pictures)),
            ],
            env=os.environ | settings | {"PYTHONPATH": str(ROOT), "STOP": stop},
            timeout=300,
        ).returncode

    assert start("whole", "SIGTERM 0") == 0
    for step in (5, 14, 26):
        assert start("killed", f"SIGKILL {step}") == -signal.SIGKILL
    assert start("killed", "SIGTERM 0") == 0
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def test_metrics_are_fetched_together(pictures, tmp_path: pathlib.Path, monkeypatch):
    """10 steps per epoch, 5 at a time: after the first step, at 5, 8 (of which 2 stay in flight) and at the end."""
    fetched, fetch = [], loop._Loop._fetch

    def counted(self, allowed):
        fetched.append(len(self.in_flight) - allowed)
        fetch(self, allowed)

    monkeypatch.setattr(loop, "_FETCHED", 5)
    monkeypatch.setattr(loop, "_FETCH_SECONDS", 1e9)
    monkeypatch.setattr(loop._Loop, "_fetch", counted)
    once = {"train.epochs": 1, "train.checkpoint_epochs": 1.0}
    assert loop.run(spec_of(pictures | once), tmp_path) == 0
    taken = [count for count in fetched if count > 0]
    assert sum(taken) == 10
    assert taken == [3, 3, 4]


def test_held_out_pictures_are_evaluated(pictures, tmp_path: pathlib.Path):
    overrides = {"data.holdout": 0.2, "train.epochs": 1, "data.protocol": "torch", "augment.scale": 0.0}
    assert loop.run(spec_of(pictures | overrides), tmp_path) == 0
    summary = summary_of(tmp_path)
    assert summary["steps"] == 8  # 34 of 42 pictures
    assert summary["protocol"] == "torch"
    assert summary["val_accuracy"] is not None and summary["test_accuracy"] is not None


def test_no_top5_of_five_classes(pictures, tmp_path: pathlib.Path):
    root = write(tmp_path / "set", {f"{split}/{name}": 2 for split in ("train", "val") for name in "abcde"})
    assert loop.run(spec_of(pictures | {"data.dir": str(root), "train.epochs": 1}), tmp_path / "run") == 0
    row = rows_of(tmp_path / "run")[-1]
    assert row["test_accuracy"] is not None and "test_top5" not in row
    assert summary_of(tmp_path / "run")["test_top5"] is None


def test_another_set_of_the_same_name_is_another_run(finished, pictures, tmp_path: pathlib.Path):
    counts = {"train/a": 20, "train/b": 20, "val/a": 1}
    other = spec_of(pictures | {"data.dir": str(write(tmp_path, counts, 99))})
    assert other.run_name != spec_of(pictures).run_name
    with pytest.raises(InputError, match="another run"):
        loop.run(other, finished)


@pytest.mark.slow
def test_undecodable_pictures_are_counted_over_resumptions(tmp_path: pathlib.Path, capfd):
    root = write(tmp_path / "set", {"train/a": 600, "train/b": 600, "val/a": 1001})
    for name in ("train/b/005.JPEG", "val/a/1000.JPEG"):
        (root / name).write_bytes(b"")
    config = STREAMED | {"data.dir": str(root), "train.batch_size": 40, "train.epochs": 2}
    with contextlib.suppress(Crash), after(40, crash):
        loop.run(spec_of(config), tmp_path / "run")
    assert loop.run(spec_of(config), tmp_path / "run") == 0
    summary = summary_of(tmp_path / "run")
    assert summary["undecodable"] == 2
    assert summary["resumed_from"] > 30
    assert "005.JPEG cannot be decoded" in capfd.readouterr().err


def test_too_many_undecodable_pictures_end_the_run(pictures, tmp_path: pathlib.Path):
    root = write(tmp_path / "set", {"train/a": 20, "train/b": 20, "val/a": 1})
    (root / "train" / "a" / "000.JPEG").write_bytes(b"x")
    with pytest.raises(InputError, match=r"000\.JPEG cannot be decoded .*at most 0"):
        loop.run(spec_of(pictures | {"data.dir": str(root)}), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


# Networks that start from trained ones.


def first_state(overrides: dict[str, Any]):
    spec = spec_of(overrides)
    program = compile_runs([spec], loop.prepare(spec))
    state = program.states[0]
    return {
        name: flat(program.layout.variables(jax.device_get(of)))
        for name, of in (("", state.vectors), ("ema", state.ema))
    }


def flat(variables) -> dict[str, np.ndarray]:
    return dict(weights.flat(variables))


def test_a_run_starts_from_weights(finished, pictures):
    """With the classifier, as the classes are the same."""
    trained = flat(weights.read(finished / "weights.safetensors")[0])
    found = first_state(pictures | {"model.weights": str(finished), "train.ema_decay": 0.9})
    for state in found.values():
        assert state.keys() == trained.keys()
        assert all(np.array_equal(state[name], trained[name]) for name in trained)


def test_other_classes_get_a_fresh_classifier(finished, pictures, tmp_path: pathlib.Path):
    root = write(tmp_path, {f"train/{name}": 2 for name in "abcdefh"} | {"val/a": 1})
    random = first_state(pictures | {"data.dir": str(root), "train.ema_decay": 0.9})[""]
    trained = flat(weights.read(finished / "weights.safetensors")[0])
    for state in first_state(
        pictures | {"data.dir": str(root), "train.ema_decay": 0.9, "model.weights": str(finished)}
    ).values():
        for name, array in state.items():
            expected = random if "/classifier/" in name else trained
            np.testing.assert_array_equal(array, expected[name])
    assert not np.array_equal(random["params/classifier/kernel"], trained["params/classifier/kernel"])


def test_weights_with_other_tensors_are_refused(finished, pictures, tmp_path: pathlib.Path):
    variables, network = weights.read(finished / "weights.safetensors")
    del variables["params"]["stem"]["kernel"]
    weights.write(tmp_path / "w.safetensors", variables, network)
    with pytest.raises(InputError, match="stem/kernel"):
        first_state(pictures | {"model.weights": str(tmp_path / "w.safetensors")})


def test_the_record_names_the_weights_by_their_digest(finished, pictures, tmp_path: pathlib.Path, capsys):
    spec = spec_of(pictures | {"model.weights": str(finished), "train.epochs": 1})
    assert loop.run(spec, tmp_path / "run") == 0
    assert f"starts from    {finished}, with its classifier\n" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"]["weights"] == weights.identify(finished)[0]
    assert "weights" not in json.loads((finished / "config.json").read_text())["model"]
    with pytest.raises(InputError, match=r"config\.model\.weights is '[0-9a-f]{8}' there and '' here"):
        loop.run(spec_of(pictures | {"train.epochs": 1}), tmp_path / "run")
