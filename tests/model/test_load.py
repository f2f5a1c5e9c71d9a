"""A trained network as a file: it loads as it was, and others can compute its logits without this package."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import mobilenet_jax
from mobilenet_jax.errors import InputError
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks import arch, cost
from mobilenet_jax.records import weights

ARCHITECTURES = {
    "v1": {"version": "v1", "alpha": 0.25, "num_classes": 3, "strides": "cifar", "variant": "shallow"},
    "v2": {"version": "v2", "alpha": 0.1, "num_classes": 3, "expansion": 2.0, "padding": "symmetric"},
}


def stored(directory: pathlib.Path, version: str) -> tuple[pathlib.Path, MobileNet, Any]:
    """Write a network with random variables; return the file, its module and its variables."""
    options = ARCHITECTURES[version]
    module, rng = MobileNet(arch.mobilenet(**options)), np.random.default_rng(0)  # type: ignore[arg-type]
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
    network = weights.Network(options, module.arch.input_range, 16, 8, ("a", "b", "c"), "digits", 0.5)
    weights.write(directory / weights.FILE, variables, network)
    return directory / weights.FILE, module, variables


@pytest.mark.parametrize("version", ARCHITECTURES)
def test_a_network_loads_as_it_was_written(version, tmp_path):
    path, module, variables = stored(tmp_path, version)
    loaded = mobilenet_jax.load(path)
    assert (loaded.module.arch, loaded.resolution) == (module.arch, 8) and tuple(loaded.class_names) == ("a", "b", "c")
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (loaded.variables, variables)), strict=True))
    images = np.random.default_rng(1).integers(0, 256, (2, 20, 16, 3), np.uint8)
    inputs = loaded.preprocess(jax.numpy.asarray(images))
    assert inputs.shape == (2, 8, 8, 3) and -1 <= float(inputs.min()) < float(inputs.max()) <= 1
    of_directory = mobilenet_jax.load(tmp_path)
    assert of_directory.module == loaded.module
    assert jax.tree.all(jax.tree.map(np.array_equal, of_directory.variables, variables))


def test_normalisation_by_channel(tmp_path):
    """By hand: 51 is 0.2 in [0, 1], and then (0.2 - mean) / std."""
    path, _, variables = stored(tmp_path, "v1")
    mean, std = (0.1, 0.2, 0.4), (0.5, 0.25, 0.1)
    network = weights.Network(ARCHITECTURES["v1"], (0.0, 1.0), 8, 8, mean=mean, std=std)
    weights.write(path, variables, network)
    loaded = mobilenet_jax.load(path)
    assert (loaded.module.arch.input_range, loaded.module.arch.mean, loaded.module.arch.std) == ((0, 1), mean, std)
    inputs = loaded.preprocess(jax.numpy.full((1, 8, 8, 3), 51, np.uint8))
    np.testing.assert_allclose(inputs[0, 3, 4], [0.2, 0.0, -2.0], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"groups": 4}, {"alpha": 9}])
def test_an_unknown_architecture(wrong, tmp_path):
    network = weights.Network({"version": "v1", **wrong}, (-1.0, 1.0), 8, 8)
    weights.write(tmp_path / weights.FILE, {}, network)
    with pytest.raises(InputError, match=f": no network has this architecture.*{next(iter(wrong))}"):
        mobilenet_jax.load(tmp_path)


@pytest.mark.parametrize("images", [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 15, 16, 3), np.uint8)])
def test_images_that_do_not_fit(images, tmp_path):
    path, *_ = stored(tmp_path, "v1")
    with pytest.raises(InputError, match=r"uint8 \[B, H, W, 3\].*16 pixels"):
        mobilenet_jax.load(path).preprocess(images)


@pytest.mark.parametrize("made", [{"source": "Keras"}, {"protocol": "torch"}])
def test_views_of_files_have_the_resolution_of_the_network(made, tmp_path):
    """Larger ones would lose their borders."""
    path, _, variables = stored(tmp_path, "v1")
    weights.write(path, variables, weights.Network(ARCHITECTURES["v1"], (0.0, 1.0), 8, 8, **made))
    loaded = mobilenet_jax.load(path)
    views = np.zeros((1, 8, 8, 3), np.uint8)
    assert loaded.preprocess(views).shape == views.shape
    with pytest.raises(InputError, match=r"\[B, H, W, 3\].*of 8 pixels"):
        loaded.preprocess(np.zeros((1, 8, 9, 3), np.uint8))


def forward(tensors: dict[str, np.ndarray], images: np.ndarray, network: arch.Architecture) -> np.ndarray:
    """Return the logits in NumPy, in float64, from the tensors of the file."""
    x, outputs = images.astype(np.float64), {}
    for layer in network.layers:
        if layer.kind == "pool":
            x = x.mean((1, 2))
        elif layer.kind == "dense":
            x = x @ tensors["params/classifier/kernel"] + tensors["params/classifier/bias"]
        else:
            kernel = tensors[f"params/{layer.name}/kernel"].astype(np.float64)
            pads = [arch.zero_padding(size, layer.kernel, layer.stride, layer.padding) for size in x.shape[1:3]]
            x = np.pad(x, ((0, 0), *pads, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, (layer.kernel, layer.kernel), (1, 2))
            windows = windows[:, :: layer.stride, :: layer.stride]  # [N, H, W, C, K, K]
            if layer.kind == "depthwise":
                x = np.einsum("nhwcij,ijc->nhwc", windows, kernel[:, :, 0])
            else:
                x = np.einsum("nhwcij,ijcd->nhwd", windows, kernel)
            scale, bias = (tensors[f"params/{layer.name}/bn/{name}"] for name in ("scale", "bias"))
            mean, var = (tensors[f"batch_stats/{layer.name}/bn/{name}"] for name in ("mean", "var"))
            x = (x - mean) / np.sqrt(var + network.bn_epsilon) * scale + bias
            x = np.clip(x, *{"relu": (0, np.inf), "relu6": (0, 6), None: (-np.inf, np.inf)}[layer.activation])
        if layer.shortcut is not None:
            x = x + outputs[layer.shortcut]
        outputs[layer.name] = x
    return x


@pytest.mark.parametrize("version", ARCHITECTURES)
def test_the_file_alone_gives_the_logits(version, tmp_path):
    path, module, variables = stored(tmp_path, version)
    tensors = safetensors.load_file(path)
    trainable = sum(tensor.size for name, tensor in tensors.items() if name.startswith("params/"))
    assert trainable == cost.totals(module.arch, 8).params
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(module.apply)(variables, images))
    np.testing.assert_allclose(forward(tensors, images, module.arch), expected, rtol=1e-4)


OURS = {"architecture": "{}"}  # which no other metadata has


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "no weights can be read"),
        (b"x" * 100, "no file of this package.*import"),
        (safetensors.save({"x": np.zeros(2)}), "no file of this package.*import"),
        (safetensors.save({"x": np.zeros(2)}, {"format": "pt"}), "no file of this package.*import"),
        (safetensors.save({}, {"format": "2", **OURS}), "another version"),
        (safetensors.save({}, {"format": "1", **OURS}), "lacks 'input_range'"),
        (safetensors.save({}, {"format": "1", **OURS})[:-3], "no weights can be read"),
        (safetensors.save({}, {"format": "[" * 100_000, **OURS}), "no weights can be read"),
        (
            safetensors.save({}, {"format": "1", "input_range": "[0, 1]", "class_names": "[]", **OURS}),
            "no weights can be read",
        ),
    ],
)
def test_files_that_hold_no_network(content, reason, tmp_path):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as e:
        weights.read(path)
    assert str(path) in str(e.value)


def test_a_directory_without_weights(tmp_path):
    for read in (weights.read, weights.identify):
        with pytest.raises(InputError, match=f"{tmp_path.name}: .*finished run.*{weights.FILE}"):
            read(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 0},
        {"resolution": "224"},
        {"input_range": (0.0,)},
        {"mean": (0.0, float("nan"), 0.0)},
        {"mean": (0.0, 10**400, 0.0)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, True, 1.0)},
        {"class_names": (1, 2)},
        {"protocol": "square"},
        {"architecture": ["v1"]},
    ],
)
def test_damaged_descriptions(changes, tmp_path):
    good = {"architecture": ARCHITECTURES["v1"], "input_range": (0.0, 1.0), "image_size": 8, "resolution": 8}
    weights.write(tmp_path / "w.safetensors", {}, weights.Network(**good | changes))
    with pytest.raises(InputError, match="w.safetensors: .*damaged"):
        weights.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": np.zeros(2)}, "'a' is not float32"),
        ({"a": np.zeros(2, np.float32), "a/b": np.zeros(2, np.float32)}, "'a/b' lies below"),
    ],
)
def test_odd_tensors(tensors, reason, tmp_path):
    weights.write(tmp_path / "w.safetensors", tensors, weights.Network(ARCHITECTURES["v1"], (0.0, 1.0), 8, 8))
    with pytest.raises(InputError, match=reason):
        weights.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize("change", ["missing", "left over", "another shape"])
def test_tensors_of_another_architecture(change, tmp_path):
    path, _, variables = stored(tmp_path, "v1")
    params = dict(variables["params"])
    params["stem2" if change == "left over" else "stem"] = {"kernel": np.zeros((3, 3, 3, 9), np.float32)}
    if change == "missing":
        del params["stem"]
    weights.write(path, {**variables, "params": params}, weights.read(path)[1])
    with pytest.raises(InputError, match="not those of its architecture: params/stem"):
        mobilenet_jax.load(path)
