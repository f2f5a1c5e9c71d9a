"""The plots of the reports, from plain numbers: PNG and SVG.

Every function takes numbers and returns a `Figure`; nothing here opens a window or changes matplotlib's settings.
Colours are those of Okabe and Ito (2008); what a colour tells apart, a shape, a hatch or a label tells apart too.
"""

import dataclasses
import io
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#666666", "#C4C4C4"  # for what is derived from the data

_FAMILIES = {"v1": (BLUE, "o"), "v2": (VERMILLION, "s")}  # colour, marker
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
_POINTS = 2.0  # of top-1, that an axis shows at least: differences of single runs below are noise
_WIDTH = 6.4  # inches, of every figure: twice a column, so that it can be read at half its size
_STYLE = {
    **{"axes.axisbelow": True, "axes.labelsize": 12, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "hatch.linewidth": 0.6, "font.size": 11},
    **{"legend.borderaxespad": 0, "legend.columnspacing": 1.4, "legend.frameon": False, "legend.handletextpad": 0.5},
    "text.parse_math": False,  # a label may hold whatever a record does
    **{"svg.fonttype": "none", "svg.hashsalt": "mobilenet_jax"},  # text stays text; the same ids every time
}
# Matplotlib's defaults and ours while a function runs, whatever the user's settings are.
_styled = style.context(["default", _STYLE])  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Point:
    """A trained network: what it costs and how often it is right."""

    family: str  # 'v1' or 'v2'
    alpha: float  # width multiplier
    resolution: int  # pixels
    x: float  # mult-adds or parameters, in millions
    top1: float  # %
    error: float | None = None  # standard deviation over seeds, in points; None of one run
    expansion: float | None = None  # ratio t, of v2


@dataclasses.dataclass(frozen=True)
class Rival:
    """A network among others of its cost."""

    name: str
    family: str  # 'v1' or 'v2'
    top1: Sequence[float]  # %, of each seed


@dataclasses.dataclass(frozen=True)
class Curve:
    """A run's loss (nats) and accuracy (%), epoch by epoch: on test images after it, on augmented ones during it."""

    epochs: Sequence[float]
    train_loss: Sequence[float]
    test_loss: Sequence[float]
    train_accuracy: Sequence[float]
    test_accuracy: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Activations in memory while each layer of a network runs, in the order of the layers, in kB."""

    name: str
    tensors: Sequence[float]  # the layer's input and output, and what a shortcut keeps meanwhile
    bottlenecks: Sequence[float] = ()  # the same if of each block only its input and its output are materialised


@dataclasses.dataclass(frozen=True)
class Timing:
    """A measured network."""

    family: str  # 'v1' or 'v2'
    batch: int  # images at once
    alpha: float  # width multiplier
    mult_adds: float  # of one image, in millions
    milliseconds: float  # for one image: those of a batch over its images


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """A layer whose time was both measured and predicted, in microseconds."""

    kind: str
    measured: float
    predicted: float


@_styled
def accuracy(points: Sequence[Point], front: Sequence[Point], x_label: str = "mult-adds (millions)") -> Figure:
    """Draw top-1 (%) over cost (millions, log): one line per width multiplier and t, over the resolutions.

    Args:
      points: the networks.
      front: those on the Pareto front, by increasing cost; drawn filled.
      x_label: what `x` of the points is, with its unit.
    """
    lines: dict[tuple[str, float, float], list[Point]] = {}
    for p in sorted(points, key=lambda p: (p.resolution, p.x)):
        lines.setdefault((p.family, p.alpha, p.expansion or 0.0), []).append(p)
    single = any(p.error is not None for p in points) and any(p.error is None for p in points)
    figure, axes = _figure(above=3 if single else 2)
    steps = [(b.x, top1) for a, b in itertools.pairwise(front) for top1 in (a.top1, b.top1)]
    axes.plot(*zip((front[0].x, front[0].top1), *steps, strict=True), color=PALE, lw=5, zorder=1.5)
    labels, told = [], set()
    for (family, *knobs), line in sorted(lines.items()):
        colour, marker = _FAMILIES[family]
        axes.plot([p.x for p in line], [p.top1 for p in line], color=colour, lw=0.9, zorder=2)
        if bars := [(p.x, p.top1, p.error) for p in line if p.error is not None]:
            axes.errorbar(*zip(*bars, strict=True), fmt="none", color=colour, capsize=3, zorder=2)
        for p in line:
            look = {"mfc": colour if p in front else "white", "ms": 3.5 if single and p.error is None else 6}
            axes.plot(p.x, p.top1, marker, color=colour, mew=1.1, zorder=3, **look)
        # What tells this line from the others of its family.
        alphas, ratios = ({other[i] for other in lines if other[0] == family} for i in (1, 2))
        words = {"α": knobs[0]} if len(alphas) > 1 or len(ratios) == 1 else {}
        words |= {"t": knobs[1]} if len(ratios) > 1 else {}
        told |= {*words}
        text = " ".join(f"t {_number(knob)}" if name == "t" else _number(knob) for name, knob in words.items())
        labels.append((text, [(p.x, p.top1) for p in (line[-1], line[0])], colour))
    _log(axes, "x", [p.x for p in points])
    axes.set(xlabel=x_label, ylabel="top-1 (%)", ymargin=0.09)
    _top1(axes, "y")
    for family in sorted({p.family for p in points}):
        colour, marker = _FAMILIES[family]
        axes.plot([], [], f"{marker}-", color=colour, lw=0.9, mfc="white", mew=1.1, label=f"MobileNet {family}")
    axes.plot([], [], "o-", color=PALE, lw=5, mec=BLACK, mfc=BLACK, label="filled: Pareto front")
    if single:
        axes.plot([], [], "o", color=BLACK, ms=3.5, mfc="white", mew=1.1, label="small: one seed")
    meaning = " and ".join(name for key, name in (("α", "width multiplier"), ("t", "expansion ratio t")) if key in told)
    several = any(len({p.resolution for p in line}) > 1 for line in lines.values())
    _legend(axes, f"labels: {meaning}{'; along a line: resolution' if several else ''}")
    _place(axes, labels)
    return figure


@_styled
def sweep(lines: Mapping[str, Sequence[tuple[float, float, float | None]]], x_label: str) -> Figure:
    """Top-1 (%) over one knob: a line a name, of (knob, top-1, standard deviation over seeds or, of one, None)."""
    single = ["hollow: one seed"] if any(error is None for points in lines.values() for *_, error in points) else []
    names = [*lines, *single]
    columns = _columns(names)
    figure, axes = _figure(above=math.ceil(len(names) / columns))
    looks = itertools.cycle(zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK), "osD^vP", strict=True))
    for (name, points), (colour, marker) in zip(lines.items(), looks, strict=False):
        axes.plot(
            *zip(*((x, y) for x, y, _ in sorted(points)), strict=True), f"{marker}-", color=colour, lw=1.1, label=name
        )
        if bars := [point for point in points if point[2] is not None]:
            axes.errorbar(*zip(*bars, strict=True), fmt="none", color=colour, capsize=3)
        for x, y, error in points:
            if error is None:
                axes.plot(x, y, marker, color=colour, mfc="white", mew=1.1)
    for name in single:
        axes.plot([], [], "o", color=BLACK, mfc="white", mew=1.1, label=name)
    axes.set(xlabel=x_label, ylabel="top-1 (%)", xticks=sorted({x for points in lines.values() for x, _, _ in points}))
    _top1(axes, "y")
    _legend(axes, columns=columns)
    return figure


@_styled
def rivals(groups: Sequence[Sequence[Rival]]) -> Figure:
    """Top-1 (%) of networks of the same cost, group by group from the top down: every seed, and the mean as a bar."""
    longest = max(len(rival.name) for group in groups for rival in group)
    rows = sum(map(len, groups)) + 0.6 * (len(groups) - 1)
    figure, axes = _figure(1, 1.05 + 0.3 * rows, left=0.3 + 0.088 * longest)
    place, places, names = 0.0, [], []
    for group in groups:
        for rival in group:
            colour, marker = _FAMILIES[rival.family]
            axes.plot(rival.top1, [place] * len(rival.top1), marker, color=colour, mfc="white", mew=1.1, ms=5)
            mean = sum(rival.top1) / len(rival.top1)
            axes.plot([mean, mean], [place - 0.32, place + 0.32], color=colour, lw=2.2)
            places.append(place)
            names.append(rival.name)
            place += 1
        place += 0.6
    axes.set(xlabel="top-1 (%)", ylim=(places[-1] + 0.6, -0.6))
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    _top1(axes, "x")
    for family in sorted({rival.family for group in groups for rival in group}):
        colour, marker = _FAMILIES[family]
        axes.plot([], [], marker, color=colour, mfc="white", mew=1.1, ms=5, label=f"MobileNet {family}, a seed")
    axes.plot([], [], "|", color=BLACK, ms=11, mew=2.2, label="mean")
    _legend(axes)
    return figure


@_styled
def curves(runs: Mapping[str, Curve]) -> Figure:
    """Accuracy (%) and loss (nats) over epochs, side by side: a colour a run, its training dashed."""
    columns = _columns(runs)
    above = 1 + math.ceil(len(runs) / columns)
    figure, first = _figure(above, height=3.5 + 0.24 * above)
    box, gap = first.get_position(), 0.75 / _WIDTH
    width = (box.width - gap) / 2
    second = figure.add_axes((0, 0, 1, 1))
    for i, axes in enumerate((first, second)):
        axes.set_position((box.x0 + i * (width + gap), box.y0, width, box.height))
    colours = itertools.cycle((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK))
    for (name, run), colour in zip(runs.items(), colours, strict=False):
        for axes, train, test in (
            (first, run.train_accuracy, run.test_accuracy),
            (second, run.train_loss, run.test_loss),
        ):
            axes.plot(run.epochs, train, "--", color=colour, lw=1.1)
            axes.plot(run.epochs, test, "-", color=colour, lw=1.6, label=name)
    first.set(xlabel="epoch", ylabel="accuracy (%)")
    second.set(xlabel="epoch", ylabel="loss (nats)")
    _legend(first, "solid: test images; dashed: training, as the epoch went", columns)
    return figure


@_styled
def mult_adds_by_kind(networks: Mapping[str, Mapping[str, float]]) -> Figure:
    """Shares of the mult-adds by kind of layer: a bar a network, from the top down, its total beside it.

    `networks`: name -> kind of layer (a key of `_KINDS`) -> mult-adds.
    """
    kinds = [kind for kind in _KINDS if any(parts.get(kind) for parts in networks.values())]
    rows, left = math.ceil(len(kinds) / 3), 0.2 + 0.09 * max(map(len, networks))
    figure, axes = _figure(rows, height=0.9 + 0.24 * rows + 0.3 * len(networks), left=left, right=0.85)
    totals = np.array([sum(parts.values()) for parts in networks.values()])
    starts = np.zeros(len(networks))
    for kind in kinds:
        name, colour, _, hatch = _KINDS[kind]
        shares = 100 * np.array([parts.get(kind, 0) for parts in networks.values()]) / totals
        bars = axes.barh(
            range(len(networks)), shares, 0.72, starts, color=colour, hatch=hatch, ec="white", lw=0.8, label=name
        )
        shown = axes.bar_label(bars, [f"{share:.0f}" if share >= 5 else "" for share in shares], label_type="center")
        for text in shown:
            text.set_bbox({"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.85})
        starts += shares
    for row, total in enumerate(totals):
        axes.annotate(f"{total / 1e6:.1f} M", (100, row), (58, 0), textcoords="offset points", ha="right", va="center")
    axes.set(xlabel="share of mult-adds (%); total at the right", xlim=(0, 100), ylim=(len(networks) - 0.5, -0.5))
    axes.set_yticks(range(len(networks)), list(networks))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _legend(axes)
    return figure


@_styled
def activation_memory(networks: Sequence[Memory]) -> Figure:
    """Memory for activations (kB) along the layers: a panel a network on one scale, all tensors and bottlenecks only.

    What v2 gains if its bottlenecks alone are materialised (v2 paper, section 5.1) is the space between the two.
    """
    figure, first = _figure(above=2, left=0.85)
    box, gap = first.get_position(), 0.25 / _WIDTH
    width = (box.width + gap) / len(networks) - gap
    tallest = max(max(network.tensors) for network in networks)
    for i, network in enumerate(networks):
        axes = first if i == 0 else figure.add_axes((0, 0, 1, 1))
        axes.set_position((box.x0 + i * (width + gap), box.y0, width, box.height))
        edges = np.arange(len(network.tensors) + 1) + 0.5
        series = ((network.tensors, SKY, "", "bottom"), (network.bottlenecks, VERMILLION, "////", "top"))
        for values, colour, hatch, side in series:
            if values:
                axes.stairs(values, edges, fill=True, fc=colour, ec="white", hatch=hatch, lw=0)
                axes.stairs(values, edges, color=BLACK, lw=0.8)
                peak, layer = max(values), int(np.argmax(values)) + 1
                axes.plot([layer, edges[-1]], [peak, peak], ":", color=BLACK, lw=1)
                place = {"xytext": (0, 2 if side == "bottom" else -3), "textcoords": "offset points"}
                axes.annotate(f"peak {peak:.0f} kB", (edges[-1], peak), ha="right", va=side, **place)
        axes.set(title=network.name, xlabel="layer", xlim=(edges[0], edges[-1]), ylim=(0, 1.12 * tallest))
        axes.tick_params(labelleft=i == 0)
        axes.grid(visible=False, axis="x")
    for colour, hatch, name in ((SKY, "", "all tensors"), (VERMILLION, "////", "bottlenecks only")):
        first.fill_between([], [], [], fc=colour, ec="white", hatch=hatch, lw=0, label=name)
    first.set_ylabel("activations, 16 bits each (kB)")
    _legend(first)
    return figure


@_styled
def latency(timings: Sequence[Timing], y_label: str = "measured time per image (ms)") -> Figure:
    """Milliseconds an image against mult-adds (both log), a line a family and batch, its points labelled with alpha.

    All networks would lie on the grey line if mult-adds told the time: it has the rate of the fastest one.
    """
    names = sorted({(t.family, t.batch) for t in timings})
    batches = sorted({t.batch for t in timings})
    figure, axes = _figure(above=1 + math.ceil((len(names) + 1) / 3))
    labels = []
    for family, batch in names:
        (colour, marker), rank = _FAMILIES[family], batches.index(batch)
        line = sorted((t for t in timings if (t.family, t.batch) == (family, batch)), key=lambda t: t.mult_adds)
        places = [(t.mult_adds, t.milliseconds) for t in line]
        look = {"ls": ("-", "--", ":", "-.")[rank % 4], "mfc": "white" if rank % 2 else colour, "lw": 1.1}
        axes.plot(*zip(*places, strict=True), marker=marker, color=colour, label=f"{family}, batch {batch}", **look)
        labels += [(_number(t.alpha), [place], colour) for t, place in zip(line, places, strict=True)]
    rate = max(t.mult_adds / t.milliseconds for t in timings)  # millions a millisecond: thousands of millions a second
    _log(axes, "x", [t.mult_adds for t in timings])
    _log(axes, "y", [t.milliseconds for t in timings])
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends / rate, color=GREY, lw=1.1, zorder=1.5, label=f"{rate:.3g} G mult-adds/s")
    axes.set(xlabel="mult-adds (millions)", ylabel=y_label)
    _legend(axes, "labels: width multiplier; grey: the highest rate of them")
    _place(axes, labels)
    return figure


@_styled
def predicted(layers: Sequence[LayerTime]) -> Figure:
    """Predicted against measured time of each layer (microseconds, log-log), with the diagonal and a factor of 2."""
    figure, axes = _figure(left=0.85, right=2.5)
    times = [time for layer in layers for time in (layer.measured, layer.predicted)]
    _log(axes, "x", times)
    _log(axes, "y", times)
    for kind, (name, colour, marker, _) in _KINDS.items():
        these = [(layer.measured, layer.predicted) for layer in layers if layer.kind == kind]
        if these:
            axes.plot(*zip(*these, strict=True), marker, color=colour, mec=BLACK, mew=0.5, label=name)
    ends = np.array(axes.get_xlim())
    near = sum(0.5 <= layer.predicted / layer.measured <= 2 for layer in layers)
    band = f"within a factor of 2\n({near} of {len(layers)} layers)"
    axes.plot(ends, ends, color=GREY, lw=1.1, zorder=1.5, label="predicted = measured")
    axes.fill_between(ends, ends / 2, ends * 2, color=GREY, alpha=0.15, lw=0, zorder=1, label=band)
    axes.set(xlabel="measured time (µs)", ylabel="predicted time (µs)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.04, 1))
    return figure


@_styled
def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes `path`.png and `path`.svg: the same bytes for the same figure."""
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=200, metadata={"Software": None})
    figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None, "Creator": None})


@_styled
def svg(figure: Figure) -> str:
    """The figure as SVG, without metadata: the same text for the same figure."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return out.getvalue()


def _figure(above: int = 0, height: float = 4.2, left: float = 0.75, right: float = 0.2) -> tuple[Figure, Axes]:
    """A figure with one set of axes; its height and margins in inches, with `above` lines of text over the axes."""
    bottom, top = 0.6, 0.2 + 0.24 * above
    figure = Figure((_WIDTH, height), dpi=100)
    box = (left / _WIDTH, bottom / height, (_WIDTH - left - right) / _WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes(box)


def _number(value: float) -> str:
    """'1.0', '0.35'."""
    return str(float(f"{value:.4g}"))


def _columns(names: Iterable[str]) -> int:
    """How many columns of a legend fit beside each other."""
    names = [*names]
    for columns in (3, 2):
        rows = math.ceil(len(names) / columns)
        widest = [max(map(len, names[i : i + rows])) for i in range(0, len(names), rows)]  # it fills column by column
        if sum(0.6 + 0.089 * length for length in widest) < _WIDTH - 0.8:  # inches
            return columns
    return 1


def _top1(axes: Axes, which: str) -> None:
    """Widens an axis of top-1 to `_POINTS`, so that noise does not look like a difference; its ticks are short."""
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    if high - low < _POINTS:
        axes.set(**{f"{which}lim": ((low + high - _POINTS) / 2, (low + high + _POINTS) / 2)})
    (axes.yaxis if which == "y" else axes.xaxis).set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))


def _legend(axes: Axes, title: str | None = None, columns: int = 3) -> None:
    """A legend above the axes, where it can cover nothing."""
    figure = cast(Figure, axes.figure)
    place = {"loc": "upper left", "bbox_to_anchor": (0.75 / _WIDTH, 1 - 0.1 / figure.get_figheight())}
    axes.legend(ncols=columns, title=title, alignment="left", bbox_transform=figure.transFigure, **place)


def _log(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Makes an axis logarithmic, around `values`, with plain numbers at 1, 2 and 5 of every decade, or fewer."""
    low, high = min(values) / 1.35, max(values) * 1.35
    if high < 5 * low:  # too short for two ticks
        low, high = (low * high / 5) ** 0.5, (low * high * 5) ** 0.5
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    width = axes.get_window_extent().width / 100  # inches
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        names = [f"{tick:.9g}" for tick in ticks]
        if len(ticks) * (0.12 + 0.085 * max(map(len, names))) < width:
            break
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, names)
    axis.set_ticks([], minor=True)


def _place(axes: Axes, labels: Sequence[tuple[str, Sequence[tuple[float, float]], str]]) -> None:
    """Writes labels (text, points at one of which it may stand, colour) where they cover least of lines and others.

    Each tries eight sides of its points, close by and a little further off. The limits of the axes must be final.
    """
    figure = cast(Figure, axes.figure)
    axes.autoscale_view()
    renderer, frame = FigureCanvasAgg(figure).get_renderer(), axes.get_window_extent()
    covered = []  # points on the lines, a few pixels apart
    for line in axes.lines:
        path = line.get_transform().transform(line.get_xydata())
        covered += [np.linspace(a, b, 2 + int(math.dist(a, b) / 3)) for a, b in itertools.pairwise(path)]
        covered += [path] * 10  # a marker weighs more
    lines, taken = np.concatenate(covered), []
    sides = [side for side in itertools.product((1, -1, 0), (-1, 1, 0)) if any(side)]
    for text, points, colour in labels:
        label = axes.annotate(text, points[0], (0, 0), textcoords="offset points", color=colour, ha="center")
        label.set_verticalalignment("center")
        half = np.array(label.get_window_extent(renderer).size) / 2
        best, spot = math.inf, (np.zeros(2), half)
        for gap, point, side in itertools.product((7, 14), points, sides):
            offset = np.array(side) * (half + gap / math.hypot(*side))
            centre = axes.transData.transform(point) + offset
            low, high = centre - half - 4, centre + half + 4
            cost = gap / 5 + np.sum(np.all((lines > low) & (lines < high), axis=1))
            cost += 50 * sum(bool(np.all(np.abs(centre - there) < half + size)) for there, size in taken)
            cost += 50 * bool(np.any(low < frame.min) or np.any(high > frame.max))
            if cost < best:
                best, label.xy, spot = cost, point, (centre, half)
                label.set_position(tuple(offset * 72 / figure.dpi))
        taken.append(spot)
