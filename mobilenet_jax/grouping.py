"""Runs -> configurations, with mean and spread over seeds; what varies among them, one key at a time."""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.runs import Run, hashable
from mobilenet_jax.tables import Table

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
    images_per_second: float  # mean; of runs that were trained at once, the rate of all of them together
    wall_seconds: float  # mean time of a run, from the start of its process to its end
    device: str  # each that trained a run

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
                found.append(Series(key, dict(fixed), _label(dict(fixed), usual), tuple(ordered)))
    return found


def table(configurations: Iterable[Configuration]) -> Table:
    """One row a configuration; accuracies in percent, costs in millions."""
    rows = [
        (
            c.label,
            f"{c.dataset} {c.resolution}x{c.resolution}",
            f"{100 * c.mean:.2f}" + ("" if c.sd is None else f" ± {100 * c.sd:.2f}"),
            str(c.n),
            f"{c.mult_adds / 1e6:.2f}",
            f"{c.params / 1e6:.2f}",
            str(c.epochs),
            f"{c.images_per_second:,.0f}",
            f"{c.wall_seconds / 60:.1f}",
            c.device,
        )
        for c in configurations
    ]
    header = ("configuration", "data", "test top-1, %", "n", "mult-adds, M", "params, M", "epochs", "images/s")
    note = "Test top-1 of the last epoch: mean ± sample standard deviation over n seeds."
    return Table(
        "configurations", "Mean and spread over seeds", (*header, "minutes a run", "device"), tuple(rows), note
    )


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
        images_per_second=statistics.mean(run.summary["train_images_per_second"] for run in runs),
        wall_seconds=statistics.mean(run.summary["wall_seconds"] for run in runs),
        device="; ".join(sorted({run.device for run in runs})),
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


def _label(identity: Mapping[str, Any], usual: Mapping[Any, Mapping[str, Any]]) -> str:
    """'v2 α 0.35 ρ 0.714 t 6, bottleneck relu6': ρ where it is not 1, t where there is one; nothing that is absent."""
    knobs = [(key, identity[key]) for key in _KNOBS if identity.get(key) is not None]
    words = [f"{_KNOBS[key]} {value:g}" for key, value in knobs if (key, value) != ("model.rho", 1)]
    parts = [" ".join([identity.get("model.version", ""), *words]).strip()]
    if identity.get("model.variant", "paper") != "paper":
        parts.append(identity["model.variant"])
    if "summary.steps" in identity:
        parts.append("recipe unknown")
    told = {"model.version", "model.variant", *_KNOBS}
    for key, common in usual[_family(identity)].items() if _family(identity) in usual else ():
        if key in identity and key not in told and _is_setting(key) and identity[key] != common:
            parts.append(_setting(key, identity[key]))
    return ", ".join(filter(None, parts))


def _setting(key: str, value: Any) -> str:
    """'decay_depthwise', 'no flip', 'optim rmsprop', 'bottleneck relu6', 'lr 0.1'."""
    group, _, leaf = key.rpartition(".")
    if isinstance(value, bool):
        return leaf if value else f"no {leaf}"
    return f"{group if leaf == 'name' else leaf} {f'{value:g}' if isinstance(value, float) else value}"
