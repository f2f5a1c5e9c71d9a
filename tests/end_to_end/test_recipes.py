"""The ImageNet recipes: that of the config, and the one that its docstring gives as a command."""

import re

import pytest
from picture_sets import write

from configs import imagenet_sgd, imagenet_v1, imagenet_v2
from mobilenet_jax import config
from mobilenet_jax.networks import roofline


def test_the_paper_and_tf_slim_train_v1_with_different_recipes(launch):
    text = str(imagenet_v1.__doc__).replace("\\\n", "")
    (arguments,) = re.findall(r"python launch\.py (.*optim\.name=sgd.*)$", text, re.MULTILINE)
    done = launch(*arguments.split())
    assert (done.returncode, done.stderr) == (0, "") and "--dry_run" in arguments

    paper = imagenet_v1.get_config()
    slim = paper.copy_and_resolve_references()
    overrides = dict(re.findall(r"--config\.([\w.]+)=(\S+)", arguments))
    slim.update_from_flattened_dict({k: v if k == "optim.name" else float(v) for k, v in overrides.items()})
    for chosen, expected in ((paper, ("rmsprop", 0.9, 0.98, 0.9999)), (slim, ("sgd", 0.0, 0.94, 0.0))):
        spec = config.resolve(chosen)
        o, t = spec.config.optim, spec.config.train
        assert (o.name, o.momentum, o.lr_decay, t.ema_decay) == expected
        assert (spec.learning_rate, o.schedule, o.lr_decay_epochs) == (pytest.approx(0.045), "exponential", 2.5)
        assert (t.batch_size, t.label_smoothing, o.weight_decay, o.decay_depthwise) == (64, 0.0, 4e-5, False)


@pytest.mark.parametrize("recipe", [imagenet_v1, imagenet_v2, imagenet_sgd])
def test_the_expected_hours_are_those_of_the_roofline(recipe):
    hours, rate, bandwidth, batch = re.search(
        r"at least ([\d.]+) hours on one H100 .*?, ([\d]+) T mult-adds/s, ([\d.]+)\s+TB/s, batches of (\d+)",
        str(recipe.__doc__),
        re.DOTALL,
    ).groups()  # type: ignore[union-attr]
    spec = config.resolve(recipe.get_config())
    h100 = roofline.Device("H100", float(rate) * 1e12, float(bandwidth) * 1e12, 0, 1.0, "its data sheet")
    forward = sum(layer.seconds for layer in roofline.roofline(spec.arch, spec.resolution, h100, int(batch)))
    images = spec.train_size * spec.config.train.epochs
    assert 3 * forward / int(batch) * images / 3600 == pytest.approx(float(hours), abs=0.06)


def test_a_folder_of_pictures_trains_with_its_recipe(tmp_path, launch):
    root = write(tmp_path, {"train/cat": 70, "train/dog": 70, "val/cat": 3, "val/dog": 3})
    done = launch("--config=configs/finetune.py", f"--config.data.dir={root}", "--dry_run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "128x128 folder (2 classes)" in done.stdout
