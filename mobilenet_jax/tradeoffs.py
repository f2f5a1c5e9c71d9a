"""Accuracy against cost over configurations: curves, fits, differences beyond the noise, equal cost; as sections.

Only configurations of one data set and recipe are set beside each other (`comparable`): other epochs, other rates or
other images are another experiment.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax import arch, cost, grouping, noise, published, runs
from mobilenet_jax.grouping import Configuration, Series
from mobilenet_jax.runs import Problem
from mobilenet_jax.tables import Picture, Section, Table

_KNOBS = {
    "model.alpha": "width multiplier",
    "model.rho": "resolution multiplier",
    "model.expansion": "expansion ratio t",
}
_NETWORK = ("model.version", *_KNOBS)  # what may differ among comparable configurations
_PLAIN = {"model.bottleneck": "linear", "model.shortcut": "bottleneck", "model.variant": "paper"}
_CURVES = 6  # runs to a figure of curves: more cannot be told apart
_RESOLVE = 0.002  # the difference for which the seeds needed are told


def sections(configurations: Sequence[Configuration], problems: Sequence[Problem]) -> list[Section]:
    """All that a report of runs has, in order."""
    groups = [group for group in comparable(configurations) if len({c.mult_adds for c in group}) > 1]
    alone = (
        ()
        if groups
        else ("No accuracy against cost: no two of these differ in version, width, resolution or t alone.",)
    )
    found = [Section("Configurations", alone, tables=(grouping.table(configurations),))]
    if switched := changes(configurations):
        found.append(Section("One change at a time", tables=(switched,)))
    if bought := doublings(configurations):
        found.append(Section("Knob by knob", tables=(bought,)))
    if problems:
        found.append(Section("Left out, or counted in part", tables=(runs.problems_table(problems),)))
    found += [_tradeoff(group, i) for i, group in enumerate(groups, 1)]
    found += _series(configurations)
    found += _beside_published(configurations)
    found += _curves(configurations)
    return found


def comparable(configurations: Iterable[Configuration]) -> list[list[Configuration]]:
    """Groups of at least two that differ in version, width, resolution and expansion ratio alone."""
    groups: dict[tuple, list[Configuration]] = {}
    for c in configurations:
        same = {k: v for k, v in c.identity.items() if k not in _NETWORK and _PLAIN.get(k) != v}
        groups.setdefault(tuple(sorted(same.items(), key=str)), []).append(c)
    return [group for group in groups.values() if len(group) > 1]


def results(c: Configuration) -> dict[int, float]:
    """Test top-1 (a fraction) by seed."""
    return {run.seed: run.accuracy for run in c.runs}


def _percent(c: Configuration) -> str:
    return f"{100 * c.mean:.2f}" + (f" ± {100 * c.sd:.2f}" if c.sd is not None else "")


def _of(group: Sequence[Configuration]) -> str:
    """What the configurations of a comparable group share, for titles."""
    first = group[0]
    batch = first.identity.get("train.batch_size")
    return f"{first.dataset}, {first.epochs} epochs" + (f", batch {batch}" if batch else "")


# Accuracy against cost -----------------------------------------------------------------------------------------------


def _tradeoff(group: Sequence[Configuration], number: int) -> Section:
    pictures = [
        Picture(
            f"accuracy_{name}_{number}",
            f"Test top-1 against {name.replace('_', '-')}: {_of(group)}; bars: standard deviation over seeds",
            lambda name=name: _accuracy(group, name),
        )
        for name in ("mult_adds", "params")
    ]
    tables = [table for table in (_fit(group, number), _equal_cost(group, number)) if table]
    return Section(f"Accuracy against cost: {_of(group)}", pictures=tuple(pictures), tables=tuple(tables))


def _accuracy(group: Sequence[Configuration], count: str) -> Any:
    from mobilenet_jax import figures

    points = [
        figures.Point(
            c.identity["model.version"],
            c.identity["model.alpha"],
            c.resolution,
            getattr(c, count) / 1e6,
            100 * c.mean,
            100 * (c.sd or 0.0),
        )
        for c in group
    ]
    return figures.accuracy(points, "mult-adds (millions)" if count == "mult_adds" else "trainable params (millions)")


def _fit(group: Sequence[Configuration], number: int) -> Table | None:
    line = noise.fit([(c.mult_adds, c.mean) for c in group])
    if line is None:
        return None
    rows = tuple(
        (c.label, f"{c.mult_adds / 1e6:.2f}", _percent(c), f"{100 * line.at(c.mult_adds):.2f}", f"{100 * r:+.2f}")
        for c, r in zip(group, line.residuals, strict=True)
    )
    note = (
        f"Top-1 grows by {line.points_per_doubling:.2f} points with each doubling of the mult-adds (least squares; "
        f"R² {line.r_squared:.3f}, residuals {100 * line.residual_sd:.2f} points). Residuals of one sign at an end say "
        "that the relation is not log-linear there."
    )
    header = ("configuration", "mult-adds, M", "top-1, %", "on the line, %", "residual, points")
    return Table(f"fit_{number}", f"Log-linear fit: {_of(group)}", header, rows, note)


def doublings(configurations: Sequence[Configuration]) -> Table | None:
    """What a doubling of the mult-adds buys when one knob alone spends it: a row a series of at least three costs."""
    rows = []
    for s in grouping.series(configurations):
        costs = [c.mult_adds for c in s.configurations]
        if s.key in _KNOBS and (line := noise.fit([(c.mult_adds, c.mean) for c in s.configurations])):
            values = [f"{c.identity[s.key]:g}" for c in s.configurations]
            low, high = line.interval()
            rows.append(
                (
                    f"{_KNOBS[s.key]}, {values[0]} to {values[-1]}",
                    f"{s.label}, {s.configurations[0].dataset}, {s.configurations[0].epochs} epochs",
                    f"{min(costs) / 1e6:.2f} to {max(costs) / 1e6:.2f}",
                    str(len(s.configurations)),
                    f"{line.points_per_doubling:.2f} [{low:.2f}, {high:.2f}]",
                    f"{line.r_squared:.3f}",
                )
            )
    if not rows:
        return None
    header = ("knob", "of", "mult-adds, M", "configurations", "points a doubling", "R²")
    note = "Least squares of top-1 on the logarithm of the mult-adds, over the configurations' means; intervals: 95 %."
    return Table("doublings", "What a doubling of the mult-adds buys", header, tuple(rows), note)


def _equal_cost(group: Sequence[Configuration], number: int) -> Table | None:
    """Within each group of equal cost, everything beside the best."""
    by_name = {c.label: c for c in group}
    series = {name: results(c) for name, c in by_name.items()}
    rows = []
    for names in noise.equal_cost({name: c.mult_adds for name, c in by_name.items()}):
        best = max(names, key=lambda name: by_name[name].mean)
        for name in sorted(names, key=lambda name: -by_name[name].mean):
            c = by_name[name]
            beside = ("best", "") if name == best else _beside(noise.difference(series, best, name))
            rows.append((f"{c.mult_adds / 1e6:.2f}", name, f"{c.params / 1e6:.2f}", _percent(c), str(c.n), *beside))
    if not rows:
        return None
    header = ("mult-adds, M", "configuration", "params, M", "top-1, %", "n", "to the best of its cost", "verdict")
    note = "Mult-adds of a group lie within 3 % of each other. Intervals: 95 %, each for itself."
    return Table(f"equal_cost_{number}", f"At equal cost: {_of(group)}", header, tuple(rows), note)


def _beside(d: noise.Difference) -> tuple[str, str]:
    """A difference with its interval in points, and what it says."""
    if d.low is None or d.high is None:
        return f"{100 * d.mean:+.2f}", f"{d.verdict}: {d.reason}"
    how = ", not paired" if d.how == "pooled" else ""
    return f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]{how}", d.verdict


# One knob at a time --------------------------------------------------------------------------------------------------


def _series(configurations: Sequence[Configuration]) -> list[Section]:
    """A section a key, of all its series."""
    found = []
    for key, of_key in itertools.groupby(grouping.series(configurations), key=lambda s: s.key):
        several = list(of_key)
        name = _KNOBS.get(key, key)
        tables = tuple(_one_series(s, f"{key.rpartition('.')[2]}_{i}") for i, s in enumerate(several, 1))
        pictures = ()
        if key in _KNOBS:
            picture = Picture(
                f"over_{key.rpartition('.')[2]}",
                f"Test top-1 over the {name}; bars: standard deviation over seeds",
                lambda several=several, name=name, key=key: _sweep(several, key, name),
            )
            pictures = (picture,)
        found.append(Section(f"Over {name}", pictures=pictures, tables=tables))
    return found


def _sweep(several: Sequence[Series], key: str, name: str) -> Any:
    from mobilenet_jax import figures

    lines = {
        f"{s.label}, {s.configurations[0].epochs} epochs": [
            (c.identity[key], 100 * c.mean, 100 * (c.sd or 0.0)) for c in s.configurations
        ]
        for s in several[:_CURVES]
    }
    return figures.sweep(lines, name)


def changes(configurations: Sequence[Configuration]) -> Table | None:
    """What each switch does (true or false, or named ways), everything else being the same: a row a value.

    Points of top-1 against the paper's way, else against the first value; None where no configurations differ in one
    switch alone.
    """
    rows = []
    for s in grouping.series(configurations):
        usual = _usual(s)
        for value, c in _by_value(s).items():
            if usual not in (None, value):
                d, needed = _difference(s, usual, value), _seeds_needed(s)
                change = f"{s.key.rpartition('.')[2]}: {usual} → {value}"
                rows.append((change, f"{s.label}, {c.dataset}, {c.epochs} epochs", str(d.n), *_beside(d), needed))
    if not rows:
        return None
    header = (
        "change",
        "of",
        "seeds in both",
        "top-1, points",
        "verdict",
        f"seeds to resolve {100 * _RESOLVE:g} points",
    )
    note = (
        "Intervals: 95 %, paired by seed (but where it says not), with the noise of all the switch's values; each for "
        f"itself. Last column: the seeds that would tell {100 * _RESOLVE:g} points apart, four times in five."
    )
    return Table("changes", "What each switch does", header, tuple(rows), note)


def _one_series(s: Series, name: str) -> Table:
    """Each value beside the one before; of a switch, beside the usual one."""
    rows = []
    usual = _usual(s)
    beside = usual
    for value, c in _by_value(s).items():
        cells = _beside(_difference(s, beside, value)) if beside not in (None, value) else ("", "")
        rows.append((value, _percent(c), str(c.n), f"{c.mult_adds / 1e6:.2f}", *cells))
        beside = usual or value
    header = (s.key, "top-1, %", "n", "mult-adds, M", f"to {usual or 'the row above'}, points", "verdict")
    note = (
        "Intervals: 95 %, paired by seed (but where it says not), with the noise of the whole series; each for itself."
    )
    if spread := noise.paired_sd(_results(s).values()):
        note += (
            f" Noise of a difference between two runs: {100 * spread.sd:.2f} points ({spread.df} degrees of freedom). "
            f"To resolve {100 * _RESOLVE:g} points: {_seeds_needed(s)} seeds."
        )
    title = f"{s.key.rpartition('.')[2]}: {s.label}, {s.configurations[0].dataset}, {s.configurations[0].epochs} epochs"
    return Table(f"over_{name}", title, header, tuple(rows), note)


def _by_value(s: Series) -> dict[str, Configuration]:
    return {str(c.identity[s.key]): c for c in s.configurations}


def _usual(s: Series) -> str | None:
    """The value of a switch that the others are set beside; None of a number, whose values have an order."""
    values = [c.identity[s.key] for c in s.configurations]
    if not all(isinstance(value, bool | str) for value in values):
        return None
    return str(_PLAIN[s.key] if _PLAIN.get(s.key) in values else values[0])


def _results(s: Series) -> dict[str, dict[int, float]]:
    return {value: results(c) for value, c in _by_value(s).items()}


def _difference(s: Series, a: str, b: str) -> noise.Difference:
    return noise.difference(_results(s), a, b)


def _seeds_needed(s: Series) -> str:
    spread = noise.paired_sd(_results(s).values())
    return str(noise.seeds_needed(spread.sd, _RESOLVE)) if spread else ""


# Beside the published ------------------------------------------------------------------------------------------------


def _beside_published(configurations: Sequence[Configuration]) -> list[Section]:
    """Published accuracies of networks that were trained here too: the same layers, other set-ups."""
    rows = []
    for row in published.rows("cifar10"):
        variant = {"variant": row["variant"]} if row["version"] == "v1" else {}
        build = {"v1": arch.mobilenet_v1, "v2": arch.mobilenet_v2}[row["version"]]
        network = build(float(row["alpha"]), num_classes=10, strides="cifar", **variant)
        count = cost.totals(network, int(row["resolution"])).mult_adds
        for c in configurations:
            same = c.dataset == "cifar10" and c.mult_adds == count and _matches(c.identity, row)
            if same:
                theirs = (row["top1"], row["loss"], row["which"], row["epochs"], row["source"])
                losses = [x for run in c.runs if isinstance(x := run.summary.get("test_loss"), int | float)]
                ours_loss = f"{statistics.mean(losses):.2f}" if len(losses) == c.n else ""
                rows.append((c.label, _percent(c), ours_loss, str(c.n), str(c.epochs), *theirs))
    if not rows:
        return []
    header = ("configuration", "ours, top-1, %", "loss", "n", "epochs", "theirs, top-1, %", "loss", "which", "epochs")
    note = (
        "The same layers and data set. Epochs, recipe and augmentation differ, and a best epoch is chosen on the test "
        "set: for these reasons the published points are not drawn among ours."
    )
    table = Table("beside_published", "CIFAR-10: ours beside published", (*header, "source"), tuple(rows), note)
    return [Section("Beside published accuracies", tables=(table,))]


def _matches(identity: Mapping[str, Any], row: Mapping[str, str]) -> bool:
    plain = all(identity.get(key, value) == value for key, value in _PLAIN.items() if key != "model.variant")
    return (
        plain
        and identity["model.version"] == row["version"]
        and identity["model.alpha"] == float(row["alpha"])
        and identity["model.variant"] == row["variant"]
    )


# Curves --------------------------------------------------------------------------------------------------------------


def _curves(configurations: Sequence[Configuration]) -> list[Section]:
    """Loss and accuracy over the epochs of each configuration's first run, a few to a figure."""
    drawn = [c for c in configurations if len(c.runs[0].epochs) > 1]
    shown = drawn[: 4 * _CURVES]
    batches = [tuple(shown[i : i + _CURVES]) for i in range(0, len(shown), _CURVES)]
    pictures = tuple(
        Picture(
            f"curves_{i}",
            "Accuracy and loss over the epochs, of the lowest seed: " + "; ".join(c.label for c in batch),
            lambda batch=batch: _draw_curves(batch),
        )
        for i, batch in enumerate(batches, 1)
    )
    left = len(drawn) - len(shown)
    text = (f"{left} more configurations are not drawn: name fewer run directories to see theirs.",) if left else ()
    return [Section("Training curves", text, pictures)] if pictures else []


def _draw_curves(batch: Iterable[Configuration]) -> Any:
    from mobilenet_jax import figures

    def curve(c: Configuration) -> figures.Curve:
        rows = [row for row in c.runs[0].epochs if row.get("test_accuracy") is not None]
        columns = ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
        values = [[float("nan") if (v := row.get(key)) is None else v for row in rows] for key in columns]
        epochs, train_loss, test_loss, train, test = values
        return figures.Curve(epochs, train_loss, test_loss, *([100 * x for x in part] for part in (train, test)))

    return figures.curves({c.label: curve(c) for c in batch})
