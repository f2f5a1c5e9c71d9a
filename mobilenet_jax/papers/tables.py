"""The tables of the v1 paper, the v2 paper and TF-slim's releases: every cell on cost beside ours."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from mobilenet_jax.analysis import statistics as noise
from mobilenet_jax.networks import arch, conventions
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.networks.cost import LayerCost, blocks, layer_costs, totals
from mobilenet_jax.papers import printed as published
from mobilenet_jax.papers.compare import DOWN, NEAREST, TWO_DIGITS, Line, Printed, Reading, table
from mobilenet_jax.render.tables import Table

MULT_ADDS, PARAMS = "mult-adds, M", "params, M"
_NO_BN = "without batch norm"
_V1_TITLES = {
    4: "depthwise separable against full convolutions",
    5: "narrow against shallow",
    6: "width multiplier",
    7: "resolution",
    8: "popular models",
    9: "small models",
}


def tables() -> Iterator[Printed]:
    """Tables 1 to 9 of the v1 paper, TF-slim's 16 rows, Tables 2 to 4 of the v2 paper, TF-slim's 22 rows."""
    yield layers("v1_table1", "v1 paper, Table 1: the layers", arch.mobilenet_v1(), 224)
    yield table("v1_table2", "v1 paper, Table 2: resources by kind of layer", _kinds())
    yield table("v1_table3", "v1 paper, Table 3: one layer (14x14x512), changed step by step", _one_layer())
    for number, title in _V1_TITLES.items():
        rows = (row for row in published.rows("paper_v1") if row["table"] == str(number))
        yield table(f"v1_table{number}", f"v1 paper, Table {number}: {title}", _networks(rows, "v1", "trainable"))
    slim_v1 = _networks(published.rows("slim_v1"), "v1", "TF-slim v1")
    yield table("slim_v1", "TF-slim's 16 v1 checkpoints", slim_v1, note="Params: TF-slim's own rule, see conventions.")
    yield table("v2_table2", "v2 paper, Table 2: the stages", _stages())
    title = "v2 paper, Table 3: what must be held at each resolution"
    yield table(
        "v2_table3", title, _held(), _HELD_ROUNDING, "Memory: 16 bits a value; the source cuts it to two digits."
    )
    paper_v2 = _networks(published.rows("paper_v2"), "v2", _NO_BN)
    note = "Params: without batch norm. The source cuts its figures to the printed digits."
    yield table("v2_table4", "v2 paper, Table 4: ImageNet", paper_v2, DOWN, note)
    slim_v2 = _networks(published.rows("slim_v2"), "v2", _NO_BN)
    note = "Params: without batch norm. The source cuts mult-adds to whole millions."
    yield table("slim_v2", "TF-slim's 22 v2 checkpoints", slim_v2, {MULT_ADDS: DOWN, PARAMS: NEAREST}, note)


def released() -> Table:
    """TF-slim's 38 checkpoints: printed ImageNet top-1 beside ours of mult-adds and params; what a doubling buys."""
    found, notes = [], []
    for version in ("v1", "v2"):
        rows = []
        for row in published.rows(f"slim_{version}"):
            sums = totals(arch.mobilenet(version, float(row["alpha"])), int(row["resolution"]))
            rows.append((f"{version} {float(row['alpha']):g}", row["resolution"], float(row["top1"]), sums))
        line = noise.fit([(sums.mult_adds, {0: top1 / 100}) for *_, top1, sums in rows])
        if line:
            notes.append(f"{line.points_per_doubling:.1f} points among the {len(rows)} {version} networks")
        found += rows
    front = noise.pareto(found, lambda row: row[3].mult_adds, lambda row: row[2])
    cells = tuple(
        (
            network,
            pixels,
            f"{top1:.1f}",
            f"{sums.mult_adds / 1e6:.2f}",
            f"{sums.params / 1e6:.2f}",
            "yes" if (network, pixels, top1, sums) in front else "",
        )
        for network, pixels, top1, sums in sorted(found, key=lambda row: row[3].mult_adds)
    )
    header = ("network", "pixels", "ImageNet top-1, %, printed", MULT_ADDS, PARAMS, "on the Pareto front")
    note = f"A doubling of mult-adds buys {' and '.join(notes)} (log-linear least squares)."
    return Table("released", "TF-slim's 38 networks by mult-adds", header, cells, note)


def _networks(rows: Iterable[dict[str, str]], version: str, params: str) -> Iterator[Line]:
    """Whole networks, `params` under a convention of that name; a row may say another version, or variant."""
    for row in rows:
        count = None  # somebody else's network
        if row["alpha"]:
            variant = {"variant": row["variant"]} if "variant" in row else {}
            network = arch.mobilenet(row.get("version", version), float(row["alpha"]), **variant)
            count = functools.partial(millions, network, int(row["resolution"]))
        columns = ((MULT_ADDS, "mult_adds_m", "mult-adds"), (PARAMS, "params_m", params))
        yield (
            row.get("row") or f"{row['alpha']} {row['resolution']}",
            {column: (row[key], count and functools.partial(count, name)) for column, key, name in columns},
        )


def millions(network: Architecture, resolution: int, convention: str, reading: Reading = "") -> Decimal:
    """A count, in millions, under a convention (`conventions.NAMED`), or under that which a reading names."""
    return Decimal(conventions.NAMED[reading or convention].count(network, resolution)) / 10**6


def share(rows: Iterable[LayerCost], kind: str, count: Callable[[LayerCost], int]) -> Decimal:
    """Percent of a count that lies in the layers of one kind."""
    rows = list(rows)
    return Decimal(100 * sum(count(row) for row in rows if row.layer.kind == kind)) / sum(map(count, rows))


def _kinds() -> Iterator[Line]:
    """v1, Table 2; its params are kernels alone."""
    rows = layer_costs(arch.mobilenet_v1(), 224)
    kinds = {"Conv 1x1": "pointwise", "Conv DW 3x3": "depthwise", "Conv 3x3": "conv", "Fully Connected": "dense"}
    for row in published.rows("paper_v1"):
        if row["table"] == "2":
            kind = kinds[row["row"]]
            yield (
                row["row"],
                {
                    "mult-adds, %": (row["mult_adds_pct"], share(rows, kind, lambda r: r.mult_adds)),
                    "params, %": (row["params_pct"], share(rows, kind, lambda r: r.weights)),
                },
            )


def _one_layer() -> Iterator[Line]:
    """v1, Table 3: D_K = 3, M = N = 512, D_F = 14, made separable, then narrow, then small."""
    for row in published.rows("paper_v1"):
        if row["table"] == "3":
            width = int(512 * float(row["alpha"] or 1))
            size = round(14 * 0.714) if row["row"] == "rho=0.714" else 14
            pair = (Layer("dw", "depthwise", width, width, 3), Layer("pw", "pointwise", width, width))
            layer = (Layer("conv", "conv", width, width, 3),) if row["row"] == "Convolution" else pair
            count = functools.partial(millions, Architecture("v1", layer), size)
            mult_adds, params = count("mult-adds"), count(_NO_BN)
            yield row["row"], {MULT_ADDS: (row["mult_adds_m"], mult_adds), PARAMS: (row["params_m"], params)}


_TYPES = {"conv": "Conv", "pointwise": "Conv", "depthwise": "Conv dw", "pool": "Avg Pool", "dense": "FC"}


def layers(name: str, title: str, network: Architecture, resolution: int) -> Printed:
    """A printed list of layers (`published/layers.csv`) beside a network's, in the v1 paper's notation."""
    rows = layer_costs(network, resolution)
    columns = ("type", "stride", "filter", "input")
    ours = [
        (_TYPES[r.layer.kind], f"s{r.layer.stride}", _filter(r), f"{r.in_size}x{r.in_size}x{r.layer.in_channels}")
        for r in rows
    ]
    ours.append(("Softmax", "s1", "Classifier", f"1x1x{rows[-1].layer.out_channels}"))
    printed = [row for row in published.rows("layers") if row["table"] == name]
    return table(name, title, _words(printed, "type", columns, ours))


def _words(
    printed: Sequence[Mapping[str, str]], kind: str, columns: Sequence[str], ours: Sequence[tuple[str, ...]]
) -> Iterator[Line]:
    """Rows of words beside ours, each labelled by its number and its `kind`; 'none' where one side has no more."""
    none = dict.fromkeys(columns, "none"), ("none",) * len(columns)
    for i, (row, values) in enumerate(itertools.zip_longest(printed, ours), 1):
        theirs = row or none[0]
        pairs = zip(columns, values or none[1], strict=True)
        yield f"{i} {theirs[kind]}", {column: (theirs[column], value) for column, value in pairs}


def _filter(row: LayerCost) -> str:
    layer = row.layer
    if layer.kind == "pool":
        return f"Pool {row.in_size}x{row.in_size}"
    if layer.kind == "dense":
        return f"{layer.in_channels}x{layer.out_channels}"
    last = " dw" if layer.kind == "depthwise" else f"x{layer.out_channels}"
    return f"{layer.kernel}x{layer.kernel}x{layer.in_channels}{last}"


def expansion(block: list[LayerCost]) -> Decimal:
    """Width of a block's depthwise layer over that of the block's input."""
    return Decimal(block[-2].layer.in_channels) / block[0].layer.in_channels


def _stages() -> Iterator[Line]:
    """v2, Table 2: blocks of one width are a stage, whose first block has the stride."""
    rows = layer_costs(arch.mobilenet_v2(), 224)
    stem, (head, pool, classifier) = rows[0], rows[-3:]
    stages: dict[int, list[list[LayerCost]]] = {}
    for block in blocks(rows):
        stages.setdefault(block[-1].layer.out_channels, []).append(block)

    def line(row: LayerCost, operator: str, *values: object) -> tuple[str, ...]:
        size = f"{row.in_size}²" if row.in_size > 1 else "1x1"
        return (f"{size}x{row.layer.in_channels}", operator, *map(str, values))

    ours = [line(stem, "conv2d", "-", stem.layer.out_channels, 1, stem.layer.stride)]
    for width, stage in stages.items():
        t, stride = expansion(stage[-1]).normalize(), stage[0][-2].layer.stride
        ours.append(line(stage[0][0], "bottleneck", f"{t:f}", width, len(stage), stride))
    ours.append(line(head, "conv2d 1x1", "-", head.layer.out_channels, 1, head.layer.stride))
    ours.append(line(pool, f"avgpool {pool.in_size}x{pool.in_size}", "-", "-", 1, "-"))
    ours.append(line(classifier, "conv2d 1x1", "-", "k", "-", ""))
    printed = published.rows("v2_stages")
    return _words(printed, "operator", list(printed[0]), ours)


_HELD_ROUNDING: Mapping[str, str] = {"v1 memory, kB": TWO_DIGITS, "v2 memory, kB": TWO_DIGITS}


def _held() -> Iterator[Line]:
    """v2, Table 3: the widest map between layers at each resolution, 16 bits a value; of v2 the bottlenecks' alone.

    The v2 paper, section 5.1: an expanded map can be made and used up piece by piece, so that only bottlenecks need
    memory. The stem and the head of v2 are left out as well, as in the printed column.
    """
    v1 = [(row.out_size, row.layer.out_channels) for row in layer_costs(arch.mobilenet_v1(), 224)[:-1]]
    rows = layer_costs(arch.mobilenet_v2(), 224)
    pooled = (rows[-2].out_size, rows[-2].layer.out_channels)
    v2 = [*((block[-1].out_size, block[-1].layer.out_channels) for block in blocks(rows)), pooled]
    # "the next stage": at each resolution, the widest of the blocks that read a map of it.
    entered = [*((block[0].in_size, block[-1].layer.out_channels) for block in blocks(rows)[1:]), pooled]

    def kilobytes(size: int, channels: int) -> Decimal:
        return Decimal(2 * size**2 * channels) / 1000

    for row in published.rows("v2_memory"):
        label, cells = row["row"], {}
        for version, maps in (("v1", v1), ("v2", v2)):
            most: dict[Reading, tuple[int, Decimal]] = {}
            for reading, found in (("", maps), ("the next stage", entered)):
                if label.startswith("max"):
                    here = [(s, c) for s, c in found if s != 112 or label == "max"]
                else:
                    here = [(s, c) for s, c in found if s == int(label.partition("x")[0])]
                most[reading] = (
                    max((c for _, c in here), default=0),
                    max((kilobytes(*m) for m in here), default=Decimal(0)),
                )
            if row[f"{version}_channels"]:
                cells[f"{version} channels"] = row[f"{version}_channels"], lambda r, m=most: Decimal(m[r][0])
            cells[f"{version} memory, kB"] = row[f"{version}_kb"], lambda r, m=most: m[r][1]
        yield label, cells
