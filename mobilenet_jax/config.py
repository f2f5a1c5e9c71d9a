"""Turn a config into a `RunSpec`: check every key and derive everything else once, after all overrides."""

import dataclasses
import functools
import json
import pathlib
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, FrozenConfigDict

from mobilenet_jax import config_keys, console
from mobilenet_jax.config_keys import RULES, WEIGHTS
from mobilenet_jax.data import datasets
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.records import identity as identities

if TYPE_CHECKING:
    from mobilenet_jax.records.summary import Summary


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

    @functools.cached_property
    def totals(self) -> cost.Totals:
        """Mult-adds of one image, and trainable parameters."""
        return cost.totals(self.arch, self.resolution)

    @property
    def program_key(self) -> tuple[tuple[str, Any], ...]:
        """A key that is equal for runs that one program can train at the same time."""
        ema = ("ema", self.identity["train.ema_decay"] > 0)  # the decay is traced, but not whether there is an average
        if self.dataset.streamed:  # each run has batches of its own
            return (("digest", self.digest),)
        return (ema, *((key, value) for key, value in self.identity.items() if key not in config_keys.TRACED))

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


def resolve(config: ConfigDict, name: str = "default") -> RunSpec:
    """Check every key of `config` (see `configs/default.py`) and derive the run, whose name starts with `name`.

    Raises:
      InputError: a key is unknown, or has a value that is not allowed; the message names all three.
    """
    flat = config_keys.typed(identities.renamed(identities.flatten(config.to_dict())))
    _apply_point(flat)
    for key, value in flat.items():
        if not RULES[key].test(value) or (isinstance(value, int | float) and not config_keys.finite(value)):
            raise InputError(f"config.{key}={value!r}: allowed is {RULES[key].allowed}")

    dataset = datasets.describe(flat["data.name"], flat["data.dir"])
    path = flat.pop(WEIGHTS)
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
    there = {WEIGHTS: "", **identities.renamed(identities.flatten(stored))}
    pairs = ((key, there.get(key, "absent"), value) for key, value in {WEIGHTS: "", **spec.identity}.items())
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

    flat[WEIGHTS], there = weights.identify(pathlib.Path(console.expand_home(path, f"config.{WEIGHTS}=")))
    if there.source == "TensorFlow Lite":
        raise InputError(f"config.{WEIGHTS}={path!r}: is of TensorFlow Lite, whose batch norm is folded")
    found = {**there.architecture, "num_classes": dataset.num_classes}
    try:
        theirs, usual = _build(**found), _build(**{**found, "activation": "auto"})
    except (InputError, TypeError) as e:  # the latter of unknown options
        raise InputError(f"config.{WEIGHTS}={path!r}: no network has its architecture ({e})") from None
    if theirs == usual:
        found["activation"] = "auto"
    if theirs != _architecture(flat, dataset.num_classes, padding=found.get("padding", "same")):
        others = {f"model.{key}": value for key, value in found.items() if flat.get(f"model.{key}", value) != value}
        flags = " ".join(f"--config.{key}={value}" for key, value in others.items())
        raise InputError(f"config.{WEIGHTS}={path!r}: is of another network; allowed is it with {flags}")
    names = datasets.class_names(dataset, flat["data.dir"])
    network = dataclasses.replace(theirs, input_range=there.input_range, mean=there.mean, std=there.std)
    return network, bool(names) and tuple(there.class_names) == names


def _architecture(flat: dict[str, Any], num_classes: int, padding: str = "same") -> arch.Architecture:
    version = flat["model.version"]
    for key, default in (config_keys.ONLY_V2 if version == "v1" else config_keys.ONLY_V1).items():
        if flat[key] != default:
            raise InputError(f"config.{key}={flat[key]!r}: has no meaning for {version}; allowed is {default!r}")
    own = config_keys.ONLY_V1 if version == "v1" else config_keys.ONLY_V2
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
        for key, default in config_keys.ONLY_STREAMED.items():
            if flat[key] != default:
                raise InputError(f"config.{key}={flat[key]!r}: has no meaning for {dataset.name}: allowed is {default}")
        if crop > side:
            raise InputError(f"config.augment.crop={crop}: {dataset.name} images have {side} pixels a side")
        return {key: value for key, value in flat.items() if key not in config_keys.ONLY_STREAMED}, crop or side
    if flat["augment.pad"]:
        raise InputError(f"config.augment.pad={flat['augment.pad']}: has no meaning for {dataset.name}: allowed is 0")
    resize, side = flat["augment.resize"], crop or side
    if resize and (flat["augment.scale"] or resize < side):
        allowed = f"0, or with config.augment.scale=0 a shorter side from {side} pixels"
        raise InputError(f"config.augment.resize={resize}: allowed is {allowed}")
    return flat, side


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
