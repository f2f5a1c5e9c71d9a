"""Keras's files: logits equal Keras's own, recorded by `make_references.py`."""

import dataclasses
import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from transfer_helpers import DATA, images, logits, shared, unpacked, with_relu

from mobilenet_jax.data import views
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import arch
from mobilenet_jax.transfer import keras, recognise, sandbox

h5py = pytest.importorskip("h5py")

REAL = ("keras_v1_0.25_224", "tl_mobilenet_v1_0.5_224_tl_flowers", "tl_mobilenet_v2_0.35_224_tl_flowers")
# What is planted, and what it must change the logits by at least.
MISTAKES = {
    "ReLU": with_relu,
    "symmetric padding": lambda source: {"padding": "symmetric"},
    "BGR": lambda source: {"parts": (_bgr(source.parts[0]), *source.parts[1:])},
    "epsilon 1e-5": lambda source: {"bn_epsilon": 1e-5},
    "input 0..1": lambda source: {"input_range": (0.0, 1.0)},
}


def _bgr(part):
    return dataclasses.replace(part, kernel=np.ascontiguousarray(part.kernel[:, :, ::-1]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return unpacked("tiny.tar.xz", tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", ["whole.h5", "weights.h5", "whole.keras"])
def test_logits_are_keras_own(name, tiny):
    source = sandbox.read(tiny / name)
    expected = np.load(tiny / "logits.npz")["logits"]
    np.testing.assert_allclose(logits(source, images(8, 64)), expected, atol=1e-3)
    assert source.resolution == (0 if name == "weights.h5" else 64)
    options, network = recognise.recognise(source)
    assert (options["activation"], options["padding"], network.num_classes) == ("relu6", "same", 5)
    assert any("no settings" in note for note in source.notes) == (name == "weights.h5")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_shows(mistake, tiny):
    source = keras.read(tiny / "whole.h5")
    wrong = logits(source, images(8, 64), **MISTAKES[mistake](source))
    assert np.abs(wrong - np.load(tiny / "logits.npz")["logits"]).max() > 1e-3


@pytest.fixture(scope="module")
def pictures():
    found = np.load(DATA / "keras_logits.npz")
    folder = shared() / "imagenet" / "val"
    return np.stack([views.read(folder / name, "slim", 224) for name in found["files"]])


@pytest.mark.parametrize("name", REAL)
def test_logits_of_official_networks(name, pictures):
    source = sandbox.read(shared() / "weights" / "keras" / f"{name}.h5")
    found = logits(source, pictures)
    np.testing.assert_allclose(found, np.load(DATA / "keras_logits.npz")[name], atol=1e-3)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_planted_in_an_official_network_shows(mistake, pictures):
    source = sandbox.read(shared() / "weights" / "keras" / f"{REAL[0]}.h5")
    wrong = logits(source, pictures[:4], **MISTAKES[mistake](source))
    assert np.abs(wrong - np.load(DATA / "keras_logits.npz")[REAL[0]][:4]).max() > 1e-2


# Files that are changed by hand.


def changed(tiny: pathlib.Path, out: pathlib.Path, change) -> pathlib.Path:
    """Return a copy of the whole model in which `change` was applied to the open file."""
    shutil.copy(tiny / "whole.h5", out)
    with h5py.File(out, "r+") as file:
        change(file)
    return out


def settings(change):
    """Return a change of the settings of the layers, given as a list of dicts."""

    def apply(file):
        tree = json.loads(file.attrs["model_config"])
        change(tree["config"]["layers"])
        file.attrs["model_config"] = json.dumps(tree)

    return apply


def layer(layers, kind, number=0):
    return [each for each in layers if each["class_name"] == kind][number]["config"]


def weight(file, name):
    """Return the group and the key of a tensor of the first layer with that kind of tensor."""
    found = []
    file["model_weights"].visititems(lambda key, each: found.append(key) if key.endswith(f"/{name}:0") else None)
    group, _, key = found[0].rpartition("/")
    return file["model_weights"][group], key


def external(file):
    group, key = weight(file, "kernel")
    del group[key]
    group[key] = h5py.ExternalLink("/etc/hostname", "/x")


def soft(file):
    group, key = weight(file, "gamma")
    del group[key]
    group[key] = h5py.SoftLink("/model_weights")


def stored_outside(file):
    group, key = weight(file, "beta")
    del group[key]
    group.create_dataset(key, (8,), "f4", external=[("/etc/hostname", 0, 32)])


def virtual(file):
    group, key = weight(file, "beta")
    del group[key]
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (8,))
    group.create_virtual_dataset(key, layout)


def extra(file):
    weight(file, "beta")[0]["more"] = np.zeros(8, np.float32)


def shared_by_two(file):
    group, key = weight(file, "beta")
    del group["gamma:0"]
    group["gamma:0"] = group[key]


def zeros_before_pointwise(layers):
    at = next(i for i, each in enumerate(layers) if each["config"].get("kernel_size") == [1, 1])
    layers[at - 1]["class_name"] = "ZeroPadding2D"
    layers[at - 1]["config"]["padding"] = [[1, 1], [1, 1]]


def whole_numbers(file):
    group, key = weight(file, "gamma")
    del group[key]
    group[key] = np.ones(8, np.int32)


def not_finite(file):
    group, key = weight(file, "gamma")
    group[key][...] = np.nan


def missing(file):
    group, key = weight(file, "moving_mean")
    del group[key]


CHANGES = {
    "an external link": (external, "kernel:0.*link"),
    "a soft link": (soft, "gamma:0.*link"),
    "external storage": (stored_outside, "beta:0.*this file"),
    "a virtual set": (virtual, "beta:0.*this file"),
    "a tensor of no layer": (extra, "more' belongs to no layer"),
    "a tensor of two layers": (shared_by_two, "belongs to two layers"),
    "zeros before a 1x1 convolution": (settings(zeros_before_pointwise), "padding.*zeros"),
    "whole numbers": (whole_numbers, "gamma:0.*int32"),
    "not a number": (not_finite, "gamma.*finite"),
    "a missing tensor": (missing, "moving_mean:0.*missing"),
    "another layer": (settings(lambda x: x[3].update(class_name="LayerNormalization")), "LayerNormalization"),
    "leaky ReLU": (settings(lambda x: layer(x, "ReLU").update(negative_slope=0.1)), "ReLU"),
    "one ReLU": (settings(lambda x: layer(x, "ReLU").update(max_value=None)), "relu.*must be ReLU or ReLU6 in all"),
    "another epsilon": (settings(lambda x: layer(x, "BatchNormalization").update(epsilon=0.1)), "epsilons.*0.1"),
    "another stride": (settings(lambda x: layer(x, "Conv2D").update(strides=[3, 3])), "strides.*3"),
    "dilation": (settings(lambda x: layer(x, "Conv2D").update(dilation_rate=[2, 2])), "dilation"),
    "odd zeros": (settings(lambda x: layer(x, "ZeroPadding2D").update(padding=[[2, 1], [0, 1]])), "padding.*zeros"),
    "a shortcut": (settings(lambda x: x[3].update(class_name="Add")), "activation after"),
    "swish": (settings(lambda x: layer(x, "Conv2D").update(activation="swish")), "activation 'swish'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_mobilenet_of_ours_is_refused(name, tiny, tmp_path):
    change, reason = CHANGES[name]
    path = changed(tiny, tmp_path / "x.h5", change)
    with pytest.raises(InputError, match=reason):
        recognise.convert(keras.read(path))


@pytest.mark.parametrize(("ends", "cropped"), [((0, 0, 0, 0), True), ((1, 1, 1, 0), False)])
def test_zeros_around_odd_maps(ends, cropped, tiny, tmp_path):
    """At 50 pixels, the strided layers after the stem see maps of 25, 13, 7 and 4; `ends` are the zeros before them."""

    def change(layers):
        layer(layers, "InputLayer")["batch_input_shape"] = [None, 50, 50, 3]
        for number, zeros in enumerate(ends):
            layer(layers, "ZeroPadding2D", number)["padding"] = [[zeros, 1], [zeros, 1]]

    source = keras.read(changed(tiny, tmp_path / "x.h5", settings(change)))
    assert (source.padding, source.resolution) == ("same", 50)
    assert any("odd sides" in note for note in source.notes) == cropped


def test_rescaling_in_the_network_is_its_range(tiny, tmp_path):
    def rescale(layers):
        layers.insert(1, {"class_name": "Rescaling", "config": {"name": "r", "scale": 1 / 255, "offset": 0.0}})

    def apply(file):
        settings(rescale)(file)
        names = file["model_weights"].attrs["layer_names"]
        file["model_weights"].attrs["layer_names"] = [*names[:1], "r", *names[1:]]
        file["model_weights"].create_group("r").attrs["weight_names"] = np.array([], "S1")

    assert keras.read(changed(tiny, tmp_path / "x.h5", apply)).input_range == (0.0, 1.0)


def test_layers_are_taken_by_their_order_in_v2(tmp_path):
    """Names such as `conv2d_7` say nothing."""
    layers = [x for x in arch.mobilenet_v2(8 / 1280, num_classes=3).layers if x.kind != "pool"]
    expected, counter = {}, 0
    with h5py.File(tmp_path / "v2.h5", "w") as file:
        file.attrs["keras_version"] = "2.8.0"
        names = []

        def add(arrays):
            nonlocal counter
            names.append(f"layer_{97 * counter % 1000}")
            group = file.create_group(names[-1])
            group.attrs["weight_names"] = [f"{names[-1]}/{key}:0" for key in arrays]
            for key, value in arrays.items():
                group[f"{names[-1]}/{key}:0"] = value
            counter += 1

        rng = np.random.default_rng(0)
        for each in layers:
            shape = each.kernel_shape[2:] if each.kind == "dense" else each.kernel_shape
            kernel = rng.normal(size=shape).astype(np.float32)
            expected[each.name] = kernel
            if each.kind == "dense":
                add({"kernel": kernel, "bias": np.zeros(3, np.float32)})
                continue
            depthwise = each.kind == "depthwise"
            add({"depthwise_kernel": kernel.transpose(0, 1, 3, 2)} if depthwise else {"kernel": kernel})
            ones = np.ones(each.out_channels, np.float32)
            add({"gamma": ones, "beta": 0 * ones, "moving_mean": 0 * ones, "moving_variance": ones})
        file.attrs["layer_names"] = names
    variables, network = recognise.convert(keras.read(tmp_path / "v2.h5"))
    assert network.architecture["version"] == "v2" and network.architecture["activation"] == "relu6"
    for name, kernel in expected.items():
        np.testing.assert_array_equal(variables["params"][name]["kernel"], kernel)


def archive(tiny, out, change=lambda config: None, weights=lambda file: None):
    """Copy the archive of Keras 3 with its settings and its tensors changed; return the copy."""
    with zipfile.ZipFile(tiny / "whole.keras") as source, zipfile.ZipFile(out, "w") as target:
        config = json.loads(source.read("config.json"))
        change(config)
        target.writestr("config.json", json.dumps(config))
        (out.parent / "x.h5").write_bytes(source.read("model.weights.h5"))
        with h5py.File(out.parent / "x.h5", "r+") as file:
            weights(file)
        target.write(out.parent / "x.h5", "model.weights.h5")
    return out


def test_names_of_layers_do_not_say_where_their_tensors_are(tiny, tmp_path):
    """The first layers of a second model may be called `conv2d_3`; their tensors are in `conv2d` all the same."""

    def rename(config):
        for each in config["config"]["layers"]:
            name, _, number = each["config"]["name"].rpartition("_")
            each["config"]["name"] = (
                f"{name}_{int(number) + 3}" if number.isdecimal() else f"{name}_{number}_3".strip("_")
            )

    source = keras.read(archive(tiny, tmp_path / "x.keras", rename))
    for part, expected in zip(source.parts, keras.read(tiny / "whole.keras").parts, strict=True):
        np.testing.assert_array_equal(part.kernel, expected.kernel)


@pytest.mark.parametrize("name", ["conv2d_1/vars/1", "conv2d_99/vars/0"])
def test_a_tensor_of_no_layer_in_an_archive(name, tiny, tmp_path):
    def add(file):
        file[f"layers/{name}"] = np.zeros(8, np.float32)

    with pytest.raises(InputError, match=f"'{name}' belongs to no layer"):
        keras.read(archive(tiny, tmp_path / "x.keras", weights=add))
