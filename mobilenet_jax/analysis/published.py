"""Assemble the page of published costs: every printed cost next to ours, and what the released networks show."""

from mobilenet_jax.analysis import latency
from mobilenet_jax.analysis.statistics import fit, pareto
from mobilenet_jax.papers import cifar28, compare, figures, tables
from mobilenet_jax.render import charts
from mobilenet_jax.render.charts import NetworkPoint
from mobilenet_jax.render.tables import Picture, Section, Table


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
        released(),
        Section("What differs", (how,), tables=(compare.summary([*from_papers, *from_documents]),)),
        Section("The papers and TF-slim", tables=tuple(map(compare.as_table, from_papers))),
        Section("Documents", (which,), tables=tuple(map(compare.as_table, from_documents))),
        latency.pixel_1(),
    ]


def released() -> Section:
    """Return TF-slim's 38 networks: printed top-1, Pareto fronts, points per doubling; where their costs lie."""
    points, of_params = figures.checkpoints("mult_adds"), figures.checkpoints("params")
    front, gains = _front(points), []
    for version in ("v1", "v2"):
        of_version = [p for p in points if p.version == version]
        line = fit([(p.cost, {0: p.top1 / 100}) for p in of_version])
        assert line  # each version has more than three networks
        gains.append(f"{100 * line.slope.value:.1f} points of top-1 among the {len(of_version)} {version} networks")
    columns = {
        "network": lambda pair: f"{pair[0].version} {pair[0].alpha:g}",
        "pixels": lambda pair: str(pair[0].resolution),
        "ImageNet top-1, %, printed": lambda pair: f"{pair[0].top1:.1f}",
        "mult-adds, M": lambda pair: f"{pair[0].cost:.2f}",
        "params, M": lambda pair: f"{pair[1].cost:.2f}",
        "on the Pareto front": lambda pair: "yes" if pair[0] in front else "",
    }
    networks = sorted(zip(points, of_params, strict=True), key=lambda pair: pair[0].cost)
    note = f"A doubling of mult-adds buys {' and '.join(gains)} (log-linear least squares)."
    drawn = {
        "accuracy_mult_adds": lambda: charts.accuracy(points, front),
        "accuracy_params": lambda: charts.accuracy(of_params, _front(of_params), "trainable params (millions)"),
        "mult_adds_by_kind": lambda: charts.mult_adds_by_kind(figures.mult_adds_by_kind()),
        "activation_memory": lambda: charts.activation_memory(figures.activation_memory()),
    }
    captions = (
        "ImageNet top-1 of the 38 released checkpoints against mult-adds",
        "The same against trainable params",
        "Where the mult-adds are, at 224 pixels",
        "Activations held at each layer: its input, its output, a waiting shortcut; or the ends of each block",
    )
    pictures = tuple(Picture(name, text, draw) for (name, draw), text in zip(drawn.items(), captions, strict=True))
    table = Table.of("released", "TF-slim's 38 networks by mult-adds", networks, columns, note)
    return Section("Released networks", pictures=pictures, tables=(table,))


def _front(points: list[NetworkPoint]) -> list[NetworkPoint]:
    return pareto(points, lambda p: p.cost, lambda p: p.top1)
