"""The charts draw the numbers that they are given, without overlaps, the same bytes each time."""

import functools
import itertools
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Annotation

from mobilenet_jax.papers import figures
from mobilenet_jax.render import axes as shared
from mobilenet_jax.render import charts
from mobilenet_jax.render.charts import NetworkPoint

COLOURS = {charts.BLACK, charts.ORANGE, charts.SKY, charts.GREEN, charts.YELLOW, charts.BLUE, charts.VERMILLION}
COLOURS |= {charts.PURPLE, charts.GREY, charts.PALE, "#FFFFFF"}
SHARES = {
    "v1 1.0": {"conv": 2e6, "depthwise": 8e6, "pointwise": 90e6},
    "v2 1.0": {"conv": 1e6, "depthwise": 4e6, "expand": 20e6, "project": 15e6, "pointwise": 6e6, "dense": 4e6},
}
MEMORY = {"MobileNet v1": [[10, 30, 20]], "MobileNet v2": [[12, 40, 40, 8], [12, 16, 16, 4]]}
TIMINGS = {
    ("v1", 1): [(0.5, 150, 22), (1, 569, 60)],
    ("v2", 1): [(1, 301, 70), (0.5, 97, 28)],
    ("v2", 32): [(0.5, 97, 12), (1, 301, 36)],
}
TIMES = {
    "depthwise": [(100, 150), (900, 400)],
    "dense": [(80, 40)],
    "pointwise": [(3000, 2500)],
    "pool": [(9, 20)],
}
RATIOS = [NetworkPoint("v2", 0.35, 32, 4 + 2 * t, 70 + t, 0.4 if t > 2 else None, t) for t in (1.0, 2.0, 4.0, 6.0)]
EQUAL = [
    [("v2 α 0.52 t 2 (12.2 M)", "v2", (78.1, 78.9, 77.7)), ("v1 α 0.68 ρ 0.625 (12.2 M)", "v1", (77.0, 76.9))],
    [("v1 α 0.75 (26.5 M)", "v1", (81.2,)), ("v1 α 0.96 ρ 0.75 (26.8 M)", "v1", (80.2,))],
]
released = functools.cache(figures.checkpoints)  # the 38 published ImageNet networks


def front_of(points):
    """The points with a higher top-1 than every cheaper one."""
    found: list[NetworkPoint] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.top1)):
        if not found or p.top1 > found[-1].top1:
            found.append(p)
    return found


def accuracy(points, *label):
    return charts.accuracy(points, front_of(points), *label)


EVERY = {
    "accuracy": lambda: accuracy(released("mult_adds")),
    "accuracy of params": lambda: accuracy(released("params"), "parameters (millions)"),
    "accuracy of one": lambda: accuracy([NetworkPoint("v2", 1, 224, 300, 72)]),
    "accuracy, hardly different": lambda: accuracy([NetworkPoint("v1", a, 28, 90 * a, 83 + a) for a in (0.75, 1)]),
    "accuracy over t": lambda: accuracy(RATIOS),
    "over_knob": lambda: charts.over_knob({"v1, 10 epochs": [(0.5, 83.75, None), (1, 83.8, 0.1)]}, "width multiplier"),
    "equal_cost": lambda: charts.equal_cost(EQUAL),
    "mult_adds_by_kind": lambda: charts.mult_adds_by_kind(SHARES),
    "activation_memory": lambda: charts.activation_memory(MEMORY),
    "latency": lambda: charts.latency(TIMINGS),
    "predicted": lambda: charts.predicted(TIMES),
}
every = pytest.mark.parametrize("name", EVERY)


def drawn(figure) -> Any:
    """The figure's axes, after the layout."""
    FigureCanvasAgg(figure).draw()
    return figure.axes


@functools.cache
def drawn_once(name: str) -> Any:
    """The axes of one of `EVERY`, for tests that change nothing."""
    return drawn(EVERY[name]())


def values(line):
    return [tuple(float(number) for number in place) for place in line.get_xydata()]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def legend(axes):
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def legend_title(axes):
    return axes.figure.legends[0].get_title().get_text()


def written(axes):
    """The labels on the axes, as (text, where)."""
    return [(text.get_text(), tuple(text.xy)) for text in axes.texts if isinstance(text, Annotation)]


def test_accuracy_draws_every_network():
    points = released("mult_adds")
    (axes,) = drawn_once("accuracy")
    front = {(p.cost, p.top1) for p in front_of(points)}
    assert len(points) == 38 and 1 < len(front) < 38
    marks = [line for line in axes.lines if line.get_marker() != "None" and values(line)]
    looks = {"v1": ("o", charts.BLUE), "v2": ("s", charts.VERMILLION)}
    found = [(*at, m.get_marker(), m.get_color(), m.get_markerfacecolor()) for m in marks for at in values(m)]
    assert sorted(found) == sorted(
        (p.cost, p.top1, *looks[p.version], looks[p.version][1] if (p.cost, p.top1) in front else "white")
        for p in points
    )
    (steps,) = [values(line) for line in axes.lines if line.get_color() == charts.PALE and values(line)]
    assert front <= set(steps) and all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(steps))
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("mult-adds (millions)", "top-1 (%)", "log")
    assert ticks(axes.xaxis) == ["10", "20", "50", "100", "200", "500"]
    assert legend(axes) == ["MobileNet v1", "MobileNet v2", "filled: Pareto front"]


def test_accuracy_joins_and_labels_each_width_multiplier():
    points = released("mult_adds")
    (axes,) = drawn_once("accuracy")
    lines = [values(line) for line in axes.lines if line.get_marker() == "None" and line.get_color() != charts.PALE]
    ends = [(text, [line for line in lines if where in (line[0], line[-1])]) for text, where in written(axes)]
    assert len(lines) == len(ends) == 10
    for text, (line,) in ends:
        assert {f"{p.alpha:g}" for p in points if (p.cost, p.top1) in line} == {text}
        assert line == sorted(line)  # by resolution


@pytest.mark.parametrize("name", [name for name in EVERY if "accuracy" in name or name == "latency"])
def test_labels_cover_nothing(name):
    (axes,) = drawn_once(name)
    boxes = [text.get_window_extent() for text in axes.texts]
    places = axes.transData.transform(np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker()]))
    frame = axes.get_window_extent()
    assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for box in boxes:
        assert not any(box.contains(*place) for place in places)
        assert frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)


def test_expansion_ratios_are_no_resolutions():
    """Networks of one width and several t are not joined, and each has its t; those of one seed are small."""
    (axes,) = drawn_once("accuracy over t")
    assert sorted(text for text, _ in written(axes)) == ["t 1", "t 2", "t 4", "t 6"]
    assert all(len({x for x, _ in values(line)}) <= 1 for line in axes.lines if line.get_color() == charts.VERMILLION)
    assert legend_title(axes) == "labels: expansion ratio t"
    assert legend(axes) == ["MobileNet v2", "filled: Pareto front", "small: one seed"]
    sizes = {
        values(line)[0][1]: line.get_markersize() for line in axes.lines if line.get_marker() == "s" and values(line)
    }
    assert sizes[71] == sizes[72] < sizes[74] == sizes[76]
    (axes,) = drawn(accuracy([NetworkPoint("v2", 1 + i / 100, 32, 10 + i, 70 + i / 10) for i in range(41)]))
    assert not written(axes) and legend_title(axes) == ""  # too many to label
    mixed = [
        *RATIOS,
        NetworkPoint("v2", 0.5, 32, 30, 80, None, 6.0),
        *(NetworkPoint("v1", 0.5, 32, 12, 78), NetworkPoint("v1", 0.5, 27, 9, 75)),
    ]
    (axes,) = drawn(accuracy(mixed))
    assert {"0.35 t 1", "0.5 t 6", "0.5"} <= {text for text, _ in written(axes)}
    assert legend_title(axes) == "labels: width multiplier and expansion ratio t; along a line: resolution"


def test_equal_cost_shows_every_seed_and_the_mean():
    (axes,) = drawn_once("equal_cost")
    networks = [network for group in EQUAL for network in group]
    assert ticks(axes.yaxis) == [name for name, *_ in networks] and axes.yaxis_inverted()
    seeds = [sorted(x for x, _ in values(line)) for line in axes.lines if line.get_marker() in "os" and values(line)]
    assert seeds == [sorted(top1) for *_, top1 in networks]
    means = [line.get_xdata() for line in axes.lines if line.get_marker() == "None"]
    assert [list(m) for m in means] == [[pytest.approx(np.mean(top1))] * 2 for *_, top1 in networks]
    assert axes.get_xlabel() == "top-1 (%)"


@every
def test_nothing_is_cut_off_or_covered_by_the_legend(name):
    for axes in drawn_once(name):
        figure = axes.figure
        box, above = axes.get_tightbbox(), figure.legends[0].get_window_extent()
        for inside in (box, above):
            assert inside.x0 >= 0 and inside.y0 >= 0
            assert inside.x1 <= figure.bbox.x1 and inside.y1 <= figure.bbox.y1
        assert not above.overlaps(box)


@pytest.mark.parametrize("extra", ["", ", decay_depthwise", ", bottleneck relu6, shortcut none, no flip"])
def test_long_names_of_runs_have_room(extra):
    names = [f"v2 α 0.35 t {t}{extra}" for t in range(1, 7)]
    rows = [{"epoch": 1, "train_loss": 2.0, "test_accuracy": 0.29}, {"epoch": 2, "train_loss": None}]
    for figure in (
        charts.curves(dict.fromkeys(names, rows)),
        charts.over_knob(dict.fromkeys(names, ((1, 70, 0.3), (2, 71, None))), "x"),
    ):
        heights = [axes.get_window_extent().height for axes in drawn(figure)]
        legend = figure.legends[0].get_window_extent()
        assert figure.bbox.x1 >= legend.x1 and figure.bbox.y1 >= legend.y1 and min(heights) > 250
        assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)


@pytest.mark.parametrize("epochs", [2, 3, 5, 30])
def test_ticks_of_epochs_are_whole(epochs):
    for axes in drawn(
        charts.curves({"a": [{"epoch": e, "test_accuracy": 0.5, "test_loss": e} for e in range(1, epochs + 1)]})
    ):
        assert len(axes.get_xticks()) > 1 and all(tick % 1 == 0 for tick in axes.get_xticks())


def test_differences_of_single_runs_look_small():
    (axes,) = drawn(charts.over_knob({"a": [(0.75, 83.4, 0), (1, 83.7, 0)]}, "x"))
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(2) and low < 83.4 and high > 83.7


def test_shares_add_up():
    (axes,) = drawn_once("mult_adds_by_kind")
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle) and bar.get_width()]
    rows = [[bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == row] for row in (0, 1)]
    assert [[bar.get_width() for bar in row] for row in rows] == [[2, 8, 90], [2, 8, 40, 30, 12, 8]]
    assert [[bar.get_x() for bar in row] for row in rows] == [[0, 2, 10], [0, 2, 10, 50, 80, 92]]
    assert len({bar.get_facecolor() for bar in rows[1]}) == 6
    assert len({bar.get_hatch() for bar in rows[1]}) == 5  # two are plain
    texts = [text.get_text() for text in axes.texts if text.get_text()]
    assert sorted(texts) == sorted(["8", "90", "100.0 M", "8", "40", "30", "12", "8", "50.0 M"])
    assert ticks(axes.yaxis) == ["v1 1.0", "v2 1.0"] and axes.yaxis_inverted()
    names = ["3x3 convolution", "3x3 depthwise", "1x1 expand", "1x1 project", "1x1 pointwise", "classifier"]
    assert legend(axes) == names and "(%)" in axes.get_xlabel()


def test_memory_along_the_layers():
    one, two = drawn_once("activation_memory")
    filled = [[p for p in axes.patches if isinstance(p, StepPatch) and p.get_fill()] for axes in (one, two)]
    assert [[list(p.get_data()[0]) for p in patches] for patches in filled] == [
        [[10, 30, 20]],
        [[12, 40, 40, 8], [12, 16, 16, 4]],
    ]
    assert list(filled[0][0].get_data()[1]) == [0.5, 1.5, 2.5, 3.5]
    assert not filled[1][0].get_hatch() and filled[1][1].get_hatch()
    assert [text.get_text() for text in (*one.texts, *two.texts)] == ["peak 30 kB", "peak 40 kB", "peak 16 kB"]
    assert one.get_ylim() == two.get_ylim() and one.get_ylim()[0] == 0
    assert [axes.get_title() for axes in (one, two)] == ["MobileNet v1", "MobileNet v2"]
    assert "(kB)" in one.get_ylabel() and legend(one) == ["all tensors", "bottlenecks only"]


def test_latency_over_mult_adds():
    (axes,) = drawn_once("latency")
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == legend(axes) == ["v1, batch 1", "v2, batch 1", "v2, batch 32", "9.48 G mult-adds/s"]
    assert values(lines["v2, batch 1"]) == [(97, 28), (301, 70)]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 4
    assert sorted(written(axes)) == sorted((f"{a:g}", (m, ms)) for line in TIMINGS.values() for a, m, ms in line)
    (x0, y0), (x1, y1) = values(lines["9.48 G mult-adds/s"])
    assert x0 / y0 == x1 / y1 == pytest.approx(569 / 60) and (x0, x1) == axes.get_xlim()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert ticks(axes.xaxis) == ["100", "200", "500"] and ticks(axes.yaxis) == ["10", "20", "50"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mult-adds (millions)", "measured time per image (ms)")


def test_predicted_over_measured():
    (axes,) = drawn_once("predicted")
    lines = {str(line.get_label()): line for line in axes.lines}
    assert values(lines["3x3 depthwise"]) == [(100, 150), (900, 400)]
    assert values(lines["classifier"]) == [(80, 40)]
    assert legend(axes) == [
        *("3x3 depthwise", "1x1 pointwise", "pooling", "classifier", "predicted = measured"),
        "within a factor of 2\n(3 of 5 layers)",
    ]
    assert all(x == y for x, y in values(lines["predicted = measured"]))
    (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    edges = np.array(axes.get_xlim())
    corners = {tuple(place) for place in np.asarray(band.get_paths()[0].vertices)}
    assert {(x, y) for x in edges for y in (x / 2, x * 2)} <= corners
    assert axes.get_xlim() == axes.get_ylim() and (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["10", "30", "100", "300", "1000", "3000"]
    assert "(µs)" in axes.get_xlabel() and "(µs)" in axes.get_ylabel()


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ((7, 7), ["5", "10"]),
        ((0.02, 0.3), ["0.02", "0.05", "0.1", "0.2"]),
        ((2, 2e5), ["100", "10000"]),
        ((3e5, 3e6), ["300000", "1000000", "3000000"]),
    ],
)
def test_ticks_are_plain_and_have_room(times, shown):
    (axes,) = drawn(charts.predicted({"conv": [times]}))
    assert ticks(axes.yaxis) == shown and not axes.yaxis.get_minorticklocs().size
    boxes = [label.get_window_extent() for label in axes.xaxis.get_ticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


@every
def test_colours_are_of_the_palette(name):
    found = set()
    for axes in drawn_once(name):
        for artist in (*axes.lines, *axes.patches, *axes.collections, *axes.texts):
            if isinstance(artist, Line2D):
                found |= {to_hex(artist.get_color()), to_hex(artist.get_markerfacecolor())}
            elif hasattr(artist, "get_facecolor"):
                found |= {to_hex(colour) for colour in np.atleast_2d(artist.get_facecolor()) if colour[3]}
            else:
                found.add(to_hex(artist.get_color()))
    assert found <= {colour.lower() for colour in COLOURS}


def test_a_shape_or_a_hatch_goes_with_each_colour():
    looks = list(zip(*charts._KINDS.values(), strict=True))
    assert all(len(set(column)) == len(charts._KINDS) for column in looks[:3])
    assert len({marker for _, marker in charts._VERSIONS.values()}) == len(charts._VERSIONS)


@pytest.mark.parametrize("name", ["accuracy of one", "mult_adds_by_kind", "activation_memory", "predicted"])
def test_the_same_bytes_each_time(name, tmp_path):
    make, path = EVERY[name], tmp_path / "alpha_0.5"
    shared.save(make(), path)
    files = sorted(tmp_path.iterdir())
    before = [file.read_bytes() for file in files]
    assert [file.name for file in files] == ["alpha_0.5.png", "alpha_0.5.svg"] and before[0][1:4] == b"PNG"
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        settings = dict(matplotlib.rcParams)
        shared.save(make(), path)
        assert dict(matplotlib.rcParams) == settings
    assert [file.read_bytes() for file in files] == before
    svg = before[1].decode()
    assert "<text" in svg and "sans-serif" in svg and "<dc:date>" not in svg


def test_needs_no_display():
    code = "import sys; from mobilenet_jax.render import charts; print('matplotlib' in sys.modules);"
    code += "charts.curves({}); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
