"""Sweeps from end to end: every point trains once."""

import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, on_a_terminal
from helpers import TINY, environment, prepare, random_splits, spec_of, summary_of
from sweep_helpers import (
    GRID,
    command,
    database,
    patched,
    results,
    run,
    run_of,
    start,
    table,
    trained,
    trial_states,
    trials,
    write,
)

from mobilenet_jax.training import loop

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first run of a sweep of two good points and two that diverge. One run directory holds other files."""
    directory = tmp_path_factory.mktemp("sweep")
    write(directory, TINY | {"optim.lr": [0.2, 1e30], "seed": [0, 1]})
    occupied = run_of(directory, lr=1e30)
    occupied.mkdir(parents=True)
    (occupied / "notes.txt").write_text("mine")
    done = run(directory)
    return directory, done, results(directory), trial_states(database(directory))


@pytest.fixture(scope="module")
def rerun(first, tmp_path_factory):
    """The same command after the other files are gone, in a copy of the first run."""
    directory = tmp_path_factory.mktemp("rerun") / "sweep"
    shutil.copytree(first[0], directory)
    (run_of(directory, lr=1e30) / "notes.txt").unlink()
    return directory, run(directory)


@pytest.fixture
def finished(rerun, tmp_path):
    """A copy of the finished sweep."""
    shutil.copytree(rerun[0], tmp_path / "sweep")
    return tmp_path / "sweep"


def test_one_point_that_fails_stops_no_other(first):
    directory, done, found, states = first
    assert (done.returncode, done.stderr) == (1, "")
    assert [row[-1] for row in table(done.stdout)] == ["finished", "finished", "failed", "diverged"]
    assert f"{run_of(directory, lr=1e30)} is not empty and holds no run" in done.stdout
    assert "3 of 4 points have a result; 1 failed" in done.stdout
    assert sorted(summary["status"] for summary in found.values()) == ["diverged", "finished", "finished"]
    assert (run_of(directory, lr=1e30) / "notes.txt").read_text() == "mine"
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]


@pytest.mark.slow
def test_the_rerun_trains_failed_points_only(first, rerun):
    directory, done = rerun
    assert (done.returncode, done.stderr) == (0, "")
    assert [row[-1] for row in table(done.stdout)] == ["finished", "finished", "diverged", "diverged"]
    assert [line.split()[:2] for line in trained(done)] == [["diverged", run_of(directory, lr=1e30).name]]
    assert {name: results(directory)[name] for name in first[2]} == first[2]
    assert trial_states(database(directory)) == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED", "PRUNED"]


@pytest.mark.slow
def test_a_finished_sweep_trains_nothing(rerun, finished):
    done = run(finished)
    assert (done.returncode, done.stderr, trained(done)) == (0, "", [])
    assert table(done.stdout) == table(rerun[1].stdout) and len(trials(database(finished))) == 5

    (finished / "runs" / "sweeps.db").unlink()  # the run directories hold the results as well
    done = run(finished)
    assert (done.returncode, done.stderr) == (0, "") and len(trained(done)) == 4
    assert all(line.endswith("(its run directory has the result)") for line in trained(done))
    assert trial_states(database(finished)) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]


@pytest.mark.slow
def test_a_damaged_result_is_reported_and_a_lost_one_produced_again(finished):
    before, path = results(finished), run_of(finished) / "summary.json"
    path.write_text("{")
    done = run(finished)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {path}") and "damaged" in done.stderr and "move it away" in done.stderr

    path.unlink()
    done = run(finished)
    assert (done.returncode, done.stderr) == (0, "") and "4 of 4 points have a result; 0 failed" in done.stdout
    assert [line.split()[:2] for line in trained(done)] == [["finished", path.parent.name]]
    weights = [
        {name: summary["params_sha256"] for name, summary in each.items()} for each in (before, results(finished))
    ]
    assert weights[0] == weights[1]

    path.parent.rename(finished / "elsewhere")  # as if another machine had trained it
    assert run(finished).returncode == 0 and len(results(finished)) == 3


@pytest.mark.slow
def test_fused_points(tmp_path):
    """Three seeds train in groups of up to two, with the result of a run by hand."""
    del (given := dict(TINY))["train.epochs"]
    write(tmp_path, given | {"seed": [0, 1, 2]})
    done = run(tmp_path, "--fuse=2", "--config.train.epochs=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(summary["fused"] for summary in results(tmp_path).values()) == [1, 2, 2]
    assert trial_states(database(tmp_path)) == ["COMPLETE"] * 3
    by_hand = spec_of(TINY | {"train.epochs": 3, "seed": 2})
    assert loop.run(by_hand, tmp_path / "alone") == 0
    assert results(tmp_path)[by_hand.run_name]["params_sha256"] == summary_of(tmp_path / "alone")["params_sha256"]


SEARCH = GRID.replace("method: grid", "method: bayes\nrun_cap: 3").replace("test_accuracy", "val_accuracy")


@pytest.mark.slow
def test_a_search_on_held_out_images(tmp_path):
    range_ = {"distribution": "log_uniform_values", "min": 0.05, "max": 0.5}
    write(tmp_path, TINY | {"optim.lr": range_, "data.holdout": 0.1, "train.epochs": 3}, SEARCH)
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = results(tmp_path).values()
    assert len(found) == 3 == len(table(done.stdout))
    assert len({summary["val_accuracy"] for summary in found}) > 1
    assert {trial.value for trial in trials(database(tmp_path))} == {summary["val_accuracy"] for summary in found}
    again = run(tmp_path)
    assert (again.returncode, len(results(tmp_path))) == (0, 3)


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_fails_no_point(tmp_path):
    write(tmp_path, TINY | {"seed": [0, 1]})
    directory = run_of(tmp_path)
    directory.mkdir(parents=True)
    (directory / ".config.json.tmp").symlink_to("/dev/full")  # the first file of a run
    message = f"{directory / 'config.json'} cannot be written (No space left on device)"
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert trial_states(database(tmp_path)) == ["WAITING", "WAITING"] and "failed  " not in done.stdout


@pytest.mark.parametrize(
    ("error", "line", "message", "patience"),
    [
        ("Unavailable", "does not answer", "has not answered for 0 minutes (why); once it answers, the same", 1),
        pytest.param(
            *("Unwritable", "cannot be written", "cannot be written (why); once it can, the same command resumes", 600),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_database_that_stays_away(error, line, message, patience, tmp_path):
    """With nothing left to train, a sweep waits for a while; if the database's disk is full, it does not wait."""
    write(tmp_path, TINY | {"seed": [0, 1]})
    away = f"def away(*args):\n    raise database.{error}('why')\nqueue.Queue.claim = away"
    patient = f"worker.PATIENCE = {patience}"
    started = time.monotonic()
    done = start(patched(tmp_path, away, patient), tmp_path)
    assert done.returncode == 1 and (error == "Unwritable" or time.monotonic() - started > patience)
    assert done.stdout.splitlines()[1:2] == [f"the database {line} (why)"] and done.stdout.count("(why)") == 2
    assert done.stderr.startswith("error: --storage=sqlite:///") and done.stderr.count("\n") == 1
    assert f"sweeps.db: {message}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits_v1.py"], "--config does not go with --sweep"),
        (["--run_dir=x"], "--run_dir is of one run"),
        (["--config.seed=1"], "config.seed cannot be overridden"),
        (["--config.train.epochs=0"], "2 of 2 points cannot be run"),
        (["--workers=-1"], "--workers"),
        (["--fuse=0"], "--fuse"),
        (["--max_mult_adds=1000"], "no point has at most 1,000 mult-adds"),
        (["--storage=oracle://x"], "--storage=oracle://x: allowed is sqlite:///PATH or"),
        (["--storage=nonsense"], "allowed is sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"),
        (["--storage=sqlite://"], "--storage=sqlite://: allowed is sqlite:///PATH or"),
        (["--workdir=tiny.yaml/runs"], "--workdir=tiny.yaml/runs: cannot be written (Not a directory)"),
        (["--sweep=absent.yaml"], "absent.yaml: the sweep file cannot be read"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    write(tmp_path, {k: v for k, v in TINY.items() if k != "train.epochs"} | {"seed": [0, 1]})
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--storage=x", "--workers=2", "--fuse=2", "--max_mult_adds=5"])
def test_flags_of_a_sweep_alone(flag, launch):
    done = launch(flag)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {flag.partition('=')[0]} goes with --sweep only\n"


# As if the data set were not on this machine.
NO_DATA = """
from mobilenet_jax.data import arrays
from mobilenet_jax.errors import InputError
def load(*args): raise InputError("the set is not here")
arrays.load = load
"""


CLAIMS = """
import pathlib
claim = queue.Queue.claim
def claims(*args):
    entry = claim(*args)
    pathlib.Path("claimed").touch()
    return entry
queue.Queue.claim = claims
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statements", "variables", "sentence"),
    [
        ("", {"JAX_PLATFORMS": "cuda"}, "JAX does not start.* JAX_PLATFORMS=cuda\\b"),
        ("", {"JAX_ENABLE_X64": "maybe"}, "JAX does not start.* JAX_ENABLE_X64=maybe\\b"),
        (NO_DATA, {}, "the set is not here"),
    ],
    ids=["no device", "a setting that JAX refuses", "no data"],
)
def test_a_machine_that_cannot_train(statements, variables, sentence, tmp_path):
    """It gives its point back and ends, while another machine trains all points."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    able, unable = tmp_path / "able", tmp_path / "unable"
    for directory in (able, unable):
        directory.mkdir()
        write(directory, TINY | {"seed": [0, 1]})
    # The healthy machine waits until the other one has claimed a point or has ended.
    late = "import pathlib, time\nwhile not pathlib.Path('claimed').exists(): time.sleep(0.01)"
    other = [*patched(able, late), f"--storage={storage}"]
    with subprocess.Popen(other, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        done = start([*patched(unable, statements, CLAIMS), f"--storage={storage}"], tmp_path, **variables)
        (tmp_path / "claimed").touch()  # without a device, nothing is claimed
        out = process.communicate(timeout=200)[0]
    assert done.returncode == 1 and re.match(f"error: {sentence}", done.stderr) and done.stderr.count("\n") == 1
    assert "failed  " not in done.stdout and not results(unable)
    assert process.returncode == 0 and [row[-1] for row in table(out)] == ["finished"] * 2 and len(results(able)) == 2
    assert trial_states(storage) == ["COMPLETE"] * 2


BUG = """
from mobilenet_jax.errors import InputError
from mobilenet_jax.training import loop
train = loop.train
def fails(program, runs, asked):
    if any(run.spec.config.seed == 1 for run in runs): raise %s("a bug\\nwith details")
    train(program, runs, asked)
loop.train = fails
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reason"), [("RuntimeError", "RuntimeError: a bug\n"), ("InputError", "a bug")])
def test_a_fused_point_that_raises_an_error(kind, reason, tmp_path):
    """The points of its group are trained one at a time, and the others get results."""
    write(tmp_path, TINY | {"seed": [0, 1, 2]})
    done = start([*patched(tmp_path, BUG % kind), "--fuse=3"], tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert [row[-1] for row in table(done.stdout)] == ["finished", "failed", "finished"]
    assert [line.split()[0] for line in trained(done)].count("died") == 1
    assert "failed    optim.lr" not in done.stdout and f"seed=1: {reason}" in done.stdout
    assert sorted(summary["fused"] for summary in results(tmp_path).values()) == [1, 1]
    assert trial_states(database(tmp_path)) == ["COMPLETE", "COMPLETE", "FAIL"]


@pytest.mark.slow
def test_the_table_on_a_terminal(tmp_path):
    """It names the points by the knobs that vary, not by hashes."""
    write(tmp_path, TINY | {"model.alpha": [0.25, 0.5], "model.rho": [0.25, 0.5]})
    code, shown = on_a_terminal(command(tmp_path, "--max_mult_adds=250000"), environment(TERM="xterm"))
    assert code == 0
    lines = [line.split() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*\w", "", shown))]
    heads = [i for i, words in enumerate(lines) if words[:1] == ["α"]]
    assert lines[heads[0]] == ["α", "ρ", "mult-adds", "accuracy", "progress", "images/s", "state", "machine"]
    rows = [lines[i + 1] for i in heads]
    assert all(words[:4] == ["0.25", "0.25", "0.20", "M"] for words in rows) and any("running" in row for row in rows)
    digest = run_of(tmp_path).name.rpartition("-")[2]
    assert digest in shown and not any(digest in " ".join(words) for words in rows)


@pytest.mark.slow
def test_a_sweep_that_changes_while_it_is_trained(tmp_path):
    """Its command and a restarted worker would train different points."""
    write(tmp_path, TINY | {"seed": [0, 1]})
    change = "from mobilenet_jax.sweeps.points import Plan\nPlan.study = f'tiny-{len(sys.argv)}'"
    done = start(patched(tmp_path, change), tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: sweep tiny: its file, config or data changed while it ran; start it again\n"


@pytest.mark.slow
def test_a_sweep_on_another_data_set_behind_the_name(tmp_path, monkeypatch):
    """Nothing of the first set counts, and nothing is lost."""
    root, sizes = tmp_path / "tfds", {"train": 96, "test": 16}
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    prepare(root, "toy", random_splits(0, sizes, 32, 3, 3))
    write(tmp_path, TINY | {"data.name": "toy", "train.batch_size": 32, "seed": [0, 1]})
    assert run(tmp_path).returncode == 0
    first = results(tmp_path)
    shutil.move(root, tmp_path / "first")
    prepare(root, "toy", random_splits(0, sizes, 32, 3, 4), classes=4, version="2.0.0")
    done = run(tmp_path)
    assert done.returncode == 1 and "0 of 2 points have a result; 2 failed" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert all("num_classes 3 there and 4 here" in line and "another directory" in line for line in failed[:2])
    assert len(first) == 2 and results(tmp_path) == first
    shutil.move(tmp_path / "runs", tmp_path / "of_first")
    assert run(tmp_path).returncode == 0
    assert {summary["num_classes"] for summary in results(tmp_path).values()} == {4}


@pytest.mark.slow
def test_the_demonstration(tmp_path):
    """One command trains 8 points; the second time, it trains none."""
    arguments = [sys.executable, str(ROOT / "launch.py"), f"--sweep={ROOT}/sweeps/digits_demo.yaml", "--workdir=runs"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(table(done.stdout)) == 8 == len(results(tmp_path))
    assert all(summary["test_accuracy"] > 0.85 for summary in results(tmp_path).values())
    again = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (again.returncode, table(again.stdout)) == (0, table(done.stdout))
    assert trained(again) == []
