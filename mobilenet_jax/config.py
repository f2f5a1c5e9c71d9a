"""Turn a config into a `RunSpec`: check every key and derive everything else once, after all overrides.

A new key gets a rule in `RULES` and a line in `configs/default.py`.
"""

import dataclasses
import difflib
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, FrozenConfigDict

from mobilenet_jax import console
from mobilenet_jax.data import datasets
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.records import identity as identities

if TYPE_CHECKING:
    from mobilenet_jax.records.summary import Summary


@dataclasses.dataclass(frozen=True)
class Rule:
    """A constraint on the value of a key. Numbers must be finite, too."""

    kind: type
    allowed: str  # in words, for messages
    test: Callable[[Any], bool]


def _one_of(*values: str) -> Rule:
    return Rule(str, "one of " + ", ".join(map(repr, values)), lambda v: v in values)


def finite(value: float) -> bool:
    """Return whether a number is finite, and fits into 64 bits if it is whole."""
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


_FLAG = Rule(bool, "True or False", lambda v: True)
_TEXT = Rule(str, "text", lambda v: True)
_BELOW_ONE = Rule(float, "at least 0 and below 1", lambda v: 0 <= v < 1)
_UP_TO_ONE = Rule(float, "above 0 and at most 1", lambda v: 0 < v <= 1)
_POSITIVE = Rule(float, "above 0", lambda v: v > 0)
_NOT_NEGATIVE = Rule(float, "0 or more", lambda v: v >= 0)
_COUNT = Rule(int, "a whole number from 1", lambda v: v >= 1)
_COUNT_OR_ZERO = Rule(int, "a whole number from 0", lambda v: v >= 0)

# Every key of a config. Limits of the keys that describe layers are those of `networks/arch.py`.
RULES: dict[str, Rule] = {
    "model.version": _one_of(*arch.VERSIONS),
    "model.alpha": _POSITIVE,
    "model.rho": _UP_TO_ONE,
    "model.expansion": _POSITIVE,
    "model.strides": _one_of(*arch.STRIDES),
    "model.variant": _one_of(*arch.VARIANTS),
    "model.activation": _one_of(*arch.ACTIVATIONS),
    "model.bottleneck": _one_of(*arch.BOTTLENECKS),
    "model.shortcut": _one_of(*arch.SHORTCUTS),
    "model.dropout": _BELOW_ONE,
    "model.bn_decay": _BELOW_ONE,
    "model.bn_epsilon": _POSITIVE,
    "model.depthwise": _one_of("auto", "shift", "taps", "conv"),
    "model.weights": _TEXT,
    "data.name": _TEXT,
    "data.dir": _TEXT,
    "data.archive": _TEXT,
    "data.holdout": _BELOW_ONE,
    "data.protocol": _one_of("slim", "torch"),
    "augment.pad": _COUNT_OR_ZERO,
    "augment.crop": _COUNT_OR_ZERO,
    "augment.scale": Rule(float, "from 0 to 1", lambda v: 0 <= v <= 1),
    "augment.ratio": Rule(float, "at least 1", lambda v: v >= 1),
    "augment.resize": _COUNT_OR_ZERO,
    "augment.flip": _FLAG,
    "optim.name": _one_of("rmsprop", "sgd"),
    "optim.lr": _POSITIVE,
    "optim.momentum": _BELOW_ONE,
    "optim.decay": _BELOW_ONE,
    "optim.epsilon": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.decay_depthwise": _FLAG,
    "optim.schedule": _one_of("constant", "cosine", "exponential", "one_cycle"),
    "optim.lr_decay": _UP_TO_ONE,
    "optim.lr_decay_epochs": _POSITIVE,
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "train.epochs": _COUNT,
    "train.batch_size": _COUNT,
    "train.dtype": _one_of("float32", "bfloat16"),
    "train.label_smoothing": _BELOW_ONE,
    "train.ema_decay": _BELOW_ONE,
    "train.eval_epochs": _COUNT,
    "train.checkpoint_epochs": _NOT_NEGATIVE,
    "train.devices": _COUNT_OR_ZERO,
    "point": _TEXT,
    "wandb.mode": _one_of("auto", "online", "offline", "disabled"),
    "wandb.project": _TEXT,
    "seed": Rule(int, "a whole number from 0 to 4294967295", lambda v: 0 <= v < 2**32),
}

# The training step takes these as traced scalars (`Hyper` in `training/step.py`): runs that differ only in them share
# a compiled program.
TRACED = (
    *("optim.lr", "optim.momentum", "optim.decay", "optim.epsilon", "optim.weight_decay", "optim.decay_depthwise"),
    *("optim.clip_norm", "optim.warmup_epochs", "optim.lr_decay", "optim.lr_decay_epochs"),
    *("train.epochs", "train.label_smoothing", "train.ema_decay", "seed"),
)
# These keys have no meaning for the other version: only their default is allowed there.
_ONLY_V1 = {"model.variant": "paper"}
_ONLY_V2 = {"model.expansion": 6.0, "model.bottleneck": "linear", "model.shortcut": "bottleneck"}
# These keys have no meaning for sets in memory: only their default is allowed there, and a record does not hold it.
ONLY_STREAMED = {"data.protocol": "slim", "augment.scale": 0.08, "augment.ratio": 4 / 3, "augment.resize": 0}
_WEIGHTS = "model.weights"  # a path in a config, a digest in an identity and in a record, which lack it if it is ''


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One resolved run: the checked config, with its `point` applied, and everything derived from it."""

    name: str  # of the config file
    config: Any  # a FrozenConfigDict; type checkers do not know its attributes
    arch: arch.Architecture
    dataset: datasets.Dataset
    image_size: int  # pixels before the resize to `resolution`: the crop, or the stored side
    resolution: int  # round(rho * image_size)
    train_size: int  # training images left after the holdout
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    learning_rate: float  # peak, for this batch size
    identity: dict[str, Any]  # dotted keys: all that change the result
    digest: str  # eight hex digits of `identity`, the end of `run_name`
    weights: str = ""  # path of the network to start from; `identity` has its digest
    same_classes: bool = False  # whether that network has the classes of the set, so that its classifier is taken over

    @property
    def program_key(self) -> tuple[tuple[str, Any], ...]:
        """A key that is equal for runs that share a compiled program."""
        ema = ("ema", self.identity["train.ema_decay"] > 0)  # the decay is traced, but not whether there is an average
        if self.dataset.streamed:  # each run has batches of its own
            return (("digest", self.digest),)
        return (ema, *((key, value) for key, value in self.identity.items() if key not in TRACED))

    @property
    def group_key(self) -> tuple[Any, ...]:
        """A key that is equal for runs that a sweep trains at the same time: they share a program and end together."""
        return self.program_key, self.total_steps

    @property
    def run_name(self) -> str:
        """`<config>-a<alpha>-r<rho>[-t<t>]-s<seed>-<digest>`."""
        m = self.config.model
        knobs = [f"a{m.alpha:g}", f"r{m.rho:g}", *([f"t{m.expansion:g}"] if m.version == "v2" else [])]
        return "-".join([self.name, *knobs, f"s{self.config.seed}", self.digest])

    @property
    def title(self) -> str:
        """The network and its input in one line."""
        m = self.config.model
        parts = [f"MobileNet {m.version}", f"alpha {m.alpha:g}", f"rho {m.rho:g}"]
        parts += [f"t {m.expansion:g}"] if m.version == "v2" else []
        parts += [m.variant] if m.variant != "paper" else []
        size, data = self.resolution, self.dataset
        return ", ".join([*parts, f"{m.strides} strides, {size}x{size} {data.name} ({data.num_classes} classes)"])


def check_keys(keys: Iterable[str]) -> None:
    """Raise InputError for the first unknown key, naming the nearest known one."""
    for key in keys:
        if key not in RULES:
            near = difflib.get_close_matches(key, RULES, n=1)
            hint = f"; did you mean config.{near[0]}?" if near else ""
            raise InputError(f"unknown key config.{key}{hint} (configs/default.py lists every key)")


def resolve(config: ConfigDict, name: str = "default") -> RunSpec:
    """Check every key of `config` (see `configs/default.py`) and derive the run, whose name starts with `name`.

    Raises:
      InputError: a key is unknown, or has a value that is not allowed; the message names all three.
    """
    flat = _typed(identities.renamed(identities.flatten(config.to_dict())))
    _apply_point(flat)
    for key, value in flat.items():
        if not RULES[key].test(value) or (isinstance(value, int | float) and not finite(value)):
            raise InputError(f"config.{key}={value!r}: allowed is {RULES[key].allowed}")

    dataset = datasets.describe(flat["data.name"], flat["data.dir"])
    path = flat.pop(_WEIGHTS)
    network, same = _trained(path, flat, dataset) if path else (_architecture(flat, dataset.num_classes), False)
    flat, image_size = _views(flat, dataset)
    resolution = round(flat["model.rho"] * image_size)
    if resolution < 1:
        raise InputError(f"config.model.rho={flat['model.rho']:g}: leaves no pixel of {image_size}")

    batch, train_size = flat["train.batch_size"], dataset.train_size
    if batch % (flat["train.devices"] or 1):
        raise InputError(f"config.train.devices={flat['train.devices']}: must divide config.train.batch_size={batch}")
    if flat["data.holdout"]:
        train_size -= datasets.holdout_size(train_size, flat["data.holdout"])
    steps_per_epoch = train_size // batch
    if not steps_per_epoch:
        have = f"{dataset.name} has {train_size} training images"
        raise InputError(f"config.train.batch_size={batch}: {have}; allowed is at most {train_size}")
    epochs, warmup = flat["train.epochs"], flat["optim.warmup_epochs"]
    if warmup >= epochs:
        raise InputError(f"config.optim.warmup_epochs={warmup:g}: must be below config.train.epochs={epochs}")

    identity = {key: value for key, value in flat.items() if key not in identities.NOT_IDENTITY}
    pictures = {"dataset.fingerprint": dataset.fingerprint} if dataset.streamed and dataset.fingerprint else {}
    return RunSpec(
        name=name,
        config=FrozenConfigDict(identities.nest(flat)),
        arch=network,
        dataset=dataset,
        image_size=image_size,
        resolution=resolution,
        train_size=train_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * epochs,
        warmup_steps=round(warmup * steps_per_epoch),
        learning_rate=flat["optim.lr"] * batch / 256,
        identity=identity,
        digest=identities.digest(identity | pictures),
        weights=path,
        same_classes=same,
    )


def differences(spec: RunSpec, stored: dict[str, Any]) -> list[str]:
    """Return how `stored`, a `config.json`, differs from this run's config and data set; [] if it is this run's."""
    there = {_WEIGHTS: "", **identities.renamed(identities.flatten(stored))}
    pairs = ((key, there.get(key, "absent"), value) for key, value in {_WEIGHTS: "", **spec.identity}.items())
    found = [f"config.{key} is {other!r} there and {value!r} here" for key, other, value in pairs if other != value]
    return found + other_data(spec, stored)


def other_data(spec: RunSpec, stored: dict[str, Any]) -> list[str]:
    """Return how the data set in `stored` differs from the one that has its name now; [] where that is unknown."""
    here, there = json.loads(json.dumps(vars(spec.dataset))), stored.get("dataset")  # as it is stored
    pairs = there.items() if isinstance(there, dict) and spec.dataset.fingerprint else ()
    found = [f"{key} {other!r} there and {here[key]!r} here" for key, other in pairs if here.get(key, other) != other]
    return [f"data set {spec.dataset.name!r} is another one ({', '.join(found)})"] if found else []


def finished(spec: RunSpec, directory: pathlib.Path) -> "Summary | None":
    """Return the summary of the run, None if it is not finished; raises InputError over another run and over damage."""
    from mobilenet_jax.records import directory as directories  # late: a dry run starts without pydantic

    named = directory.name.endswith(f"-{spec.digest}")  # then it is this run's, even without a config.json
    directories.check(directory, named)
    stored = directories.read_config(directory, named)
    if stored is not None and (found := (other_data if named else differences)(spec, stored)):
        raise InputError(f"{directory} holds another run: {'; '.join(found)}; move it away, or name another directory")
    return directories.read_summary(directory)


_build = functools.lru_cache(maxsize=1024)(arch.mobilenet)  # the points of a sweep share their networks


def _trained(path: str, flat: dict[str, Any], dataset: datasets.Dataset) -> tuple[arch.Architecture, bool]:
    """Return the network with the padding and the input of weights to start from, and whether the classes are the same.

    Their digest is noted in `flat`.
    """
    from mobilenet_jax.records import weights  # late: most runs start from random weights

    flat[_WEIGHTS], there = weights.identify(pathlib.Path(console.expand_home(path, f"config.{_WEIGHTS}=")))
    if there.source == "TensorFlow Lite":
        raise InputError(f"config.{_WEIGHTS}={path!r}: is of TensorFlow Lite, whose batch norm is folded")
    found = {**there.architecture, "num_classes": dataset.num_classes}
    try:
        theirs, usual = _build(**found), _build(**{**found, "activation": "auto"})
    except (InputError, TypeError) as e:  # the latter of unknown options
        raise InputError(f"config.{_WEIGHTS}={path!r}: no network has its architecture ({e})") from None
    if theirs == usual:
        found["activation"] = "auto"
    if theirs != _architecture(flat, dataset.num_classes, padding=found.get("padding", "same")):
        others = {f"model.{key}": value for key, value in found.items() if flat.get(f"model.{key}", value) != value}
        flags = " ".join(f"--config.{key}={value}" for key, value in others.items())
        raise InputError(f"config.{_WEIGHTS}={path!r}: is of another network; allowed is it with {flags}")
    names = datasets.class_names(dataset, flat["data.dir"])
    network = dataclasses.replace(theirs, input_range=there.input_range, mean=there.mean, std=there.std)
    return network, bool(names) and tuple(there.class_names) == names


def _architecture(flat: dict[str, Any], num_classes: int, padding: str = "same") -> arch.Architecture:
    version = flat["model.version"]
    for key, default in (_ONLY_V2 if version == "v1" else _ONLY_V1).items():
        if flat[key] != default:
            raise InputError(f"config.{key}={flat[key]!r}: has no meaning for {version}; allowed is {default!r}")
    own = _ONLY_V1 if version == "v1" else _ONLY_V2
    keys = ("model.alpha", "model.strides", "model.activation", "model.bn_epsilon", *own)
    try:
        options = {key.removeprefix("model."): flat[key] for key in keys}
        return _build(version, num_classes=num_classes, padding=padding, **options)
    except InputError as e:
        raise InputError(f"config.model.{e}") from None


def _views(flat: dict[str, Any], dataset: datasets.Dataset) -> tuple[dict[str, Any], int]:
    """Return the keys that have a meaning for the set, and the side of what is cut out of its images in pixels."""
    crop, side = flat["augment.crop"], dataset.resolution
    if not dataset.streamed:
        for key, default in ONLY_STREAMED.items():
            if flat[key] != default:
                raise InputError(f"config.{key}={flat[key]!r}: has no meaning for {dataset.name}: allowed is {default}")
        if crop > side:
            raise InputError(f"config.augment.crop={crop}: {dataset.name} images have {side} pixels a side")
        return {key: value for key, value in flat.items() if key not in ONLY_STREAMED}, crop or side
    if flat["augment.pad"]:
        raise InputError(f"config.augment.pad={flat['augment.pad']}: has no meaning for {dataset.name}: allowed is 0")
    resize, side = flat["augment.resize"], crop or side
    if resize and (flat["augment.scale"] or resize < side):
        allowed = f"0, or with config.augment.scale=0 a shorter side from {side} pixels"
        raise InputError(f"config.augment.resize={resize}: allowed is {allowed}")
    return flat, side


def _typed(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the keys in the order of `RULES`, each of its type. A whole number becomes a float where needed."""
    check_keys(flat)
    flat = {_WEIGHTS: ""} | ONLY_STREAMED | flat  # configs of earlier versions lack these
    typed = {}
    for key, rule in RULES.items():
        if key not in flat:
            raise InputError(f"the config has no key config.{key} (configs/default.py lists every key)")
        value = flat[key]
        if rule.kind is float and type(value) is int and finite(value):
            value = float(value)
        if type(value) is not rule.kind:
            raise InputError(f"config.{key}={value!r}: is of type {type(value).__name__}; allowed is {rule.allowed}")
        typed[key] = value
    return typed


def _apply_point(flat: dict[str, Any]) -> None:
    """Apply `point`, 'alpha=0.75,rho=0.714', to the model keys and empty it: the run equals one with the keys set."""
    where = f"config.point={flat['point']!r}"
    rules = {key.removeprefix("model."): rule for key, rule in RULES.items() if key.startswith("model.")}
    for part in filter(None, flat["point"].split(",")):
        name, equals, text = map(str.strip, part.partition("="))
        if not equals or name not in rules:
            raise InputError(f"{where}: allowed is 'key=value,...' with keys among {', '.join(rules)}")
        try:
            flat[f"model.{name}"] = rules[name].kind(text)
        except ValueError:
            raise InputError(f"{where}: {name}={text!r} must be {rules[name].allowed}") from None
    flat.update(identities.renamed(flat), point="")
