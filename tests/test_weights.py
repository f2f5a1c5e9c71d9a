"""The command `python -m mobilenet_jax.weights`: import, evaluate, predict."""

import dataclasses
import json
import pathlib
import pickle
import sys

import numpy as np
import pytest
from picture_sets import training_archive, validation_archive
from PIL import Image
from safetensors import numpy as safetensors
from transfer_helpers import images, shared, unpacked

from mobilenet_jax import weights as command
from mobilenet_jax.networks import arch
from mobilenet_jax.records import weights

OPTIONS = {"version": "v1", "alpha": 8 / 1024}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return unpacked("tiny.tar.xz", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command and returns its exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
        code = command.main()
        return (code, *capsys.readouterr())

    return call


def always(path: pathlib.Path, classes: int, best: int, names: tuple[str, ...] = ()) -> pathlib.Path:
    """Write a network that finds one class in every image, and the next ones less likely."""
    network = arch.mobilenet(**OPTIONS, num_classes=classes)
    params, statistics = {}, {}
    for layer in network.layers:
        ones = np.ones(layer.out_channels, np.float32)
        if layer.norm:
            params[layer.name] = {"kernel": np.zeros(layer.kernel_shape, np.float32)}
            params[layer.name]["bn"] = {"scale": ones, "bias": 0 * ones}
            statistics[layer.name] = {"bn": {"mean": 0 * ones, "var": ones}}
        elif layer.kind == "dense":
            bias = -((np.arange(classes) - best) % classes).astype(np.float32)
            params[layer.name] = {"kernel": np.zeros((layer.in_channels, classes), np.float32), "bias": bias}
    description = weights.Network(OPTIONS | {"num_classes": classes}, (-1.0, 1.0), 16, 16, names)
    weights.write(path, {"params": params, "batch_stats": statistics}, description)
    return path


def labelled(folder: pathlib.Path, labels: list[int]) -> list[object]:
    """Write images and their list, and return the arguments that name them."""
    rows = ["file,label"]
    for i, label in enumerate(labels):
        Image.fromarray(images(1, 20)[0]).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return ["--data", folder, "--labels", folder / "labels.csv"]


@pytest.mark.parametrize("source", ["whole.h5", "whole.keras", "float.tflite"])
def test_import(source, tiny, run, tmp_path):
    out = tmp_path / "x.safetensors"
    code, text, errors = run("import", tiny / source, out, "--resolution=32")
    assert (code, errors) == (0, "") and "MobileNet v1" in text and "num_classes 5" in text and str(out) in text
    _, network = weights.read(out)
    assert (network.resolution, network.image_size, network.architecture["activation"]) == (32, 32, "relu6")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_import_of_our_own_run(run, tmp_path):
    always(tmp_path / weights.FILE, 3, 0)
    assert run("import", tmp_path, tmp_path / "x.safetensors")[0] == 0
    (before, network), (after, copied) = (weights.read(tmp_path / name) for name in (weights.FILE, "x.safetensors"))
    assert network == copied
    arrays = dict(weights.flat(after))
    assert arrays.keys() == dict(weights.flat(before)).keys()
    assert all(np.array_equal(array, arrays[name]) for name, array in weights.flat(before))
    code, _, errors = run("import", tmp_path, tmp_path / "y.safetensors", "--resolution=32")
    assert code == 1 and "--resolution" in errors


@pytest.mark.parametrize("architecture", [{"version": "v1", "depth": 3}, {"version": "v1", "alpha": 0.5}])
def test_a_run_directory_of_another_network(architecture, run, tmp_path):
    path = always(tmp_path / weights.FILE, 3, 0)
    variables, network = weights.read(path)
    weights.write(path, variables, dataclasses.replace(network, architecture=architecture))
    code, text, errors = run("import", tmp_path, tmp_path / "x.safetensors")
    assert (code, text) == (1, "") and ("'depth'" in errors or "tensors" in errors) and errors.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == [weights.FILE]


def test_the_source_is_not_overwritten(run, tmp_path):
    torch_file(tmp_path / "x.safetensors")
    code, _, errors = run("import", tmp_path / "x.safetensors", tmp_path / "x.safetensors")
    assert code == 1 and "is the source" in errors


def test_a_resolution_that_nobody_said(tiny, run, tmp_path):
    assert "224 pixels" in run("import", tiny / "weights.h5", tmp_path / "x.safetensors")[1].splitlines()[2]
    text = run("import", tiny / "weights.h5", tmp_path / "x.safetensors", "--resolution=128")[1]
    assert "its resolution" not in text and "at 128 pixels" in text


def test_no_class_names(tiny, run, tmp_path):
    (tmp_path / "names.txt").write_text("\n")
    code, _, errors = run("import", tiny / "whole.h5", tmp_path / "x.safetensors", "--classes", tmp_path / "names.txt")
    assert code == 1 and "--classes" in errors and "empty" in errors


def test_class_names_are_kept(tiny, run, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffa\nb\nc\nd\ne\n")
    out = tmp_path / "x.safetensors"
    assert run("import", tiny / "whole.h5", out, f"--classes={tmp_path / 'names.txt'}")[0] == 0
    assert weights.read(out)[1].class_names == ("a", "b", "c", "d", "e")
    Image.fromarray(images(1, 80)[0]).save(tmp_path / "x.png")
    code, text, _ = run("predict", out, tmp_path / "x.png")
    assert code == 0 and {line.split()[1] for line in text.splitlines()[1:]} == {"a", "b", "c", "d", "e"}


def test_evaluate(run, tmp_path):
    """The best class is 2: of four images one is right, and two more are among the next four classes."""
    path = always(tmp_path / "w.safetensors", 10, 2)
    where = labelled(tmp_path, [2, 3, 6, 9])
    code, text, errors = run("evaluate", path, *where, "--format=json")
    found = json.loads(text)
    assert (code, errors) == (0, "") and found.pop("images_per_second") > 0
    assert found == {"top1": 0.25, "top5": 0.75, "n": 4, "resolution": 16, "protocol": "slim", "label_offset": 0}
    code, text, _ = run("evaluate", path, *where, "--protocol=torch", "--resolution=18")
    assert code == 0 and "25.00%" in text and "75.00%" in text and "torch, 18 pixels" in text


def test_the_protocol_is_that_of_the_training(run, tmp_path):
    path = always(tmp_path / "w.safetensors", 10, 2)
    where = [*labelled(tmp_path, [2]), "--format=json"]
    assert json.loads(run("evaluate", path, *where)[1])["protocol"] == "slim"
    variables, network = weights.read(path)
    weights.write(path, variables, dataclasses.replace(network, protocol="torch"))
    assert json.loads(run("evaluate", path, *where)[1])["protocol"] == "torch"
    assert json.loads(run("evaluate", path, *where, "--protocol=slim")[1])["protocol"] == "slim"


def test_more_images_than_a_batch(run, tmp_path):
    path = always(tmp_path / "w.safetensors", 10, 2)
    found = json.loads(run("evaluate", path, *labelled(tmp_path, [2] * 33 + [1]), "--format=json")[1])
    assert (found["n"], found["top1"]) == (34, 33 / 34)


@pytest.mark.parametrize(("classes", "best"), [(1000, 7), (1001, 8)])
def test_labels_are_shifted_for_the_background(classes, best, run, tmp_path):
    from mobilenet_jax.data import imagenet

    path = always(tmp_path / "w.safetensors", classes, best, imagenet.class_names(classes))
    code, text, _ = run("evaluate", path, *labelled(tmp_path, [7, 7, 8]))
    assert code == 0 and "66.67%" in text and ("background" in text) == (classes == 1001)
    folder = tmp_path / "val" / "n01484850"  # label 2
    folder.mkdir(parents=True)
    Image.fromarray(images(1, 20)[0]).save(folder / "x.JPEG")
    found = json.loads(run("evaluate", path, "--data", tmp_path, "--format=json")[1])
    assert (found["n"], found["top1"], found["label_offset"]) == (1, 0, int(classes == 1001))


@pytest.mark.parametrize("classes", [1000, 1001])
def test_a_prepared_set(classes, run, tmp_path, capsys):
    """The labels of its three validation images are 65, 970 and 230."""
    from mobilenet_jax.data import imagenet, imagenet_tars

    archives = training_archive(tmp_path / "train.tar"), validation_archive(tmp_path / "val.tar")
    imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)
    capsys.readouterr()
    path = always(tmp_path / "w.safetensors", classes, 970 + (classes == 1001), imagenet.class_names(classes))
    code, text, errors = run("evaluate", path, "--data", tmp_path / "sets", "--format=json")
    found = json.loads(text)
    assert (code, found["n"], found["top1"], found["label_offset"]) == (0, 3, 1 / 3, int(classes == 1001))
    (tmp_path / "sets" / "val").mkdir()
    code, _, errors = run("evaluate", path, "--data", tmp_path / "sets")
    assert code == 1 and "5.1.0" in errors and "folders" in errors
    path = always(tmp_path / "w.safetensors", 1000, 0, tuple(f"class {i}" for i in range(1000)))
    code, _, errors = run("evaluate", path, "--data", tmp_path / "sets")
    assert code == 1 and "class 0" in errors


@pytest.mark.parametrize(
    ("classes", "labels", "reason"),
    [(10, [10], "label 10 .*10 classes: allowed are 0 to 9"), (1001, [1000], "label 1000 .*1000 classes and one for")],
)
def test_labels_of_another_set(classes, labels, reason, run, tmp_path):
    import re

    from mobilenet_jax.data import imagenet

    path = always(tmp_path / "w.safetensors", classes, 0, imagenet.class_names(classes))
    code, text, errors = run("evaluate", path, *labelled(tmp_path, labels))
    assert (code, text) == (1, "") and re.search(reason, errors)


@pytest.mark.parametrize("count", [10, 1001])
def test_folders_of_imagenet_and_a_network_of_other_classes(count, run, tmp_path):
    """What the classes of 1001 mean is known only if the first one is named as the background."""
    path = always(tmp_path / "w.safetensors", count, 2)
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764" / "x.png").touch()
    code, _, errors = run("evaluate", path, "--data", tmp_path)
    assert code == 1 and f"{count} classes" in errors and "1000" in errors


def test_folders_of_the_classes_of_the_network(run, tmp_path):
    path = always(tmp_path / "w.safetensors", 3, 1, ("ant", "bee", "cow"))
    for name, count in {"bee": 2, "cow": 1}.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(images(1, 20)[0]).save(tmp_path / "val" / name / f"{i}.webp")
    found = json.loads(run("evaluate", path, "--data", tmp_path, "--format=json")[1])
    assert (found["n"], found["top1"], found["top5"]) == (3, 2 / 3, None)
    text = run("evaluate", path, "--data", tmp_path)[1]
    assert "66.67%" in text and "top-5" not in text
    (tmp_path / "val" / "dog").mkdir()
    code, _, errors = run("evaluate", path, "--data", tmp_path)
    assert code == 1 and "'dog' is no class of the network, such as ant" in errors


def test_predict(run, tmp_path):
    path = always(tmp_path / "w.safetensors", 10, 2)
    labelled(tmp_path, [0, 0])
    code, text, _ = run("predict", path, tmp_path / "0.png", tmp_path / "1.png", "--format=json")
    found = json.loads(text)
    assert code == 0 and [each["file"] for each in found] == [str(tmp_path / f"{i}.png") for i in (0, 1)]
    odds = np.exp(-np.arange(10.0)) / np.exp(-np.arange(10.0)).sum()
    assert [each["class"] for each in found[0]["top5"]] == [2, 3, 4, 5, 6]
    np.testing.assert_allclose([each["probability"] for each in found[0]["top5"]], odds[:5], rtol=1e-5)


def test_what_cannot_be_predicted(tiny, run, tmp_path):
    path = always(tmp_path / "w.safetensors", 10, 2)
    assert "is a directory" in run("predict", path, tmp_path)[2]
    assert "no such file" in run("predict", path, tmp_path / "no.png")[2]
    labelled(tmp_path, [0])
    for name in ("whole.h5", "float.tflite"):
        code, text, errors = run("predict", tiny / name, tmp_path / "0.png")
        assert (code, text) == (1, "") and all(word in errors for word in (name, "mobilenet_jax.weights import"))


def torch_file(path: pathlib.Path) -> None:
    path.write_bytes(safetensors.save({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}))


BAD = {
    "text": (lambda path: path.write_text("hello, world\n"), "no known format"),
    "empty": (lambda path: path.write_bytes(b""), "no known format"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"x": [1]})), "pickle"),
    "another network": (torch_file, "none of the tensors"),
    "directory": (lambda path: path.mkdir(), "finished run"),
    "ours": (lambda path: always(path, 3, 0), "already a file of this package"),
    "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_sources_that_hold_no_network(name, run, tmp_path):
    make, reason = BAD[name]
    make(tmp_path / "source")
    code, text, errors = run("import", tmp_path / "source", tmp_path / "out.safetensors")
    assert (code, text) == (1, "") and reason in errors and errors.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["whole.h5", "whole.keras", "float.tflite", "model.safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_truncated_files(name, share, tiny, run, tmp_path):
    if name == "model.safetensors":
        torch_file(tiny / name)
    content = (tiny / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    code, text, errors = run("import", tmp_path / name, tmp_path / "out.safetensors")
    assert (code, text) == (1, "") and errors.startswith(f"error: {tmp_path / name}: ") and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("out", ["out.txt", "no/out.safetensors", "."])
def test_names_that_cannot_be_written(out, tiny, run, tmp_path):
    code, _, errors = run("import", tiny / "whole.h5", tmp_path / out)
    assert code == 1 and "OUT.safetensors" in errors


@pytest.mark.parametrize("arguments", [["--resolution=-1"], ["--resolution=5000"], ["--variables=averaged"]])
def test_other_arguments(arguments, tiny, run, tmp_path):
    code, text, errors = run("import", tiny / "whole.h5", tmp_path / "out.safetensors", *arguments)
    assert (code, text) == (1, "") and arguments[0].partition("=")[0] in errors


@pytest.mark.slow
def test_the_official_network_finds_648_of_1000_images(run, tmp_path):
    """As many as the official runtime."""
    folder, out = shared(), tmp_path / "x.safetensors"
    assert run("import", folder / "weights" / "keras" / "keras_v1_0.25_224.h5", out)[0] == 0
    where = ["--data", folder / "imagenet" / "val", "--labels", folder / "imagenet" / "val.csv"]
    found = json.loads(run("evaluate", out, *where, "--protocol=slim", "--format=json")[1])
    assert found["n"] == 1000 and abs(found["top1"] * 1000 - 648) <= 1
