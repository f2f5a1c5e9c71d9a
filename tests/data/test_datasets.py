"""The table of data sets, and TFDS's metadata for the rest."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from mobilenet_jax.data import datasets
from mobilenet_jax.data.datasets import Dataset, describe, holdout_size, prepared
from mobilenet_jax.errors import InputError


def write_metadata(directory: pathlib.Path, *, shape: tuple[int, ...] = (28, 28, 1), **changes: Any) -> None:
    """The two files that TFDS leaves in a prepared set's directory, with 5 + 2 images of 3 classes."""
    splits = changes.pop("splits", {"train": ["3", "2"], "test": ["2"]})
    features = changes.pop("features", None)
    image = {"shape": {"dimensions": [str(side) for side in shape]}, "dtype": changes.pop("dtype", "uint8")}
    if features is None:
        features = {"image": {"image": image}, "label": {"classLabel": {"numClasses": "3"}}}
    info = {
        "name": directory.parent.name,
        "fileFormat": "array_record",
        "splits": [{"name": name, "shardLengths": lengths} for name, lengths in splits.items()],
        **changes,
    }
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))


def test_the_table_needs_no_data(tmp_path: pathlib.Path):
    assert describe("digits", str(tmp_path)) == Dataset("digits", 10, 1437, 360, 32)
    assert describe("cifar10", str(tmp_path)) == Dataset("cifar10", 10, 50_000, 10_000, 32)
    assert describe("cifar100", str(tmp_path)).num_classes == 100
    assert describe("mnist", str(tmp_path)).resolution == describe("fashion_mnist", str(tmp_path)).resolution == 28
    imagenet = describe("imagenet2012", str(tmp_path))
    assert (imagenet.train_size, imagenet.test_size, imagenet.test_split) == (1_281_167, 50_000, "validation")
    assert [name for name, dataset in datasets.DATASETS.items() if dataset.streamed] == ["imagenet2012"]


def test_describing_imports_nothing_heavy():
    code = (
        "import sys; from mobilenet_jax import datasets; datasets.describe('cifar10'); "
        "sys.exit(bool({'numpy', 'jax', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "env"))
    assert datasets.data_root(str(tmp_path / "given")) == tmp_path / "given"
    assert datasets.data_root() == tmp_path / "env"
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.data_root() == tmp_path / "tensorflow_datasets"
    assert datasets.data_root("~/data") == tmp_path / "data"


def test_metadata_of_a_prepared_set(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    write_metadata(tmp_path / "shapes" / "1.0.0")
    expected = Dataset("shapes", 3, 5, 2, 28)
    assert describe("shapes", str(tmp_path)) == expected
    assert prepared("shapes", str(tmp_path)) == (tmp_path / "shapes" / "1.0.0", expected)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert describe("shapes") == expected


def test_validation_stands_in_for_a_missing_test_split(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "both" / "1.0.0", splits={"train": ["5"], "validation": ["4"], "test": ["2"]})
    write_metadata(tmp_path / "one" / "1.0.0", splits={"train": ["5"], "validation": ["4"]})
    assert describe("both", str(tmp_path)).test_split == "test"
    assert describe("one", str(tmp_path)) == Dataset("one", 3, 5, 4, 28, test_split="validation")


def test_versions(tmp_path: pathlib.Path):
    for version in ("9.0.0", "10.0.0", "9.1.0"):
        write_metadata(tmp_path / "shapes" / version)
    write_metadata(tmp_path / "shapes" / "incomplete.ABC_11.0.0")

    def chosen(name: str) -> str | None:
        found = prepared(name, str(tmp_path))
        return found and found[0].name

    assert chosen("shapes") == "10.0.0"
    assert chosen("shapes:9.0.0") == "9.0.0"
    assert chosen("shapes:9.*.*") == "9.1.0"
    assert chosen("shapes:8.0.0") is None
    assert describe("shapes:9.0.0", str(tmp_path)).name == "shapes:9.0.0"


def test_configs(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "shapes" / "small" / "1.0.0")
    assert describe("shapes", str(tmp_path)).resolution == 28
    write_metadata(tmp_path / "shapes" / "large" / "1.0.0", shape=(64, 64, 3))
    assert describe("shapes/large", str(tmp_path)).resolution == 64
    assert describe("shapes/small:1.0.0", str(tmp_path)).resolution == 28
    with pytest.raises(InputError, match="several configs .* name one of shapes/large, shapes/small"):
        describe("shapes", str(tmp_path))


@pytest.mark.parametrize("name", ["ciphar", "no such set", "../ciphar", "ciphar:1", ""])
def test_an_unknown_set(name: str, tmp_path: pathlib.Path):
    with pytest.raises(InputError) as error:
        describe(name, str(tmp_path))
    message = str(error.value)
    assert repr(name) in message and str(tmp_path) in message and "tfds build" in message
    assert all(known in message for known in datasets.DATASETS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "tfrecord"}, "prepared as tfrecord.*tfds build bad --file_format=array_record .*--overwrite"),
        ({"fileFormat": ""}, "prepared as tfrecord"),
        ({"features": {"text": {"text": {}}}}, "not for image classification.*has text"),
        ({"features": {"image": {"image": {}}}}, "not for image classification.*has image"),
        ({"features": {"image": {"image": {}}, "label": {"classLabel": {}}}}, r"images of \?x\? pixels"),
        ({"shape": (-1, -1, 3)}, r"images of \?x\? pixels"),
        ({"shape": (28, 32, 3)}, "images of 28x32 pixels"),
        ({"shape": (28, 28, 4)}, "4-channel"),
        ({"dtype": "uint16"}, "uint16"),
        ({"splits": {"train": ["3"]}}, "it has train"),
        ({"splits": {"train": ["3"], "test": []}}, "'test' or 'validation'"),
        ({"splits": {"test": ["3"]}}, "needs a 'train' split"),
    ],
)
def test_sets_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: pathlib.Path):
    write_metadata(tmp_path / "bad" / "1.0.0", **changes)
    with pytest.raises(InputError, match=message) as error:
        describe("bad", str(tmp_path))
    assert str(tmp_path / "bad" / "1.0.0") in str(error.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_unreadable_metadata(file: str, tmp_path: pathlib.Path):
    write_metadata(tmp_path / "bad" / "1.0.0")
    (tmp_path / "bad" / "1.0.0" / file).write_text("{")
    with pytest.raises(InputError, match=file):
        describe("bad", str(tmp_path))


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_class_that_is_not_tfdss_is_not_imported(key: str, tmp_path: pathlib.Path):
    write_metadata(tmp_path / "bad" / "1.0.0", features={"image": {"image": {}, key: "this.Image"}})
    with pytest.raises(InputError, match=r"damaged metadata \(features.json: 'this.Image' is no feature of TFDS\)"):
        describe("bad", str(tmp_path))


def test_a_home_that_there_is_not(tmp_path: pathlib.Path):
    assert str(datasets.data_root("~nobody-of-this-name/x")).endswith("/~nobody-of-this-name/x")


def test_array_record_as_an_alternative_format(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "two" / "1.0.0", fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert describe("two", str(tmp_path)).train_size == 5


def test_cifar10_as_tfrecord_can_also_be_removed(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "cifar10" / "3.0.2", fileFormat="tfrecord")
    with pytest.raises(InputError, match="or remove that directory"):
        prepared("cifar10", str(tmp_path))


def test_holdout_size():
    assert holdout_size(50_000, 0.1) == 5000
    assert holdout_size(1437, 0.2) == 287
    for size, fraction in (
        (100, 0.0),
        (100, 1.0),
        (100, -0.1),
        (100, 1.5),
        (100, float("nan")),
        (100, 0.001),
        (2, 0.9),
    ):
        with pytest.raises(InputError, match="holdout="):
            holdout_size(size, fraction)
