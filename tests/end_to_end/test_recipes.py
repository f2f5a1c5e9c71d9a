"""The ImageNet recipes: that of the config, and the one that its docstring gives as a command."""

import re

import pytest

from configs import imagenet_v1
from mobilenet_jax import config


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
