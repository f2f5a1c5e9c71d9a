"""Set up what all charts share: style, legends, axes, labels next to points, PNG and SVG.

NOTE: matplotlib takes a second to import, so functions import it, and NumPy, when something is drawn.
"""

import contextlib
import io
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

from mobilenet_jax.render.tables import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 6.4  # inches: twice a column, so that a figure can be read at half its size
_LEAST_RANGE = 2.0  # points of top-1
_STYLE = {
    **{"axes.axisbelow": True, "axes.labelsize": 12, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.grid": True, "axes.titlesize": 12, "grid.color": "#dddddd", "grid.linewidth": 0.6, "font.size": 11},
    **{"legend.borderaxespad": 0.2, "legend.columnspacing": 1.4, "legend.frameon": False, "legend.handletextpad": 0.5},
    **{"figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.1, "hatch.linewidth": 0.6},
    "text.parse_math": False,  # a name from a run's record may hold a dollar sign
    **{"svg.fonttype": "none", "svg.hashsalt": "mobilenet_jax"},  # text stays text, and ids stay the same
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Decorate what draws or saves: matplotlib's defaults and this style hold inside, the user's settings outside."""
    from matplotlib import style

    with style.context(["default", _STYLE]):  # pyright: ignore[reportArgumentType]
        yield


def new_figure(height: float) -> "Figure":
    """Return an empty figure; `height` in inches, without a legend above the axes."""
    from matplotlib.figure import Figure

    return Figure((_WIDTH, height), dpi=100, layout="constrained")


def legend_above(figure: "Figure", title: str | None = None) -> None:
    """Put a legend above the axes, in as many columns as fit, and increase the height of the figure by its own."""
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside upper left", ncols=columns, title=title, alignment="left")
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def top1_axis(ax: "Axes", which: Literal["x", "y"]) -> None:
    """Show at least two points of top-1 along an axis: smaller differences between single runs say nothing."""
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    if high - low < _LEAST_RANGE:
        ax.set(**{f"{which}lim": ((low + high - _LEAST_RANGE) / 2, (low + high + _LEAST_RANGE) / 2)})
    ax.locator_params(axis=which, nbins=7, steps=[1, 2, 5, 10])


def log_axis(ax: "Axes", which: str, values: Sequence[float], inches: float = 5) -> None:
    """Make an axis logarithmic around `values`, with plain numbers at 1, 2 and 5 of each decade, or at fewer.

    Labels that would overlap on an axis of `inches` are left out. All `values` are above 0.
    """
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    low, high = min(values) / 1.35, max(values) * 1.35
    if high < 5 * low:  # too short for two ticks
        low, high = (low * high / 5) ** 0.5, (low * high * 5) ** 0.5
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    for steps, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2)):
        ticks = [t for t in LogLocator(subs=steps).tick_values(low, high)[::stride] if low <= t <= high]
        gaps = (math.log(b / a) / math.log(high / low) * inches for a, b in itertools.pairwise(ticks))
        if all(0.1 + 0.085 * len(f"{b:.9g}") < gap for gap, b in zip(gaps, ticks[1:], strict=True)):
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter("{x:.9g}")
    axis.set_minor_locator(NullLocator())


def place_labels(ax: "Axes", labels: Sequence[tuple[str, Sequence[tuple[float, float]], str]]) -> None:
    """Write each label next to one of its points, where it covers least of the lines and of other labels.

    Each label tries eight sides of its points, at two distances. This fixes the layout of the figure.

    Args:
      ax: axes with lines.
      labels: the text, the points that it may be next to, and the colour of each label.
    """
    import numpy as np

    figure = cast("Figure", ax.figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a later layout would move the lines below the labels
    frame = ax.get_window_extent()
    covered = []  # points on the lines, a few pixels apart
    for line in ax.lines:
        path = line.get_transform().transform(line.get_xydata())
        if line.get_linestyle() != "None":
            covered += [np.linspace(a, b, 2 + int(math.dist(a, b) / 3)) for a, b in itertools.pairwise(path)]
        covered += [path] * 10  # a marker weighs more
    lines, taken = np.concatenate(covered), []
    sides = [side for side in itertools.product((1, -1, 0), (-1, 1, 0)) if any(side)]
    for text, points, colour in labels:
        label = ax.annotate(text, points[0], (0, 0), textcoords="offset points", color=colour, ha="center", va="center")
        half = np.array(label.get_window_extent().size) / 2
        best, spot = math.inf, (np.zeros(2), half)
        for gap, point, side in itertools.product((7, 14), points, sides):
            offset = np.array(side) * (half + gap / math.hypot(*side))
            centre = ax.transData.transform(point) + offset
            low, high = centre - half - 4, centre + half + 4
            cost = gap / 5 + np.sum(np.all((lines > low) & (lines < high), axis=1))
            cost += 50 * sum(bool(np.all(np.abs(centre - there) < half + size)) for there, size in taken)
            cost += 50 * bool(np.any(low < frame.min) or np.any(high > frame.max))
            if cost < best:
                best, label.xy, spot = cost, point, (centre, half)
                label.set_position(tuple(offset * 72 / figure.dpi))
        taken.append(spot)


@styled()
def save(figure: "Figure", path: pathlib.Path) -> str:
    """Write `path`.png and `path`.svg, and return the SVG. The same figure gives the same bytes."""
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=200, metadata={"Software": None})
    drawing = svg(figure)
    path.with_name(f"{path.name}.svg").write_text(drawing, encoding="utf-8")
    return drawing


@styled()
def svg(figure: "Figure") -> str:
    """Return the figure as SVG without metadata or control characters. The same figure gives the same text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return plain(out.getvalue())
