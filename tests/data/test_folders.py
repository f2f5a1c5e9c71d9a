"""Pictures in folders: what is found, what identifies a set, what is refused."""

import json
import os
import pathlib

import pytest
from picture_sets import picture, write

from mobilenet_jax.data import datasets, folders, imagenet
from mobilenet_jax.errors import InputError

CATS_AND_DOGS = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2}
FISH = {"train/n01440764": 2, "train/n01443537": 1, "val/n01440764": 1, "val/n02119789": 1}


def refused(root, name="folder"):
    with pytest.raises(InputError) as e:
        datasets.describe(name, str(root))
    return str(e.value)


def test_classes_are_the_sorted_folders_of_train(tmp_path: pathlib.Path):
    write(tmp_path, {"train/zebra": 1} | CATS_AND_DOGS)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_bytes(picture(1))
    (tmp_path / "train" / "cat" / "a.PNG").write_bytes(picture(1, kind="PNG"))
    (tmp_path / "train" / "cat" / "b.webp").write_bytes(picture(1, kind="WEBP"))
    found = folders.find(tmp_path)
    assert found.classes == ("cat", "dog", "zebra")
    assert [path.removeprefix("train/") for path in found.paths["train"]] == [
        *("cat/000.JPEG", "cat/001.JPEG", "cat/002.JPEG", "cat/a.PNG", "cat/b.webp"),
        *("dog/000.JPEG", "dog/001.JPEG", "zebra/000.JPEG"),
    ]
    assert found.labels["train"] == (0, 0, 0, 0, 0, 1, 1, 2)
    assert found.paths["val"] == ("val/cat/000.JPEG", "val/dog/000.JPEG", "val/dog/001.JPEG")
    described = datasets.describe("folder", str(tmp_path))
    assert (described.num_classes, described.train_size, described.test_size) == (3, 8, 3)
    assert (described.resolution, described.streamed, described.class_names) == (224, True, ("cat", "dog", "zebra"))
    assert datasets.class_names(described, str(tmp_path)) == ("cat", "dog", "zebra")


def test_labels_of_imagenet_are_those_of_the_known_list(tmp_path: pathlib.Path):
    found = folders.find(write(tmp_path, FISH), tuple(imagenet.synsets()))
    assert found.labels == {"train": (0, 0, 1), "val": (0, 278)}
    described = datasets.describe("imagenet2012", str(tmp_path))
    assert (described.num_classes, described.train_size, described.test_size) == (1000, 3, 2)
    assert datasets.class_names(described)[0] == "tench, Tinca tinca"


def test_the_digest_follows_names_sizes_and_classes(tmp_path: pathlib.Path):
    def digest_after(change):
        change()
        return datasets.describe("folder", str(tmp_path)).fingerprint

    write(tmp_path, CATS_AND_DOGS)
    train = tmp_path / "train"
    changes = [
        lambda: None,
        lambda: (train / "cat" / "000.JPEG").rename(train / "cat" / "003.JPEG"),
        lambda: (train / "cat" / "003.JPEG").rename(train / "dog" / "003.JPEG"),
        lambda: [(tmp_path / split / "dog").rename(tmp_path / split / "fox") for split in ("train", "val")],
        lambda: (tmp_path / "val" / "fox" / "2.png").write_bytes(picture(1, kind="PNG")),
        lambda: ((tmp_path / "val" / "fox" / "2.png").unlink(), (tmp_path / "val" / "fox" / "2.png").write_bytes(b"")),
    ]
    digests = [digest_after(change) for change in changes]
    assert len({*digests}) == len(digests)
    os.utime(train / "cat")  # found again, not remembered
    assert digest_after(lambda: None) == digests[-1]
    assert len(digests[0]) == 8


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"val/cat": 1, "val/dog": 1}, ["has no folder train/"]),
        ({"train/cat": 1, "train/dog": 1}, ["has no folder val/"]),
        (CATS_AND_DOGS | {"train/fox": 0}, ["train/fox", "holds no pictures", ".webp"]),
        (CATS_AND_DOGS | {"val/fox": 1}, ["val/fox", "no class", "train/"]),
        ({"train/cat": 2, "val/cat": 1}, ["'cat'", "at least 2"]),
        ({"train": 1, "val": 1}, ["train", "<class>"]),
        ({"elsewhere": 1}, ["config.data.dir", "holds no train/<class>/ and val/<class>/ with"]),
    ],
)
def test_unusable_folders_are_refused(tmp_path: pathlib.Path, counts, words):
    message = refused(write(tmp_path, counts))
    assert all(word in message for word in [*words, str(tmp_path)])


def test_a_folder_that_is_no_class_of_imagenet_is_refused(tmp_path: pathlib.Path):
    message = refused(write(tmp_path, FISH | {"train/cat": 1}), "imagenet2012")
    assert "train/cat" in message
    assert "1,000 such as 'n01440764'" in message


# ImageNet as TFDS prepares it.


def write_tfds(root: pathlib.Path, **changes) -> pathlib.Path:
    info = {
        "fileFormat": "array_record",
        "splits": [
            {"name": "train", "shardLengths": ["2", "3"]},
            {"name": "validation", "shardLengths": ["4"]},
        ],
    }
    directory = root / "imagenet2012" / "5.1.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text(json.dumps(info | changes))
    (directory / "label.labels.txt").write_text("\n".join(imagenet.synsets()) + "\n")
    (directory / "imagenet2012-train.array_record-00000-of-00001").write_bytes(b"1234")
    return directory


def test_a_prepared_set_is_described_by_its_metadata(tmp_path: pathlib.Path):
    directory = write_tfds(tmp_path)
    found = datasets.describe("imagenet2012", str(tmp_path))
    assert (found.train_size, found.test_size, found.test_split, found.version) == (5, 4, "validation", "5.1.0")
    (directory / "imagenet2012-train.array_record-00000-of-00001").write_bytes(b"12345")
    assert datasets.describe("imagenet2012", str(tmp_path)).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"fileFormat": "tfrecord"}, "array_record"),
        ({"splits": [{"name": "train", "shardLengths": ["2"]}]}, "lacks images"),
        ({"splits": [{"name": "train"}]}, "damaged metadata"),
        ({"splits": 3}, "damaged metadata"),
    ],
)
def test_unusable_prepared_sets_are_refused(tmp_path: pathlib.Path, changes, word):
    write_tfds(tmp_path, **changes)
    assert word in refused(tmp_path, "imagenet2012")


def test_both_kinds_at_once_are_refused(tmp_path: pathlib.Path):
    write_tfds(write(tmp_path, FISH))
    message = refused(tmp_path, "imagenet2012")
    assert "imagenet2012/5.1.0/" in message
    assert "folders of pictures" in message


def test_absent_imagenet_can_be_counted_and_names_both_layouts(tmp_path: pathlib.Path):
    assert datasets.describe("imagenet2012", str(tmp_path)) == datasets.DATASETS["imagenet2012"]
    with pytest.raises(InputError) as e:
        datasets.find_streamed("imagenet2012", str(tmp_path))
    assert all(words in str(e.value) for words in ("train/<class>/", "imagenet2012/<version>/", str(tmp_path)))
