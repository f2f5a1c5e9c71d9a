"""ImageNet from archives like the official ones: what is written, what resumes, what is refused."""

import io
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from picture_sets import SYNSETS, picture, training_archive, validation_archive
from PIL import Image

from mobilenet_jax.data import datasets, decoding, imagenet, imagenet_tars, images
from mobilenet_jax.errors import InputError

Archives = tuple[pathlib.Path, pathlib.Path]


@pytest.fixture
def archives(tmp_path: pathlib.Path):
    return training_archive(tmp_path / "train.tar"), validation_archive(tmp_path / "val.tar")


def test_the_set_holds_the_files_in_the_order_of_folders(archives: Archives, tmp_path: pathlib.Path, capfd):
    root = tmp_path / "sets"
    directory = imagenet_tars.prepare(*archives, root, 0, 2)
    assert directory == root / "imagenet2012" / "5.1.0"
    assert [path.name for path in root.rglob(".*")] == []
    dataset = datasets.describe("imagenet2012", str(root))
    assert (dataset.train_size, dataset.test_size, dataset.num_classes) == (9, 3, 1000)
    splits = images.load(dataset, str(root))
    read = [splits["train"].read(i) for i in range(9)]
    assert [each.name for each in read] == [f"{synset}_{i}.JPEG" for synset in SYNSETS for i in range(3)]
    assert [each.label for each in read] == [0] * 3 + [1] * 3 + [278] * 3
    assert read[4].content == picture(11, 61, 80)
    known = list(imagenet.synsets())
    assert [known[splits["test"].read(i).label] for i in range(3)] == ["n01751748", "n09193705", "n02105855"]
    assert "9 training images; ImageNet has 1,281,167" in capfd.readouterr().err
    assert imagenet_tars.prepare(*archives, root, 0, 2) == directory
    assert "already prepared" in capfd.readouterr().out
    with pytest.raises(InputError, match="another --resize"):
        imagenet_tars.prepare(*archives, root, 64, 2)


def test_more_shards_than_the_process_may_open(tmp_path: pathlib.Path):
    """As ImageNet has: 1,050 of them, where most shells allow 1,024 open files."""
    archives = (
        training_archive(tmp_path / "t.tar", [*imagenet.synsets()][:70], 1),
        validation_archive(tmp_path / "v.tar"),
    )
    imagenet_tars.prepare(*archives, tmp_path, 0, 1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, before[1]))
    try:
        split = images.load(datasets.describe("imagenet2012", str(tmp_path)), str(tmp_path))["train"]
        assert [split.read(i).label for i in range(70)] == [*range(70)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_folders_with_the_same_files_give_the_same_pictures(archives: Archives, tmp_path: pathlib.Path):
    imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 2)
    records = images.load(datasets.describe("imagenet2012", str(tmp_path / "sets")), str(tmp_path / "sets"))
    for i in range(9):
        found = records["train"].read(i)
        path = tmp_path / "folders" / "train" / found.name.partition("_")[0] / found.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.content)
    (tmp_path / "folders" / "val" / SYNSETS[0]).mkdir(parents=True)
    (tmp_path / "folders" / "val" / SYNSETS[0] / "a.JPEG").write_bytes(picture(1))
    folders = images.load(datasets.describe("imagenet2012", str(tmp_path / "folders")), str(tmp_path / "folders"))
    for i in range(9):
        ours, theirs = folders["train"].read(i), records["train"].read(i)
        assert (ours.label, ours.content) == (theirs.label, theirs.content)


def test_images_are_made_smaller_never_larger(archives: Archives, tmp_path: pathlib.Path):
    imagenet_tars.prepare(*archives, tmp_path, 64, 2)
    splits = images.load(datasets.describe("imagenet2012", str(tmp_path)), str(tmp_path))
    assert splits["train"].read(0).content == picture(0, 60, 80)
    small = decoding.decode(splits["test"].read(0).content)
    assert small.shape == (64, 85, 3)
    expected = Image.open(io.BytesIO(picture(1, 300, 400))).resize((85, 64), Image.Resampling.LANCZOS)
    assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 3


KILLED = """
import os, pathlib, signal, sys
from mobilenet_jax.data import imagenet_tars
stored = imagenet_tars._stored
left = int(sys.argv[4])
def dying(resize, content):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return stored(resize, content)
imagenet_tars._stored = dying
imagenet_tars.prepare(*map(pathlib.Path, sys.argv[1:4]), 0, 1)
"""


def test_a_killed_call_goes_on(archives: Archives, tmp_path: pathlib.Path):
    whole = imagenet_tars.prepare(*archives, tmp_path / "whole", 0, 1)
    for files_read in (1, 7):
        command = [sys.executable, "-c", KILLED, *map(str, archives), str(tmp_path / "killed"), str(files_read)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        assert datasets.prepared("imagenet2012", str(tmp_path / "killed")) is None
    found = imagenet_tars.prepare(*archives, tmp_path / "killed", 0, 1)
    ours, theirs = (sorted((path.name, path.stat().st_size) for path in each.iterdir()) for each in (found, whole))
    assert ours == theirs
    descriptions = [datasets.describe("imagenet2012", str(tmp_path / name)) for name in ("killed", "whole")]
    assert descriptions[0] == descriptions[1]
    for split, size in (("train", 9), ("test", 3)):
        sets = [images.load(descriptions[0], str(tmp_path / name))[split] for name in ("killed", "whole")]
        assert all(sets[0].read(i) == sets[1].read(i) for i in range(size))


FULL = """
import pathlib, resource, signal, sys
import tensorflow_datasets
from mobilenet_jax import console
from mobilenet_jax.data import imagenet_tars
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
sys.exit(console.run(lambda: print(imagenet_tars.prepare(*map(pathlib.Path, sys.argv[1:4]), 0, 1))))
"""


def test_a_full_disk_is_one_sentence(archives: Archives, tmp_path: pathlib.Path):
    """No file may have more than 5,000 bytes."""
    command = [sys.executable, "-c", FULL, *map(str, archives), str(tmp_path / "sets")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and "File too large" in error and "the same command goes on" in error
    assert "Traceback" not in done.stderr
    assert not [*(tmp_path / "sets").rglob("*.tmp")]
    imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)


def test_another_source_does_not_go_on(archives: Archives, tmp_path: pathlib.Path):
    partial = tmp_path / "imagenet2012" / ".5.1.0.partial"
    partial.mkdir(parents=True)
    imagenet_tars._check_source(partial, {"train.tar": 3})
    imagenet_tars._check_source(partial, {"train.tar": 3})
    with pytest.raises(InputError, match="--resize: remove it"):
        imagenet_tars.prepare(*archives, tmp_path, 64, 1)


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (lambda path: validation_archive(path), None, ["train.tar", "ILSVRC2012_val_00000003.JPEG", "n01440764.tar"]),
        (None, lambda path: training_archive(path), ["val.tar", "n01440764.tar", "ILSVRC2012_val_00000001.JPEG"]),
        (lambda path: path.write_bytes(b"no archive" * 100), None, ["train.tar", "tar archive"]),
        (lambda path: path.write_bytes(b"\0" * 10240), None, ["train.tar", "without files"]),
    ],
)
def test_other_archives_are_refused(archives: Archives, tmp_path: pathlib.Path, train, val, words):
    for change, path in zip((train, val), archives, strict=True):
        if change:
            path.unlink()
            change(path)
    with pytest.raises(InputError) as e:
        imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)
    assert all(word in str(e.value) for word in words)
    assert datasets.prepared("imagenet2012", str(tmp_path / "sets")) is None


def test_an_archive_that_ends_too_early_is_refused(archives: Archives, tmp_path: pathlib.Path):
    content = archives[0].read_bytes()
    for length in (len(content) // 2, len(content) - 12_000):
        archives[0].write_bytes(content[:length])
        with pytest.raises(InputError, match=r"train\.tar|not complete"):
            imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)
        shutil.rmtree(tmp_path / "sets")


def test_a_damaged_header_is_no_end(archives: Archives, tmp_path: pathlib.Path):
    content = archives[1].read_bytes()
    second = content.index(b"ILSVRC2012_val_00000001")
    archives[1].write_bytes(content[:second] + b"x" + content[second + 1 :])  # its checksum is another one
    with pytest.raises(InputError, match=r"val\.tar .*no header at byte"):
        imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)


def test_a_directory_of_pictures_is_refused_at_once(archives: Archives, tmp_path: pathlib.Path):
    (tmp_path / "sets" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="folders of pictures"):
        imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["train"]


def test_a_call_that_was_killed_at_its_end_keeps_its_source(archives: Archives, tmp_path: pathlib.Path, monkeypatch):
    rename = pathlib.Path.rename
    with monkeypatch.context() as patch, pytest.raises(InputError):
        patch.setattr(pathlib.Path, "rename", lambda self, to: rename(self, to / "absent" / "absent"))
        imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)
    with pytest.raises(InputError, match="--resize: remove it"):
        imagenet_tars.prepare(*archives, tmp_path / "sets", 64, 1)
    imagenet_tars.prepare(*archives, tmp_path / "sets", 0, 1)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "mobilenet_jax.prepare", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command(archives: Archives, tmp_path: pathlib.Path):
    code, out, err = command("imagenet2012", *map(str, archives), "--dir", str(tmp_path / "sets"))
    assert (code, out) == (0, f"prepared       {tmp_path / 'sets' / 'imagenet2012' / '5.1.0'}\n"), err
    code, out, err = command("imagenet2012", str(archives[0]), "absent.tar", "--dir", str(tmp_path))
    assert (code, out) == (1, "")
    assert err == "error: absent.tar: no such file; the archives are those of image-net.org\n"
    assert command("imagenet2012", *map(str, archives), "--dir", "x", "--resize", "7")[0] == 1
