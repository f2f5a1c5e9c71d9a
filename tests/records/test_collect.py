"""Run directories built by hand: which runs are read, and which problems are listed."""

import itertools
import json
import os
import re

import pytest
from conftest import ROOT
from helpers import CONFIG, ENV, put, rows
from ml_collections import ConfigDict

from mobilenet_jax import config
from mobilenet_jax.analysis.configurations import configurations_table, find_series, group_runs
from mobilenet_jax.errors import InputError
from mobilenet_jax.records import collect, summary


def change(directory, **summary):
    """Change keys of the summary; the value `...` removes a key."""
    changed = json.loads((directory / "summary.json").read_text()) | summary
    kept = {key: value for key, value in changed.items() if value is not ...}
    (directory / "summary.json").write_text(json.dumps(kept))


def test_a_figure_that_was_changed_is_noticed(tmp_path):
    directory = put(tmp_path / "run")
    path, metrics = directory / "summary.json", directory / "metrics.jsonl"
    result = summary.unseal(json.loads(path.read_text()))
    path.write_text(json.dumps(summary.seal(result, metrics.read_bytes())))
    assert read(tmp_path)[1] == []
    whole = metrics.read_text()
    metrics.write_text(whole.replace("2", "1", 1))
    (run,), problems = read(tmp_path)
    assert not run.epochs and problems[0][1].startswith("metrics.jsonl is damaged: it is not what was written: counted")
    metrics.write_text(whole)
    path.write_text(path.read_text().replace("0.7914", "0.9914"))
    found, problems = read(tmp_path)
    assert not found and re.match(r"summary\.json is damaged.*not what was written: left out", problems[0][1])


def read(*directories):
    """Return the runs, and the problems by the name of the directory."""
    found, problems = collect.read(directories)
    return found, [(problem.directory.name, problem.what) for problem in problems]


def test_a_finished_run(tmp_path):
    directory = put(tmp_path / "deep" / "deeper" / "run")
    (run,), problems = collect.read([tmp_path])
    assert problems == []
    assert (run.directory, run.accuracy, run.device) == (directory, 0.7914, "cpu (2 cores)")
    assert (run.summary.seed, run.summary.mult_adds, run.summary.params) == (0, 3_331_072, 215_642)
    assert run.config["model.alpha"] == 0.25 and run.config["point"] == ""
    assert run.env == ENV
    assert list(run.epochs) == rows(3)
    assert collect.read([directory])[0][0].summary == run.summary  # the run directory itself is accepted, too


@pytest.mark.parametrize(("version", "optimizer"), [("v1", "sgd"), ("v2", "rmsprop")])
def test_the_identity_is_that_of_the_run_less_what_changes_no_result(tmp_path, version, optimizer):
    changes = {"model": CONFIG["model"] | {"version": version}, "optim": CONFIG["optim"] | {"name": optimizer}}
    spec = config.resolve(ConfigDict(CONFIG | changes))
    put(tmp_path / "run", {"model.version": version, "model.alpha": 1.0, "train.epochs": 10})
    (tmp_path / "run" / "config.json").write_text(json.dumps(spec.config.to_dict()))
    (run,), problems = collect.read([tmp_path])
    assert not problems
    expected = {
        k: v for k, v in spec.identity.items() if k not in ("seed", "train.eval_epochs", "train.checkpoint_epochs")
    }
    if version == "v1":
        del expected["model.bottleneck"], expected["model.shortcut"], expected["optim.decay"], expected["optim.epsilon"]
        expected["model.expansion"] = None
    assert run.identity == expected


# How a run directory is damaged, and what the problem must name.
def _write(name, text):
    return lambda d: (d / name).write_text(text)


def _unlink(*names):
    return lambda d: [(d / name).unlink() for name in names]


def _link_to_itself(name):
    def spoil(d):
        (d / name).unlink()
        (d / name).symlink_to(name)

    return spoil


def _cut(lines, tail=""):
    def spoil(d):
        kept = (d / "metrics.jsonl").read_text().splitlines(keepends=True)[:lines]
        (d / "metrics.jsonl").write_text("".join(kept) + tail)

    return spoil


def _all(*spoils):
    return lambda d: [spoil(d) for spoil in spoils]


def _change(**summary):
    return lambda d: change(d, **summary)


_DAMAGED = r"summary\.json is damaged.*: {}: left out; move it away, .*"
PROBLEMS = {
    "unfinished": (
        _all(_unlink("summary.json"), _cut(2)),
        r"unfinished, or running: 2 of 3 epochs; the same command resumes it",
    ),
    "unfinished, nothing recorded": (
        _unlink("summary.json", "metrics.jsonl", "env.json"),
        r"unfinished, or running: 0 of 3 epochs; the same command resumes it",
    ),
    "unfinished, without config": (
        _unlink("summary.json", "config.json"),
        r"unfinished, or running: 3 epochs; config\.json is missing; the same command resumes it",
    ),
    "diverged": (
        _all(_change(status="diverged", test_accuracy=None), _cut(1, '{"epoch": 1.4321, "loss": null}\n')),
        r"diverged after 1\.43 of 3 epochs: left out; try a lower config\.optim\.lr",
    ),
    "not JSON": (_write("summary.json", '{"schema": 1, "stat'), _DAMAGED.format("it is no JSON")),
    "not text": (lambda d: (d / "summary.json").write_bytes(b'{"a": "\xff"}'), _DAMAGED.format("it is no JSON")),
    "endless": (_write("summary.json", "[" * 200_000), _DAMAGED.format("it is no JSON")),
    "no object": (_write("summary.json", "[1]"), _DAMAGED.format("it holds no JSON object")),
    "empty": (_write("summary.json", ""), _DAMAGED.format("it is no JSON")),
    "foreign schema": (_change(schema=2), _DAMAGED.format("its schema is 2, known here is 1")),
    "no schema": (_change(schema=...), _DAMAGED.format("its schema is absent, known here is 1")),
    "schema true": (_change(schema=True), _DAMAGED.format("its schema is True, known here is 1")),
    "foreign diverged": (_change(schema=0, status="diverged"), _DAMAGED.format("its schema is 0, known .*")),
    "a field": (_change(test_accuracy=79.1), _DAMAGED.format("test_accuracy is 79.1, allowed is .* from 0 to 1")),
    "no field": (_change(params=...), _DAMAGED.format("params is absent, allowed is a whole number from 1")),
    "NaN": (_change(test_accuracy=float("nan")), _DAMAGED.format("test_accuracy is None, .*")),
    "infinite": (_change(wall_seconds=float("inf")), _DAMAGED.format("wall_seconds is inf, .*")),
    "huge": (_change(mult_adds=10**200), _DAMAGED.format("mult_adds is 10{39}, .*")),
    "unreadable summary": (_link_to_itself("summary.json"), r"summary\.json cannot be read \(.+\): left out; .*"),
    "torn line": (
        _cut(2, '{"step": 30, "ep'),
        r"metrics\.jsonl is damaged from line 3 on: counted, but its curve has 2 of 3 epochs",
    ),
    "damaged line": (
        lambda d: (d / "metrics.jsonl").write_text((d / "metrics.jsonl").read_text().replace("2.0", '"two"')),
        r"metrics\.jsonl is damaged from line 2 on: counted, but its curve has 1 of 3 epochs",
    ),
    "a word for a number": (_cut(2, '{"epoch": 3, "loss": "low"}\n'), r"metrics\.jsonl is damaged from line 3 on: .*"),
    "no row": (_cut(0, "null\n"), r"metrics\.jsonl is damaged from line 1 on: counted, .* 0 of 3 epochs"),
    "beyond measure": (_cut(0, '{"epoch": 1, "loss": 1e300}\n'), r"metrics\.jsonl is damaged from line 1 on: .*"),
    "backwards": (_cut(3, '{"epoch": 2}\n'), r"metrics\.jsonl is damaged from line 4 on: .* 3 of 3 epochs"),
    "short": (_cut(2), r"metrics\.jsonl ends early: counted, but its curve has 2 of 3 epochs"),
    "no metrics": (_unlink("metrics.jsonl"), r"metrics\.jsonl is missing: counted, .* 0 of 3 epochs"),
    "unreadable metrics": (_link_to_itself("metrics.jsonl"), r"metrics\.jsonl cannot be read \(.+\): counted, .*"),
    "no config": (
        _unlink("config.json"),
        r"config\.json is missing: its recipe is unknown, so it is kept apart from runs that have one",
    ),
    "config damaged": (_write("config.json", "{'a': 1}"), r"config\.json is damaged: it is no JSON: its recipe .*"),
    "config empty": (_write("config.json", "{}"), r"config\.json is empty: its recipe .*"),
    "another's config": (
        _change(seed=4),
        r"config\.json is not this run's: seed is 0 there, and 4 in summary\.json: its recipe is unknown, .*",
    ),
    "deep": (_write("env.json", '{"a":' + "[" * 900 + "]" * 900 + "}"), r"env\.json is damaged: .*: counted, .*"),
    "a pipe": (
        _all(_unlink("env.json"), lambda d: os.mkfifo(d / "env.json")),
        r"env\.json cannot be read \(no plain file\): counted, but without its environment",
    ),
    "no env": (_unlink("env.json"), r"env\.json is missing: counted, but without its environment"),
    "env damaged": (_write("env.json", "?"), r"env\.json is damaged: it is no JSON: counted, .*"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_listed(tmp_path, name):
    spoil, sentence = PROBLEMS[name]
    spoil(put(tmp_path / "spoilt"))
    put(tmp_path / "whole", {"seed": 9})
    found, problems = read(tmp_path)
    left_out = "left out" in sentence or "unfinished" in sentence
    assert [run.directory.name for run in found] == (["whole"] if left_out else ["spoilt", "whole"])
    assert [directory for directory, _ in problems] == ["spoilt"]
    assert re.fullmatch(sentence, problems[0][1]), problems[0][1]


def test_several_problems_of_one_run(tmp_path):
    _all(_unlink("config.json", "metrics.jsonl"), _write("env.json", "[]"))(put(tmp_path / "run"))
    (run,), problems = read(tmp_path)
    assert [what.split()[0] for _, what in problems] == ["config.json", "metrics.jsonl", "env.json"]
    assert (run.config, run.env, run.epochs) == ({}, {}, ())


def test_a_curve_goes_up_to_the_damage(tmp_path):
    _cut(1, "\0\0\0\n" + json.dumps(rows(3)[2]) + "\n")(put(tmp_path / "run"))
    (run,), _ = read(tmp_path)
    assert list(run.epochs) == rows(1)


def test_a_last_line_without_its_end_and_blank_lines_are_no_damage(tmp_path):
    directory = put(tmp_path / "run")
    text = (directory / "metrics.jsonl").read_text()
    (directory / "metrics.jsonl").write_text("\n" + text.rstrip("\n"))
    (run,), problems = read(tmp_path)
    assert (list(run.epochs), problems) == (rows(3), [])


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_an_argument_that_is_no_directory(tmp_path, name):
    (tmp_path / "file").write_text("{}")
    with pytest.raises(InputError, match=rf"^\S+{name} is not a directory$"):
        collect.read([tmp_path, tmp_path / name])


def test_a_directory_that_cannot_be_listed(tmp_path, monkeypatch):
    _unlink("metrics.jsonl")(put(tmp_path / "open"))
    put(tmp_path / "shut" / "run")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, problems = read(tmp_path)
    assert len(found) == 1
    assert [directory for directory, _ in problems] == ["open", "shut"]
    assert problems[1] == ("shut", "cannot be read (Permission denied)")


def test_links_are_followed_and_nothing_is_read_twice(tmp_path, monkeypatch):
    put(tmp_path / "elsewhere" / "run")
    runs_directory = tmp_path / "runs"
    put(runs_directory / "own", {"seed": 1})
    (runs_directory / "loop").symlink_to(runs_directory)
    (runs_directory / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (runs_directory / "again").symlink_to(tmp_path / "elsewhere")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    found, problems = read(runs_directory, runs_directory / "own", runs_directory)
    assert sorted(run.summary.seed for run in found) == [0, 1]
    assert problems == []
    assert len(listed) < 10  # the system itself ends a loop after 40 rounds


def test_checkpoints_and_records_of_wandb_are_no_runs(tmp_path):
    directory = put(tmp_path / "run")
    for name in ("checkpoints/30", "wandb/offline-run"):
        (directory / name).mkdir(parents=True)
        (directory / name / "config.json").write_text("{}")
    assert read(tmp_path)[1] == []
    put(tmp_path / "checkpoints" / "run", {"seed": 1})
    assert len(read(tmp_path)[0]) == 2


def test_of_the_same_run_twice_the_first_counts(tmp_path):
    put(
        tmp_path / "b",
        {"wandb.mode": "offline", "data.dir": "/other", "train.checkpoint_epochs": 0.5},
        test_accuracy=0.8,
    )
    put(tmp_path / "a")
    put(tmp_path / "c", {"seed": 1})
    found, problems = read(tmp_path / "c", tmp_path / "b", tmp_path / "a")
    assert [run.directory.name for run in found] == ["a", "c"]
    assert problems == [("b", f"the same run as {tmp_path / 'a'}, which counts (79.14% there, 80.00% here): left out")]


def test_many_runs(tmp_path):
    grid = itertools.product((0.25, 0.5, 0.75, 1.0), (1.0, 0.857, 0.714, 0.571), range(20))
    for i, (alpha, rho, seed) in enumerate(grid):
        settings = {"model.alpha": alpha, "model.rho": rho, "seed": seed}
        put(tmp_path / f"run{i:04d}", settings, mult_adds=round(1e6 * alpha * rho))
    _unlink("summary.json")(tmp_path / "run0007")
    found, problems = read(tmp_path)
    assert len(found) == 319
    assert [directory for directory, _ in problems] == ["run0007"]
    configurations = group_runs(found)
    assert sorted(c.n for c in configurations) == [19, *[20] * 15]
    assert len(find_series(configurations)) == 8


def test_the_table_of_problems(tmp_path):
    _change(schema=2)(put(tmp_path / "b"))
    _unlink("metrics.jsonl")(put(tmp_path / "a"))
    made = collect.problems_table(collect.read([tmp_path])[1])
    assert made.header == ("directory", "problem")
    assert [row[0] for row in made.rows] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert made.rows[0][1].startswith("metrics.jsonl is missing") and "schema is 2" in made.rows[1][1]


def test_the_committed_records():
    found, problems = collect.read([ROOT / "results" / "cifar10"])
    assert problems == []
    assert {run.directory.name for run in found} == {path.name for path in (ROOT / "results" / "cifar10").iterdir()}
    assert all(run.epochs[-1]["test_accuracy"] == run.accuracy for run in found)
    assert len(configurations_table(group_runs(found)).rows) >= 2
