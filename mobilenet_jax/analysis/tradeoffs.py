"""Accuracy against cost over configurations: curves, fits, differences beyond the noise, equal cost; as sections.

Only configurations of one data set and recipe are set beside each other (`comparable`): other epochs, other rates or
other images are another experiment.
"""

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.analysis import configurations as grouping
from mobilenet_jax.analysis import statistics as noise
from mobilenet_jax.analysis.configurations import Configuration, Series, percent
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.papers import printed as published
from mobilenet_jax.records import collect as runs
from mobilenet_jax.records.collect import Problem
from mobilenet_jax.render.tables import Picture, Section, Table

_KNOBS = {
    "model.alpha": "width multiplier",
    "model.rho": "resolution multiplier",
    "model.expansion": "expansion ratio t",
}
_NETWORK = ("model.version", *_KNOBS)  # what may differ among comparable configurations
_PLAIN = {"model.bottleneck": "linear", "model.shortcut": "bottleneck", "model.variant": "paper"}
_CURVES = 6  # runs to a figure of curves: more cannot be told apart
_FIGURES = 8  # of curves
_RIVALS = 40  # networks in a figure of those of equal cost: for more there is the table
_RESOLVE = 0.002  # the difference for which the seeds needed are told


def sections(configurations: Sequence[Configuration], problems: Sequence[Problem]) -> list[Section]:
    """All that a report of runs has, in order."""
    groups = _groups(configurations)
    alone = (
        ()
        if groups
        else ("No accuracy against cost: no two of these differ in version, width, resolution or t alone.",)
    )
    found = [
        Section(
            "Configurations",
            alone,
            tables=(grouping.table(configurations), grouping.recipes(configurations)) if configurations else (),
            data=(grouping.data(configurations),),
        )
    ]
    if switched := changes(configurations):
        found.append(Section("One change at a time", tables=(switched,)))
    if bought := doublings(configurations):
        found.append(Section("Knob by knob", tables=(bought,)))
    if problems:
        found.append(Section("Left out, or counted in part", tables=(runs.problems_table(problems),)))
    titles = _titles(groups)
    found += [_tradeoff(group, title, i) for i, (group, title) in enumerate(zip(groups, titles, strict=True), 1)]
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


def _groups(configurations: Iterable[Configuration]) -> list[list[Configuration]]:
    """The comparable ones that differ in cost."""
    return [group for group in comparable(configurations) if len({c.mult_adds for c in group}) > 1]


def results(c: Configuration) -> dict[int, float]:
    """Test top-1 (a fraction) by seed."""
    return {run.seed: run.accuracy for run in c.runs}


def _titles(groups: Sequence[Sequence[Configuration]]) -> list[str]:
    """What the configurations of each comparable group share: epochs, batch, variant, and what tells it from others."""
    plain, shared = [], []
    for group in groups:
        identity = group[0].identity
        parts = [f"{group[0].dataset}, {group[0].epochs} epochs"]
        parts += [f"batch {identity['train.batch_size']}"] if "train.batch_size" in identity else []
        parts += [identity["model.variant"]] if identity["model.variant"] != "paper" else []
        plain.append(", ".join(parts))
        shared.append({key: value for key, value in identity.items() if key not in _NETWORK})
    found = []
    for title, mine in zip(plain, shared, strict=True):
        alike = [other for name, other in zip(plain, shared, strict=True) if name == title]
        differ = [key for key in mine if len({other.get(key, "") for other in alike}) > 1]
        found.append(", ".join([title, *(grouping.setting(key, mine[key]) for key in differ)]))
    return found


# Accuracy against cost -----------------------------------------------------------------------------------------------


def _tradeoff(group: Sequence[Configuration], title: str, number: int) -> Section:
    seeds = "bars: standard deviation over seeds" if any(c.n > 1 for c in group) else "one seed each"
    pictures = [
        Picture(
            f"accuracy_{name}_{number}",
            f"Test top-1 against {name.replace('_', '-')}: {title}; {seeds}",
            lambda name=name: _accuracy(group, name),
        )
        for name in ("mult_adds", "params")
    ]
    tables = _fits(group, title, number)
    if rivals := _rivals(group):
        tables.append(_equal_cost(rivals, title, number))
        if sum(map(len, rivals)) <= _RIVALS:
            caption = f"At equal cost, top-1 of every seed: {title}"
            pictures.append(Picture(f"equal_cost_{number}", caption, lambda: _draw_rivals(rivals)))
    return Section(f"Accuracy against cost: {title}", pictures=tuple(pictures), tables=tuple(tables))


def _accuracy(group: Sequence[Configuration], count: str) -> Any:
    from mobilenet_jax.render import charts as figures

    points = [
        figures.Point(
            c.identity["model.version"],
            c.identity["model.alpha"],
            c.resolution,
            getattr(c, count) / 1e6,
            100 * c.mean,
            None if c.sd is None else 100 * c.sd,
            c.identity["model.expansion"],
        )
        for c in group
    ]
    front = noise.pareto(points, lambda p: p.x, lambda p: p.top1)
    label = "mult-adds (millions)" if count == "mult_adds" else "trainable params (millions)"
    return figures.accuracy(points, front, label)


def _fits(group: Sequence[Configuration], title: str, number: int) -> list[Table]:
    """A log-linear fit of each version that has three costs."""
    found = []
    for version in sorted({c.identity["model.version"] for c in group}):
        fitted = [c for c in group if c.identity["model.version"] == version]
        line = _line(fitted)
        if line is None:
            continue
        rows = tuple(
            (c.label, f"{c.mult_adds / 1e6:.2f}", percent(c), f"{100 * line.at(c.mult_adds):.2f}", f"{100 * r:+.2f}")
            for c, r in zip(fitted, line.residuals, strict=True)
        )
        note = (
            f"Top-1 grows by {_slope(line)} points with each doubling of the mult-adds (least squares; R² "
            f"{line.r_squared:.3f}; interval: 95 %, over seeds). The networks lie {100 * line.residual_sd:.2f} points "
            "off the line (standard deviation); residuals of one sign at an end say that the relation is not "
            "log-linear there."
        )
        header = ("configuration", "mult-adds, M", "top-1, %", "on the line, %", "residual, points")
        found.append(Table(f"fit_{version}_{number}", f"Log-linear fit, {version}: {title}", header, rows, note))
    return found


def _line(configurations: Sequence[Configuration]) -> noise.Fit | None:
    return noise.fit([(c.mult_adds, results(c)) for c in configurations])


def _slope(line: noise.Fit) -> str:
    """In points a doubling, with its interval."""
    interval = line.interval()
    return f"{line.points_per_doubling:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def doublings(configurations: Sequence[Configuration]) -> Table | None:
    """What a doubling of the mult-adds buys when one knob alone spends it: a row a series of at least three costs."""
    rows = []
    for s in grouping.series(configurations):
        costs = [c.mult_adds for c in s.configurations]
        if s.key in _KNOBS and (line := _line(s.configurations)):
            values = [f"{c.identity[s.key]:g}" for c in s.configurations]
            rows.append(
                (
                    f"{_KNOBS[s.key]}, {values[0]} to {values[-1]}",
                    _of(s),
                    f"{min(costs) / 1e6:.2f} to {max(costs) / 1e6:.2f}",
                    str(len(s.configurations)),
                    _slope(line),
                    f"{100 * line.residual_sd:.2f}",
                )
            )
    if not rows:
        return None
    header = ("knob", "of", "mult-adds, M", "configurations", "points a doubling", "off the line, points")
    note = (
        "Least squares of top-1 on the logarithm of the mult-adds; intervals: 95 %, over seeds; last column: the "
        "standard deviation of the configurations around the line. Slopes over different mult-adds do not compare, as "
        "a doubling buys less the more there are: for that, look at networks of equal cost."
    )
    return Table("doublings", "What a doubling of the mult-adds buys", header, tuple(rows), note)


def _of(s: Series) -> str:
    """What a series shares, for tables and titles."""
    first = s.configurations[0]
    epochs = [] if s.key == "train.epochs" else [f"{first.epochs} epochs"]
    return ", ".join([s.label, first.dataset, *epochs])


def equal_cost(configurations: Sequence[Configuration]) -> list[Table]:
    """A table for each comparable group in which networks cost the same: everything beside the best of its cost."""
    groups = _groups(configurations)
    found = zip(groups, _titles(groups), strict=True)
    return [_equal_cost(rivals, title, i) for i, (g, title) in enumerate(found, 1) if (rivals := _rivals(g))]


def _rivals(group: Sequence[Configuration]) -> list[list[Configuration]]:
    """Networks that cost the same, the best first; cheapest groups first."""
    by_name = {c.label: c for c in group}
    groups = noise.equal_cost({name: c.mult_adds for name, c in by_name.items()})
    return [sorted((by_name[name] for name in names), key=lambda c: -c.mean) for names in groups]


def _to_the_best(networks: Sequence[Configuration]) -> list[noise.Difference]:
    """Of each but the first, which has the highest mean, to the first: the truly best is called lower in 5 of 100 cases
    at most, though the first was picked by looking.

    Each is at one side of 0 with 1 - 0.05 / (k - 1). Source: Hsu, Constrained simultaneous confidence intervals for
    multiple comparisons with the best, Annals of Statistics 12 (1984), with Bonferroni's bound of Dunnett's t.
    """
    series, level = {c.label: results(c) for c in networks}, 2 * 0.05 / (len(networks) - 1)
    return [noise.difference(series, networks[0].label, c.label, level) for c in networks[1:]]


def _best(networks: Sequence[Configuration]) -> str:
    """The answer, in a sentence."""
    best, lower = networks[0], sum(d.verdict == "lower" for d in _to_the_best(networks))
    costs = [c.mult_adds / 1e6 for c in networks]
    return (
        f"At {min(costs):.2f} to {max(costs):.2f} M mult-adds the best of {len(networks)} is {best.label} "
        f"({percent(best)} %); {lower} of the others can be told apart from it."
    )


def _equal_cost(rivals: Sequence[Sequence[Configuration]], title: str, number: int) -> Table:
    rows = []
    for networks in rivals:
        beside = [("best", ""), *map(_beside, _to_the_best(networks))]
        for c, cells in zip(networks, beside, strict=True):
            cost, params = f"{c.mult_adds / 1e6:.2f}", f"{c.params / 1e6:.2f}"
            rows.append((cost, c.label, params, percent(c), str(c.n), *cells))
    header = ("mult-adds, M", "configuration", "params, M", "top-1, %", "n", "to the best of its cost", "verdict")
    note = " ".join(map(_best, rivals)) + (
        " Mult-adds of a group lie within 3 % of each other. A network is lower where its interval ends below 0: that "
        "befalls the truly best in at most 5 of 100 cases (multiple comparisons with the best, Hsu 1984)."
    )
    return Table(f"equal_cost_{number}", f"At equal cost: {title}", header, tuple(rows), note)


def _draw_rivals(groups: Sequence[Sequence[Configuration]]) -> Any:
    from mobilenet_jax.render import charts as figures

    return figures.rivals(
        [
            [
                figures.Rival(
                    f"{c.label} ({c.mult_adds / 1e6:.1f} M)",
                    c.identity["model.version"],
                    [100 * run.accuracy for run in c.runs],
                )
                for c in networks
            ]
            for networks in groups
        ]
    )


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
        tables = tuple(_one_series(s, f"{_file(key)}_{i}") for i, s in enumerate(several, 1))
        pictures = ()
        if key in _KNOBS:
            picture = Picture(
                f"over_{_file(key)}",
                f"Test top-1 over the {name}; bars: standard deviation over seeds",
                lambda several=several, name=name, key=key: _sweep(several, key, name),
            )
            pictures = (picture,)
        found.append(Section(f"Over {name}", pictures=pictures, tables=tables))
    return found


def _sweep(several: Sequence[Series], key: str, name: str) -> Any:
    from mobilenet_jax.render import charts as figures

    lines = {
        f"{s.label}, {s.configurations[0].epochs} epochs": [
            (c.identity[key], 100 * c.mean, None if c.sd is None else 100 * c.sd) for c in s.configurations
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
        for value in _by_value(s):
            if usual not in (None, value):
                d, needed = _difference(s, usual, value), _seeds_needed(s)
                change = f"{s.key.rpartition('.')[2]}: {usual} → {value}"
                rows.append((change, _of(s), str(d.n), *_beside(d), needed))
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
        f"itself. Last column: the seeds for each that would tell {100 * _RESOLVE:g} points apart, four times in five, "
        "and what that is at either end of the 95 % interval of the noise."
    )
    return Table("changes", "What each switch does", header, tuple(rows), note)


def _file(key: str) -> str:
    """The last part of a key as part of a file's name."""
    return re.sub(r"[^\w-]", "-", key.rpartition(".")[2])[:80]


def _one_series(s: Series, name: str) -> Table:
    """Each value beside the one before; of a switch, beside the usual one."""
    rows = []
    usual = _usual(s)
    beside = usual
    for value, c in _by_value(s).items():
        cells = _beside(_difference(s, beside, value)) if beside not in (None, value) else ("", "")
        rows.append((value, percent(c), str(c.n), f"{c.mult_adds / 1e6:.2f}", *cells))
        beside = usual or value
    header = (s.key, "top-1, %", "n", "mult-adds, M", f"to {usual or 'the row above'}, points", "verdict")
    note = (
        "Intervals: 95 %, paired by seed (but where it says not), with the noise of the whole series; each for itself."
    )
    if spread := noise.paired_sd(_results(s).values()):
        note += (
            f" Noise of a difference between two runs: {100 * spread.sd:.2f} points ({spread.df} degrees of freedom). "
            f"To resolve {100 * _RESOLVE:g} points: {_seeds_needed(s)} seeds each (in brackets: at either end of the "
            "95 % interval of that noise)."
        )
    title = f"{s.key.rpartition('.')[2]}: {_of(s)}"
    return Table(f"over_{name}", title, header, tuple(rows), note)


def _by_value(s: Series) -> dict[str, Configuration]:
    return {str(c.identity[s.key]): c for c in s.configurations}


def _usual(s: Series) -> str | None:
    """The value of a switch that the others are set beside; None of a number, whose values have an order."""
    if not all(isinstance(c.identity[s.key], bool | str) for c in s.configurations):
        return None
    by_value = _by_value(s)
    return str(_PLAIN[s.key]) if _PLAIN.get(s.key) in by_value else max(by_value, key=lambda value: by_value[value].n)


def _results(s: Series) -> dict[str, dict[int, float]]:
    return {value: results(c) for value, c in _by_value(s).items()}


def _difference(s: Series, a: str, b: str) -> noise.Difference:
    return noise.difference(_results(s), a, b)


def _seeds_needed(s: Series) -> str:
    """'91 (26 to 3,482)', '' where no seed repeats."""
    spread = noise.paired_sd(_results(s).values())
    if spread is None:
        return ""
    best, low, high = (noise.seeds_needed(sd, _RESOLVE) for sd in (spread.sd, *spread.interval()))
    return f"{best:,} ({low:,} to {high:,})"


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
                rows.append((c.label, percent(c), ours_loss, str(c.n), str(c.epochs), *theirs))
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
    """Loss and accuracy over the epochs of each configuration's first run, a few that train for as long to a figure."""
    alike: dict[tuple, list[Configuration]] = {}
    for c in configurations:
        if len(c.runs[0].epochs) > 1:
            alike.setdefault((c.dataset, c.identity["model.variant"], c.epochs), []).append(c)
    batches = [group[i : i + _CURVES] for group in alike.values() for i in range(0, len(group), _CURVES)]
    pictures = tuple(
        Picture(
            f"curves_{i}",
            "Accuracy and loss over the epochs, of the lowest seed: " + "; ".join(c.label for c in batch),
            lambda batch=batch: _draw_curves(batch),
        )
        for i, batch in enumerate(batches[:_FIGURES], 1)
    )
    left = sum(map(len, batches[_FIGURES:]))
    text = (f"{left} more configurations are not drawn: name fewer run directories to see theirs.",) if left else ()
    return [Section("Training curves", text, pictures)] if pictures else []


def _draw_curves(batch: Iterable[Configuration]) -> Any:
    from mobilenet_jax.render import charts as figures

    def curve(c: Configuration) -> figures.Curve:
        rows = [row for row in c.runs[0].epochs if row.get("test_accuracy") is not None]
        columns = ("epoch", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
        values = [[float("nan") if (v := row.get(key)) is None else v for row in rows] for key in columns]
        epochs, train_loss, test_loss, train, test = values
        return figures.Curve(epochs, train_loss, test_loss, *([100 * x for x in part] for part in (train, test)))

    return figures.curves({c.label: curve(c) for c in batch})
