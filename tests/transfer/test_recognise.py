"""Architectures from shapes: every published width, and sentences about everything else."""

import dataclasses

import numpy as np
import pytest

from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.transfer import recognise
from mobilenet_jax.transfer.source import Norm, Part, Source, Tensors, padding


def source(network: arch.Architecture, **fields) -> Source:
    """Return a source with the shapes of a network, and no memory behind its zeros."""

    def zeros(*shape):
        return np.broadcast_to(np.float32(0), shape)

    parts = []
    for layer in network.layers:
        vectors = zeros(layer.out_channels)
        if layer.kind == "dense":
            parts.append(Part(layer.name, "dense", zeros(*layer.kernel_shape[2:]), vectors))
        elif layer.norm:
            parts.append(
                Part(layer.name, layer.kind, zeros(*layer.kernel_shape), None, Norm(*[vectors] * 4), layer.activation)
            )
    return Source("test", tuple(parts), **fields)


@pytest.mark.parametrize(
    ("version", "alpha"),
    [
        *(("v1", alpha) for alpha in (0.25, 0.5, 0.75, 1.0, 1.25, 0.3, 0.77)),
        *(("v2", alpha) for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)),
    ],
)
def test_widths(version, alpha):
    network = arch.mobilenet(version, alpha, num_classes=7)
    options, found = recognise.recognise(source(network))
    assert options["alpha"] == alpha
    assert found == arch.mobilenet(**options) and found.layers == network.layers


def test_other_expansion_ratios():
    network = arch.mobilenet_v2(1.0, expansion=4)
    assert recognise.recognise(source(network))[0]["expansion"] == 4


@pytest.mark.parametrize("strides", ["imagenet", "cifar"])
def test_strides_of_a_source_that_has_them(strides):
    network = arch.mobilenet_v2(0.5, strides=strides)
    parts = [
        dataclasses.replace(part, stride=layer.stride)
        for part, layer in zip(source(network).parts, [x for x in network.layers if x.kind != "pool"], strict=True)
    ]
    options, _ = recognise.recognise(Source("test", tuple(parts)))
    assert options.get("strides", "imagenet") == strides


def test_shortcuts_are_those_of_the_strides():
    """At the smallest widths, a stage that does not halve the map has one shortcut more."""
    network = arch.mobilenet_v2(0.35, strides="cifar")
    shortcuts = [sum(x.shortcut is not None for x in each.layers) for each in (network, arch.mobilenet_v2(0.35))]
    assert shortcuts[0] == shortcuts[1] + 1
    strides = [layer.stride for layer in network.weighted]
    made = source(network, additions=shortcuts[0])
    parts = [dataclasses.replace(part, stride=stride) for part, stride in zip(made.parts, strides, strict=True)]
    assert recognise.recognise(dataclasses.replace(made, parts=tuple(parts)))[1].layers == network.layers


def test_round_trip_as_bytes():
    made = source(arch.mobilenet_v1(0.25, activation="relu6"), padding="symmetric", notes=("a", "b"), resolution=96)
    back = Source.from_bytes(made.to_bytes())
    assert dataclasses.replace(back, parts=()) == dataclasses.replace(made, parts=())
    for a, b in zip(made.parts, back.parts, strict=True):
        assert (a.name, a.kind, a.activation, a.stride) == (b.name, b.kind, b.activation, b.stride)
        np.testing.assert_array_equal(a.kernel, b.kernel)
        assert (a.norm is None) == (b.norm is None) and (a.bias is None) == (b.bias is None)


def changed(index: int, **fields):
    def change(parts):
        return (*parts[:index], dataclasses.replace(parts[index], **fields), *parts[index + 1 :])

    return change


WIDE = np.zeros((3, 3, 3, 999), np.float32)


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        (lambda parts: parts[:-1], {}, "1 conv, 13 depthwise, 13 pointwise, 0 dense: not the layers of a MobileNet"),
        (lambda parts: (), {}, "not the layers"),
        (lambda parts: (*parts[:2], parts[3], parts[2], *parts[4:]), {}, "not the layers"),
        (changed(0, kernel=WIDE), {}, "'stem'.* 999"),
        (changed(3, bias=np.zeros(64, np.float32)), {}, "'block02_depthwise' must have either batch norm or a bias"),
        (changed(3, norm=None), {}, "'block02_depthwise' must have either"),
        (changed(27, bias=None), {}, "'classifier' must have either"),
        (changed(1, activation=None), {}, "activation after 'block01_depthwise' is None"),
        (changed(1, activation="relu6"), {}, "must be ReLU or ReLU6 in all"),
        (lambda parts: parts, {"additions": 3}, "3 shortcuts"),
    ],
)
def test_other_networks(change, fields, reason):
    made = source(arch.mobilenet_v1(1.0))
    with pytest.raises(InputError, match=reason):
        recognise.recognise(dataclasses.replace(made, parts=tuple(change(made.parts)), **fields))


def test_class_names():
    made = source(arch.mobilenet_v1(0.25, num_classes=1001))
    assert recognise.convert(made)[1].class_names[0] == "background"
    made = source(arch.mobilenet_v1(0.25, num_classes=3))
    assert recognise.convert(made)[1].class_names == ()
    assert recognise.convert(made, ("a", "b", "c"))[1].class_names == ("a", "b", "c")
    with pytest.raises(InputError, match="2 class names.*3 classes"):
        recognise.convert(made, ("a", "b"))


@pytest.mark.parametrize(
    "fields", [{"resolution": -1}, {"resolution": 10**6}, {"input_range": (0.0, np.inf)}, {"std": (0.0, 1.0, 1.0)}]
)
def test_a_description_that_could_not_be_read_again(fields):
    made = source(arch.mobilenet_v1(0.25), **fields)
    with pytest.raises(InputError, match="(image_size|input_range|std)=.* out of range"):
        recognise.convert(made)


SYMMETRIC, AFTER = [[1, 1], [1, 1]], [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("kernel", "stride", "own", "zeros", "size", "expected"),
    [
        (3, 2, "same", None, 24, "same"),
        (3, 2, "valid", AFTER, 24, "same"),
        (3, 2, "valid", SYMMETRIC, 24, "symmetric"),
        (3, 2, "valid", SYMMETRIC, 0, "symmetric"),
        (3, 2, "valid", SYMMETRIC, 25, ""),  # as SAME: Keras's v2 on odd maps
        (3, 2, "same", None, 25, ""),
        (3, 2, "valid", AFTER, 25, "cropped"),
        (3, 1, "same", None, 24, ""),
        (3, 1, "valid", SYMMETRIC, 24, ""),
        (1, 1, "valid", None, 24, ""),
        (1, 2, "same", None, 24, ""),
    ],
)
def test_padding(kernel, stride, own, zeros, size, expected):
    assert padding("x", kernel, stride, own, zeros, size) == {expected} - {""}
    if expected != "cropped" and kernel == 3 and size:  # what it computes, by the sizes and the first element read
        before = zeros[0][0] if zeros else arch.zero_padding(size, kernel, stride, "same")[0]
        for name in {expected} - {""} or arch.PADDINGS:
            assert arch.zero_padding(size, kernel, stride, name)[0] == before


@pytest.mark.parametrize(
    ("kernel", "stride", "own", "zeros"),
    [(3, 1, "valid", None), (3, 1, "valid", AFTER), (3, 2, "same", AFTER), (1, 1, "valid", SYMMETRIC)],
)
def test_other_paddings(kernel, stride, own, zeros):
    with pytest.raises(InputError, match=f"layer x has padding '{own}' after zeros"):
        padding("layer x", kernel, stride, own, zeros, 24)


def test_each_tensor_is_used_once():
    tensors = Tensors({"a": np.zeros((2, 3), np.float16), "b": np.zeros(1)})
    assert tensors.take("a", (1, 0)).shape == (3, 2)
    with pytest.raises(InputError, match="'a' is missing"):
        tensors.take("a")
    with pytest.raises(InputError, match="'b' belongs to no layer"):
        tensors.done()
    tensors.take("b")
    tensors.done()


@pytest.mark.parametrize("values", [[1e39], [np.inf], [np.nan]])
def test_values_beyond_float32(values):
    with pytest.raises(InputError, match="'a'.*finite"):
        Tensors({"a": np.array(values)}).take("a")
