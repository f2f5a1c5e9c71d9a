"""Runs -> configurations, with mean and spread over seeds; what varies among them, one key at a time."""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.records.collect import Run, hashable
from mobilenet_jax.render.tables import Table, cell

_KNOBS = {"model.alpha": "α", "model.rho": "ρ", "model.expansion": "t"}


@dataclasses.dataclass(frozen=True, eq=False)
class Configuration:
    """Runs that differ in nothing but the seed."""

    label: str  # short: 'v1 α 0.25', and what else tells it from the others on its data set
    identity: dict[str, Any]  # see `Run.identity`
    runs: tuple[Run, ...]  # by seed
    dataset: str
    resolution: int  # pixels a side of the network's input
    mult_adds: int
    params: int  # trainable ones
    epochs: int
    mean: float  # test top-1 over the runs, a fraction
    sd: float | None  # its sample standard deviation, a fraction; None of one run

    @property
    def n(self) -> int:
        return len(self.runs)


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Configurations that differ in one key alone, in the order of its values."""

    key: str  # dotted: 'model.alpha'
    fixed: dict[str, Any]  # the identity that they share
    label: str  # what is fixed, short: 'v1 ρ 0.714'
    configurations: tuple[Configuration, ...]


def configurations(runs: Iterable[Run]) -> list[Configuration]:
    """Groups runs by what they are; by data set, then by mult-adds.

    A label has every key whose value is not the most common one among the configurations of the same data, version and
    variant.
    """
    groups: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.directory)):
        groups.setdefault(hashable(run.identity), []).append(run)
    usual = _usual(group[0].identity for group in groups.values())
    found = [_configuration(_label(group[0].identity, usual), group) for group in groups.values()]
    return sorted(found, key=lambda c: (c.dataset, c.mult_adds, c.label, c.runs[0].directory))


def series(configurations: Sequence[Configuration]) -> list[Series]:
    """Every set of two or more that agree in all but one key: over α, ρ, t, then over the other keys by name.

    Points that change several keys at once form no series, and data sets are not compared.
    """
    usual = _usual(c.identity for c in configurations)
    found = []
    values: dict[str, set[Any]] = {}
    for c in configurations:
        for key, value in c.identity.items():
            values.setdefault(key, set()).add(value)
    varied = {key for key in values if len(values[key]) > 1 and _is_setting(key)}
    for key in [*(key for key in _KNOBS if key in varied), *sorted(varied - {*_KNOBS})]:
        groups: dict[Any, list[Configuration]] = {}
        for c in configurations:
            if key in c.identity:
                groups.setdefault(hashable(c.identity, key), []).append(c)
        for fixed, group in groups.items():
            if len(group) > 1:
                ordered = sorted(group, key=lambda c: _order(c.identity[key]))
                found.append(Series(key, dict(fixed), _label(dict(fixed), usual, key), tuple(ordered)))
    return found


def table(configurations: Iterable[Configuration]) -> Table:
    """One row a configuration; accuracies in percent, costs in millions, speed and time as means on each device."""
    rows = [
        (
            c.label,
            f"{c.dataset} {c.resolution}x{c.resolution}",
            percent(c),
            str(c.n),
            f"{c.mult_adds / 1e6:.2f}",
            f"{c.params / 1e6:.2f}",
            str(c.epochs),
            _each(c, "train_images_per_second", lambda rate: f"{rate:,.0f}"),
            _each(c, "wall_seconds", lambda seconds: f"{seconds / 60:.1f}"),
            "; ".join(_by_device(c)),
        )
        for c in configurations
    ]
    header = ("configuration", "data", "test top-1, %", "n", "mult-adds, M", "params, M", "epochs", "images/s")
    note = (
        "Test top-1 of the last epoch: mean ± sample standard deviation over n seeds, always on the same test images. "
        "Others would move every p: by a standard deviation of √(p (1 - p) / images), 0.4 points at 80 % of 10,000."
    )
    return Table(
        "configurations", "Mean and spread over seeds", (*header, "minutes a run", "device"), tuple(rows), note
    )


def percent(c: Configuration) -> str:
    """'79.02 ± 0.37'."""
    return f"{100 * c.mean:.2f}" + ("" if c.sd is None else f" ± {100 * c.sd:.2f}")


def recipes(configurations: Sequence[Configuration]) -> Table:
    """What labels leave out: the usual value of every setting, by data set, version and variant."""
    usual = _usual(c.identity for c in configurations)
    told = {"model.version", "model.variant", *_KNOBS}
    keys = sorted({key for of_family in usual.values() for key in of_family if _is_setting(key)} - told)
    rows = tuple((key, *(cell(of_family.get(key, "")) for of_family in usual.values())) for key in keys)
    names = [", ".join(part for part in family if part not in (None, "paper")) for family in usual]
    note = "A configuration has these settings, but for those that its label names. '': of no meaning, or not recorded."
    return Table("recipes", "Recipes: what the labels leave out", ("setting", *names), rows, note)


def data(configurations: Iterable[Configuration]) -> Table:
    """One row a run, in full precision: for other programs."""
    figures = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "train_images_per_second", "wall_seconds")
    knobs = (
        "version",
        "variant",
        "alpha",
        "rho",
        "expansion",
        "resolution",
        "dataset",
        "epochs",
        "mult_adds",
        "params",
    )
    rows = []
    for c in configurations:
        for run in c.runs:
            said = [run.summary.get(key) for key in ("seed", *knobs, *figures)]
            values = [run.directory.name, c.label, *said, run.device, run.env.get("git_commit")]
            rows.append(tuple("" if value is None else str(value) for value in values))
    return Table(
        "runs", "Runs", ("run", "configuration", "seed", *knobs, *figures, "device", "git_commit"), tuple(rows)
    )


def _by_device(c: Configuration) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in sorted(c.runs, key=lambda run: run.device):
        found.setdefault(run.device, []).append(run)
    return found


def _each(c: Configuration, key: str, show: Callable[[float], str]) -> str:
    """The mean of a figure of the summaries, device by device."""
    return "; ".join(show(statistics.mean(run.summary[key] for run in runs)) for runs in _by_device(c).values())


def _configuration(label: str, runs: Sequence[Run]) -> Configuration:
    identity, accuracies = runs[0].identity, [run.accuracy for run in runs]
    return Configuration(
        label=label,
        identity=identity,
        runs=tuple(runs),
        dataset=identity["data.name"],
        resolution=runs[0].summary["resolution"],
        mult_adds=runs[0].mult_adds,
        params=runs[0].params,
        epochs=identity["train.epochs"],
        mean=statistics.mean(accuracies),
        sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
    )


def _order(value: Any) -> tuple[int, Any]:
    """Sorts anything: null, then numbers by size, then text."""
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, value)


def _is_setting(key: str) -> bool:
    """Whether a key is one that a user turns to see what it does."""
    return key != "data.name" and not key.startswith("summary.")


def _family(identity: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return identity.get("data.name"), identity.get("model.version"), identity.get("model.variant")


def _usual(identities: Iterable[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Family -> key -> its most common value; of equally common ones the lowest."""
    counts: dict[Any, dict[str, collections.Counter[Any]]] = {}
    for identity in identities:
        of_family = counts.setdefault(_family(identity), {})
        for key, value in identity.items():
            of_family.setdefault(key, collections.Counter())[value] += 1
    return {
        family: {key: min(n, key=lambda value, n=n: (-n[value], _order(value))) for key, n in keys.items()}
        for family, keys in counts.items()
    }


def _label(identity: Mapping[str, Any], usual: Mapping[Any, Mapping[str, Any]], varies: str = "") -> str:
    """'v2 α 0.35 ρ 0.714 t 6, bottleneck relu6': ρ where it is not 1, t where there is one; without what `varies`."""
    knobs = [(key, identity[key]) for key in _KNOBS if identity.get(key) is not None]
    words = [f"{_KNOBS[key]} {value:g}" for key, value in knobs if (key, value) != ("model.rho", 1)]
    parts = [" ".join([identity.get("model.version", ""), *words]).strip()]
    if identity.get("model.variant", "paper") != "paper":
        parts.append(identity["model.variant"])
    if "summary.steps" in identity:
        parts.append("recipe unknown")
    told = {"model.version", "model.variant", *_KNOBS, varies}
    for key, common in usual.get(_family(identity), {}).items():
        if key in told or not _is_setting(key) or identity.get(key) == common:
            continue
        if key in identity:
            parts.append(setting(key, identity[key]))
        elif "summary.steps" not in identity:  # a config of another version
            parts.append(f"{key.rpartition('.')[2]} not recorded")
    return ", ".join(filter(None, parts))


def setting(key: str, value: Any) -> str:
    """'decay_depthwise', 'no flip', 'optim rmsprop', 'bottleneck relu6', 'lr 0.1'."""
    group, _, leaf = key.rpartition(".")
    if isinstance(value, bool):
        return leaf if value else f"no {leaf}"
    return f"{group if leaf == 'name' else leaf} {f'{value:g}' if isinstance(value, float) else value}"
