"""The table of finished runs, and the one in the README that must be made from `results/`."""

import json
import re

import pytest
from conftest import ROOT

from mobilenet_jax import report

RUN = {
    "status": "finished",
    "title": "MobileNet v2, alpha 0.35, rho 1, t 6, cifar strides, 32x32 cifar10 (10 classes)",
    "resolution": 32,
    "dataset": "cifar10",
    "test_accuracy": 0.71238,
    "mult_adds": 16_161_616,
    "params": 408_000,
    "epochs": 3,
    "seed": 1,
    "train_images_per_second": 1234.5,
    "wall_seconds": 90.0,
    "device": "cpu (2 cores)",
}


def write(directory, **changes):
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(json.dumps(RUN | changes))


def test_one_row_a_finished_run_by_cost(tmp_path):
    write(tmp_path / "deep" / "b", mult_adds=2_000_000, seed=5)
    write(tmp_path / "a")
    write(tmp_path / "c", status="diverged", test_accuracy=None)
    rows = report.table(report.summaries([tmp_path, tmp_path / "deep"])).splitlines()
    assert len(rows) == 4
    assert "| 2.00 M |" in rows[2]
    assert rows[3] == (
        "| MobileNet v2, alpha 0.35, rho 1, t 6, cifar strides | cifar10 32x32 | 71.24% | 16.16 M | 0.41 M | 3 | 1 "
        "| 1,234 | 1.5 | cpu (2 cores) |"
    )


def test_a_directory_that_is_not_there_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "nothing")])
    assert report.main() == 1
    assert re.fullmatch(r"error: \S+nothing is not a directory\n", capsys.readouterr().err)


def test_the_readme_shows_the_results():
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    runs = report.summaries([ROOT / "results"])
    if not runs:
        pytest.skip("no run records in results/")
    assert shown.strip() == report.table(runs)
