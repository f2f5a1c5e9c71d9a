"""The allowed values of a config, and what is derived from it."""

import dataclasses
import pathlib
import runpy

import pytest
from config_helpers import STREAMED, V2, changed, defaults, resolve
from ml_collections import ConfigDict
from picture_sets import write

from mobilenet_jax import config
from mobilenet_jax.config_keys import RULES, check_keys
from mobilenet_jax.data import datasets
from mobilenet_jax.errors import InputError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("[a-z]*.py"))


def test_every_key_has_a_rule_and_a_default_that_passes_it():
    found = {}
    for group, keys in defaults().items():
        found |= {f"{group}.{key}": value for key, value in keys.items()} if isinstance(keys, dict) else {group: keys}
    assert found.keys() == RULES.keys()
    for key, value in found.items():
        assert type(value) is RULES[key].kind, key
        assert RULES[key].test(value), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_resolves(path, tmp_path: pathlib.Path, monkeypatch):
    if path.stem == "finetune":  # it has no data set of its own
        monkeypatch.setenv("TFDS_DATA_DIR", str(write(tmp_path, {"train/a": 32, "train/b": 32, "val/a": 1})))
    spec = config.resolve(runpy.run_path(str(path))["get_config"](), path.stem)
    assert spec.run_name.startswith(f"{path.stem}-a") and spec.run_name.endswith(f"-s0-{spec.digest}")
    assert spec.steps_per_epoch == spec.dataset.train_size // spec.config.train.batch_size
    assert spec.total_steps == spec.steps_per_epoch * spec.config.train.epochs


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model.version", "v3", "one of 'v1', 'v2'"),
        *(("model.alpha", alpha, "above 0") for alpha in (0.0, -1.0, float("nan"), float("inf"))),
        ("model.alpha", 9.0, "at most 8"),
        *(("model.rho", rho, "above 0 and at most 1") for rho in (0.0, 2.0, -0.5, float("nan"))),
        ("model.strides", "mnist", "one of 'imagenet', 'cifar'"),
        ("model.variant", "deep", "one of 'paper', 'standard_conv', 'shallow', 'cifar28'"),
        ("model.activation", "gelu", "one of 'auto', 'relu', 'relu6'"),
        ("model.depthwise", "fft", "one of 'auto', 'shift', 'taps', 'conv'"),
        *(("model.dropout", rate, "at least 0 and below 1") for rate in (1.0, -0.1, float("nan"))),
        ("model.bn_decay", 1.0, "at least 0 and below 1"),
        ("model.bn_epsilon", 0.0, "above 0"),
        *(("data.holdout", share, "at least 0 and below 1") for share in (1.0, -0.1, float("nan"))),
        ("augment.pad", -1, "a whole number from 0"),
        ("augment.crop", -1, "a whole number from 0"),
        ("optim.name", "adam", "one of 'rmsprop', 'sgd'"),
        *(("optim.lr", rate, "above 0") for rate in (0.0, -1.0, float("inf"))),
        ("optim.momentum", 1.0, "at least 0 and below 1"),
        ("optim.decay", 1.0, "at least 0 and below 1"),
        ("optim.epsilon", 0.0, "above 0"),
        ("optim.weight_decay", -1e-4, "0 or more"),
        ("optim.schedule", "linear", "one of 'constant', 'cosine', 'exponential', 'one_cycle'"),
        *(("optim.lr_decay", factor, "above 0 and at most 1") for factor in (0.0, 1.5)),
        ("optim.lr_decay_epochs", 0.0, "above 0"),
        ("optim.warmup_epochs", -1.0, "0 or more"),
        ("optim.clip_norm", -1.0, "0 or more"),
        *(("train.epochs", epochs, "a whole number from 1") for epochs in (0, 10**400)),
        ("train.batch_size", 0, "a whole number from 1"),
        ("train.dtype", "float16", "one of 'float32', 'bfloat16'"),
        ("train.label_smoothing", 1.0, "at least 0 and below 1"),
        ("train.ema_decay", 1.0, "at least 0 and below 1"),
        ("train.eval_epochs", 0, "a whole number from 1"),
        ("train.checkpoint_epochs", -1.0, "0 or more"),
        ("train.devices", -1, "a whole number from 0"),
        ("train.devices", 3, "must divide config.train.batch_size=128"),
        ("wandb.mode", "on", "one of 'auto', 'online', 'offline', 'disabled'"),
        *(("seed", seed, "a whole number from 0 to 4294967295") for seed in (-1, 2**32)),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(key, value, allowed):
    with pytest.raises(InputError) as e:
        resolve(**{key: value})
    message = str(e.value)
    assert f"config.{key}={value!r}" in message or f"config.{key}={value:g}" in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.name": "nothing"}, "data set 'nothing' is not known, .* allowed are digits, cifar10, "),
        ({"data.holdout": 1e-5}, r"config\.data\.holdout=1e-05: .* 50,000"),  # half an image, rounded to none
        ({"data.holdout": 0.999999}, r"config\.data\.holdout=0\.999999: .* 50,000"),
        ({"augment.crop": 33}, r"config\.augment\.crop=33: cifar10 images have 32 pixels a side"),
        ({"model.rho": 0.01}, r"config\.model\.rho=0\.01: leaves no pixel of 32"),
        ({"train.batch_size": 50_001}, r"config\.train\.batch_size=50001: cifar10 has 50000 training images"),
        (
            {"train.batch_size": 256, "data.holdout": 0.995},
            r"config\.train\.batch_size=256: cifar10 has 250 training images",
        ),
        ({"optim.warmup_epochs": 10.0}, r"config\.optim\.warmup_epochs=10: must be below config\.train\.epochs=10"),
        ({"model.expansion": 3.0}, r"config\.model\.expansion=3\.0: has no meaning for v1; allowed is 6\.0"),
        ({"model.bottleneck": "relu6"}, r"config\.model\.bottleneck='relu6': has no meaning for v1"),
        ({"model.shortcut": "none"}, r"config\.model\.shortcut='none': has no meaning for v1"),
        (V2 | {"model.variant": "shallow"}, r"config\.model\.variant='shallow': has no meaning for v2; .* 'paper'"),
        (V2 | {"model.expansion": 65.0}, r"config\.model\.expansion=65\.0: .* from 1 to 64"),
        (V2 | {"model.expansion": 0.5}, r"config\.model\.expansion=0\.5: .* from 1 to 64"),
        (V2 | {"model.expansion": -1.0}, r"config\.model\.expansion=-1\.0: allowed is above 0"),
        (
            {"model.variant": "cifar28", "model.strides": "imagenet"},
            r"config\.model\.strides='imagenet': variant 'cifar28' has 'cifar' strides only",
        ),
    ],
)
def test_values_that_exclude_one_another(overrides, message):
    with pytest.raises(InputError, match=message):
        resolve(**overrides)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("model.alpha", "1", "str"),
        ("model.alpha", None, "NoneType"),
        ("model.alpha", True, "bool"),
        ("model.version", 1, "int"),
        ("model.variant", ["paper"], "list"),
        ("augment.flip", 1, "int"),
        ("augment.pad", True, "bool"),
        ("train.epochs", 3.0, "float"),
        ("train.epochs", (3,), "tuple"),
        ("seed", "0", "str"),
    ],
)
def test_a_wrong_type_is_named(key, value, kind):
    with pytest.raises(InputError) as e:
        resolve(**{key: value})
    assert str(e.value).startswith(f"config.{key}={value!r}: is of type {kind}; allowed is {RULES[key].allowed}")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model.alhpa", "did you mean config.model.alpha?"),
        ("train.epoch", "did you mean config.train.epochs?"),
        ("sede", "did you mean config.seed?"),
        ("zzz", "unknown key config.zzz (configs/default.py lists every key)"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(key, hint):
    for refuse in (lambda: resolve(**{key: 1}), lambda: check_keys(["model.alpha", key])):
        with pytest.raises(InputError) as e:
            refuse()
        assert f"unknown key config.{key}" in str(e.value) and hint in str(e.value)


@pytest.mark.parametrize("key", ["model.alpha", "seed"])
def test_a_missing_key_is_named(key):
    tree = defaults()
    group, _, leaf = key.rpartition(".")
    del (tree[group] if group else tree)[leaf]
    with pytest.raises(InputError, match=f"the config has no key config.{key}"):
        config.resolve(ConfigDict(tree))


# What is derived.


@pytest.mark.parametrize(
    ("overrides", "train_size", "steps_per_epoch", "total_steps", "warmup_steps"),
    [
        ({}, 50_000, 390, 3900, 0),
        ({"train.batch_size": 50_000}, 50_000, 1, 10, 0),
        ({"train.batch_size": 500, "train.epochs": 3}, 50_000, 100, 300, 0),
        ({"data.holdout": 0.1, "optim.warmup_epochs": 2.5}, 45_000, 351, 3510, 878),
        ({"data.name": "digits", "data.holdout": 0.2, "optim.warmup_epochs": 9.5}, 1150, 8, 80, 76),
    ],
)
def test_steps(overrides, train_size, steps_per_epoch, total_steps, warmup_steps):
    spec = resolve(**overrides)
    assert (spec.train_size, spec.steps_per_epoch) == (train_size, steps_per_epoch)
    assert (spec.total_steps, spec.warmup_steps) == (total_steps, warmup_steps)
    assert spec.train_size == spec.dataset.train_size - round(spec.dataset.train_size * spec.config.data.holdout)


@pytest.mark.parametrize(("batch", "rate"), [(256, 0.1), (128, 0.05), (1024, 0.4), (1, 0.1 / 256)])
def test_learning_rate_is_for_256_images(batch, rate):
    assert resolve(**{"train.batch_size": batch, "optim.lr": 0.1}).learning_rate == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "rho", "crop", "image_size", "resolution"),
    [
        ("cifar10", 1.0, 0, 32, 32),
        ("cifar10", 0.75, 0, 32, 24),
        ("cifar10", 0.714, 0, 32, 23),
        ("cifar10", 0.5, 28, 28, 14),
        ("cifar10", 1.0, 32, 32, 32),
        ("cifar10", 1.0, 1, 1, 1),
        ("imagenet2012", 0.714, 0, 224, 160),
        ("imagenet2012", 0.857, 0, 224, 192),
        ("imagenet2012", 0.5, 320, 320, 160),
        ("mnist", 0.6, 0, 28, 17),
    ],
)
def test_resolution_is_rho_of_the_images_side(name, rho, crop, image_size, resolution):
    spec = resolve(**{"data.name": name, "model.rho": rho, "augment.crop": crop, "augment.pad": 0})
    assert (spec.image_size, spec.resolution) == (image_size, resolution)


@pytest.mark.parametrize(
    ("overrides", "name", "title"),
    [
        ({}, "x-a1-r1-s0", "MobileNet v1, alpha 1, rho 1, cifar strides, 32x32 cifar10 (10 classes)"),
        (
            {"model.alpha": 0.25, "model.rho": 0.714, "seed": 12, "model.variant": "shallow"},
            "x-a0.25-r0.714-s12",
            "MobileNet v1, alpha 0.25, rho 0.714, shallow, cifar strides, 23x23 cifar10 (10 classes)",
        ),
        (
            V2 | STREAMED | {"model.expansion": 4.5, "model.strides": "imagenet"},
            "x-a1-r1-t4.5-s0",
            "MobileNet v2, alpha 1, rho 1, t 4.5, imagenet strides, 224x224 imagenet2012 (1000 classes)",
        ),
    ],
)
def test_names(overrides, name, title):
    spec = config.resolve(changed(**overrides), "x")
    assert spec.run_name == f"{name}-{spec.digest}"
    assert spec.title == title


def test_the_network_gets_its_keys():
    spec = resolve(**V2, **{"model.alpha": 0.5, "model.expansion": 3.0, "data.name": "cifar100"})
    assert (spec.arch.version, spec.arch.num_classes, spec.arch.bn_epsilon) == ("v2", 100, 1e-3)
    assert spec.arch.layers[0].out_channels == 16
    depthwise = next(layer for layer in spec.arch.layers if layer.name == "block03_depthwise")
    assert depthwise.out_channels == 3 * 16  # of the 24 * 0.5, rounded to 16
    assert spec.dataset == datasets.DATASETS["cifar100"]


def test_a_spec_and_its_config_are_frozen_and_the_input_is_left_alone():
    c = changed(point="alpha=0.5")
    spec = config.resolve(c)
    assert c.to_dict() == changed(point="alpha=0.5").to_dict()
    assert (spec.config.point, spec.config.model.alpha) == ("", 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.digest = ""  # type: ignore[misc]
    with pytest.raises(AttributeError):
        spec.config.model.alpha = 1.0


# Several keys at once.


@pytest.mark.parametrize(
    ("point", "by_hand"),
    [
        ("alpha=0.75,rho=0.714", {"model.alpha": 0.75, "model.rho": 0.714}),
        (" alpha = 0.75 , rho=0.714,", {"model.alpha": 0.75, "model.rho": 0.714}),
        ("version=v2,alpha=1,expansion=4", V2 | {"model.expansion": 4.0}),
        ("variant=shallow", {"model.variant": "shallow"}),
        ("", {}),
    ],
)
def test_a_point_equals_the_same_run_by_hand(point, by_hand):
    assert resolve(point=point) == resolve(**by_hand)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        *(
            (p, "allowed is 'key=value,...' with keys among version, alpha, rho")
            for p in ("alpha", "width=1", "lr=0.1")
        ),
        ("optim.lr=1", "allowed is 'key=value,...'"),
        ("alpha=", "must be above 0"),
        ("alpha=0.5,rho=high", "must be above 0 and at most 1"),
        ("alpha=nan", "config.model.alpha=nan: allowed is above 0"),
        ("rho=2", "config.model.rho=2.0: allowed is above 0 and at most 1"),
        ("expansion=4", "config.model.expansion=4.0: has no meaning for v1"),
    ],
)
def test_a_bad_point_is_refused(point, message):
    with pytest.raises(InputError) as e:
        resolve(point=point)
    assert message in str(e.value)
    assert message.startswith("config.model") or f"config.point={point!r}" in str(e.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.protocol": "torch"}, ["config.data.protocol='torch'", "cifar10", "slim"]),
        ({"augment.scale": 0.5}, ["config.augment.scale=0.5", "cifar10", "0.08"]),
        (STREAMED | {"augment.pad": 2}, ["config.augment.pad=2", "imagenet2012", "allowed is 0"]),
        (STREAMED | {"augment.resize": 256}, ["config.augment.resize=256", "config.augment.scale=0"]),
        (STREAMED | {"augment.resize": 200, "augment.scale": 0.0}, ["config.augment.resize=200", "from 224 pixels"]),
    ],
)
def test_keys_without_meaning_for_the_set_are_refused(overrides, words):
    with pytest.raises(InputError) as e:
        resolve(**overrides)
    assert all(word in str(e.value) for word in words)
