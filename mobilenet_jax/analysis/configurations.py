"""Group runs into configurations, with mean and spread over seeds, and find series that vary one key."""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.records.collect import Run, hashable
from mobilenet_jax.records.identity import KNOBS, ONLY_RMSPROP, flatten
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.render.tables import Table, cell, line

PAPER_CHOICES = {"model.bottleneck": "linear", "model.shortcut": "bottleneck", "model.variant": "paper"}

_OPTIMIZER = "optim.name"
_OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSprop"}
_RATES = ("optim.lr", "optim.momentum", "optim.weight_decay", *ONLY_RMSPROP)  # each optimiser has its own
_HOLDOUT = "data.holdout"
_WEIGHTS = "model.weights"  # a digest; the record of a run from random weights lacks it, a configuration has ''
_IN_LABEL = ("model.version", "model.variant", *KNOBS, _OPTIMIZER, _HOLDOUT, _WEIGHTS)
_Family = tuple[Any, Any, Any, Any, Any]  # data set, version, variant, optimiser, 'held out' for trials


@dataclasses.dataclass(frozen=True, eq=False)
class Configuration:
    """Runs that differ only in the seed."""

    label: str  # 'v1 α 0.25', followed by the settings that are unusual on its data set
    identity: dict[str, Any]  # see `Run.identity`; `model.weights` is '' if they were random
    runs: tuple[Run, ...]  # by seed
    accuracies: dict[int, float]  # seed -> test top-1, a fraction
    mean: float  # of the accuracies
    sd: float | None  # sample standard deviation of the accuracies; None for one run

    @property
    def summary(self) -> Summary:
        """The summary of the first run, for what the runs share: data set, resolution, costs, epochs."""
        return self.runs[0].summary

    @property
    def mult_adds(self) -> int:
        return self.summary.mult_adds

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.runs)

    @property
    def val_mean(self) -> float:
        """The mean accuracy on held-out images, a fraction; 0 for runs without them."""
        return statistics.mean(run.summary.val_accuracy or 0.0 for run in self.runs)

    @property
    def optimizer(self) -> str:
        """The optimiser as reports spell it; '' if the recipe is unknown."""
        return setting_text(_OPTIMIZER, self.identity[_OPTIMIZER]) if _OPTIMIZER in self.identity else ""

    @property
    def percent(self) -> str:
        """Mean and standard deviation as text: '79.02 ± 0.37'."""
        return f"{100 * self.mean:.2f}" + ("" if self.sd is None else f" ± {100 * self.sd:.2f}")


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Configurations that differ in one key, ordered by its values."""

    key: str  # dotted: 'model.alpha'
    label: str  # the shared network and its unusual settings: 'v1 ρ 0.714'
    configurations: tuple[Configuration, ...]

    @property
    def title(self) -> str:
        """The label with data set and epochs: 'v1 ρ 0.714, cifar10, 10 epochs'."""
        return f"{self.label}, {self.configurations[0].summary.dataset}" + self.epochs

    @property
    def epochs(self) -> str:
        """', 10 epochs', or '' where they differ or are in the label."""
        said = self.key == "train.epochs" or ", epochs " in self.label
        return "" if said else f", {self.configurations[0].summary.epochs} epochs"

    @property
    def on_line(self) -> tuple[Configuration, ...]:
        """The configurations of a slope, of equally many layers: without t = 1, which has no expanding convolutions."""
        return tuple(c for c in self.configurations if (self.key, c.identity[self.key]) != ("model.expansion", 1))

    @property
    def by_value(self) -> dict[str, Configuration]:
        """The configurations by the value of the key, as text."""
        return {str(_named(self.key, c.identity[self.key])): c for c in self.configurations}

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """The accuracies by value of the key and by seed."""
        return {value: c.accuracies for value, c in self.by_value.items()}


def group_runs(runs: Iterable[Run]) -> list[Configuration]:
    """Return the configurations of the runs, by data set, then by mult-adds.

    A label names every setting that is not the most common one among the configurations of the same data set, version,
    variant and optimiser, trials on held-out images apart. It names the optimiser if a data set and variant have
    several.
    """
    groups: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.summary.seed, run.directory)):
        groups.setdefault(hashable(run.identity), []).append(run)
    usual, found = _usual_values(group[0].identity for group in groups.values()), []
    for group in groups.values():
        identity = {_WEIGHTS: "", **group[0].identity}
        accuracies = {run.summary.seed: run.accuracy for run in group}
        mean = statistics.mean(accuracies.values())
        sd = statistics.stdev(accuracies.values()) if len(group) > 1 else None
        found.append(Configuration(_label(identity, usual), identity, tuple(group), accuracies, mean, sd))
    return sorted(found, key=lambda c: (c.summary.dataset, c.mult_adds, c.label, c.runs[0].directory))


def find_series(configurations: Sequence[Configuration]) -> list[Series]:
    """Return every set of two or more configurations that differ in one key: α, ρ, t, then the other keys by name.

    Configurations that differ in several keys form no series. Data sets are not compared. Optimisers are compared
    at the usual rates of each.
    """
    usual = _usual_values(c.identity for c in configurations)
    others = {key for c in configurations for key in c.identity if key not in KNOBS and _is_setting(key)}
    found = []
    for key in (*KNOBS, *sorted(others)):
        groups: dict[Any, list[Configuration]] = {}
        for c in configurations:
            own = _RATES if key == _OPTIMIZER else ()
            common = usual[_family(c.identity)]
            if key in c.identity and all(c.identity.get(rate) == common.get(rate) for rate in own):
                groups.setdefault(hashable(c.identity, (key, *own)), []).append(c)
        for group in groups.values():
            if len(group) > 1:
                ordered = sorted(group, key=lambda c: _sort_key(c.identity[key]))
                found.append(Series(key, _label(ordered[0].identity, usual, key), tuple(ordered)))
    return found


def configurations_table(configurations: Sequence[Configuration]) -> Table:
    """Return a table with one row per configuration: accuracy in percent, costs in millions, speed per device."""
    columns = {
        "configuration": lambda c: c.label,
        "data": lambda c: f"{c.summary.dataset} {c.summary.resolution}x{c.summary.resolution}",
        "test top-1, %": lambda c: c.percent,
        "n": lambda c: str(c.n),
        "mult-adds, M": lambda c: f"{c.mult_adds / 1e6:.2f}",
        "params, M": lambda c: f"{c.summary.params / 1e6:.2f}",
        "epochs": lambda c: str(c.summary.epochs),
        "recipe": lambda c: f"{c.optimizer}, lr {cell(c.identity['optim.lr'])}" if c.optimizer else "unknown",
        "images/s": lambda c: _device_means(c, lambda run: run.summary.train_images_per_second, "{:,.0f}"),
        "minutes per run": lambda c: _device_means(c, lambda run: run.summary.wall_seconds / 60, "{:.1f}"),
        "device": lambda c: "; ".join(_devices(c)),
    }
    note = (
        "Test top-1 of the last epoch: mean ± sample standard deviation over n seeds, always on the same test images. "
        "Another test set would move every accuracy p, by a standard deviation of √(p (1 - p) / images): 0.4 points at "
        "80 % of 10,000."
    )
    if mixed := [c.label for c in configurations if len({_source(run) for run in c.runs if run.env}) > 1]:
        names = "; ".join(mixed[:5]) + (f"; {len(mixed) - 5} more" if mixed[5:] else "")
        note += f" Means over runs of different commits or versions of JAX: {names}."
    return Table.of("configurations", "Mean and spread over seeds", configurations, columns, note)


def recipes_table(configurations: Sequence[Configuration]) -> Table:
    """Return the usual value of every setting that labels leave out, by data set, version, variant and optimiser."""
    usual = _usual_values(c.identity for c in configurations)
    keys = sorted({key for values in usual.values() for key in values if _is_setting(key)} - {*_IN_LABEL})
    rows = tuple((key, *(cell(values.get(key, "")) for values in usual.values())) for key in keys)
    names = [", ".join(_OPTIMIZERS.get(x, str(x)) for x in family if x not in (None, "paper")) for family in usual]
    note = (
        "Every configuration has these settings, except those that its label names. Blank: without meaning for the "
        "network, or not recorded."
    )
    return Table("recipes", "Recipes: settings that the labels leave out", ("setting", *names), rows, note)


def trials_table(trials: Sequence[Configuration]) -> Table:
    """Return the validation accuracy of configurations with held-out images, and what they vary.

    A network's trials stand together, the best first.
    """
    ranked = sorted(trials, key=lambda c: (c.identity["data.name"], _trial_network(c), -c.val_mean))
    settings = dict.fromkeys(key for c in trials for key in c.identity if key not in (*KNOBS, "model.version"))
    varied = [key for key in settings if len({cell(c.identity[key]) for c in trials if key in c.identity}) > 1]
    columns = {
        "network": _trial_network,
        **{setting_name(key): lambda c, key=key: cell(_named(key, c.identity.get(key, ""))) for key in varied},
        "validation top-1, %": lambda c: f"{100 * c.val_mean:.2f}",
        "n": lambda c: str(c.n),
    }
    note = (
        "Accuracy on training images that were held out. Recipes are chosen by it, and test images have no part in it."
    )
    return Table.of("trials", "Trials on held-out images", ranked, columns, note)


def _trial_network(c: Configuration) -> str:
    """Return the network of a trial, without its recipe: 'v1 α 0.25'."""
    return c.label.partition(",")[0]


def setting_name(key: str) -> str:
    """Return the name of a setting without its group: 'bottleneck', 'optimizer'."""
    return "optimizer" if key == _OPTIMIZER else key.rpartition(".")[2]


def setting_text(key: str, value: Any) -> str:
    """Return a setting as labels spell it: 'decay_depthwise', 'no flip', 'RMSprop', 'bottleneck relu6'."""
    if isinstance(value, bool):
        return setting_name(key) if value else f"no {setting_name(key)}"
    text = cell(_named(key, value))
    return _OPTIMIZERS.get(text, text) if key == _OPTIMIZER else f"{setting_name(key)} {text}"


def _named(key: str, value: Any) -> Any:
    """Return the value of a setting, with a name for random weights."""
    return value or "random" if key == _WEIGHTS else value


def _source(run: Run) -> tuple[str, ...]:
    return tuple(str(flatten(run.env).get(key)) for key in ("git_commit", "git_dirty", "packages.jax"))


def _devices(c: Configuration) -> list[str]:
    return sorted({run.device for run in c.runs})


def _device_means(c: Configuration, value: Callable[[Run], float], form: str) -> str:
    means = (statistics.mean(value(run) for run in c.runs if run.device == device) for device in _devices(c))
    return "; ".join(map(form.format, means))


def _sort_key(value: Any) -> tuple[int, Any]:
    """Return a key that orders null, then numbers by size, then text."""
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, value)


def _is_setting(key: str) -> bool:
    """Return whether a user sets this key to see its effect."""
    return key != "data.name" and not key.startswith("summary.")


def _family(identity: Mapping[str, Any]) -> _Family:
    data, version, variant = (identity.get(key) for key in ("data.name", "model.version", "model.variant"))
    return data, version, variant, identity.get(_OPTIMIZER), "held out" if identity.get(_HOLDOUT) else None


def _usual_values(identities: Iterable[Mapping[str, Any]]) -> dict[_Family, dict[str, Any]]:
    """Return family -> key -> the most common value, the lowest of equally common ones."""
    counts = collections.defaultdict(lambda: collections.defaultdict(collections.Counter))
    for identity in identities:
        for key, value in identity.items():
            counts[_family(identity)][key][value] += 1
    return {
        family: {key: min(n, key=lambda value, n=n: (-n[value], _sort_key(value))) for key, n in keys.items()}
        for family, keys in counts.items()
    }


def _label(identity: Mapping[str, Any], usual: Mapping[_Family, Mapping[str, Any]], varied: str = "") -> str:
    """Return 'v2 α 0.35 ρ 0.714 t 6, bottleneck relu6': ρ unless it is 1, t if there is one, never the `varied` key."""
    family = data, _, variant, optimizer, _ = _family(identity)
    identity = {key: value for key, value in identity.items() if key != varied}
    knobs = [(key, identity[key]) for key in KNOBS if identity.get(key) is not None]
    words = [f"{KNOBS[key]} {value:g}" for key, value in knobs if (key, value) != ("model.rho", 1)]
    parts = [" ".join([identity.get("model.version", ""), *words]).strip()]
    if identity.get("model.variant", "paper") != "paper":
        parts.append(identity["model.variant"])
    others = {o for d, _, v, o, _ in usual if (d, v) == (data, variant)}
    if _OPTIMIZER in identity and len(others - {None}) > 1:
        parts.append(setting_text(_OPTIMIZER, optimizer))
    parts += [setting_text(key, identity[key]) for key in (_HOLDOUT, _WEIGHTS) if identity.get(key)]
    recipe_known = "summary.steps" not in identity
    if not recipe_known:
        parts.append("recipe unknown")
    for key, common in usual.get(family, {}).items():
        if key in (*_IN_LABEL, varied) or not _is_setting(key) or identity.get(key) == common:
            continue
        if key in identity:
            parts.append(setting_text(key, identity[key]))
        elif recipe_known:  # the config of another version of this program
            parts.append(f"{setting_name(key)} not recorded")
    return line(", ".join(filter(None, parts)))
