"""The command: what it prints, what it writes, what it refuses."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers import put, record

from mobilenet_jax import report
from mobilenet_jax.render import interactive

RUNS = sorted((ROOT / "results" / "cifar10").iterdir())


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; return its exit status, stdout and stderr."""

    def command(*args) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["report", *map(str, args)])
        status = report.main()
        return status, *capsys.readouterr()

    return command


def test_bad_input_is_one_sentence(tmp_path, run):
    (tmp_path / "file").write_text("{}")
    damaged = record()
    damaged["networks"][0]["batch"] = -1
    (tmp_path / "batch").write_text(json.dumps(damaged))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for args, sentence in [
        ([tmp_path / "nothing"], r"\S+nothing is not a directory"),
        ([tmp_path / "empty"], r"no runs in \S+empty"),
        ([RUNS[0], "--watch"], r"--watch: needs .*--out"),
        ([], r"name directories that hold runs, or give --compare, --published, --latency or --official"),
        (["--published", "--out", tmp_path / "file"], r"--out=\S+file: .*directory.*"),
        (["--published", "--out", ""], r"--out=: .*directory.*"),
        (["--published", "--out", tmp_path / "link"], r"--out=\S+link: .*directory.*"),
        (["--published", "--out", tmp_path / "file" / "deep"], r"--out=\S+deep: Not a directory"),
        (["--latency", tmp_path / "nothing"], r"--latency=\S+nothing: No such file or directory"),
        (
            ["--latency", tmp_path / "file"],
            r"--latency=\S+: not a record of benchmarks/\S+ \(device: .*\)",
        ),
        (["--latency", tmp_path / "batch", "--out", tmp_path / "page"], r"--latency=\S+: .*\(networks.0.batch: .*\)"),
        (["--compare", RUNS[0], tmp_path / "empty"], r"--compare: \S+empty is not the directory of one .* \(no run\)"),
        (["--compare", RUNS[0], RUNS[0].parent], r"--compare: \S+ is not the directory of one .* \(\d+ runs\)"),
    ]:
        status, out, err = run(*args)
        assert (status, out) == (1, "") and re.fullmatch(f"error: {sentence}\n", err), (args, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batch", "empty", "file", "link"]


def test_published_costs(run):
    status, out, err = run("--published")
    assert (status, err) == (0, "")
    titles = [line for line in out.splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) > 20
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    for cells in (
        ["Conv MobileNet", "4866"],
        ["56x56"],
        ["XLA flops"],
        ["v2 0.35 96", "TF-slim"],
        ["v2 1.4", "224", "75.0"],
    ):
        assert any(row[: len(cells)] == cells for row in rows), cells


def test_a_reader_may_leave(tmp_path):
    command = [sys.executable, "-m", "mobilenet_jax.report", "--published"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_a_cell_that_nothing_explains_is_a_fault_of_ours(monkeypatch, run):
    monkeypatch.setattr(
        "mobilenet_jax.papers.compare.unexplained", lambda printed: ["v1_table6, 1.0 MobileNet-224, params, M"]
    )
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
    assert [page.count("![") for page in pages.values()] == [5, 0, 2]
    rows = list(csv.reader((out / "v1_table6.csv").read_text().splitlines()))
    assert rows[4][:4] == ["0.25 MobileNet-224", "41", "41.03", "+0.03"]
    assert all(path.read_bytes()[:3] == b"\xef\xbb\xbf" for path in out.glob("*.csv"))  # for Excel
    assert {path.suffix for path in out.iterdir()} == {".md", ".csv", ".html", ".png", ".svg"}
    assert (out / "published.html").read_text().count("<figure>") == 5


def test_a_directory_in_the_way(tmp_path, run):
    (tmp_path / "compare.md").mkdir()
    status, out, err = run("--compare", *RUNS[:2], "--out", tmp_path)
    assert (status, out) == (1, "") and "compare.md" in err and f"--out={tmp_path}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["compare.md"]  # nothing half-written


def test_runs_and_their_problems(tmp_path, run):
    for directory in RUNS[3:12]:  # of one width: three resolutions of three seeds
        shutil.copytree(directory, tmp_path / "runs" / directory.name)
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "unfinished" / "config.json").write_text("{}")
    status, out, _ = run(tmp_path / "runs", "--out", tmp_path / "out")
    assert status == 0
    assert "| v1 α 0.25 " in out and "unfinished" in out
    assert (tmp_path / "out" / "problems.csv").exists()
    assert "Run directories with a problem" in (tmp_path / "out" / "runs.html").read_text()


def test_two_runs_compared(run):
    status, out, _ = run("--compare", *RUNS[:2])
    assert status == 0
    assert any(line.startswith("| test top-1, % ") for line in out.splitlines())


def test_two_runs_on_a_page(tmp_path, run):
    status, _, _ = run("--compare", *RUNS[:2], "--out", tmp_path)
    text = (tmp_path / "compare.html").read_text()
    assert status == 0 and "points of top-1" in text and text.count("<figure>") == 1
    assert "<details>" not in text.partition("What differs")[2] and (tmp_path / "curves.png").exists()


@pytest.mark.slow
def test_a_watched_page_is_renewed_as_runs_finish(tmp_path):
    """Until a signal: then it is written once more, and no browser loads it again."""
    put(tmp_path / "runs" / "a")
    page = tmp_path / "out" / "runs.html"
    command = [sys.executable, "-m", "mobilenet_jax.report", tmp_path / "runs", "--out", tmp_path / "out", "--watch"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "1 runs" in process.stdout.readline()
        assert re.search('"refresh":[1-9]|http-equiv="refresh"', page.read_text())
        put(tmp_path / "runs" / "b", {"seed": 1})
        assert "2 runs" in process.stdout.readline()
        assert "(n = 2)" in page.read_text() or "± 0.00" in page.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert not re.search('"refresh":[1-9]|http-equiv="refresh"', page.read_text())


@pytest.mark.slow
def test_a_page_of_many_runs_is_small(tmp_path, run):
    """And says what it lacks without the extra `page`."""
    status, out, _ = run(RUNS[0].parent, "--out", tmp_path)
    assert status == 0 and (".[page]" in out) != interactive.available()
    assert (tmp_path / "runs.html").stat().st_size < 3e6


@pytest.mark.slow
def test_a_page_of_2000_runs(tmp_path, run):
    """At most 12 MB, in 15 seconds of one core."""
    for i in range(2000):
        setting = {
            "model.alpha": 0.2 + i // 200 / 10,
            "model.rho": 0.5 + i // 20 % 10 / 20,
            "train.epochs": 20 + i // 5 % 4,
        }
        setting |= {"seed": i % 5}
        count = int(1e8 * setting["model.alpha"] ** 2 * setting["model.rho"] ** 2)
        put(tmp_path / f"runs/cifar_v1-s{i}", setting, test_accuracy=0.5 + count / 4e8 + i % 7 / 1000, mult_adds=count)
    start = time.process_time()
    status, _, _ = run(tmp_path / "runs", "--out", tmp_path / "out")
    assert status == 0 and time.process_time() - start < 15
    assert (tmp_path / "out" / "runs.html").stat().st_size < 12e6


def test_figures_need_no_display_and_no_settings(tmp_path):
    """A notebook sets the backend; a home, a file of settings and an encoding may be unusable."""
    (tmp_path / "record.json").write_text(json.dumps(record()))
    (tmp_path / "settings").write_bytes(b"\xff\0: 1")
    environment = {"MPLBACKEND": "module://absent.backend", "MATPLOTLIBRC": str(tmp_path / "settings")}
    environment |= {"HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "mobilenet_jax.report", "--latency=~/record.json", "--out=~/page"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "page" / "latency.html").read_text().count("<figure>") == 2
    assert r"\xb5s" in done.stdout


def test_starts_without_slow_imports():
    code = "import sys; sys.argv = ['report', '--published']; from mobilenet_jax import report; report.main()"
    code += (
        "; print({'jax', 'markdown_it', 'matplotlib', 'numpy', 'pydantic', 'scipy'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "set()\n")
