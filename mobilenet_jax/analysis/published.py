"""Assemble the page of published costs: every printed cost next to ours, and what the released networks show."""

from typing import TYPE_CHECKING, Literal

from mobilenet_jax.analysis import latency
from mobilenet_jax.analysis.statistics import fit, pareto
from mobilenet_jax.networks import arch
from mobilenet_jax.networks.cost import totals
from mobilenet_jax.papers import cifar28, compare, printed, tables
from mobilenet_jax.render.tables import Picture, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections() -> list[Section]:
    """Return the released networks, the cells that differ, each printed table next to ours, the times on a phone.

    Raises:
      RuntimeError: a cell differs from what is printed, and nothing explains it: a layer list is wrong.
    """
    from_papers = list(tables.tables())
    from_documents = [tables.document_000(), *cifar28.tables()]
    if wrong := compare.unexplained([*from_papers, *from_documents]):
        raise RuntimeError(f"printed figures and misprints.csv do not fit the count: {'; '.join(wrong)}")
    how = (
        "Difference: ours less printed, in the column's unit. A cell agrees if ours, rounded as the source rounds, is "
        "what is printed. Blank: not one of our networks."
    )
    which = (
        "Document 000: the AIdventure page 'MobileNet v1'. Document 004: a report on a 28x28 CIFAR-10 network (variant "
        "'cifar28'). This project grew from them."
    )
    return [
        Section("Released networks", pictures=_pictures(), tables=(released(),)),
        Section("What differs", (how,), tables=(compare.summary([*from_papers, *from_documents]),)),
        Section("The papers and TF-slim", tables=tuple(map(compare.as_table, from_papers))),
        Section("Documents", (which,), tables=tuple(map(compare.as_table, from_documents))),
        latency.pixel_1(),
    ]


def released() -> Table:
    """Return TF-slim's 38 networks by mult-adds: printed top-1, the Pareto front, points per doubling of mult-adds."""
    networks, gains = [], []
    for version in ("v1", "v2"):
        rows = []
        for row in printed.rows(f"slim_{version}"):
            alpha, resolution = float(row["alpha"]), int(row["resolution"])
            sums = totals(arch.mobilenet(version, alpha), resolution)
            rows.append((f"{version} {alpha:g}", str(resolution), float(row["top1"]), sums))
        line = fit([(sums.mult_adds, {0: top1 / 100}) for *_, top1, sums in rows])
        assert line  # each version has more than three networks
        gains.append(f"{line.points_per_doubling:.1f} points among the {len(rows)} {version} networks")
        networks += rows
    front = pareto(networks, lambda row: row[3].mult_adds, lambda row: row[2])
    cells = tuple(
        (
            *row[:2],
            f"{row[2]:.1f}",
            f"{row[3].mult_adds / 1e6:.2f}",
            f"{row[3].params / 1e6:.2f}",
            "yes" if row in front else "",
        )
        for row in sorted(networks, key=lambda row: row[3].mult_adds)
    )
    header = ("network", "pixels", "ImageNet top-1, %, printed", "mult-adds, M", "params, M", "on the Pareto front")
    note = f"A doubling of mult-adds buys {' and '.join(gains)} (log-linear least squares)."
    return Table("released", "TF-slim's 38 networks by mult-adds", header, cells, note)


def _pictures() -> tuple[Picture, ...]:
    return (
        Picture(
            "accuracy_mult_adds",
            "ImageNet top-1 of the 38 released checkpoints against mult-adds",
            lambda: _draw_accuracy("mult_adds", "mult-adds (millions)"),
        ),
        Picture(
            "accuracy_params",
            "The same against trainable params",
            lambda: _draw_accuracy("params", "trainable params (millions)"),
        ),
        Picture("mult_adds_by_kind", "Where the mult-adds are, at 224 pixels", _draw_kinds),
        Picture(
            "activation_memory",
            "Activations held at each layer: its input, its output, a waiting shortcut; or the ends of each block",
            _draw_memory,
        ),
    )


# matplotlib takes a second to import: the functions that draw import it when they are called.


def _draw_accuracy(count: Literal["mult_adds", "params"], label: str) -> "Figure":
    from mobilenet_jax.papers import figures
    from mobilenet_jax.render import charts

    points = figures.checkpoints(count)
    return charts.accuracy(points, pareto(points, lambda p: p.cost, lambda p: p.top1), label)


def _draw_kinds() -> "Figure":
    from mobilenet_jax.papers import figures
    from mobilenet_jax.render import charts

    return charts.mult_adds_by_kind(figures.mult_adds_by_kind())


def _draw_memory() -> "Figure":
    from mobilenet_jax.papers import figures
    from mobilenet_jax.render import charts

    return charts.activation_memory(figures.activation_memory())
