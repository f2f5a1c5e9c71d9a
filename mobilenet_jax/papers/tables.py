"""Compare every cost that the v1 paper, the v2 paper and TF-slim's releases print with ours."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from mobilenet_jax.networks import arch, conventions
from mobilenet_jax.networks.arch import Architecture, Layer
from mobilenet_jax.networks.cost import LayerCost, blocks, layer_costs
from mobilenet_jax.papers import printed
from mobilenet_jax.papers.compare import DOWN, TWO_DIGITS, Columns, Comparison, Line, compare

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


def tables() -> Iterator[Comparison]:
    """Yield Tables 1 to 9 of the v1 paper, TF-slim's 16 rows, Tables 2 to 4 of the v2 paper, TF-slim's 22 rows."""
    yield layers("v1_table1", "v1 paper, Table 1: the layers", arch.mobilenet_v1(), 224)
    yield compare("v1_table2", "v1 paper, Table 2: resources by kind of layer", _kinds())
    yield compare("v1_table3", "v1 paper, Table 3: one layer (14x14x512), changed step by step", _one_layer())
    for number, title in _V1_TITLES.items():
        lines = _networks(_paper_v1(number), "v1", "trainable")
        yield compare(f"v1_table{number}", f"v1 paper, Table {number}: {title}", lines)
    lines = _networks(printed.rows("slim_v1"), "v1", "TF-slim v1")
    note = "Params: TF-slim's own rule, see conventions."
    yield compare("slim_v1", "TF-slim's 16 v1 checkpoints", lines, note=note)
    yield compare("v2_table2", "v2 paper, Table 2: the stages", _stages())
    rounding = {"v1 memory, kB": TWO_DIGITS, "v2 memory, kB": TWO_DIGITS}
    note = "Memory: 16 bits a value; the source cuts it to two digits."
    yield compare("v2_table3", "v2 paper, Table 3: what must be held at each resolution", _held(), rounding, note)
    lines = _networks(printed.rows("paper_v2"), "v2", _NO_BN)
    note = "Params: without batch norm. The source cuts its figures to the printed digits."
    yield compare("v2_table4", "v2 paper, Table 4: ImageNet", lines, {MULT_ADDS: DOWN, PARAMS: DOWN}, note)
    lines = _networks(printed.rows("slim_v2"), "v2", _NO_BN)
    note = "Params: without batch norm. The source cuts mult-adds to whole millions."
    yield compare("slim_v2", "TF-slim's 22 v2 checkpoints", lines, {MULT_ADDS: DOWN}, note)


def document_000() -> Comparison:
    """Return the list of layers that the AIdventure page "MobileNet v1" prints, next to ours."""
    return layers("document_000", "Document 000: the layers of v1", arch.mobilenet_v1(), 224)


def _networks(rows: Iterable[dict[str, str]], version: str, params: str) -> Iterator[Line]:
    """Compare whole networks, params under the convention `params`. A row may name another version, or a variant."""
    for row in rows:
        network = None  # this package builds no other network
        if row["alpha"]:
            variant = {"variant": row["variant"]} if "variant" in row else {}
            network = arch.mobilenet(row.get("version", version), float(row["alpha"]), **variant)
        label = row.get("row") or f"{row['alpha']} {row['resolution']}"
        yield label, _counts(row, network, int(row["resolution"] or 0), params)


def _counts(row: Mapping[str, str], network: Architecture | None, resolution: int, params: str) -> Columns:
    ours = [network and millions(network, resolution, convention) for convention in ("mult-adds", params)]
    return {MULT_ADDS: (row["mult_adds_m"], ours[0]), PARAMS: (row["params_m"], ours[1])}


def _paper_v1(table: int) -> list[dict[str, str]]:
    return [row for row in printed.rows("paper_v1") if row["table"] == str(table)]


def millions(network: Architecture, resolution: int, convention: str) -> Decimal:
    """Return a count under a convention (a key of `conventions.NAMED`), in millions."""
    return Decimal(conventions.NAMED[convention].count(network, resolution)) / 10**6


def share(rows: Sequence[LayerCost], kind: str, count: Callable[[LayerCost], int]) -> Decimal:
    """Return the percentage of a count that lies in the layers of one kind."""
    return Decimal(100 * sum(count(row) for row in rows if row.layer.kind == kind)) / sum(map(count, rows))


def _kinds() -> Iterator[Line]:
    """Compare Table 2 of the v1 paper. Its params are kernels alone."""
    rows = layer_costs(arch.mobilenet_v1(), 224)
    kinds = {"Conv 1x1": "pointwise", "Conv DW 3x3": "depthwise", "Conv 3x3": "conv", "Fully Connected": "dense"}
    for row in _paper_v1(2):
        mult_adds = share(rows, kinds[row["row"]], lambda r: r.mult_adds)
        params = share(rows, kinds[row["row"]], lambda r: r.weights)
        cells = {"mult-adds, %": (row["mult_adds_pct"], mult_adds), "params, %": (row["params_pct"], params)}
        yield row["row"], cells


def _one_layer() -> Iterator[Line]:
    """Compare Table 3 of the v1 paper: D_K = 3, M = N = 512, D_F = 14, made separable, then narrow, then small."""
    for row in _paper_v1(3):
        width = int(512 * float(row["alpha"] or 1))
        size = round(14 * 0.714) if row["row"] == "rho=0.714" else 14
        pair = (Layer("dw", "depthwise", width, width, 3), Layer("pw", "pointwise", width, width))
        layer = (Layer("conv", "conv", width, width, 3),) if row["row"] == "Convolution" else pair
        yield row["row"], _counts(row, Architecture("v1", layer), size, _NO_BN)


_TYPES = {"conv": "Conv", "pointwise": "Conv", "depthwise": "Conv dw", "pool": "Avg Pool", "dense": "FC"}


def layers(name: str, title: str, network: Architecture, resolution: int) -> Comparison:
    """Compare a printed list of layers (in `data/layers.csv`) with a network's, in the v1 paper's notation."""
    rows = layer_costs(network, resolution)
    ours = [
        (_TYPES[r.layer.kind], f"s{r.layer.stride}", _filter(r), f"{r.in_size}x{r.in_size}x{r.layer.in_channels}")
        for r in rows
    ]
    ours.append(("Softmax", "s1", "Classifier", f"1x1x{rows[-1].layer.out_channels}"))
    theirs = [row for row in printed.rows("layers") if row["table"] == name]
    return compare(name, title, _words(theirs, "type", ("type", "stride", "filter", "input"), ours))


def _words(
    theirs: Sequence[Mapping[str, str]], kind: str, columns: Sequence[str], ours: Sequence[tuple[str, ...]]
) -> Iterator[Line]:
    """Compare rows of words, each labelled by its number and its `kind`; 'none' fills up the shorter side."""
    none = dict.fromkeys(columns, "none")
    for i, (row, values) in enumerate(itertools.zip_longest(theirs, ours), 1):
        row, values = row or none, values or tuple(none.values())
        yield f"{i} {row[kind]}", {column: (row[column], ours) for column, ours in zip(columns, values, strict=True)}


def _filter(row: LayerCost) -> str:
    layer = row.layer
    if layer.kind == "pool":
        return f"Pool {row.in_size}x{row.in_size}"
    if layer.kind == "dense":
        return f"{layer.in_channels}x{layer.out_channels}"
    last = " dw" if layer.kind == "depthwise" else f"x{layer.out_channels}"
    return f"{layer.kernel}x{layer.kernel}x{layer.in_channels}{last}"


def expansion(block: Sequence[LayerCost]) -> Decimal:
    """Return the width of a block's depthwise layer over that of the block's input."""
    return Decimal(block[-2].layer.in_channels) / block[0].layer.in_channels


def _stages() -> Iterator[Line]:
    """Compare Table 2 of the v2 paper: blocks of one width are a stage, whose first block has the stride."""
    rows = layer_costs(arch.mobilenet_v2(), 224)
    stem, (head, pool, classifier) = rows[0], rows[-3:]

    def line(row: LayerCost, operator: str, *values: object) -> tuple[str, ...]:
        size = f"{row.in_size}²" if row.in_size > 1 else "1x1"
        return (f"{size}x{row.layer.in_channels}", operator, *map(str, values))

    ours = [line(stem, "conv2d", "-", stem.layer.out_channels, 1, stem.layer.stride)]
    for width, found in itertools.groupby(blocks(rows), lambda block: block[-1].layer.out_channels):
        stage = list(found)
        t, stride = expansion(stage[-1]).normalize(), stage[0][-2].layer.stride
        ours.append(line(stage[0][0], "bottleneck", f"{t:f}", width, len(stage), stride))
    ours.append(line(head, "conv2d 1x1", "-", head.layer.out_channels, 1, head.layer.stride))
    ours.append(line(pool, f"avgpool {pool.in_size}x{pool.in_size}", "-", "-", 1, "-"))
    ours.append(line(classifier, "conv2d 1x1", "-", "k", "-", ""))
    theirs = printed.rows("v2_stages")
    return _words(theirs, "operator", list(theirs[0]), ours)


def _held() -> Iterator[Line]:
    """Compare Table 3 of the v2 paper: the widest map at each resolution, 16 bits a value.

    Of v2 only the ends of the bottlenecks count: an expanded map can be made and used up piece by piece (v2 paper,
    section 5.1). The stem and the head of v2 are left out as well, as in the printed column.
    """
    rows = layer_costs(arch.mobilenet_v2(), 224)
    maps = {
        "v1": [(row.out_size, row.layer.out_channels) for row in layer_costs(arch.mobilenet_v1(), 224)[:-1]],
        "v2": [(row.out_size, row.layer.out_channels) for row in (*(block[-1] for block in blocks(rows)), rows[-2])],
    }
    for row in printed.rows("v2_memory"):
        label, cells = row["row"], {}
        for version, found in maps.items():
            if label.startswith("max"):
                found = [(size, channels) for size, channels in found if size != 112 or label == "max"]
            else:
                found = [(size, channels) for size, channels in found if f"{size}x{size}" == label]
            if row[f"{version}_channels"]:
                most = max((channels for _, channels in found), default=0)
                cells[f"{version} channels"] = row[f"{version}_channels"], most
            values = max((size**2 * channels for size, channels in found), default=0)
            cells[f"{version} memory, kB"] = row[f"{version}_kb"], Decimal(2 * values) / 1000
        yield label, cells
