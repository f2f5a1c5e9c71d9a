"""Files of a run that are lost or damaged, and data sets that are replaced: what the same command does then."""

import contextlib
import pathlib
import shutil
import signal

import pytest
from helpers import TINY, prepare, random_splits, result, rows_of, spec_of, summary_of
from training_helpers import after, crash, printed, run, send

from mobilenet_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.parametrize("damage", ["removed", "cut", "another run's"])
def test_a_lost_config_is_written_again_in_a_directory_with_the_runs_name(damage, crashed, finished, tmp_path):
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / spec_of(TINY).run_name))
    path = directory / "config.json"
    whole = path.read_text()
    path.unlink() if damage == "removed" else path.write_text(
        whole[:-9] if damage == "cut" else whole.replace("0.25", "0.5")
    )
    assert run(TINY, directory) == 0
    assert path.read_text() == whole and summary_of(directory)["resumed_from"] == 44
    assert result(directory) == result(finished[1])


def test_a_lost_summary_is_written_again_without_another_step(finished, tmp_path):
    directory = pathlib.Path(shutil.copytree(finished[1], tmp_path / "run"))
    (directory / "summary.json").unlink()
    with after(67, crash):  # one step too many
        assert run(TINY, directory) == 0
    assert summary_of(directory)["resumed_from"] == 66
    assert result(directory) == result(finished[1])


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, crashed, finished, tmp_path):
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / "run"))
    file = directory / "checkpoints" / "44.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    text = printed(TINY, directory)
    assert "checkpoint of step 44 is damaged and dropped (" in text
    assert "resumed        from step 33 of 66\n" in text
    assert result(directory) == result(finished[1])


@pytest.mark.parametrize("tail", ["torn", "lost"])
def test_metrics_that_lag_behind_the_checkpoint_are_written_again(tail, crashed, finished, tmp_path):
    """After a power cut, the checkpoint of an epoch's end may be on disk and its row not."""
    directory = pathlib.Path(shutil.copytree(crashed, tmp_path / "run"))
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text(lines[0] + (lines[1][:-9] if tail == "torn" else ""))
    with after(48, send(signal.SIGTERM)):
        assert run(TINY, directory) == 143
    assert [row["step"] for row in rows_of(directory)] == [22, 44]
    assert run(TINY, directory) == 0
    assert summary_of(directory)["resumed_from"] == 50
    assert result(directory) == result(finished[1])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("stop", [None, 4])
def test_another_data_set_behind_the_name(stop, named, tmp_path, monkeypatch):
    """A finished run and an interrupted one are left as they are, and a new directory takes the new set."""
    root, sizes = tmp_path / "tfds", {"train": 96, "test": 16}
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    prepare(root, "toy", random_splits(0, sizes, 32, 3, 3))
    overrides = TINY | {"data.name": "toy", "train.batch_size": 32}
    directory = tmp_path / (spec_of(overrides).run_name if named else "run")
    with contextlib.nullcontext() if stop is None else after(stop, send(signal.SIGTERM)):
        assert run(overrides, directory) == (0 if stop is None else 143)
    if stop is None:
        assert printed(overrides, directory).startswith("already finished")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    def refused(*facts: str) -> None:
        with pytest.raises(InputError) as error:
            run(overrides, directory)
        message = str(error.value)
        assert all(part in message for part in ("'toy'", "fingerprint", "another directory", str(directory), *facts))
        assert ("version" in message, "num_classes" in message) == (("version" in facts),) * 2
        assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before

    shutil.move(root, tmp_path / "first")
    prepare(root, "toy", random_splits(1, sizes, 32, 3, 3))  # other images, the same version
    refused()
    prepare(root, "toy", random_splits(0, sizes, 32, 3, 4), classes=4, version="2.0.0")
    refused("version", "'1.0.0' there and '2.0.0' here", "num_classes 3 there and 4 here")
    if stop is not None and named:  # a checkpoint knows its set, too
        shutil.copytree(directory, tmp_path / "kept" / directory.name)
        (tmp_path / "kept" / directory.name / "config.json").unlink()
        with pytest.raises(InputError, match="'1.0.0' there and '2.0.0' here"):
            run(overrides, tmp_path / "kept" / directory.name)
    shutil.rmtree(root)
    shutil.move(tmp_path / "first", root)
    assert run(overrides, directory) == 0 and summary_of(directory)["num_classes"] == 3
