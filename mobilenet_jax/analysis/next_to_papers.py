"""Our accuracies next to the papers': width and resolution, what the v2 paper finds, and CIFAR-10."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.analysis.ablations import difference_cells
from mobilenet_jax.analysis.configurations import PAPER_CHOICES, Configuration, Series, setting_name
from mobilenet_jax.analysis.statistics import difference, mean_slope
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.papers import printed
from mobilenet_jax.records.identity import KNOB_NAMES, KNOBS
from mobilenet_jax.render.tables import Section, Table

_Point = tuple[float, float]  # alpha, rho
_Cells = dict[_Point, tuple[int, float, int]]  # mult-adds, top-1 (a fraction), number of runs
_AXES = ("model.alpha", "model.rho")
_SOURCES = {"v1 paper": "Tables 6 and 7, on ImageNet", "TF-slim": "released networks, on ImageNet"}
_LINE = 3  # configurations on one line along an axis, at least
_LONG = 50  # epochs from which a run stands next to a published one of another width


def sections(
    configurations: Sequence[Configuration],
    groups: Iterable[tuple[str, Sequence[Configuration]]],
    all_series: Sequence[Series],
) -> list[Section]:
    """Return the sections for which there are runs.

    Args:
      configurations: all of them.
      groups: comparable ones, with titles.
      all_series: configurations that differ in one key.
    """
    found = [
        Section("Width and resolution, next to published ones", tables=_grids(groups)),
        Section("Findings of the v2 paper", tables=_findings(all_series)),
        Section("Next to published accuracies", tables=_cifar10(configurations)),
    ]
    return [section for section in found if section.tables]


def _grids(groups: Iterable[tuple[str, Sequence[Configuration]]]) -> tuple[Table, ...]:
    """Return two tables for each grid of α and ρ, the largest first: top-1, and the points lost per halving."""
    grids = []
    for title, group in groups:
        networks: dict[Any, dict[_Point, Configuration]] = {}
        for c in group:
            network = c.identity["model.version"], c.identity["model.expansion"]
            networks.setdefault(network, {})[c.identity["model.alpha"], c.identity["model.rho"]] = c
        for (version, t), cells in networks.items():
            if all(any(len(line) >= _LINE for line in _lines(cells, axis).values()) for axis in (0, 1)):
                name = f"{version} t {t:g}" if t else version
                grids.append((f"{name}, {title}", cells, _published(next(iter(cells.values())))))
    grids.sort(key=lambda grid: -len(grid[1]))
    return tuple(
        table
        for i, (title, ours, theirs) in enumerate(grids, 1)
        for table in (_matrix(f"alpha_rho_{i}", title, ours, theirs), _halvings(f"halvings_{i}", title, ours, theirs))
    )


def _published(c: Configuration) -> dict[str, _Cells]:
    """Return published ImageNet accuracies of a configuration's kind of network over α and ρ, by source."""
    version, expansion = c.identity["model.version"], c.identity["model.expansion"]
    if {k: c.identity.get(k, v) for k, v in PAPER_CHOICES.items()} != PAPER_CHOICES or expansion not in (None, 6):
        return {}
    sources = {"TF-slim": printed.rows(f"slim_{version}")}
    if version == "v1":
        paper = [row for row in printed.rows("paper_v1") if row["table"] in ("6", "7")]
        sources = {"v1 paper": paper, **sources}
    found: dict[str, _Cells] = {}
    for source, rows in sources.items():
        for row in rows:
            alpha, resolution = float(row["alpha"]), int(row["resolution"])
            cost = totals(arch.mobilenet(version, alpha), resolution).mult_adds
            found.setdefault(source, {})[alpha, round(resolution / 224, 3)] = cost, float(row["top1"]) / 100, 1
    return found


def _lines(points: Iterable[_Point], axis: int) -> dict[float, list[_Point]]:
    """Return the points along an axis (0: α, 1: ρ) by the value of the other, in order."""
    found: dict[float, list[_Point]] = {}
    for point in sorted(points):
        found.setdefault(point[1 - axis], []).append(point)
    return found


def _matrix(name: str, title: str, ours: Mapping[_Point, Configuration], theirs: Mapping[str, _Cells]) -> Table:
    """Return top-1 over α (rows) and ρ (columns), each row of ours above the published ones."""
    alphas, rhos = (sorted({point[axis] for point in ours}, reverse=True) for axis in (0, 1))
    rows = []
    for alpha in alphas:
        texts = (f"{c.percent} ({c.n})" if (c := ours.get((alpha, rho))) else "" for rho in rhos)
        rows.append((f"{alpha:g}", "ours", *texts))
        for source, cells in theirs.items():
            published = [f"{100 * cells[alpha, rho][1]:.1f}" if (alpha, rho) in cells else "" for rho in rhos]
            rows += [(f"{alpha:g}", source, *published)] if any(published) else []
    header = ("α", "whose", *(f"ρ {rho:g}" for rho in rhos))
    sources = "".join(f"{source}: {_SOURCES[source]}. " for source in theirs)
    note = f"In brackets: seeds. {sources}An empty cell has no run, or nothing is printed. {_steps(ours)}"
    return Table(name, f"Top-1 over width and resolution, %: {title}", header, tuple(rows), note)


def _steps(ours: Mapping[_Point, Configuration]) -> str:
    """Return how many steps to a larger α or ρ raise top-1, and name those that do not, or not clearly."""
    pairs = [pair for axis in (0, 1) for line in _lines(ours, axis).values() for pair in itertools.pairwise(line)]
    series = {point: c.accuracies for point, c in ours.items()}
    found = [(a, b, difference(series, a, b)) for a, b in pairs]
    named = [
        f"{ours[a].label} → {ours[b].label}: {', '.join(difference_cells(d))}"
        for a, b, d in found
        if d.mean <= 0 or d.verdict == "no clear difference"
    ]
    raised = sum(d.mean > 0 for *_, d in found)
    text = f"Of {len(found)} steps to the next larger α or ρ, {raised} raise top-1."
    return f"{text} Not, or not clearly: {'; '.join(named)}." if named else text


def _halvings(name: str, title: str, ours: Mapping[_Point, Configuration], theirs: Mapping[str, _Cells]) -> Table:
    """Return the points lost per halving of the mult-adds along each line of the grid, and the mean of all lines."""
    sources = {"ours": {point: (c.mult_adds, c.mean, c.n) for point, c in ours.items()}}
    for source, cells in theirs.items():
        grid = [{point[axis] for point in ours} for axis in (0, 1)]
        sources[source] = {p: cell for p, cell in cells.items() if p[0] in grid[0] and p[1] in grid[1]}
    rows = []
    for axis, key in enumerate(_AXES):
        other = KNOBS[_AXES[1 - axis]]
        lines = {source: _lines(cells, axis) for source, cells in sources.items()}
        values = sorted({at for of_source in lines.values() for at in of_source}, reverse=True)
        for label, among in ((f"all {other}", values), *((f"{other} {at:g}", [at]) for at in values)):
            texts = []
            for source, cells in sources.items():
                found = [[cells[point] for point in lines[source].get(at, ())] for at in among]
                texts.append(_slope([line for line in found if len(line) >= _LINE]))
            rows.append((KNOB_NAMES[key], label, *texts))
    header = ("along", "at", *sources)
    note = (
        "Least squares of top-1 on the logarithm of the mult-adds, with 95 % intervals from the scatter around a line. "
        "In brackets: networks, three or more on each line. All: the mean of the lines' slopes, with a 95 % interval "
        "from their differences if there are several. Data set, epochs and mult-adds are not those of the published "
        "networks: compare the shape, not the size."
    )
    return Table(name, f"Points of top-1 lost per halving of the mult-adds: {title}", header, tuple(rows), note)


def _slope(lines: Iterable[Sequence[tuple[int, float, int]]]) -> str:
    """Return '7.02 [5.10, 8.94] (4)', or '' without a line."""
    slope = mean_slope(lines)
    if slope is None:
        return ""
    interval = f" [{100 * slope.interval[0]:.2f}, {100 * slope.interval[1]:.2f}]" if slope.interval else ""
    return f"{100 * slope.value:.2f}{interval} ({slope.n})"


def _findings(all_series: Sequence[Series]) -> tuple[Table, ...]:
    """Return what the v2 paper says of a change, next to the same change in our runs."""
    rows = []
    for row in printed.rows("v2_findings"):
        reference, value = row["reference"], row["value"]
        change, theirs = f"{setting_name(row['key'])}: {reference} → {value}", (row["finding"], row["where"])
        found = [s for s in all_series if s.key == row["key"] and {reference, value} <= s.by_value.keys()]
        for s in found:
            d = difference(s.accuracies, reference, value)
            rows.append((change, *theirs, s.title, str(d.n), *difference_cells(d)))
        if not found:
            rows.append((change, *theirs, "", "", "", "no runs"))
    if all(verdict == "no runs" for *_, verdict in rows):
        return ()
    header = ("change", "v2 paper, ImageNet", "where", "our network", "seeds in both", "ours, points", "verdict")
    note = (
        "The paper prints no accuracy for these changes: Figure 6 is a plot. The 95 % confidence intervals are those "
        "of the tables of each setting. Bottlenecks and shortcuts change no mult-adds, and a larger t adds some."
    )
    return (Table("v2_findings", "What the v2 paper finds, and our runs", header, tuple(rows), note),)


def _cifar10(configurations: Sequence[Configuration]) -> tuple[Table, ...]:
    """Return the published CIFAR-10 accuracies of networks with the same layers, next to ours.

    A long run of a network without a published figure stands next to the v1 and the v2 with the nearest mult-adds.
    """
    rows, known = [], [(row, _published_cost(row)) for row in printed.rows("cifar10")]
    for c in configurations:
        if c.summary.dataset != "cifar10":
            continue
        alike = [(row, cost) for row, cost in known if _matches(c.identity, row)]
        same = c.identity["model.version"], c.identity["model.alpha"], c.mult_adds
        found = [(row, cost) for row, cost in alike if (row["version"], float(row["alpha"]), cost) == same]
        long = c.summary.epochs >= _LONG and c.identity.get("model.strides") == "cifar"
        if not found and long:
            found = [pair for version in arch.VERSIONS for pair in _nearest(alike, version, c.mult_adds)]
        losses = [run.summary.test_loss for run in c.runs if run.summary.test_loss is not None]
        loss = f"{statistics.mean(losses):.2f}" if len(losses) == c.n else ""
        for row, cost in found:
            kind = f"{row['version']} α {float(row['alpha']):g}{', cifar28' * (row['variant'] == 'cifar28')}"
            columns = ("top1", "loss", "which", "epochs", "source")
            theirs = (f"{kind}, {cost / 1e6:.1f} M", *(row[column] for column in columns))
            ours = (f"{c.label}, {c.mult_adds / 1e6:.1f} M", c.percent, loss, str(c.n), str(c.summary.epochs))
            rows.append((*ours, *theirs))
    if not rows:
        return ()
    header = ("ours", "top-1, %", "loss", "n", "epochs", "theirs", "top-1, %", "loss", "which", "epochs", "source")
    note = (
        "M: millions of mult-adds. The data set is the same, and so are the layers where the mult-adds are equal. A "
        f"network without a published figure stands next to the nearest v1 and v2 if it was trained for {_LONG} epochs "
        "or more. Epochs, recipe and augmentation differ, and a best epoch is chosen on the test set. Therefore the "
        "figures do not show the published points."
    )
    return (Table("published_cifar10", "CIFAR-10: ours next to published", header, tuple(rows), note),)


def _nearest(rows: Iterable[tuple[Mapping[str, str], int]], version: str, mult_adds: int) -> list[Any]:
    """Return the rows of the published network of a version that is the nearest in mult-adds; [] without any."""
    found = [(row, cost) for row, cost in rows if row["version"] == version]
    nearest = min((cost for _, cost in found), key=lambda cost: abs(math.log(cost / mult_adds)), default=0)
    return [(row, cost) for row, cost in found if cost == nearest]


def _published_cost(row: Mapping[str, str]) -> int:
    """Return the mult-adds of a published network."""
    variant = {"variant": row["variant"]} if row["version"] == "v1" else {}
    network = arch.mobilenet(row["version"], float(row["alpha"]), num_classes=10, strides="cifar", **variant)
    return totals(network, int(row["resolution"])).mult_adds


def _matches(identity: dict[str, Any], row: Mapping[str, str]) -> bool:
    """Return whether the published network is of our kind, perhaps of another version, width or resolution."""
    theirs = PAPER_CHOICES | {"model.variant": row["variant"]}
    return all(identity.get(key, PAPER_CHOICES[key]) == value for key, value in theirs.items())
