"""Draw each kind of chart from plain numbers.

Nothing here opens a window or changes matplotlib's settings. Where a colour distinguishes things, a shape, a hatch or
a label does so too.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobilenet_jax.render import axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito (2008).
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
_LABELLED = 40  # lines of a figure: the labels of more would cover each other
GREY, PALE = "#666666", "#C4C4C4"  # for what is derived from the data

_VERSIONS = {"v1": (BLUE, "o"), "v2": (VERMILLION, "s")}  # colour, marker
_SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK)  # colours of what has no version
# Kind of layer, as in `arch.Layer`, or what v2's pointwise layers are for -> name, colour, marker, hatch.
_KINDS = {
    "conv": ("3x3 convolution", ORANGE, "o", "////"),
    "depthwise": ("3x3 depthwise", GREEN, "s", "...."),
    "expand": ("1x1 expand", BLUE, "v", "\\\\\\\\"),
    "project": ("1x1 project", YELLOW, "D", ""),
    "pointwise": ("1x1 pointwise", SKY, "^", ""),
    "head": ("1x1 head", VERMILLION, "<", "++"),
    "pool": ("pooling", BLACK, "x", "xxxx"),
    "dense": ("classifier", PURPLE, "P", "----"),
}


@dataclasses.dataclass(frozen=True)
class NetworkPoint:
    """A trained network: its cost and its top-1."""

    version: str  # 'v1' or 'v2'
    alpha: float  # width multiplier
    resolution: int  # pixels
    cost: float  # mult-adds or params, in millions
    top1: float  # %
    sd: float | None = None  # error bar in points: sd over seeds, or half an interval over images; None: no bar
    expansion: float | None = None  # ratio t of v2


@axes.styled()
def accuracy(
    points: Sequence[NetworkPoint], front: Sequence[NetworkPoint], x_label: str = "mult-adds (millions)"
) -> "Figure":
    """Draw top-1 (%) over cost (millions, log): one line per width multiplier and t, over the resolutions.

    Args:
      points: the networks.
      front: the networks on the Pareto front, by increasing cost. Their markers are filled.
      x_label: the name of the cost, with its unit.
    """
    lines: dict[tuple[str, float, float], list[NetworkPoint]] = {}
    for p in sorted(points, key=lambda p: (p.resolution, p.cost)):
        lines.setdefault((p.version, p.alpha, p.expansion or 0.0), []).append(p)
    mixed = len({p.sd is None for p in points}) == 2  # some of one seed, some of several
    figure = axes.new_figure(3.7)
    ax = figure.subplots()
    steps = [(b.cost, top1) for a, b in itertools.pairwise(front) for top1 in (a.top1, b.top1)]
    ax.plot(*zip((front[0].cost, front[0].top1), *steps, strict=True), color=PALE, lw=5, zorder=1.5)
    labels, named, best = [], set(), {*front}
    for (version, *knobs), line in sorted(lines.items()):
        colour, marker = _VERSIONS[version]
        ax.plot([p.cost for p in line], [p.top1 for p in line], color=colour, lw=0.9, zorder=2)
        looks: dict[tuple[str, float], list[NetworkPoint]] = {}  # fill and size of the markers
        for p in line:
            size = 3.5 if mixed and p.sd is None else 6
            looks.setdefault((colour if p in best else "white", size), []).append(p)
        for (fill, size), alike in looks.items():
            x, y = [p.cost for p in alike], [p.top1 for p in alike]
            ax.plot(x, y, marker, color=colour, mfc=fill, mew=1.1, ms=size, zorder=3)
        if several := [p for p in line if p.sd is not None]:
            bars = zip(*((p.cost, p.top1, p.sd) for p in several), strict=True)
            ax.errorbar(*bars, fmt="none", color=colour, capsize=3, zorder=2)
        # A label has the knobs in which the lines of this version differ; the width if they differ in none.
        alphas, ratios = ({key[i] for key in lines if key[0] == version} for i in (1, 2))
        texts = {}
        if len(alphas) > 1 or len(ratios) == 1:
            texts["width multiplier"] = f"{knobs[0]:g}"
        if len(ratios) > 1:
            texts["expansion ratio t"] = f"t {knobs[1]:g}"
        named |= {*texts}
        labels.append((" ".join(texts.values()), [(p.cost, p.top1) for p in (line[-1], line[0])], colour))
    for version in sorted({p.version for p in points}):
        colour, marker = _VERSIONS[version]
        ax.plot([], [], f"{marker}-", color=colour, lw=0.9, mfc="white", mew=1.1, label=f"MobileNet {version}")
    ax.plot([], [], "o-", color=PALE, lw=5, mec=BLACK, mfc=BLACK, label="filled: Pareto front")
    if mixed:
        ax.plot([], [], "o", color=BLACK, ms=3.5, mfc="white", mew=1.1, label="small: one seed")
    axes.log_axis(ax, "x", [p.cost for p in points])
    ax.set(xlabel=x_label, ylabel="top-1 (%)", ymargin=0.09)
    ax.autoscale_view()
    axes.top1_axis(ax, "y")
    resolutions = any(len({p.resolution for p in line}) > 1 for line in lines.values())
    names = " and ".join(sorted(named, reverse=True))
    few = len(labels) <= _LABELLED
    parts = [f"labels: {names}"] * few + ["along a line: resolution"] * resolutions
    axes.legend_above(figure, "; ".join(parts) or None)
    if few:
        axes.place_labels(ax, labels)
    return figure


@axes.styled()
def over_knob(lines: Mapping[str, Sequence[tuple[float, float, float | None]]], x_label: str) -> "Figure":
    """Draw top-1 (%) over one knob: one line per name, of (knob, top-1, its sd; None for one seed)."""
    figure = axes.new_figure(3.7)
    ax = figure.subplots()
    looks = itertools.cycle(zip(_SERIES, "osD^vP", strict=True))
    for (name, points), (colour, marker) in zip(lines.items(), looks, strict=False):
        line = [(x, top1) for x, top1, _ in sorted(points)]
        ax.plot(*zip(*line, strict=True), f"{marker}-", color=colour, lw=1.1, label=name)
        for x, top1, sd in points:
            if sd is None:
                ax.plot(x, top1, marker, color=colour, mfc="white", mew=1.1)
            else:
                ax.errorbar(x, top1, sd, fmt="none", color=colour, capsize=3)
    if any(sd is None for points in lines.values() for *_, sd in points):
        ax.plot([], [], "o", color=BLACK, mfc="white", mew=1.1, label="hollow: one seed")
    ax.set(xlabel=x_label, ylabel="top-1 (%)", xticks=sorted({x for points in lines.values() for x, _, _ in points}))
    axes.top1_axis(ax, "y")
    axes.legend_above(figure)
    return figure


@axes.styled()
def equal_cost(groups: Sequence[Sequence[tuple[str, str, Sequence[float]]]]) -> "Figure":
    """Draw top-1 (%) of networks of equal cost, from the top down: every seed, and a bar at the mean.

    Args:
      groups: lists of networks that cost the same. A network is (name, 'v1' or 'v2', top-1 of each seed).
    """
    places = [row + 0.6 * i for row, i in enumerate(i for i, group in enumerate(groups) for _ in group)]
    networks = [network for group in groups for network in group]
    figure = axes.new_figure(0.75 + 0.3 * (places[-1] + 1))
    ax = figure.subplots()
    for place, (_, version, top1) in zip(places, networks, strict=True):
        colour, marker = _VERSIONS[version]
        ax.plot(top1, [place] * len(top1), marker, color=colour, mfc="white", mew=1.1, ms=5)
        ax.plot([statistics.mean(top1)] * 2, [place - 0.32, place + 0.32], color=colour, lw=2.2)
    for version in sorted({version for _, version, _ in networks}):
        colour, marker = _VERSIONS[version]
        ax.plot([], [], marker, color=colour, mfc="white", mew=1.1, ms=5, label=f"MobileNet {version}, one seed")
    ax.plot([], [], "|", color=BLACK, ms=11, mew=2.2, label="mean")
    ax.set(xlabel="top-1 (%)", ylim=(places[-1] + 0.6, -0.6))
    ax.set_yticks(places, [name for name, *_ in networks])
    ax.tick_params(axis="y", length=0)
    axes.top1_axis(ax, "x")
    axes.legend_above(figure)
    return figure


@axes.styled()
def curves(runs: Mapping[str, Sequence[Mapping[str, float | None]]]) -> "Figure":
    """Draw accuracy (%) and loss (nats) over epochs, side by side: one colour per run, its training dashed.

    Args:
      runs: name -> one row per epoch, with the keys of `metrics.jsonl`. Accuracies are fractions.
    """
    figure = axes.new_figure(3.5)
    left, right = figure.subplots(1, 2)
    keys = {"epoch": 1, "train_accuracy": 100, "test_accuracy": 100, "train_loss": 1, "test_loss": 1}
    for (name, rows), colour in zip(runs.items(), itertools.cycle(_SERIES), strict=False):
        cells = {key: [row.get(key) for row in rows] for key in keys}
        run = {key: [math.nan if x is None else keys[key] * x for x in column] for key, column in cells.items()}
        left.plot(run["epoch"], run["train_accuracy"], "--", color=colour, lw=1.1)
        left.plot(run["epoch"], run["test_accuracy"], "-", color=colour, lw=1.6, label=name)
        right.plot(run["epoch"], run["train_loss"], "--", color=colour, lw=1.1)
        right.plot(run["epoch"], run["test_loss"], "-", color=colour, lw=1.6)
    for ax in (left, right):
        ax.locator_params(axis="x", integer=True)
    left.set(xlabel="epoch", ylabel="accuracy (%)")
    right.set(xlabel="epoch", ylabel="loss (nats)")
    axes.legend_above(figure, "solid: test images; dashed: training images, during the epoch")
    return figure


@axes.styled()
def mult_adds_by_kind(networks: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw the share of each kind of layer in the mult-adds: one bar per network, from the top down, with its total.

    Args:
      networks: name -> kind of layer (a key of `_KINDS`) -> mult-adds.
    """
    figure = axes.new_figure(0.75 + 0.3 * len(networks))
    ax = figure.subplots()
    totals = [sum(parts.values()) for parts in networks.values()]
    starts = [0.0] * len(networks)
    for kind, (name, colour, _, hatch) in _KINDS.items():
        shares = [100 * parts.get(kind, 0) / total for parts, total in zip(networks.values(), totals, strict=True)]
        if not any(shares):
            continue
        look = {"color": colour, "hatch": hatch, "ec": "white", "lw": 0.8}
        bars = ax.barh(range(len(networks)), shares, 0.72, starts, label=name, **look)
        texts = [f"{share:.0f}" if share >= 5 else "" for share in shares]
        for text in ax.bar_label(bars, texts, label_type="center"):
            text.set_bbox({"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.85})
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    for row, total in enumerate(totals):
        ax.annotate(f"{total / 1e6:.1f} M", (100, row), (58, 0), textcoords="offset points", ha="right", va="center")
    ax.set(xlabel="share of mult-adds (%); total at the right", xlim=(0, 100), ylim=(len(networks) - 0.5, -0.5))
    ax.set_yticks(range(len(networks)), list(networks))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    axes.legend_above(figure)
    return figure


@axes.styled()
def activation_memory(networks: Mapping[str, Sequence[Sequence[float]]]) -> "Figure":
    """Draw the memory for activations (kB) along the layers: one panel per network, on one scale.

    The space between all tensors and bottlenecks only is what v2 saves if nothing else is kept in memory (v2 paper,
    section 5.1).

    Args:
      networks: name -> kB at each layer: of all tensors, and of the bottlenecks only where a network has some.
    """
    figure = axes.new_figure(4.0)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    looks = ((SKY, "", "bottom", "all tensors"), (VERMILLION, "////", "top", "bottlenecks only"))
    for ax, (title, held) in zip(panels, networks.items(), strict=True):
        edges = [i + 0.5 for i in range(len(held[0]) + 1)]
        for values, (colour, hatch, side, _) in zip(held, looks, strict=False):
            ax.stairs(values, edges, fill=True, fc=colour, ec="white", hatch=hatch, lw=0)
            ax.stairs(values, edges, color=BLACK, lw=0.8)
            peak = max(values)
            ax.plot([values.index(peak) + 1, edges[-1]], [peak, peak], ":", color=BLACK, lw=1)
            place = {"xytext": (0, 2 if side == "bottom" else -3), "textcoords": "offset points"}
            ax.annotate(f"peak {peak:.0f} kB", (edges[-1], peak), ha="right", va=side, **place)
        ax.set(title=title, xlabel="layer", xlim=(edges[0], edges[-1]))
        ax.grid(visible=False, axis="x")
    for colour, hatch, _, name in looks:
        panels[0].fill_between([], [], [], fc=colour, ec="white", hatch=hatch, lw=0, label=name)
    tallest = max(max(tensors) for tensors, *_ in networks.values())
    panels[0].set(ylabel="activations, 16 bits each (kB)", ylim=(0, 1.12 * tallest))
    axes.legend_above(figure)
    return figure


@axes.styled()
def latency(
    lines: Mapping[tuple[str, int], Sequence[tuple[float, float, float]]], y_label: str = "measured time per image (ms)"
) -> "Figure":
    """Draw milliseconds per image over mult-adds (both log): one line per version and batch, labelled with alpha.

    All networks would lie on the grey line, which has the rate of the fastest, if mult-adds determined the time.

    Args:
      lines: (version, batch) -> networks: alpha, mult-adds of one image in millions, milliseconds per image.
      y_label: the name of the time, with its unit.
    """
    figure = axes.new_figure(3.7)
    ax = figure.subplots()
    batches = sorted({batch for _, batch in lines})
    labels, costs, times = [], [], []
    for (version, batch), networks in sorted(lines.items()):
        (colour, marker), rank = _VERSIONS[version], batches.index(batch)
        alphas, x, y = zip(*sorted(networks, key=lambda network: network[1]), strict=True)
        look = {"ls": ("-", "--", ":", "-.")[rank % 4], "mfc": "white" if rank % 2 else colour, "lw": 1.1}
        ax.plot(x, y, marker=marker, color=colour, label=f"{version}, batch {batch}", **look)
        labels += [(f"{alpha:g}", [place], colour) for alpha, *place in zip(alphas, x, y, strict=True)]
        costs += x
        times += y
    rate = max(cost / time for cost, time in zip(costs, times, strict=True))  # millions per ms: billions per second
    axes.log_axis(ax, "x", costs)
    axes.log_axis(ax, "y", times, inches=3)
    ends = ax.get_xlim()
    ax.plot(ends, [end / rate for end in ends], color=GREY, lw=1.1, zorder=1.5, label=f"{rate:.3g} G mult-adds/s")
    ax.set(xlabel="mult-adds (millions)", ylabel=y_label)
    axes.legend_above(figure, "labels: width multiplier; grey: the highest rate of them")
    axes.place_labels(ax, labels)
    return figure


@axes.styled()
def predicted(layers: Mapping[str, Sequence[tuple[float, float]]]) -> "Figure":
    """Draw predicted over measured time of each layer (microseconds, log-log), with the diagonal and a factor of 2.

    Args:
      layers: kind of layer (a key of `_KINDS`) -> measured and predicted microseconds.
    """
    figure = axes.new_figure(3.8)
    ax = figure.subplots()
    points = [point for of_kind in layers.values() for point in of_kind]
    times = [time for point in points for time in point]
    axes.log_axis(ax, "x", times, inches=2.8)
    axes.log_axis(ax, "y", times, inches=2.8)
    for kind, (name, colour, marker, _) in _KINDS.items():
        if kind in layers:
            ax.plot(*zip(*layers[kind], strict=True), marker, color=colour, mec=BLACK, mew=0.5, label=name)
    ends = ax.get_xlim()
    near = sum(0.5 <= predicted / measured <= 2 for measured, predicted in points)
    band = f"within a factor of 2\n({near} of {len(points)} layers)"
    ax.plot(ends, ends, color=GREY, lw=1.1, zorder=1.5, label="predicted = measured")
    low, high = ([factor * end for end in ends] for factor in (0.5, 2))
    ax.fill_between(ends, low, high, color=GREY, alpha=0.15, lw=0, zorder=1, label=band)
    ax.set(xlabel="measured time (µs)", ylabel="predicted time (µs)")
    figure.legend(loc="outside right upper")
    return figure
