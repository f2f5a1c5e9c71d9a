"""The table of data sets, and TFDS's metadata for the rest."""

import json
import pathlib
import shlex
import shutil
import sys
from typing import Any

import pytest
from helpers import python

from mobilenet_jax.data import datasets
from mobilenet_jax.data.datasets import Dataset, describe, holdout_size, prepared
from mobilenet_jax.errors import InputError

FEATURES = "tensorflow_datasets.core.features."
LABEL = {"pythonClassName": FEATURES + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}}
TEXT = {"pythonClassName": FEATURES + "text_feature.Text", "text": {}}


def image(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    content = {"shape": {"dimensions": [str(side) for side in shape]}, "dtype": dtype}
    return {"pythonClassName": FEATURES + "image_feature.Image", "image": content}


def write_metadata(directory: pathlib.Path, **changes: Any) -> None:
    """Write the two metadata files of a prepared set of 5 + 2 images in 3 classes."""
    splits = changes.pop("splits", {"train": ["3", "2"], "test": ["2"]})
    features = changes.pop("features", {"image": image(28, 28, 1), "label": LABEL})
    info = {
        "name": "some",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": [{"name": name, "shardLengths": lengths} for name, lengths in splits.items()],
        **changes,
    }
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text(json.dumps(info))
    top = {"pythonClassName": FEATURES + "features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (directory / "features.json").write_text(json.dumps(top))


def test_the_table_needs_no_data(tmp_path: pathlib.Path):
    assert describe("digits", str(tmp_path)) == Dataset("digits", 10, 1437, 360, 32)
    assert describe("cifar10", str(tmp_path)) == Dataset("cifar10", 10, 50_000, 10_000, 32)
    assert describe("cifar100", str(tmp_path)).num_classes == 100
    assert describe("mnist", str(tmp_path)).resolution == describe("fashion_mnist", str(tmp_path)).resolution == 28
    imagenet = describe("imagenet2012", str(tmp_path))
    assert (imagenet.train_size, imagenet.test_size, imagenet.test_split) == (1_281_167, 50_000, "validation")
    assert [name for name, dataset in datasets.DATASETS.items() if dataset.streamed] == ["imagenet2012"]


def test_what_describing_imports(tmp_path: pathlib.Path):
    """A set in the table needs no slow import, and no set needs TensorFlow."""
    write_metadata(tmp_path / "shapes" / "1.0.0")
    code = """if True:
        import sys
        from mobilenet_jax.data import datasets
        for name in ("cifar10", "shapes"):
            datasets.describe(name, sys.argv[1])
            print(*sorted({"numpy", "jax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)))
    """
    assert python(code, str(tmp_path)) == ["", "numpy tensorflow_datasets"]


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
    found = describe("shapes", str(tmp_path))
    expected = Dataset("shapes", 3, 5, 2, 28, version="1.0.0", fingerprint=found.fingerprint)
    assert len(found.fingerprint) == 8 and describe("shapes", str(tmp_path)) == expected
    assert prepared("shapes", str(tmp_path)) == tmp_path / "shapes" / "1.0.0"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert describe("shapes") == expected


def test_validation_replaces_a_missing_test_split(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "both" / "1.0.0", splits={"train": ["5"], "validation": ["4"], "test": ["2"]})
    write_metadata(tmp_path / "one" / "1.0.0", splits={"train": ["5"], "validation": ["4"]})
    assert describe("both", str(tmp_path)).test_split == "test"
    assert describe("one", str(tmp_path)).test_split == "validation"
    assert describe("one", str(tmp_path)).test_size == 4


def test_versions(tmp_path: pathlib.Path):
    for version in ("9.0.0", "10.0.0", "9.1.0"):
        write_metadata(tmp_path / "shapes" / version, version=version)
    write_metadata(tmp_path / "shapes" / "incomplete.ABC_11.0.0")

    def chosen(name: str) -> str | None:
        found = prepared(name, str(tmp_path))
        return found and found.name

    assert chosen("shapes") == "10.0.0"
    assert chosen("shapes:9.0.0") == "9.0.0"
    assert chosen("shapes:9.*.*") == "9.1.0"
    assert chosen("shapes:8.0.0") is None
    assert describe("shapes:9.0.0", str(tmp_path)).name == "shapes:9.0.0"


def test_a_fingerprint_tells_sets_of_one_name_apart(tmp_path: pathlib.Path):
    def described(directory: str = "1.0.0", names: str = "", **changes: Any) -> Dataset:
        home = tmp_path / "shapes"
        shutil.rmtree(home, ignore_errors=True)
        write_metadata(home / directory, **changes)
        if names:
            (home / directory / "label.labels.txt").write_text(names)
        return describe("shapes", str(tmp_path))

    first = described()
    assert described() == described(description="the same images", splits={"train": ["5"], "test": ["2"]}) == first
    others = [
        described("2.0.0", version="2.0.0"),
        described(names="cat\ndog\nowl"),
        described(names="cat\ndog\nfox"),
        described(splits={"train": ["3", "1"], "test": ["2"]}),
        described(features={"image": image(28, 28, 3), "label": LABEL}),
        described(features={"image": image(28, 28, 1), "label": LABEL | {"classLabel": {"numClasses": "4"}}}),
    ]
    assert len({each.fingerprint for each in [first, *others]}) == 7 and others[0].version == "2.0.0"
    assert not any(known.fingerprint for known in datasets.DATASETS.values())


def test_names_of_classes_are_those_of_the_set_that_was_described(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "shapes" / "1.0.0")
    file = tmp_path / "shapes" / "1.0.0" / "label.labels.txt"
    file.write_text("cat\ndog\nowl")
    before = describe("shapes", str(tmp_path))
    assert datasets.class_names(before, str(tmp_path)) == ("cat", "dog", "owl")
    file.write_text("cat\ndog\nfox")
    assert datasets.class_names(before, str(tmp_path)) == ()
    shutil.rmtree(tmp_path / "shapes")
    assert datasets.class_names(before, str(tmp_path)) == ()


def test_configs(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "shapes" / "small" / "1.0.0")
    assert describe("shapes", str(tmp_path)).resolution == 28
    write_metadata(tmp_path / "shapes" / "large" / "1.0.0", features={"image": image(64, 64, 3), "label": LABEL})
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
        ({"features": {"text": TEXT}}, "not for image classification.*has text"),
        ({"features": {"image": image(28, 28, 1)}}, "not for image classification.*has image"),
        ({"features": {"image": TEXT, "label": LABEL}}, "not for image classification"),
        (
            {"features": {"image": image(28, 28, 1), "label": LABEL | {"classLabel": {}}}},
            "not for image classification",
        ),
        (
            {"features": {"image": image(28, 28, 1), "label": LABEL | {"classLabel": {"numClasses": "1"}}}},
            "data set 'bad' .* one class, '0'.* at least 2",
        ),
        ({"features": {"image": image(), "label": LABEL}}, r"images of \?x\?x3"),
        ({"features": {"image": image(-1, -1, 3), "label": LABEL}}, r"images of \?x\?x3"),
        ({"features": {"image": image(28, 32, 3), "label": LABEL}}, "images of 28x32x3"),
        ({"features": {"image": image(28, 28, 4), "label": LABEL}}, "images of 28x28x4"),
        ({"features": {"image": image(28, 28, 3, dtype="uint16"), "label": LABEL}}, "uint16"),
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


def test_proposed_commands_can_be_pasted(tmp_path: pathlib.Path):
    root = tmp_path / "my $HOME's sets"
    write_metadata(root / "bad" / "1.0.0", fileFormat="tfrecord")
    for name, end in (("bad", ["--overwrite"]), ("no; such set", [])):
        with pytest.raises(InputError) as error:
            describe(name, str(root))
        words = shlex.split(str(error.value).split("`")[1])
        assert words == ["tfds", "build", name, "--file_format=array_record", f"--data_dir={root}", *end]


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_unreadable_metadata(file: str, tmp_path: pathlib.Path):
    write_metadata(tmp_path / "bad" / "1.0.0")
    (tmp_path / "bad" / "1.0.0" / file).write_text("{")
    with pytest.raises(InputError, match="damaged metadata .*tfds build bad"):
        describe("bad", str(tmp_path))


HOSTILE = {"pythonClassName": "this.Image", "image": {}}
NESTED = {"x": {"type": "this.Image", "content": {}}}
DICT = FEATURES + "features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "changes",
    [
        {"features": {"image": HOSTILE}},
        {"features": {"image": {"python_class_name": "this.Image", "image": {}}}},
        {"features": {"image": {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps(NESTED)}}}},
        {"info": {"features": {"features": {"image": HOSTILE}}}},
        {"top": {"type": "this.Image", "content": {}}},
        {
            "top": {
                "type": DICT,
                "proto_cls": "tensorflow_datasets.FeaturesDict",
                "content": json.dumps({"features": {"image": HOSTILE}}),
            }
        },
    ],
)
def test_a_class_outside_tfds_is_not_imported(changes: dict[str, Any], tmp_path: pathlib.Path):
    """TFDS imports the module of any class that the metadata names, in each of these spellings."""
    info, top = changes.pop("info", {}), changes.pop("top", None)
    write_metadata(tmp_path / "bad" / "1.0.0", **info, **changes)
    if top is not None:
        (tmp_path / "bad" / "1.0.0" / "features.json").write_text(json.dumps(top))
    sys.modules.pop("this", None)
    with pytest.raises(InputError, match=r"damaged metadata \('this.Image' is not a feature of TFDS\)"):
        describe("bad", str(tmp_path))
    assert "this" not in sys.modules


def test_a_home_that_there_is_not(no_home: None, monkeypatch: pytest.MonkeyPatch):
    for data_dir in ("~nobody-of-this-name/x", "~/x", ""):
        with pytest.raises(InputError, match=r"config\.data\.dir.*TFDS_DATA_DIR.*~\S*/"):
            datasets.data_root(data_dir)
    monkeypatch.setenv("TFDS_DATA_DIR", "/data")
    assert datasets.data_root() == pathlib.Path("/data")
    assert datasets.describe("cifar10").train_size == 50_000  # the table needs no directory


def test_array_record_as_an_alternative_format(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "two" / "1.0.0", fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert describe("two", str(tmp_path)).train_size == 5


def test_cifar10_as_tfrecord_can_be_moved_away(tmp_path: pathlib.Path):
    write_metadata(tmp_path / "cifar10" / "3.0.2", fileFormat="tfrecord", version="3.0.2")
    with pytest.raises(InputError, match=r"only array_record can be read: move .*3\.0\.2 away"):
        datasets.describe_prepared("cifar10", tmp_path / "cifar10" / "3.0.2", tmp_path)


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
