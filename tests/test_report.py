"""The table of finished runs, and the one in the README that must be made from `results/`."""

import json
import re

import pytest
from conftest import ROOT
from test_latency import RECORD as LATENCY
from test_latency import record

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
    rows = report.runs_table(report.summaries([tmp_path, tmp_path / "deep"])).rows
    assert len(rows) == 2
    assert rows[0][3] == "2.00 M"
    assert rows[1] == (
        *(
            "MobileNet v2, alpha 0.35, rho 1, t 6, cifar strides",
            "cifar10 32x32",
            "71.24%",
            "16.16 M",
            "0.41 M",
            "3",
            "1",
        ),
        *("1,234", "1.5", "cpu (2 cores)"),
    )


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; gives its exit status, stdout and stderr."""

    def command(*args) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["report", *map(str, args)])
        status = report.main()
        return status, *capsys.readouterr()

    return command


def test_bad_input_is_one_sentence(tmp_path, run):
    (tmp_path / "file").write_text("{}")
    for args, sentence in [
        ([tmp_path / "nothing"], r"error: \S+nothing is not a directory\n"),
        ([], r"error: name directories that hold runs, or give --published or --latency\n"),
        (["--published", "--out", tmp_path / "file"], r"error: --out=\S+file: is not a directory\n"),
        (["--published", "--out", tmp_path / "file" / "deep"], r"error: --out=\S+deep: Not a directory\n"),
        (["--latency", tmp_path / "nothing"], r"error: --latency=\S+nothing: No such file or directory\n"),
        (["--latency", tmp_path / "file"], r"error: --latency=\S+: not a record of benchmarks/layer_latency.py\n"),
    ]:
        status, _, err = run(*args)
        assert status == 1 and re.fullmatch(sentence, err), (args, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_published_costs(run):
    status, out, err = run("--published")
    assert (status, err) == (0, "")
    titles = [line for line in out.splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) == 22
    for line in (
        "| Conv MobileNet | 4866                  | 4867.29 | +1.29",
        "| 56x56                |",
        "| XLA flops          |",
        "| v2 0.35 96  | 11.93        | 4.5         |",
    ):
        assert any(found.startswith(line) for found in out.splitlines()), line


def test_a_cell_that_nothing_explains_is_a_fault_of_ours(monkeypatch, run):
    monkeypatch.setattr(report.claims, "unexplained", lambda printed: ["v1_table6, 1.0 MobileNet-224, params, M"])
    with pytest.raises(RuntimeError, match="v1_table6"):
        run("--published")


def test_pages_tables_and_figures_are_written(tmp_path, run):
    (tmp_path / "record.json").write_text(json.dumps(record()))
    out = tmp_path / "deep" / "out"
    status, _, _ = run("--published", "--latency", tmp_path / "record.json", "--out", out)
    assert status == 0
    pages = {page: (out / page).read_text() for page in ("published.md", "conventions.md", "latency.md")}
    for page in pages.values():
        for picture in re.findall(r"\]\((\S+)\)", page):
            assert (out / picture).stat().st_size > 1000 and (out / picture).with_suffix(".svg").exists()
    assert pages["published.md"].count("![") == 4
    assert pages["latency.md"].count("![") == 2
    assert (out / "v1_table6.csv").read_text().splitlines()[4].startswith("0.25 MobileNet-224,41,41.03,+0.03,0.5,0.47,")
    assert {path.suffix for path in out.iterdir()} == {".md", ".csv", ".png", ".svg"}


@pytest.mark.parametrize(("part", "args"), [("published", ["--published"]), ("latency", ["--latency", LATENCY])])
def test_the_committed_tables_are_made_from_this_code(tmp_path, run, part, args):
    """Byte for byte; figures depend on the fonts and the version of matplotlib."""
    committed = ROOT / "results" / part
    assert run(*args, "--out", tmp_path)[0] == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".md", ".csv")}
    assert made == {path.name: path.read_bytes() for path in committed.iterdir() if path.suffix in (".md", ".csv")}


def test_the_readme_shows_the_results():
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    runs = report.summaries([ROOT / "results"])
    if not runs:
        pytest.skip("no run records in results/")
    assert shown.strip() == report.runs_table(runs).markdown()
