"""ImageNet's classes, and labelled images in folders and lists."""

import pytest

from mobilenet_jax.data import imagenet
from mobilenet_jax.errors import InputError


def test_classes_are_in_the_order_of_their_identifiers():
    found = imagenet.synsets()
    assert len(found) == 1000 and list(found) == sorted(found)
    assert [*found.values()][::999] == ["tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue"]


def test_names_and_the_background():
    names = imagenet.class_names(1000)
    assert imagenet.class_names(1001) == ("background", *names) and imagenet.class_names(5) == ()
    assert [imagenet.label_offset(imagenet.class_names(n)) for n in (5, 1000, 1001)] == [0, 0, 1]
    assert imagenet.label_offset(tuple(map(str, range(1001)))) == 0


@pytest.mark.parametrize("below", ["", "val"])
def test_folders_of_some_classes(below, tmp_path):
    """The labels are ImageNet's, however many classes are present."""
    for name in ("n01443537/b.JPEG", "n15075141/a.png", "n01443537/a.jpg", "n01440764/x.txt", ".cache/x.png"):
        path = tmp_path / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / below / "n01440764" / "._x.jpg").touch()  # as macOS leaves them
    found = imagenet.in_folders(tmp_path)
    assert [(path.name, label) for path, label in found] == [("a.jpg", 1), ("b.JPEG", 1), ("a.png", 999)]


@pytest.mark.parametrize(
    ("folders", "reason"), [([], "no folders"), (["cat"], "'cat' is no class"), (["n01440764"], "no images")]
)
def test_other_folders(folders, reason, tmp_path):
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=reason):
        imagenet.in_folders(tmp_path)


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        imagenet.in_folders(tmp_path / "x")


def test_a_list_of_labels(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "labels.csv").write_text("\ufefflabel,file,synset\n7,a.jpg,x\n")
    assert imagenet.in_list(tmp_path, tmp_path / "labels.csv") == [(tmp_path / "a.jpg", 7)]


def test_a_list_of_links(tmp_path):
    """Sets of images are often links to where they are stored."""
    (tmp_path / "images").mkdir()
    (tmp_path / "stored.jpg").touch()
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "stored.jpg")
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,7\n")
    directory = tmp_path / "images" / ".." / "images"
    assert imagenet.in_list(directory, tmp_path / "labels.csv") == [(directory / "a.jpg", 7)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "columns 'file' and 'label'"),
        ("file,class\na.jpg,7\n", "columns 'file' and 'label'"),
        ("file,label\na.jpg,-1\n", "label '-1' in line 2"),
        ("file,label\na.jpg,1.5\n", "label '1.5' in line 2"),
        ("file,label\na.jpg,²\n", "label .* in line 2"),
        ("file,label\na.jpg\n", "label '' in line 2"),
        ("file,label\na.jpg,1\nb.jpg,1\n", "'b.jpg' in line 3"),
        ("file,label\n../../../etc/hostname,1\n", "in line 2 is no file in"),
        ("file,label\n/etc/hostname,1\n", "in line 2 is no file in"),
        ("file,label\n\0,1\n", "line"),
        (b"\xff\xfe,\n\x80", "cannot be read"),
    ],
)
def test_other_lists(text, reason, tmp_path):
    (tmp_path / "a.jpg").touch()
    if text is not None:
        (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"--labels=.*{reason}"):
        imagenet.in_list(tmp_path, tmp_path / "labels.csv")
