"""Two runs compared."""

import json
import re

from analysis_runs import trained
from helpers import ENV, put

from mobilenet_jax.analysis.compare_runs import compare, one_run, page
from mobilenet_jax.records.collect import read


def test_everything_that_differs_is_listed(tmp_path):
    put(tmp_path / "a", {"data.dir": ""}, val_accuracy=0.5)
    put(tmp_path / "b", {"data.dir": "/data", "seed": 1, "augment.flip": False}, test_accuracy=0.8, params=215_643)
    env = {"git_commit": "4567", "device": "cpu", "packages": {"jax": "0.11.0", "flax": "0.12"}, "earlier": [ENV]}
    env |= {"settings": {"XLA_FLAGS": "--xla"}, "matmul_precision": "highest", "driver": "580.65.06"}
    (tmp_path / "b" / "env.json").write_text(json.dumps(env))
    made = compare(*read([tmp_path])[0])
    assert (made.title, made.header) == ("a and b", ("", "a", "b"))
    assert made.rows == (
        ("test top-1, %", "79.14", "80.00 (+0.86)"),
        ("train top-1, %", "80.00", "80.00 (+0.00)"),
        ("params", "215642", "215643"),
        ("augment.flip", "True", "False"),
        ("data.dir", "''", "/data"),
        ("seed", "0", "1"),
        ("env.driver", "absent", "580.65.06"),
        ("env.git_commit", "0123", "4567"),
        ("env.matmul_precision", "absent", "highest"),
        ("env.packages.jax", "0.10.2", "0.11.0"),
        ("env.python", "3.11.7", "absent"),
        ("env.settings.XLA_FLAGS", "absent", "--xla"),
    )
    assert "Not compared" not in made.note and "the same in both" not in made.note


def test_a_lost_file_is_named(tmp_path):
    put(tmp_path / "x" / "run")
    other = put(tmp_path / "y" / "run", {"seed": 1}, device="NVIDIA H200")
    for name in ("config.json", "env.json"):
        (other / name).unlink()
    made = compare(*read([tmp_path])[0])
    assert made.header == ("", str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run"))
    assert [row[0] for row in made.rows] == ["test top-1, %", "train top-1, %", "device"]
    assert "config.json" in made.note and "env.json" in made.note and "the same in both" in made.note


def test_the_page_has_the_difference_over_seeds_and_the_curves(tmp_path):
    for alpha, accuracies in ((0.25, (0.70, 0.72)), (0.5, (0.80, 0.82, 0.81))):
        for seed, accuracy in enumerate(accuracies):
            name = f"cifar_v1-a{alpha}-s{seed}-{seed}"
            put(
                tmp_path / name,
                {"model.alpha": alpha, "seed": seed},
                test_accuracy=accuracy,
                mult_adds=int(9e6 * alpha),
            )
    put(tmp_path / "cifar_v1-a0.5-s3-3", {"model.alpha": 0.5, "seed": 3, "optim.lr": 0.123}, test_accuracy=0.1)
    made = page(*(one_run(tmp_path / name) for name in ("cifar_v1-a0.25-s0-0", "cifar_v1-a0.5-s1-1")))
    lead, table = made.sections
    text = " ".join(lead.text)
    assert re.search(r"\+10\.00 points of top-1 \[95 %: \+\d+\.\d\d, \+\d+\.\d\d; higher\]", text)
    assert "2 of the first, 3 of the second" in text and "2.25 M and 4.50 M" in text and "model.alpha, seed" in text
    assert table.tables[0].name == "compare"
    (picture,) = lead.pictures
    names = [label.get_text() for label in picture.draw().legends[0].get_texts()]
    assert names == ["cifar_v1-a0.25-s0-0", "cifar_v1-a0.5-s1-1"]


def test_two_seeds_have_the_noise_of_their_configuration(tmp_path):
    trained(tmp_path, {"model.alpha": 0.25}, (0.70, 0.72, 0.74))
    text, *_ = page(*(one_run(tmp_path / f"0.25-s{seed}") for seed in (0, 2))).sections[0].text
    assert "2 seeds" in text  # the names do not tell which other runs are alike
    for seed in range(3):
        (tmp_path / f"0.25-s{seed}").rename(tmp_path / f"0.25-s{seed}-{seed}")
    text, *_ = page(*(one_run(tmp_path / f"0.25-s{seed}-{seed}") for seed in (0, 2))).sections[0].text
    assert "+4.00 points" in text and "no clear difference" in text and "3 seeds" in text


def test_one_run_each_has_no_interval(tmp_path):
    runs = [put(tmp_path / name, {"seed": 0, "optim.lr": lr}) for name, lr in (("a", 0.1), ("b", 0.2))]
    text = " ".join(page(*map(one_run, runs)).sections[0].text)
    assert "+0.00 points" in text and "no interval" in text and "optim.lr" in text


def with_data(directory, fingerprint, settings):
    """Return the directory of a run on the folder with that fingerprint."""
    file = put(directory, {"data.name": "folder", **settings}) / "config.json"
    facts = {"dataset": {"name": "folder", "fingerprint": fingerprint}}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return directory


def test_accuracies_on_different_images_do_not_compare(tmp_path):
    """Of sets of different names, and of different sets behind one name."""
    changed = {f"augment.{key}": 1 for key in ("crop", "flip", "pad")} | {"optim.lr": 0.2, "model.dropout": 0.2}
    changed |= {"model.version": "v2", "model.weights": "c7884024", "data.archive": "x"}
    folders = [with_data(tmp_path / name, name, changed) for name in ("11111111", "22222222")]
    digits = put(tmp_path / "digits", {"data.name": "digits"})
    for second, names in ((digits, ("folder (11111111)", "digits")), (folders[1], ("(11111111)", "(22222222)"))):
        made = page(one_run(folders[0]), one_run(second))
        text = made.sections[0].text
        assert "do not compare" in text[0] and all(name in text[0] for name in names) and "points of" not in text[0]
        assert made.sections[1].tables[0].rows[0] == ("test top-1, %", "79.14", "79.14")
        first = (
            "data.name, model.version, model.weights, data.archive, model.dropout and" if second is digits else "none"
        )
        assert f"differ: {first}" in text[2]
    same = with_data(tmp_path / "same", "11111111", changed | {"optim.lr": 0.3})
    assert "+0.00 points" in page(one_run(folders[0]), one_run(same)).sections[0].text[0]


def test_long_values_are_cut_to_what_differs(tmp_path):
    """The whole command is in env.json."""
    shared = "launch.py --config configs/finetune.py --config.data.dir=/a/long/path/to/the/pictures"
    for name, command in {"a": f"{shared} --config.seed=1", "b": f"{shared} --x={'y' * 99}"}.items():
        (put(tmp_path / name, {"seed": len(name)}) / "env.json").write_text(json.dumps(ENV | {"command": command}))
    rows = {row[0]: row[1:] for row in compare(*map(one_run, (tmp_path / "a", tmp_path / "b"))).rows}
    assert rows["env.command"] == ("--config.seed=1", f"--x={'y' * 55}…")
