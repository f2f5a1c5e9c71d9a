"""Check variants, strides, rounded widths, shortcuts, activations and padding.

`tests/papers` compares the layers of v1, v2 and the 28x28 network with the printed tables, row by row.
"""

import dataclasses
import itertools

import pytest

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture, make_divisible, mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.cost import layer_costs

# v2 paper, Table 2: input size and channels, t, c, n, s of the bottleneck rows.
V2_TABLE_2 = (
    (112, 32, 1, 16, 1, 1),
    (112, 16, 6, 24, 2, 2),
    (56, 24, 6, 32, 3, 2),
    (28, 32, 6, 64, 4, 2),
    (14, 64, 6, 96, 3, 1),
    (14, 96, 6, 160, 3, 2),
    (7, 160, 6, 320, 1, 1),
)

V1_NETWORKS = [
    mobilenet_v1(alpha, strides=strides, variant=variant)
    for alpha, strides, variant in itertools.product((0.1, 0.25, 0.7, 1.0, 1.5), arch.STRIDES, arch.VARIANTS)
    if variant != "cifar28" or strides == "cifar"
]
V2_NETWORKS = [
    mobilenet_v2(alpha, expansion, strides=strides, shortcut=shortcut)
    for alpha, expansion, strides, shortcut in itertools.product(
        (0.1, 0.25, 0.35, 1.0, 1.4), (1, 1.1, 2.5, 6), arch.STRIDES, arch.SHORTCUTS
    )
]


def blocks(network: Architecture, resolution: int) -> list[tuple[int, int, float, int, int]]:
    """Return (input size, input channels, t, c, stride) of every inverted residual."""
    rows = [row for row in layer_costs(network, resolution) if row.layer.name.startswith("block")]
    found = []
    for _, group in itertools.groupby(rows, key=lambda row: row.layer.name.split("_")[0]):
        *expand, depthwise, project = group
        assert [row.layer.name.split("_")[1] for row in expand] in ([], ["expand"])
        assert (depthwise.layer.kernel, project.layer.kernel) == (3, 1)
        first = (*expand, depthwise)[0]
        t = depthwise.layer.in_channels / first.layer.in_channels
        found.append((first.in_size, first.layer.in_channels, t, project.layer.out_channels, depthwise.layer.stride))
    return found


def widths(network: Architecture, ending: str) -> list[int]:
    return [layer.out_channels for layer in network.layers if layer.name.endswith(ending)]


def test_v1_shallow_leaves_out_the_five_blocks_of_14x14x512():
    full, shallow = mobilenet_v1().layers, mobilenet_v1(variant="shallow").layers

    def unnamed(layers):
        return [dataclasses.replace(layer, name="") for layer in layers]

    assert unnamed(shallow) == unnamed((*full[:13], *full[23:]))
    rows = layer_costs(mobilenet_v1(), 224)[13:23]
    assert {(row.in_size, row.out_size, row.layer.in_channels, row.layer.out_channels) for row in rows} == {
        (14, 14, 512, 512)
    }


@pytest.mark.parametrize(("variant", "convolutions"), [("paper", 27), ("cifar28", 27), ("shallow", 17)])
def test_v1_depth(variant, convolutions):
    kinds = [layer.kind for layer in mobilenet_v1(strides="cifar", variant=variant).layers]
    assert len([kind for kind in kinds if kind in ("conv", "depthwise", "pointwise")]) == convolutions
    assert kinds[-2:] == ["pool", "dense"]  # the paper counts the classifier too: 28


def test_v1_standard_convolutions_replace_the_pairs():
    full, separable = mobilenet_v1(variant="standard_conv"), mobilenet_v1()
    pairs = [
        (dw.in_channels, pw.out_channels, dw.kernel, dw.stride)
        for dw, pw in itertools.pairwise(separable.layers)
        if dw.kind == "depthwise"
    ]
    convs = [x for x in full.layers[1:] if x.kind == "conv"]
    assert [(x.in_channels, x.out_channels, x.kernel, x.stride) for x in convs] == pairs
    assert len(full.layers) == 1 + 13 + 2


def test_v1_cifar_differs_in_the_stem_alone():
    imagenet, cifar = mobilenet_v1(), mobilenet_v1(strides="cifar")
    assert (imagenet.layers[0].stride, cifar.layers[0].stride) == (2, 1)
    assert imagenet.layers[1:] == cifar.layers[1:]
    strides = [layer.stride for layer in cifar.layers if layer.kind == "depthwise"]
    assert strides == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


def test_v2_row_by_row():
    network = mobilenet_v2()
    expected = [
        (size if i == 0 else size // s, m if i == 0 else c, t, c, s if i == 0 else 1)
        for size, m, t, c, n, s in V2_TABLE_2
        for i in range(n)
    ]
    assert blocks(network, 224) == expected
    assert len(network.layers) == 1 + 17 * 3 - 1 + 3  # the first block has no expansion


def test_v2_cifar_strides():
    network = mobilenet_v2(strides="cifar", num_classes=10)
    assert network.layers[0].stride == 1
    assert [row[4] for row in blocks(network, 32)] == [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert [row[:4] for row in blocks(network, 32)][-1] == (4, 160, 6, 320)


@pytest.mark.parametrize("resolution", [32, 97])
def test_every_network_is_consistent(resolution):
    for network in (*V1_NETWORKS, *V2_NETWORKS):
        rows = {row.layer.name: row for row in layer_costs(network, resolution)}
        assert len(rows) == len(network.layers), "two layers share a name"
        assert network.layers[0].in_channels == 3
        for before, layer in itertools.pairwise(network.layers):
            assert layer.in_channels == before.out_channels
        earlier = set()
        for layer in network.layers:
            assert layer.kind in {"conv", "depthwise", "pointwise", "pool", "dense"}
            assert layer.norm == (layer.kind not in ("pool", "dense"))
            assert layer.kernel == (3 if layer.kind in ("conv", "depthwise") else 1)
            assert layer.kernel_shape[-1] == layer.out_channels
            assert layer.kind not in ("depthwise", "pool") or layer.in_channels == layer.out_channels
            if layer.shortcut is not None:
                assert layer.shortcut in earlier
                source, target = rows[layer.shortcut], rows[layer.name]
                assert (source.out_size, source.layer.out_channels) == (target.out_size, target.layer.out_channels)
            earlier.add(layer.name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 8),  # never below 8
        (8, 8),
        (8.8, 8),
        (8.9, 16),  # 8 would be below 0.9 of it
        (11.2, 16),  # 32 * 0.35
        (12, 16),  # halfway: up
        (17.7, 16),
        (17.8, 24),  # 16 would be below 0.9 of it
        (33.6, 32),
        (89.6, 88),
        (1280 * 1.4, 1792),
    ],
)
def test_make_divisible(value, expected):
    assert make_divisible(value) == expected


@pytest.mark.parametrize(
    ("alpha", "stem", "blocks_out"),
    [
        (0.01, 8, [*[8] * 11, 10, 10]),  # at least 8
        (0.35, 11, [22, 44, 44, 89, 89, *[179] * 6, 358, 358]),  # truncated, not rounded: 11.2, 22.4, 44.8, ...
        (0.75, 24, [48, 96, 96, 192, 192, *[384] * 6, 768, 768]),
        (1.5, 48, [96, 192, 192, 384, 384, *[768] * 6, 1536, 1536]),
    ],
)
def test_v1_widths(alpha, stem, blocks_out):
    network = mobilenet_v1(alpha)
    assert widths(network, "stem") == [stem]
    assert widths(network, "_pointwise") == blocks_out


@pytest.mark.parametrize("variant", ["standard_conv", "shallow", "cifar28"])
def test_v1_variants_follow_alpha(variant):
    full, half = (mobilenet_v1(alpha, strides="cifar", variant=variant).layers for alpha in (1, 0.5))
    assert [layer.out_channels / 2 for layer in full[:-1]] == [layer.out_channels for layer in half[:-1]]


@pytest.mark.parametrize(
    ("alpha", "stem", "stages", "head"),
    [
        (0.35, 16, [8, 8, 16, 24, 32, 56, 112], 1280),  # the head is not shrunk ...
        (0.5, 16, [8, 16, 16, 32, 48, 80, 160], 1280),
        (1.0, 32, [16, 24, 32, 64, 96, 160, 320], 1280),
        (1.3, 40, [24, 32, 40, 80, 128, 208, 416], 1664),  # ... but widened
        (1.4, 48, [24, 32, 48, 88, 136, 224, 448], 1792),
        (1.33, 40, [24, 32, 40, 88, 128, 216, 424], 1704),  # 1702.4, rounded to a multiple of 8
    ],
)
def test_v2_widths(alpha, stem, stages, head):
    network = mobilenet_v2(alpha)
    repeats = [n for *_, n, _ in V2_TABLE_2]
    assert widths(network, "stem") == [stem]
    assert widths(network, "_project") == [c for c, n in zip(stages, repeats, strict=True) for _ in range(n)]
    assert widths(network, "head") == [head]


@pytest.mark.parametrize("alpha", [0.35, 1.0])
@pytest.mark.parametrize("expansion", [1, 1.1, 2.5, 6, 10])
def test_v2_expansion(alpha, expansion):
    inputs = blocks(mobilenet_v2(alpha, expansion), 224)
    expanded = {layer.name: layer for layer in mobilenet_v2(alpha, expansion).layers if layer.name.endswith("_expand")}
    for index, (_, channels, t, _, _) in enumerate(inputs, 1):
        wanted = channels if index == 1 else make_divisible(channels * expansion)
        assert channels * t == pytest.approx(wanted)
        assert (f"block{index:02d}_expand" in expanded) == (wanted != channels)
        assert wanted % 8 == 0


def test_v2_without_expansion_has_no_expanding_layers():
    assert not widths(mobilenet_v2(expansion=1), "_expand")
    assert len(widths(mobilenet_v2(), "_expand")) == 16
    # 1.1 times the input rounds back to the input in every block but those with 56 channels.
    names = [layer.name for layer in mobilenet_v2(0.35, 1.1).layers if layer.name.endswith("_expand")]
    assert names == ["block15_expand", "block16_expand", "block17_expand"]


def links(network: Architecture) -> dict[str, str]:
    return {layer.name: layer.shortcut for layer in network.layers if layer.shortcut}


def numbered(pairs: list[tuple[int, int]], ending: str) -> dict[str, str]:
    return {f"block{to:02d}_{ending}": f"block{source:02d}_{ending}" for source, to in pairs}


@pytest.mark.parametrize("expansion", [1, 6])
def test_shortcuts_between_bottlenecks(expansion):
    # Within a stage, from projection to projection: stride 1 and equal widths.
    pairs = [(b - 1, b) for b in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert links(mobilenet_v2(expansion=expansion)) == numbered(pairs, "project")


def test_shortcuts_between_expansions():
    # The block in between has stride 1 and both expansions are equally wide: also into the next stage's first block.
    pairs = [(b - 1, b) for b in (4, 6, 7, 9, 10, 11, 13, 14, 16, 17)]
    assert links(mobilenet_v2(shortcut="expansion")) == numbered(pairs, "expand")


def test_without_expansion_both_kinds_of_shortcut_are_the_same():
    assert mobilenet_v2(expansion=1, shortcut="expansion") == mobilenet_v2(expansion=1)


def test_no_shortcuts():
    assert links(mobilenet_v2(shortcut="none")) == {}
    assert not any(links(network) for network in V1_NETWORKS)


def test_shortcuts_follow_the_rounded_widths():
    # At 0.35 the first two stages are 8 wide, at 0.25 the stem too; between stages they still need stride 1.
    assert "block02_project" not in links(mobilenet_v2(0.35))
    assert links(mobilenet_v2(0.35, strides="cifar"))["block02_project"] == "block01_project"
    assert links(mobilenet_v2(0.25))["block01_project"] == "stem"
    assert "block01_project" not in links(mobilenet_v2(0.35))


@pytest.mark.parametrize(
    ("network", "inner", "projection"),
    [
        (mobilenet_v1(), "relu", None),
        (mobilenet_v1(activation="relu6"), "relu6", None),
        (mobilenet_v1(variant="standard_conv", activation="relu6"), "relu6", None),
        (mobilenet_v2(), "relu6", None),
        (mobilenet_v2(activation="relu"), "relu", None),
        (mobilenet_v2(activation="relu", bottleneck="relu6"), "relu", "relu6"),
    ],
)
def test_activations(network, inner, projection):
    for layer in network.layers:
        linear = layer.kind in ("pool", "dense")
        expected = None if linear else projection if layer.name.endswith("_project") else inner
        assert layer.activation == expected, layer.name


@pytest.mark.parametrize(
    ("size", "stride", "same", "symmetric"),
    [
        (8, 1, (1, 1), (1, 1)),
        (7, 2, (1, 1), (1, 1)),
        (8, 2, (0, 1), (1, 0)),
        (2, 2, (0, 1), (1, 0)),
        (1, 2, (1, 1), (1, 1)),
    ],
)
def test_zeros_around_a_map(size, stride, same, symmetric):
    assert arch.zero_padding(size, 3, stride, "same") == same
    assert arch.zero_padding(size, 3, stride, "symmetric") == symmetric
    assert arch.zero_padding(size, 1, 1, "symmetric") == (0, 0)


def test_padding_is_that_of_every_convolution():
    for build in (mobilenet_v1, mobilenet_v2):
        network = build(padding="symmetric")
        assert {layer.padding for layer in network.layers if layer.norm} == {"symmetric"}
        assert network != build() and build(padding="same") == build()
