"""Sweeps from end to end: every point once, whatever happens to the processes that train."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest
from conftest import ROOT
from helpers import TINY, spec_of, summary_of
from sweep_helpers import GRID, command, gone, results, run, table, training, wait, write

from mobilenet_jax.training import loop as train

pytestmark = pytest.mark.usefixtures("settings")


def trials(directory: pathlib.Path) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{directory / 'runs' / 'sweeps.db'}"
    (name,) = optuna.get_all_study_names(url)
    return optuna.load_study(study_name=name, storage=url).get_trials()


def states(directory: pathlib.Path) -> list[str]:
    return sorted(trial.state.name for trial in trials(directory))


def test_every_point_once_also_one_trained_by_hand(tmp_path):
    """One point is done, one diverges, one cannot be trained, and one is new; then that is mended."""
    write(tmp_path, TINY | {"optim.lr": [0.2, 1e30], "seed": [0, 1]})
    by_hand = spec_of(TINY)
    assert train.run(by_hand, tmp_path / "runs" / by_hand.run_name) == 0
    spoilt = tmp_path / "runs" / spec_of(TINY | {"optim.lr": 1e30}).run_name
    spoilt.mkdir()
    (spoilt / "notes.txt").write_text("mine")

    done = run(tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    assert [row[-1] for row in table(done.stdout)] == ["done", "done", "failed", "diverged"]
    assert f"{spoilt} is not empty and holds no run" in done.stdout
    assert "3 of 4 points have a result; 1 failed" in done.stdout
    assert len(results(tmp_path)) == 3
    assert (spoilt / "notes.txt").read_text() == "mine"
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]

    (spoilt / "notes.txt").unlink()
    before = {name: summary["wall_seconds"] for name, summary in results(tmp_path).items()}
    again = run(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert [row[-1] for row in table(again.stdout)] == ["done", "done", "diverged", "diverged"]
    assert {name: results(tmp_path)[name]["wall_seconds"] for name in before} == before
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED", "PRUNED"]

    started = time.monotonic()
    third = run(tmp_path)
    assert (third.returncode, third.stderr) == (0, "")
    assert table(third.stdout) == table(again.stdout)
    assert "done  " not in third.stdout and time.monotonic() - started < 60
    assert len(trials(tmp_path)) == 5


def test_a_damaged_result_of_a_point_that_is_done(tmp_path):
    """The books have it, but the report reads the directories: it is said, and made anew."""
    write(tmp_path, TINY | {"seed": [0, 1]})
    assert run(tmp_path).returncode == 0
    before, path = results(tmp_path), tmp_path / "runs" / spec_of(TINY).run_name / "summary.json"
    path.write_text("{")
    said = run(tmp_path)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(f"error: {path} is damaged") and "; move it away, and the same" in said.stderr

    path.unlink()
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "2 of 2 points have a result; 0 failed" in done.stdout
    assert done.stdout.count("done    ") == 1 and states(tmp_path) == ["COMPLETE"] * 3
    after = results(tmp_path)
    assert {n: s["params_sha256"] for n, s in after.items()} == {n: s["params_sha256"] for n, s in before.items()}

    path.parent.rename(tmp_path / "elsewhere")  # as where another machine trained it
    assert run(tmp_path).returncode == 0 and len(results(tmp_path)) == 1


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_rerun_resumes(tmp_path):
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0, 1]})
    with subprocess.Popen(command(tmp_path, "--workers=2"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = wait(lambda: found if len(found := training(process.pid)) == 2 else {}, process)
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
    assert process.returncode == 130
    assert out.endswith("stopped by SIGINT; the same command resumes\n")
    assert all(gone(pid) for pid in held)
    assert "RUNNING" not in states(tmp_path)
    assert not results(tmp_path)
    done = run(tmp_path, "--workers=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [summary["resumed_from"] > 0 for summary in results(tmp_path).values()] == [True, True]


@pytest.mark.slow
def test_the_command_itself_is_killed(tmp_path):
    """Its worker notices, saves and ends; the next start puts the point back at once."""
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0]})
    with subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        held = wait(lambda: training(process.pid), process)
        process.kill()
    until = time.monotonic() + 30
    while not all(gone(pid) for pid in held):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert states(tmp_path) == ["RUNNING"]
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [summary["resumed_from"] > 0 for summary in results(tmp_path).values()] == [True]
    assert states(tmp_path) == ["COMPLETE", "FAIL"]


@pytest.mark.slow
def test_fused_points(tmp_path):
    """Three seeds of two widths: in groups of up to two."""
    write(tmp_path, TINY | {"model.alpha": [0.25, 0.5], "seed": [0, 1, 2]})
    done = run(tmp_path, "--fuse=2", "--config.train.epochs=1", "--config.optim.warmup_epochs=0.5", "--workers=1")
    assert "config.train.epochs cannot be overridden" in done.stderr
    write(tmp_path, {k: v for k, v in TINY.items() if k != "train.epochs"} | {"model.alpha": [0.25], "seed": [0, 1, 2]})
    done = run(tmp_path, "--fuse=2", "--config.train.epochs=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(summary["fused"] for summary in results(tmp_path).values()) == [1, 2, 2]
    assert states(tmp_path) == ["COMPLETE"] * 3
    by_hand = spec_of(TINY | {"seed": 2})
    assert train.run(by_hand, tmp_path / "alone") == 0
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
    assert {trial.value for trial in trials(tmp_path)} == {summary["val_accuracy"] for summary in found}
    again = run(tmp_path)
    assert (again.returncode, len(results(tmp_path))) == (0, 3)


def test_a_full_disk_leaves_the_points_to_others(tmp_path):
    """It would fail one point after another: the sweep stops at the first, which stays open."""
    write(tmp_path, TINY | {"seed": [0, 1]})
    directory = tmp_path / "runs" / spec_of(TINY).run_name
    directory.mkdir(parents=True)
    (directory / ".config.json.tmp").symlink_to("/dev/full")  # what is written first
    sentence = f"{directory / 'config.json'} cannot be written (No space left on device); once it can, the same command"
    done = run(tmp_path)
    assert (done.returncode, done.stderr, states(tmp_path)) == (
        *(1, f"error: {sentence} resumes\n", ["FAIL", "WAITING", "WAITING"]),
    )
    assert f"left    {directory.name}: {sentence}" in done.stdout and "failed" not in done.stdout

    (directory / ".config.json.tmp").unlink()
    again = run(tmp_path)
    assert (again.returncode, again.stderr, len(results(tmp_path))) == (0, "", 2)
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "FAIL"]


AWAY = """
import sys
import launch
from mobilenet_jax import ledger, sweep

def away(*args, **kwargs):
    raise ledger.{error}("why")

ledger.Ledger.{method}, sweep.PATIENCE = away, 3
sys.exit(launch.run())
"""


@pytest.mark.parametrize("method", ["beat", "claim"])  # at all, or only for who writes
@pytest.mark.parametrize(
    ("error", "said", "sentence", "seconds"),
    [
        ("Lost", "does not answer", "has not answered for 0 minutes (why); once it does", 3),
        ("Unwritable", "cannot be written", "cannot be written (why); once it can", 0),
    ],
)
def test_a_database_that_stays_away(method, error, said, sentence, seconds, tmp_path):
    """With nothing left to train, nobody is to wait for it for days; nor at all where its disk is full."""
    write(tmp_path, TINY | {"seed": [0, 1]})
    line = [sys.executable, "-c", AWAY.format(error=error, method=method), *command(tmp_path)[2:]]
    env, started = os.environ | {"PYTHONPATH": str(ROOT)}, time.monotonic()
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and time.monotonic() - started > seconds
    assert done.stdout.splitlines()[1:2] == [f"the database {said} (why)"] and done.stdout.count("(why)") == 1
    assert done.stderr.startswith("error: --storage=sqlite:///") and done.stderr.count("\n") == 1
    assert f"sweeps.db: {sentence}, the same command goes on\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config=configs/digits_v1.py"], "--config does not go with --sweep"),
        (["--run_dir=x"], "--run_dir is of one run"),
        (["--config.seed=1"], "config.seed cannot be overridden"),
        (["--config.train.epochs=0"], "2 of 2 points cannot be run"),
        (["--workers=-1"], "--workers"),
        (["--fuse=0"], "--fuse"),
        (["--max_mult_adds=1000"], "no point has at most 1,000 mult-adds"),
        (["--storage=oracle://x"], "--storage=oracle://x"),
        (["--storage=nonsense"], "--storage=nonsense"),
        (["--workdir=tiny.yaml/runs"], "--workdir=tiny.yaml/runs: cannot be written (Not a directory)"),
        (["--sweep=absent.yaml"], "absent.yaml: the sweep file cannot be read"),
    ],
)
def test_bad_arguments(arguments, sentence, tmp_path):
    write(tmp_path, {k: v for k, v in TINY.items() if k != "train.epochs"} | {"seed": [0, 1]})
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--storage=x", "--workers=2", "--fuse=2", "--max_mult_adds=5"])
def test_flags_of_a_sweep_alone(flag, launch):
    done = launch(flag)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {flag.partition('=')[0]} goes with --sweep only\n"


@pytest.mark.slow
def test_the_training_process_is_killed_three_times(tmp_path):
    """At two moments of any points, and once while the last point is trained."""
    write(
        tmp_path,
        TINY | {"train.epochs": 12, "train.checkpoint_epochs": 0.2, "model.alpha": [0.25, 0.5], "seed": [0, 1, 2, 3]},
    )
    killed = []
    with subprocess.Popen(command(tmp_path, "--workers=2"), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for finished in (0, 3, 7):

            def begun(finished=finished):
                return training(process.pid) if len(results(tmp_path)) >= finished else {}

            pid, directory = next(iter(wait(begun, process, 300).items()))
            os.kill(pid, signal.SIGKILL)
            killed.append(directory.name)
        out = process.stdout.read()
    assert process.returncode == 0, out
    found = results(tmp_path)
    assert len(found) == 8 and all(summary["status"] == "finished" for summary in found.values())
    assert all(found[name]["resumed_from"] > 0 for name in killed)
    assert out.count("killed by SIGKILL") == 3
    assert states(tmp_path) == ["COMPLETE"] * 8


IMPATIENT = """
import sys
import launch
from mobilenet_jax import crew
crew.SILENT = 12
sys.exit(launch.run())
"""


@pytest.mark.slow
def test_a_worker_that_stands_still_is_killed(tmp_path):
    """Its point goes on in another process, from its last checkpoint."""
    write(tmp_path, TINY | {"train.epochs": 40, "seed": [0]})
    options = command(tmp_path)[2:]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", IMPATIENT, *options]
    with subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as going:
        (pid, *_) = wait(lambda: training(going.pid), going)
        os.kill(pid, signal.SIGSTOP)
        said = going.communicate(timeout=200)[0]
    assert going.returncode == 0
    assert "killed  a worker that stood still for 12 s" in said and "(its worker died, killed by SIGKILL)" in said
    (summary,) = results(tmp_path).values()
    assert summary["status"] == "finished" and summary["resumed_from"] > 0 and states(tmp_path) == ["COMPLETE"]


@pytest.mark.slow
def test_the_demonstration(tmp_path):
    """8 points from one command; once more, and nothing is trained."""
    arguments = [sys.executable, str(ROOT / "launch.py"), f"--sweep={ROOT}/sweeps/digits_demo.yaml", "--workdir=runs"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(table(done.stdout)) == 8 == len(results(tmp_path))
    assert all(summary["test_accuracy"] > 0.85 for summary in results(tmp_path).values())
    again = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (again.returncode, table(again.stdout)) == (0, table(done.stdout))
    assert "done  " not in again.stdout
