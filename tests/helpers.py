"""What several test files share: tiny runs, run directories, data sets."""

import copy
import io
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from conftest import ROOT
from PIL import Image

from configs import default, digits_v1
from mobilenet_jax import config
from mobilenet_jax.data.arrays import Split
from mobilenet_jax.networks.arch import mobilenet_v1
from mobilenet_jax.networks.cost import layer_costs, totals

SUMMARY = {
    **{"schema": 1, "status": "finished", "title": "a title", "config_name": "cifar_v1"},
    **{"version": "v1", "variant": "paper", "alpha": 0.25, "rho": 1.0, "expansion": None, "resolution": 32},
    **{"dataset": "cifar10", "num_classes": 10, "seed": 0, "epochs": 3, "steps": 30, "params": 215_642},
    **{"mult_adds": 3_331_072, "test_accuracy": 0.7914, "test_loss": 0.6, "train_accuracy": 0.8},
    **{"train_images_per_second": 1710.9, "wall_seconds": 320.4, "device": "cpu (2 cores)", "fused": 1},
}


ENV = {"git_commit": "0123", "python": "3.11.7", "packages": {"jax": "0.10.2", "flax": "0.12"}, "device": "cpu"}


CONFIG = default.get_config().to_dict()
del CONFIG["model"]["weights"]  # as in the record of a run that starts from random ones


KNOBS = {f"model.{key}": key for key in ("version", "variant", "alpha", "rho", "expansion")}
KNOBS |= {"data.name": "dataset", "train.epochs": "epochs", "seed": "seed"}


def rows(epochs):
    return [
        {"step": 10 * e, "epoch": float(e), "train_loss": 1 / e, "test_accuracy": e / 10} for e in range(1, epochs + 1)
    ]


def put(directory, settings=None, **summary):
    """Writes the run directory of a finished run; `settings` are dotted config keys, which the summary follows."""
    settings = {"train.epochs": 3, "model.alpha": 0.25} | (settings or {})
    tree = copy.deepcopy(CONFIG)
    for key, value in settings.items():
        group, _, leaf = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    knobs = {KNOBS[key]: value for key, value in settings.items() if key in KNOBS}
    if knobs.get("version") == "v2":
        knobs = {"expansion": 6.0} | knobs
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(tree))
    (directory / "env.json").write_text(json.dumps(ENV))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(settings["train.epochs"])))
    (directory / "summary.json").write_text(json.dumps(SUMMARY | knobs | summary))
    return directory


TINY = {
    "model.alpha": 0.25,
    "model.rho": 0.25,
    "model.variant": "shallow",
    "model.bn_decay": 0.9,
    "augment.pad": 2,
    "optim.lr": 0.2,
    "train.epochs": 3,
    "train.batch_size": 64,
    "train.checkpoint_epochs": 0.5,
}


def spec_of(overrides: dict[str, Any]) -> config.RunSpec:
    c = digits_v1.get_config()
    c.update_from_flattened_dict(overrides)
    return config.resolve(c, "digits_v1")


def summary_of(directory: pathlib.Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def rows_of(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's variables with changes; None takes one away."""
    merged = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    return {name: value for name, value in merged.items() if value is not None}


def random_splits(seed: int, sizes: Mapping[str, int], side: int, channels: int, classes: int) -> dict[str, Split]:
    rng = np.random.default_rng(seed)
    return {
        name: Split(
            rng.integers(0, 256, (size, side, side, channels), dtype=np.uint8),
            rng.integers(0, classes, size, dtype=np.int32),
        )
        for name, size in sizes.items()
    }


def prepare(
    root: pathlib.Path, name: str, splits: Mapping[str, Split], classes: int = 3, version: str = "1.0.0"
) -> pathlib.Path:
    """Has TFDS prepare a set as array_record; returns its directory."""
    import tensorflow_datasets as tfds

    set_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version(version)

        def _info(self) -> tfds.core.DatasetInfo:
            image = tfds.features.Image(shape=next(iter(splits.values())).images.shape[1:])
            features = tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(num_classes=classes)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(splits[split].images, splits[split].labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image.squeeze()).save(png, "PNG")
                yield i, {"image": png.getvalue(), "label": label if label < classes else -1}

    builder = Builder(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def assert_equal(actual: Mapping[str, Split], expected: Mapping[str, Split]) -> None:
    assert set(actual) == set(expected)
    for name, split in expected.items():
        assert (actual[name].images.dtype, actual[name].labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(actual[name].images, np.broadcast_to(split.images, actual[name].images.shape))
        np.testing.assert_array_equal(actual[name].labels, split.labels)


DEVICE = {
    "name": "machine",
    "mult_adds_per_second": 1e9,
    "bytes_per_second": 1e12,  # so fast that all but pooling is bound by mult-adds
    "cache_bytes": 0,
    "cache_bytes_per_second": 1.0,
    "launch_seconds": 0.001,
}


LAYERS = layer_costs(mobilenet_v1(0.25), 32)


MULT_ADDS = totals(mobilenet_v1(0.25), 32).mult_adds


def record(**seconds: float) -> dict:
    """v1 0.25 at 32 pixels, every layer twice as slow as its mult-adds say, but for those named."""
    layers = {row.layer.name: 2 * row.mult_adds / 1e9 + 0.001 for row in LAYERS}
    network = {"version": "v1", "alpha": 0.25, "batch": 1, "resolution": 32, "seconds": 0.002, "layers": layers}
    layers.update(seconds)
    return {"device": DEVICE, "networks": [network]}


def python(program: str, *arguments: str, code: int = 0, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.splitlines()


def python_command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


SPEEDS = {"images_per_second", "train_images_per_second", "input_wait_share", "resumed_from"}
SPEEDS |= {"sha256", "metrics_sha256"}  # they include the speeds


def flags_of(overrides: dict[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def result(directory: pathlib.Path) -> tuple[Any, Any]:
    """Return all results of a run, without its speeds."""

    def kept(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if k not in SPEEDS and not k.endswith("_seconds")}

    return kept(summary_of(directory)), [kept(row) for row in rows_of(directory)]
