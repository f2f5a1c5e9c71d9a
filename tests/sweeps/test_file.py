"""Sweep files: what they mean, and one message per error."""

import math
import os

import pytest
import yaml
from conftest import GRID

from configs import default
from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import file, parameters, points

ARGS = ["${interpreter}", "${program}", "${args}"]


def test_a_whole_file(read_sweep):
    command = ["${env}", "${interpreter}", "${program}"]
    command += ["--config", "configs/cifar_v1.py", "--config.train.epochs=4", "-config.train.batch_size", "64"]
    command += ["--config.augment.flip", "${args}", "--noconfig.optim.decay_depthwise"]
    sweep = read_sweep(
        GRID
        | {"name": "x", "description": "x", "project": "x", "entity": "x", "run_cap": 3, "program": "../launch.py"}
        | {"metric": {"name": "train_loss"}, "command": command}
    )
    assert sweep == file.Sweep(
        name="some",
        method="grid",
        parameters=(parameters.Parameter("model.alpha", "values", (0.25, 0.5)),),
        metric="train_loss",
        goal="minimize",  # W&B's default
        run_cap=3,
        arguments=(
            "--config=configs/cifar_v1.py",
            "--config.train.epochs=4",
            "--config.train.batch_size=64",
            "--config.augment.flip=True",
            "--config.optim.decay_depthwise=False",
        ),
    )


def test_defaults(read_sweep):
    sweep = read_sweep(GRID)
    assert (sweep.metric, sweep.goal, sweep.run_cap, sweep.arguments) == ("test_accuracy", "maximize", None, ())


def test_an_alias_is_not_a_repeated_key(read_sweep):
    text = "x: &x {values: [0, 1]}\n".replace("x:", "  config.seed:", 1)
    text = f"program: launch.py\nmethod: grid\nparameters:\n{text}  config.augment.pad: *x\n"
    assert [p.values for p in read_sweep(text).parameters] == [(0, 1), (0, 1)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", ": must be a mapping of program, method, parameters and command"),
        ("- 1", ": must be a mapping"),
        ("method: grid\nprogram: [", ", line 2: is not YAML: expected the node content"),
        ("a: 1\nb: 2\na: 3", ", line 3: is not YAML: the key 'a' is repeated"),
        ("a:\n  b: {c: 1, c: 1}", ", line 2: is not YAML: the key 'c' is repeated"),
        ("a: !!python/name:os.system", ", line 1: is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", ", line 2: is not YAML: but found another document"),
        ("a: \x00", ": is not YAML: unacceptable character"),
        ("a: 2000-99-99", ": is not YAML: month must be in 1..12"),
        ("a: !!map [1]", "is not YAML"),
        ("[" * 400, "is not YAML"),
    ],
)
def test_files_that_are_no_sweep(text, sentence, refused):
    assert sentence in refused(text)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="absent.yaml.*No such file"):
        file.read(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        file.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(InputError, match="latin.yaml.*not YAML.*utf-8"):
        file.read(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"early_terminate": {"type": "hyperband"}},
            "early_terminate is not supported",
        ),
        ({"metod": "grid"}, "unknown key 'metod'; did you mean method?"),
        ({"job": "x"}, "unknown key 'job'; known are program, method, metric, parameters"),
        ({"imports": "x"}, "unknown key 'imports'; known are"),
        ({"controller": {"type": "local"}}, "unknown key 'controller'"),
        ({1: 2}, "unknown key 1; known are"),
        ({"program": "train.py"}, "program='train.py': must be launch.py"),
        ({"program": None}, "program=None: must be launch.py"),
        ({"program": "launch.py/"}, "program='launch.py/': must be launch.py"),
        ({"method": "sobol"}, "method='sobol': allowed are grid, random, bayes"),
        ({"method": ["grid"]}, "method=['grid']: allowed are grid, random, bayes"),
        ({"metric": "test_accuracy"}, "metric='test_accuracy': must be a mapping of name and goal"),
        ({"metric": {"goal": "maximize"}}, "must be a mapping of name and goal"),
        ({"metric": {"name": "test_loss", "impute": "worst"}}, "must be a mapping of name and goal"),
        ({"metric": {"name": "test_loss", "target": 1}}, "metric.target is not supported"),
        (
            {"metric": {"name": "accuracy"}},
            "metric.name='accuracy': allowed are test_accuracy, test_loss, val_accuracy",
        ),
        ({"metric": {"name": "test_loss", "goal": "max"}}, "metric.goal='max': allowed are maximize, minimize"),
        (
            {"metric": {"name": "test_loss", "goal": "maximize"}},
            "metric.goal=maximize: for test_loss it must be minimize",
        ),
        ({"metric": {"name": "val_accuracy"}}, "metric.goal=minimize (W&B's default): for val_accuracy it must be max"),
        ({"run_cap": 0}, "run_cap=0: must be a whole number from 1"),
        ({"run_cap": True}, "run_cap: 'true' is True (bool) to YAML; allowed is a whole number from 1"),
        ({"run_cap": None}, "run_cap=None: must be a whole number from 1"),
        ({"parameters": None}, "parameters must be a mapping such as"),
        ({"parameters": {}}, "parameters must be a mapping such as"),
        (
            {"parameters": {f"config.{k}": {"values": [*range(101)]} for k in ("seed", "augment.pad")}},
            "a grid of 10,201",
        ),
        ({"command": "python launch.py"}, "command must be a list of texts"),
        ({"command": [*ARGS, 1]}, "command: '1' is 1 (int) to YAML; write '1'"),
        ({"command": [*ARGS, ["x"]]}, "command: ['x'] is ['x'] (list) to YAML; allowed is text"),
        *(
            ({"command": words}, "command must start with ${env}, ${interpreter}, ${program}; ${env} may be left out")
            for words in (
                [],
                ["${program}", "${args}"],
                ["${env}", "${program}", "${args}"],
                ["${interpreter}", "${args}"],
                ["${interpreter}", "${args}", "${program}"],
                ["${interpreter}", "${env}", "${program}", "${args}"],
                ["${interpreter}", *ARGS],
                ["${interpreter}", "--config.seed=1", "${program}", "${args}"],
                ["python", "launch.py", "${args}"],
                ["python", "${program}", "${args}"],
            )
        ),
        *(
            ({"command": [*ARGS[:2], *words]}, "command must have ${args} once after ${program}, and no other ${...}: ")
            for words in (
                [],
                ["${args}", "${args}"],
                ["${program}", "${args}"],
                ["${args}", "--config=${envvar:X}"],
                ["${args_no_boolean_flags}"],
                ["${args_no_hyphens}"],
                ["${args_no_equals}"],
                ["${args_json}"],
            )
        ),
        (
            {"command": [*ARGS, "--workdir=runs"]},
            "'--workdir=runs' is not allowed; allowed are --config=FILE and --config.KEY=VALUE",
        ),
        ({"command": [*ARGS, "extra"]}, "command: 'extra' is not allowed"),
        ({"command": [*ARGS, "--config configs/cifar_v1.py"]}, "is not allowed; allowed are --config=FILE and"),
        ({"command": [*ARGS, "--noconfig"]}, "'--noconfig' is not allowed"),
        ({"command": [*ARGS, "--config"]}, "command: '--config' lacks its value"),
        ({"command": [*ARGS[:2], "--config.seed", "${args}"]}, "command: '--config.seed' lacks its value"),
        ({"command": [*ARGS, "--config.sed=1"]}, "unknown key config.sed; did you mean config.seed?"),
        ({"command": [*ARGS, "--noconfig.seed"]}, "'--noconfig.seed' does not switch off a key that is True or False"),
        ({"command": [*ARGS, "--noconfig.augment.flip=1"]}, "does not switch off"),
        ({"command": [*ARGS, "--config.model.alpha=1"]}, "config.model.alpha is set in command and in parameters"),
    ],
)
def test_bad_files(changes, sentence, refused):
    assert sentence in refused(GRID | changes)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("config.model.alhpa", {"value": 1}, "unknown key config.model.alhpa; did you mean config.model.alpha?"),
        ("model.alpha", {"value": 1}, "parameter 'model.alpha': must be named config.KEY"),
        (1, {"value": 1}, "parameter 1: must be named config.KEY"),
        ("config", {"parameters": {"seed": {"value": 1}}}, "parameter 'config' is nested"),
        ("config.model", {"parameters": {"alpha": {"value": 1}}}, "parameter 'config.model' is nested"),
        ("config.seed", 1, "parameter config.seed: 1 must be a mapping"),
        ("config.seed", {}, "parameter config.seed: must have value, values, or min and max"),
        ("config.seed", {"min": 1}, "must have value, values, or min and max"),
        (
            "config.seed",
            {"distribution": "normal"},
            "no distribution 'normal', only constant, categorical, int_uni",
        ),
        (
            "config.optim.lr",
            {"min": 0.1, "max": 0.2},
            "a grid sweep has no distribution 'uniform', only constant",
        ),
        ("config.seed", {"distribution": ["constant"]}, "no distribution ['constant']"),
        ("config.seed", {"distribution": "constant"}, "constant must have value"),
        ("config.seed", {"distribution": "int_uniform", "max": 1}, "int_uniform must have min and max"),
        ("config.seed", {"values": [0, 1], "probabilities": [0.5, 0.5]}, "categorical may not have probabilities"),
        ("config.seed", {"value": 1, "values": [1]}, "constant may not have values"),
        ("config.seed", {"min": 0, "max": 3, "q": 1}, "int_uniform may not have q"),
        ("config.seed", {"values": []}, "config.seed: values must be a list"),
        ("config.seed", {"values": 3}, "config.seed: values must be a list"),
        (
            "config.seed",
            {"values": [[1]]},
            "config.seed: ['1'] is [1] (list) to YAML; allowed is a whole number from 0",
        ),
        ("config.seed", {"value": {"a": 1}}, "config.seed: {'a': '1'} is {'a': 1} (dict) to YAML"),
        ("config.seed", {"values": [None]}, "config.seed: 'null' is None (NoneType) to YAML"),
        ("config.optim.lr", {"values": ["3e-4"]}, "config.optim.lr: '3e-4' is text to YAML; write 0.0003"),
        ("config.optim.lr", {"value": "1.5e3"}, "'1.5e3' is text to YAML; write 1500"),
        ("config.optim.lr", {"value": "1e-7"}, "'1e-7' is text to YAML; write 1.0e-07"),
        ("config.optim.lr", {"value": "0.1"}, "'0.1' is text to YAML; write 0.1"),
        ("config.seed", {"min": 3, "max": 3}, "config.seed: min=3 must be below max=3"),
        (
            "config.seed",
            {"distribution": "int_uniform", "min": 0, "max": 3.0},
            "config.seed: max: '3.0' is 3.0 (float) to YAML; write 3",
        ),
        (
            "config.model.alpha",
            {"distribution": "int_uniform", "min": 1, "max": 3.0},
            "min and max of int_uniform must be whole",
        ),
        ("config.seed", {"min": True, "max": 3}, "config.seed: min: 'true' is True (bool) to YAML"),
        ("config.seed", {"distribution": "q_uniform", "min": 0, "max": 3, "q": 0}, "config.seed: q=0 must be above 0"),
        ("config.seed", {"distribution": "q_uniform", "min": 0, "max": 3, "q": "1e0"}, "is text to YAML; write 1"),
        (
            "config.seed",
            {"distribution": "q_uniform", "min": 0, "max": math.inf},
            "config.seed: max: '.inf' is inf (float) to YAML; allowed is a whole number",
        ),
        (
            "config.seed",
            {"min": 0, "max": 2**32 - 1},
            "config.seed: has 4,294,967,296 values; at most 10,000 are allowed",
        ),
    ],
)
def test_bad_parameters(name, given, sentence, refused):
    assert sentence in refused(GRID | {"parameters": {name: given}})


MISREAD = [
    ("seed", "000, 001, 010", "'010' is 8 (int) to YAML; write 10 or 8"),
    ("seed", "01, 08", "'08' is text to YAML; write 8"),
    ("seed", "-010", "'-010' is -8 (int) to YAML; allowed is a whole number from 0"),
    ("seed", "!!int '010'", "'010' is 8 (int) to YAML; write 10 or 8"),
    ("seed", "2020-01-01", "(date) to YAML; allowed is a whole number"),
    ("seed", "on", "'on' is True (bool) to YAML; allowed is a whole number"),
    ("seed", "5.0", "'5.0' is 5.0 (float) to YAML; write 5"),
    ("train.epochs", "1:30", "'1:30' is 90 (int) to YAML; write 90"),
    ("train.epochs", "1e1", "'1e1' is text to YAML; write 10"),
    ("train.epochs", "1.5e1", "'1.5e1' is text to YAML; write 15"),
    ("train.epochs", "1e-1", "'1e-1' is text to YAML; allowed is a whole number from 1"),
    ("train.epochs", "0x10", "'0x10' is 16 (int) to YAML; write 16"),
    ("train.epochs", "1__0", "'1__0' is 10 (int) to YAML; write 10"),
    ("optim.lr", "1e1", "'1e1' is text to YAML; write 10.0"),
    ("optim.lr", "1e-7", "'1e-7' is text to YAML; write 1.0e-07"),
    ("optim.lr", "0:30.5", "'0:30.5' is 30.5 (float) to YAML; write 30.5"),
    ("optim.lr", "010", "'010' is 8 (int) to YAML; write 10.0 or 8.0"),
    ("optim.lr", ".inf", "'.inf' is inf (float) to YAML; allowed is above 0"),
    ("model.dropout", "1e1", "'1e1' is text to YAML; allowed is at least 0 and below 1"),
    ("model.shortcut", "none, no", "'no' is False (bool) to YAML; allowed is one of"),
    ("wandb.project", "2020", "'2020' is 2020 (int) to YAML; write '2020'"),
    ("wandb.project", "2020-01-01", "(date) to YAML; write '2020-01-01'"),
    ("wandb.project", "12:30", "'12:30' is 750 (int) to YAML; write '12:30'"),
    ("data.dir", "~", "'~' is None (NoneType) to YAML; write '~'"),
    ("augment.flip", "yes, y", "'y' is text to YAML; allowed is True or False"),
]


@pytest.mark.parametrize(("key", "values", "sentence"), MISREAD)
def test_what_yaml_reads_differently(key, values, sentence, refused, read_sweep):
    text = f"program: launch.py\nmethod: grid\nparameters:\n  config.{key}: {{values: [%s]}}\n"
    found = refused(text % values)
    assert f"parameter config.{key}: " in found and sentence in found
    for proposal in found.partition("; write ")[2].split(" or "):  # each is allowed
        assert not proposal or points.points(read_sweep(text % proposal), default.get_config(), "x")


@pytest.mark.parametrize(
    ("key", "value", "proposal"),
    [("run_cap", "010", "10 or 8"), ("run_cap", "1e1", "10"), ("run_cap", "'3'", "3"), ("project", "no", "'no'")],
)
def test_what_yaml_reads_differently_outside_the_parameters(key, value, proposal, refused):
    text = f"program: launch.py\nmethod: grid\n{key}: {value}\nparameters: {{config.seed: {{values: [1]}}}}"
    assert refused(text).startswith(f": {key}: ") and refused(text).endswith(f" to YAML; write {proposal}")


@pytest.mark.parametrize(("bound", "proposal"), [("010", "10 or 8"), ("1:30", "90"), ("1e1", "10"), ("3.0", "3")])
def test_bounds_that_yaml_reads_differently(bound, proposal, refused):
    text = f"program: launch.py\nmethod: grid\nparameters: {{config.seed: {{min: 1, max: {bound}}}}}"
    sentence = refused(text)
    assert "parameter config.seed: max: " in sentence and sentence.endswith(f" to YAML; write {proposal}")


def test_spellings_that_mean_the_same_to_all(read_sweep):
    values = "{values: [.5, 1., +1, 0.25, 1.0e-3, 1_0.5, !!float 2]}"
    sweep = read_sweep(
        "program: launch.py\nmethod: grid\nentity:\nparameters:\n"
        f"  config.optim.lr: {values}\n  config.augment.flip: {{values: [on, no]}}\n  config.seed: {{values: [1_000]}}"
    )
    assert [p.values for p in sweep.parameters] == [(True, False), (0.5, 1.0, 1, 0.25, 0.001, 10.5, 2.0), (1000,)]


def test_a_merged_mapping_repeats_no_key(read_sweep):
    text = """
program: launch.py
method: grid
parameters:
  config.augment.pad: &pad {<<: &values {values: [1, 2]}, distribution: categorical}
  config.augment.crop: {<<: *pad, values: [3]}
  config.seed: {<<: *values}
"""
    assert [p.values for p in read_sweep(text).parameters] == [(3,), (1, 2), (1, 2)]


def test_a_file_name_that_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.yaml")
    path.write_text(yaml.safe_dump(GRID))
    assert file.read(path).name == r"caf\udce9"
