"""Which configs are the same run: the keys that count, the digest, and the differences from a stored config."""

import json
import pathlib

import pytest
from config_helpers import STREAMED, V2, defaults, resolve
from ml_collections import ConfigDict
from picture_sets import write

from mobilenet_jax import config
from mobilenet_jax.config_keys import RULES

# Another allowed value of every key. Keys of v2 alone are tried on a v2 network.
OTHER = {
    "model.version": "v2",
    "model.alpha": 0.5,
    "model.rho": 0.5,
    "model.expansion": 4.0,
    "model.strides": "imagenet",
    "model.variant": "shallow",
    "model.activation": "relu6",
    "model.bottleneck": "relu6",
    "model.shortcut": "none",
    "model.dropout": 0.2,
    "model.bn_decay": 0.9,
    "model.bn_epsilon": 1e-5,
    "model.depthwise": "conv",
    "data.name": "cifar100",
    "data.dir": "elsewhere",
    "data.archive": "cifar.tar.gz",
    "data.holdout": 0.1,
    "augment.pad": 2,
    "augment.crop": 28,
    "augment.flip": False,
    "data.protocol": "torch",
    "augment.scale": 0.25,
    "augment.ratio": 1.5,
    "augment.resize": 256,
    "optim.name": "rmsprop",
    "optim.lr": 0.2,
    "optim.momentum": 0.8,
    "optim.decay": 0.8,
    "optim.epsilon": 0.1,
    "optim.weight_decay": 1e-3,
    "optim.decay_depthwise": True,
    "optim.schedule": "constant",
    "optim.lr_decay": 0.9,
    "optim.lr_decay_epochs": 2.5,
    "optim.warmup_epochs": 1.0,
    "optim.clip_norm": 1.0,
    "train.epochs": 11,
    "train.batch_size": 64,
    "train.dtype": "bfloat16",
    "train.label_smoothing": 0.1,
    "train.ema_decay": 0.999,
    "train.eval_epochs": 2,
    "train.checkpoint_epochs": 0.5,
    "train.devices": 2,
    "point": "alpha=1",
    "wandb.mode": "offline",
    "wandb.project": "other",
    "seed": 1,
}
NOT_IDENTITY = {"data.dir", "data.archive", "wandb.mode", "wandb.project", "point"}
NOT_IDENTITY |= {"train.eval_epochs", "train.checkpoint_epochs", "train.devices"}
ONLY_V2 = {"model.expansion", "model.bottleneck", "model.shortcut"}
ONLY_STREAMED = {"data.protocol", "augment.scale", "augment.ratio", "augment.resize"}


@pytest.mark.parametrize("key", [key for key in RULES if key != "model.weights"])
def test_identity(key):
    base = V2 if key in ONLY_V2 else {}
    if key in ONLY_STREAMED:
        base = STREAMED | ({"augment.scale": 0.0} if key == "augment.resize" else {})
    before, after = resolve(**base), resolve(**base | {key: OTHER[key]})
    assert (before.digest != after.digest) == (key not in NOT_IDENTITY)
    assert (key in before.identity) == (key not in NOT_IDENTITY)


def test_the_identity_of_pictures_includes_them(tmp_path: pathlib.Path):
    def spec(seed):
        root = write(tmp_path / str(seed), {"train/a": 4, "train/b": 4, "val/a": 1}, seed)
        return resolve(**{"data.name": "folder", "data.dir": str(root), "augment.pad": 0, "train.batch_size": 2})

    first, second = spec(1), spec(2)
    assert (first.identity, first.dataset.train_size) == (second.identity, second.dataset.train_size)
    assert first.digest != second.digest
    assert first.program_key != second.program_key
    stored = json.loads(json.dumps(first.config.to_dict() | {"dataset": vars(first.dataset)}))
    assert config.differences(first, stored) == []
    assert "fingerprint" in config.differences(second, stored)[0]


def test_a_digest_never_changes_by_accident():
    """It names run directories: a change, even a new key, orphans every existing run."""
    assert resolve().digest == "3157a2c5"


def test_identity_does_not_depend_on_how_a_number_is_written_or_the_order_of_keys():
    digest = resolve().digest
    assert resolve(**{"model.alpha": 1, "optim.clip_norm": 0}).digest == digest
    reordered = ConfigDict(dict(reversed(defaults().items())))
    assert config.resolve(reordered, "other").digest == digest


def test_the_same_run_is_recognised_from_its_config_json():
    spec = resolve(**{"model.alpha": 0.5})
    stored = json.loads(json.dumps(resolve(**{"model.alpha": 0.5, "data.dir": "there"}).config.to_dict()))
    assert config.differences(spec, stored) == []


def test_another_run_is_known_by_every_difference():
    stored = json.loads(json.dumps(resolve(**{"model.alpha": 0.5, "seed": 3}).config.to_dict()))
    del stored["augment"]["pad"]
    assert config.differences(resolve(), stored) == [
        "config.model.alpha is 0.5 there and 1.0 here",
        "config.augment.pad is 'absent' there and 4 here",
        "config.seed is 3 there and 0 here",
    ]
