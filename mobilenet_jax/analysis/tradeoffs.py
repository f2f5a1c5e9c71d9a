"""Accuracy against cost: curves, log-linear fits, points per doubling, networks of equal cost; as report sections.

Only configurations of one data set and recipe are compared: other epochs, other rates or other images are another
experiment.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from mobilenet_jax.analysis import ablations, answer, data, next_to_papers, points
from mobilenet_jax.analysis.ablations import difference_cells
from mobilenet_jax.analysis.configurations import (
    PAPER_CHOICES,
    Configuration,
    Series,
    configurations_table,
    find_series,
    recipes_table,
    setting_text,
    trials_table,
)
from mobilenet_jax.analysis.latency import MeasuredNetwork
from mobilenet_jax.analysis.statistics import Difference, Fit, difference, fit, group_by_cost, pareto
from mobilenet_jax.records.collect import Problem, problems_table
from mobilenet_jax.records.identity import KNOB_NAMES
from mobilenet_jax.render import charts
from mobilenet_jax.render.tables import Page, Picture, Section, Table

_NETWORK = ("model.version", *KNOB_NAMES)  # keys that may differ among comparable configurations
_CURVES = 6  # runs in a figure of curves: more are hard to distinguish
_FIGURES = 8  # groups with figures, and figures of curves
_DRAWN = 40  # networks in a figure of equal cost; the table has all


def page(
    configurations: Sequence[Configuration],
    problems: Sequence[Problem],
    measured: Iterable[MeasuredNetwork] = (),
    official: Sequence[dict[str, Any]] = (),
) -> Page:
    """Return the report of runs. It leads with the answer, and ends with the recipes.

    Runs with held-out images choose a recipe. They have a table of their own if there are other runs.

    Args:
      configurations: what the runs are, by `group_runs`.
      problems: what is wrong with the others.
      measured: networks whose inference time is known, for the interactive figure.
      official: points of official networks, for the same.
    """
    everything = configurations
    trials = [c for c in configurations if c.identity.get("data.holdout")]
    configurations = [c for c in configurations if not c.identity.get("data.holdout")] or trials
    all_series, groups = find_series(configurations), comparable(configurations)
    longest = sorted(configurations, key=lambda c: (c.summary.epochs, c.mean))[-1:]
    main = max(groups, key=lambda pair: len(pair[1]), default=(_title(*longest), longest))
    groups.sort(key=lambda pair: pair[1] is not main[1])  # the main group first
    rivals = [_rivals(group) for _, group in groups]
    titled = [(title, of_group) for (title, _), of_group in zip(groups, rivals, strict=True)]
    text = answer.sentences(configurations, *main, all_series, titled)
    found = [Section("", text, pictures=(_picture(main[1], main[0], "mult_adds", 1),) if configurations else ())]
    if configurations and not groups:
        text = "No accuracy against cost: no two differ only in version, width, resolution or t."
        found.append(Section("Accuracy against cost", (text,)))
    drawn = sorted(range(len(groups)), key=lambda i: -len(groups[i][1]))[:_FIGURES]
    for i, ((title, group), of_group) in enumerate(zip(groups, rivals, strict=True)):
        found.append(_accuracy_against_cost(group, title, of_group, i + 1, i in drawn))
    if changes := ablations.changes_table(all_series):
        found.append(Section("One change at a time", tables=(changes,)))
    if doublings := doublings_table(all_series):
        found.append(Section("Knob by knob", tables=(doublings,)))
    found += ablations.sections(all_series)
    found += next_to_papers.sections(configurations, groups, all_series)
    found += _training_curves(configurations)
    if problems:
        found.append(Section("Left out, or counted in part", tables=(problems_table(problems),)))
    tables = (configurations_table(configurations),) if configurations else ()
    found.append(Section("Configurations", tables=tables, data=data.tables(everything)))
    if trials:
        found.append(Section("Trials on held-out images", tables=(trials_table(trials),)))
    if configurations:
        found.append(Section("Recipes", tables=(recipes_table(configurations),)))
    figure = points.interactive(configurations, all_series, measured, official, main[1][0]) if configurations else None
    return Page("runs", "How much accuracy does a multiply-add buy?", found, figure)


def comparable(configurations: Iterable[Configuration]) -> list[tuple[str, list[Configuration]]]:
    """Return groups that differ in cost, and only in version, width, resolution and expansion ratio, with titles.

    A title has data set, epochs, batch size, optimiser, variant, and settings in which groups of the same title differ.
    """
    groups: dict[tuple[Any, ...], list[Configuration]] = {}
    for c in configurations:
        same = {k: v for k, v in c.identity.items() if k not in _NETWORK and PAPER_CHOICES.get(k) != v}
        groups.setdefault(tuple(sorted(same.items(), key=str)), []).append(c)
    titled = [(_title(group[0]), group) for group in groups.values() if len({c.mult_adds for c in group}) > 1]
    found = []
    for title, group in titled:
        identity, alike = group[0].identity, [other[0].identity for name, other in titled if name == title]
        differ = [k for k in identity if k not in _NETWORK and len({other.get(k, "") for other in alike}) > 1]
        found.append((", ".join([title, *(setting_text(k, identity[k]) for k in differ)]), group))
    return found


def doublings_table(all_series: Sequence[Series]) -> Table | None:
    """Return the points of top-1 per doubling of the mult-adds by one knob: one row per series with a fit.

    None without such a series.
    """
    rows = []
    for s in all_series:
        costs = [c.mult_adds for c in s.on_line]
        if s.key in KNOB_NAMES and (line := fit([(c.mult_adds, c.accuracies) for c in s.on_line])):
            low, *_, high = (f"{c.identity[s.key]:g}" for c in s.on_line)
            knob = f"{KNOB_NAMES[s.key]}, {low} to {high}"
            span = f"{min(costs) / 1e6:.2f} to {max(costs) / 1e6:.2f}"
            rows.append((knob, s.title, span, str(len(costs)), _slope(line), f"{100 * line.residual_sd:.2f}"))
    if not rows:
        return None
    header = ("knob", "network", "mult-adds, M", "configurations", "points per doubling", "off the line, points")
    note = (
        "Least squares of top-1 on the logarithm of the mult-adds, with 95 % intervals from the scatter around the "
        "line. Last column: standard deviation of the configurations around the line. Networks with t = 1 are left "
        "out: they have fewer layers. Slopes over different mult-adds do not compare, because a doubling gains less at "
        "a higher cost: compare networks of equal cost instead."
    )
    return Table("doublings", "Top-1 gained per doubling of the mult-adds", header, tuple(rows), note)


def compare_with_best(networks: Sequence[Configuration], group: Sequence[Configuration]) -> list[Difference]:
    """Return the difference of each network but the first to the first, by Hsu's multiple comparisons with the best.

    The truly best network is called lower in at most 5 % of cases, although the first was chosen by its result. Each
    one-sided comparison has level 0.05 / (k - 1): Bonferroni's bound of Dunnett's t. Source: Hsu, Constrained
    simultaneous confidence intervals for multiple comparisons with the best, Annals of Statistics 12 (1984).

    Args:
      networks: k configurations, the highest mean first.
      group: comparable configurations, these among them. If no seed repeats among the networks, the noise of a run is
        that of the whole group, which assumes that it does not depend on the cost.
    """
    noisy = networks if any(len(c.accuracies) > 1 for c in networks) else group
    series, level = {c.label: c.accuracies for c in noisy}, 2 * 0.05 / (len(networks) - 1)
    return [difference(series, networks[0].label, c.label, level) for c in networks[1:]]


def _title(c: Configuration | None = None) -> str:
    if c is None:
        return ""
    batch, variant = c.identity.get("train.batch_size"), c.identity["model.variant"]
    parts = [f"{c.summary.dataset}, {c.summary.epochs} epochs", batch and f"batch {batch}", c.optimizer]
    return ", ".join(filter(None, [*parts, variant if variant != "paper" else ""]))


def _picture(group: Sequence[Configuration], title: str, count: str, number: int) -> Picture:
    """Return top-1 against a count, 'mult_adds' or 'params'."""
    seeds = "bars: standard deviation over seeds" if any(c.n > 1 for c in group) else "one seed each"
    drawn = [
        charts.NetworkPoint(
            version=c.identity["model.version"],
            alpha=c.identity["model.alpha"],
            resolution=c.summary.resolution,
            cost=getattr(c.summary, count) / 1e6,
            top1=100 * c.mean,
            sd=None if c.sd is None else 100 * c.sd,
            expansion=c.identity["model.expansion"],
        )
        for c in group
    ]
    label = {"mult_adds": "mult-adds (millions)", "params": "trainable params (millions)"}[count]
    draw = functools.partial(charts.accuracy, drawn, pareto(drawn, lambda p: p.cost, lambda p: p.top1), label)
    caption = f"Test top-1 against {count.replace('_', '-')}: {title}; {seeds}"
    return Picture(f"accuracy_{count}_{number}", caption, draw)


def _rivals(group: Sequence[Configuration]) -> list[answer.Rivals]:
    """Return the networks of equal cost in each part of a group, the best first, and the differences to it."""
    equal = [sorted(rivals, key=lambda c: -c.mean) for rivals in group_by_cost(group, lambda c: c.mult_adds)]
    return [(networks, compare_with_best(networks, group)) for networks in equal]


def _accuracy_against_cost(
    group: Sequence[Configuration], title: str, rivals: Sequence[answer.Rivals], number: int, drawn: bool
) -> Section:
    counts = ("mult_adds", "params")[number == 1 :]  # the first group's other figure leads the page
    pictures = [_picture(group, title, count, number) for count in counts if drawn]
    tables = _fit_tables(group, title, number)
    equal = [networks for networks, _ in rivals]
    if equal:
        tables.append(_equal_cost_table(rivals, title, number))
    if drawn and 0 < sum(map(len, equal)) <= _DRAWN:
        names = {c: f"{c.label} ({c.mult_adds / 1e6:.1f} M)" for rivals in equal for c in rivals}
        top1 = {c: [100 * accuracy for accuracy in c.accuracies.values()] for c in names}
        networks = [[(names[c], c.identity["model.version"], top1[c]) for c in rivals] for rivals in equal]
        caption = f"At equal cost, top-1 of every seed: {title}"
        pictures.append(Picture(f"equal_cost_{number}", caption, functools.partial(charts.equal_cost, networks)))
    text = () if drawn else (f"Without figures: only the {_FIGURES} largest groups have them.",)
    return Section(f"Accuracy against cost: {title}", text, tuple(pictures), tuple(tables))


def _fit_tables(group: Sequence[Configuration], title: str, number: int) -> list[Table]:
    """Return the log-linear fit of each version that has one."""
    found = []
    header = ("configuration", "mult-adds, M", "top-1, %", "on the line, %", "residual, points")
    for version in sorted({c.identity["model.version"] for c in group}):
        fitted = [c for c in group if c.identity["model.version"] == version]
        if not (line := fit([(c.mult_adds, c.accuracies) for c in fitted])):
            continue
        rows = tuple(
            (c.label, f"{c.mult_adds / 1e6:.2f}", c.percent, f"{100 * (c.mean - r):.2f}", f"{100 * r:+.2f}")
            for c, r in zip(fitted, line.residuals, strict=True)
        )
        note = (
            f"Top-1 grows by {_slope(line)} points per doubling of the mult-adds (least squares, 95 % interval from "
            f"the scatter, R² {line.r_squared:.3f}). The networks lie {100 * line.residual_sd:.2f} points off the line "
            "(standard deviation). Residuals of one sign at an end mean that the relation is not log-linear there."
        )
        found.append(Table(f"fit_{version}_{number}", f"Log-linear fit, {version}: {title}", header, rows, note))
    return found


def _slope(line: Fit) -> str:
    """Return the points per doubling with their interval: '2.13 [1.71, 2.55]'."""
    assert line.slope.interval  # there are three costs
    low, high = line.slope.interval
    return f"{100 * line.slope.value:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _equal_cost_table(groups: Sequence[answer.Rivals], title: str, number: int) -> Table:
    rows, answers = [], []
    for networks, differences in groups:
        best = networks[0]
        for c, cells in zip(networks, [("best", ""), *map(difference_cells, differences)], strict=True):
            cost, params = f"{c.mult_adds / 1e6:.2f}", f"{c.summary.params / 1e6:.2f}"
            rows.append((cost, c.label, params, c.percent, str(c.n), *cells))
        costs, lower = [c.mult_adds / 1e6 for c in networks], sum(d.verdict == "lower" for d in differences)
        answers.append(
            f"At {min(costs):.2f} to {max(costs):.2f} M mult-adds the best of {len(networks)} is {best.label} "
            f"({best.percent} %); {lower} of the others {'is' if lower == 1 else 'are'} lower."
        )
    header = ("mult-adds, M", "configuration", "params, M", "top-1, %", "n", "vs the best, points", "verdict")
    note = (
        "The mult-adds of a group lie within 3 % of each other. A network is lower if its interval ends below 0, which "
        "happens to the truly best one in at most 5 of 100 cases (multiple comparisons with the best, Hsu 1984) if the "
        "noise is the same in all of a group. Where no seed repeats in a group, the noise is that of the others."
    )
    return Table(f"equal_cost_{number}", f"At equal cost: {title}", header, tuple(rows), " ".join([*answers, note]))


def _training_curves(configurations: Sequence[Configuration]) -> list[Section]:
    """Return loss and accuracy over the epochs of each configuration's lowest seed, by number of epochs."""
    alike: dict[tuple[Any, ...], list[Configuration]] = {}
    for c in configurations:
        if len(c.runs[0].epochs) > 1:
            alike.setdefault((c.summary.dataset, c.identity["model.variant"], c.summary.epochs), []).append(c)
    batches = [group[i : i + _CURVES] for group in alike.values() for i in range(0, len(group), _CURVES)]
    pictures = []
    for i, batch in enumerate(batches[:_FIGURES], 1):
        curves = {c.label: [row for row in c.runs[0].epochs if row.get("test_accuracy") is not None] for c in batch}
        caption = f"Accuracy and loss over the epochs, of the lowest seed: {'; '.join(curves)}"
        pictures.append(Picture(f"curves_{i}", caption, functools.partial(charts.curves, curves)))
    left = sum(map(len, batches[_FIGURES:]))
    text = (f"{left} more configurations are not drawn: name fewer run directories to see theirs.",) if left else ()
    return [Section("Training curves", text, tuple(pictures))] if pictures else []
