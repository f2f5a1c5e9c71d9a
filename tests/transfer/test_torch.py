"""Networks of torchvision, timm and Hugging Face: logits equal PyTorch's, recorded by `make_references.py`."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors
from transfer_helpers import images, logits, tensor, torch_references

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer import recognise, sandbox, torch

RECORDED = torch_references()


def saved(directory: pathlib.Path, name: str, **changes: Any) -> pathlib.Path:
    """Write the recorded network; `changes` replace or add tensors, None takes one away."""
    tensors = {key: tensor(key, shape) for key, shape in RECORDED[name]["shapes"].items()} | changes
    counter = {"x.num_batches_tracked": np.zeros((), np.int64)}
    whole = counter | {key: value for key, value in tensors.items() if value is not None}
    safetensors.save_file(whole, directory / "model.safetensors")
    if config := RECORDED[name]["config"]:
        (directory / "config.json").write_text(json.dumps(config))
    return directory / "model.safetensors"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RECORDED if name.endswith("symmetric")]


@pytest.mark.parametrize("name", [*(name for name in RECORDED if not name.endswith("symmetric")), *SLOW])
def test_logits_are_pytorch_s(name, tmp_path):
    source = sandbox.read(saved(tmp_path, name))
    assert source.padding == ("same" if name.endswith("same") else "symmetric")
    found, expected = logits(source, images(2, 64)), np.array(RECORDED[name]["logits"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    other = "symmetric" if source.padding == "same" else "same"
    assert np.abs(logits(source, images(2, 64), padding=other) - expected).max() > 1e-2


@pytest.mark.parametrize("name", ["torchvision_v2", "timm_mobilenetv1_100"])
def test_another_epsilon_shows(name, tmp_path):
    source = torch.read(saved(tmp_path, name))
    expected = np.array(RECORDED[name]["logits"])
    assert np.abs(logits(source, images(2, 64), bn_epsilon=1e-3) - expected).max() > 1e-4


def test_normalisation_is_that_of_the_library(tmp_path):
    for name, mean in {"torchvision_v2": 0.485, "timm_mobilenetv1_100": 0.5, "timm_mobilenetv2_035": 0.485}.items():
        source = torch.read(saved(tmp_path, name))
        assert (source.mean[0], source.input_range) == (mean, (0.0, 1.0))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}))
    source = torch.read(tmp_path / "model.safetensors")
    assert (source.mean, source.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_without_a_config_same_padding_is_assumed_and_said(tmp_path):
    path = saved(tmp_path, "hf_v1_same")
    (tmp_path / "config.json").unlink()
    source = torch.read(path)
    assert source.padding == "same" and any("tf_padding" in note for note in source.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features.3.conv.2.weight": None}, "'features.3.conv.2.weight' is missing"),
        ({"features.19.weight": np.zeros(3, np.float32)}, "'features.19.weight' belongs to no layer"),
        ({"features.0.1.bias": np.zeros(3, np.float32)}, "of MobileNet v2 fits: "),
        ({"features.3.conv.2.weight": np.zeros((9, 48, 1, 1), np.float32)}, "'features.3.conv.2.weight' is .*48, 9"),
        ({"features.3.conv.2.weight": np.zeros((8, 48), np.float32)}, "'features.3.conv.2.weight' has 2 axes"),
        ({"features.3.conv.2.weight": np.zeros((8, 48, 1, 1), np.int8)}, "'features.3.conv.2.weight' is of int8"),
        ({"features.0.1.running_var": -np.ones(16, np.float32)}, "negative"),
        ({"features.0.0.weight": None}, "none of the tensors"),
    ],
)
def test_other_tensors_are_refused(changes, reason, tmp_path):
    path = saved(tmp_path, "torchvision_v2", **changes)
    with pytest.raises(InputError, match=reason):
        recognise.convert(sandbox.read(path))


def test_a_shortcut_that_hugging_face_leaves_out(tmp_path):
    """Where stem and first block have one width, TF-slim, Keras and torchvision have a shortcut."""
    top = "mobilenet_v2.conv_stem.reduce_1x1"
    wide = {f"{top}.convolution.weight": tensor("x", (16, 16, 1, 1))}
    path = saved(tmp_path, "hf_v2_same", **wide)
    with pytest.raises(InputError, match="reduce_1x1.*shortcut"):
        torch.read(path)


@pytest.mark.parametrize(
    "config",
    [
        {"tf_padding": 1},
        {"output_stride": 16},
        {"hidden_act": "swish"},
        {"layer_norm_eps": "x"},
        {"layer_norm_eps": -1.0},
    ],
)
def test_other_settings_of_hugging_face(config, tmp_path):
    path = saved(tmp_path, "hf_v2_same")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"config.json.*{next(iter(config))}"):
        torch.read(path)


@pytest.mark.parametrize("config", ['{"mean": 1}', '{"std": [0, 1, 1]}', '{"mean": ["a", 1, 1]}', "[]", "{"])
def test_other_settings_of_timm(config, tmp_path):
    path = saved(tmp_path, "timm_mobilenetv2_035")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config\.json"):
        torch.read(path)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("hf_v1_same", {"image_size": 192}, 192),
        ("hf_v1_same", {"image_size": [160, 160]}, 160),
        ("hf_v1_same", {"image_size": "x"}, 0),
        ("timm_mobilenetv2_035", {"pretrained_cfg": {"input_size": [3, 160, 160]}}, 160),
        ("timm_mobilenetv2_035", {}, 0),
    ],
)
def test_the_resolution_is_that_of_the_settings(name, config, expected, tmp_path):
    path = saved(tmp_path, name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.read(path).resolution == expected


def test_a_type_that_numpy_lacks(tmp_path):
    header = json.dumps({"conv_stem.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(InputError, match="BF16.*float32"):
        torch.read(tmp_path / "x.safetensors")
