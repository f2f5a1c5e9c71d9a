"""The command line: dry runs without JAX, and one sentence for every bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from picture_sets import write

from configs import digits_v1
from mobilenet_jax import config
from mobilenet_jax.training import devices

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
SWEEP = """
program: launch.py
method: grid
parameters: {config.model.alpha: {values: [0.25, 0.5]}}
command: ["${env}", "${interpreter}", "${program}", --config=configs/cifar_v1.py, "${args}"]
"""

HEAVY = ["jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "wandb", "pydantic"]

LOADED = """
import sys
import launch
code = launch.run()
print(code, [name for name in sys.argv[1].split(",") if name in sys.modules], file=sys.stderr)
"""

# mult-adds and trainable params
KNOWN = {
    "imagenet_v1": (568_740_352, 4_231_976),
    "imagenet_v2": (300_774_272, 3_504_872),
    "cifar_v1": (46_354_432, 3_217_226),
    "cifar_v2": (87_976_448, 2_236_682),
    "cifar28": (91_799_552, 572_938),
    "cifar_seed004": (91_799_552, 572_938),  # its former name
}


def contents(directory: pathlib.Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


@pytest.fixture
def refused(launch, tmp_path):
    """Run `launch.py` with bad arguments; return its one sentence."""

    def run(*arguments: str, **env: str) -> str:
        before = contents(tmp_path)
        done = launch(*arguments, timeout=60, PYTHONDONTWRITEBYTECODE="1", **env)
        assert "Traceback" not in done.stderr
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ") and done.stderr.endswith("\n") and done.stderr.count("\n") == 1
        assert contents(tmp_path) == before
        return done.stderr.removeprefix("error: ").strip()

    return run


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_run_of_every_config_imports_nothing_heavy(name, tmp_path, tmp_path_factory):
    """The process prints what it has imported."""
    code = LOADED.replace("sys.argv[1]", repr(",".join(HEAVY)))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if name == "finetune":  # it has no data set of its own
        env["TFDS_DATA_DIR"] = str(write(tmp_path_factory.mktemp("set"), {"train/a": 32, "train/b": 32, "val/a": 1}))
    done = subprocess.run(
        [sys.executable, "-c", code, f"--config={ROOT}/configs/{name}.py", "--dry_run"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "0 []\n"
    assert done.stdout.startswith("MobileNet v")
    assert all(word in done.stdout for word in ("stem", "classifier", "total", "mult-adds", "params"))
    if name in KNOWN:
        assert f"mult-adds  {KNOWN[name][0]:,}\nparams     {KNOWN[name][1]:,} trainable" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_for_programs(launch):
    arguments = (f"--config={ROOT}/configs/default.py", "--config.model.alpha=0.5", "--config.point=version=v2")
    done = launch(*arguments, "--dry_run", "--format=json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["mult_adds"], found["params"], found["resolution"]) == (27_969_024, 700_490, 32)
    assert sum(layer["mult_adds"] for layer in found["layers"]) == 27_969_024


def test_overrides_in_every_spelling(launch):
    same = [
        ("--config.model.alpha=0.5", "--config.augment.flip=True", "--dry_run"),
        ("-config.model.alpha=0.5", "--config.augment.flip", "--dry_run=true"),
        ("--config.model.alpha", "0.5", "--noconfig.augment.flip", "--dry_run"),
        (
            "--config",
            f"{ROOT}/configs/digits_v1.py",
            "--config.model.alpha=0.1",
            "--config.model.alpha=.5",
            "--dry_run",
        ),
    ]
    outputs = {(done.returncode, done.stdout, done.stderr) for done in (launch(*arguments) for arguments in same)}
    ((code, text, errors),) = outputs
    assert (code, errors) == (0, "") and "alpha 0.5" in text


@pytest.mark.parametrize(
    "arguments", ["--help", "--helpshort", "--helpfull", "-h", "-?", "--help=true", "--sweep=absent.yaml --help"]
)
def test_help_names_the_flags(launch, arguments):
    done = launch(*arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert all(flag in done.stdout for flag in ("--config", "--workdir", "--run_dir", "--[no]dry_run", "--format"))


def test_help_that_is_not_read_to_its_end(tmp_path):
    command = [sys.executable, str(ROOT / "launch.py"), "--helpxml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert "xml" in process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 0)


def test_a_home_in_flags(launch, refused, tmp_path):
    (tmp_path / "own.py").write_text((ROOT / "configs" / "digits_v1.py").read_text())
    (tmp_path / "own.yaml").write_text(SWEEP)
    for arguments in (["--config=~/own.py"], ["--config", "~/own.py"], ["--sweep=~/own.yaml"]):
        done = launch(*arguments, "--dry_run", HOME=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, ""), arguments
    assert refused("--run_dir=~/own.py", HOME=str(tmp_path)).startswith(f"{tmp_path}/own.py: ")


def test_a_link_to_the_program_finds_its_configs(tmp_path):
    (tmp_path / "linked.py").symlink_to(ROOT / "launch.py")
    (tmp_path / "own.yaml").write_text(SWEEP)
    cifar = "configs/cifar_v1.py"
    for arguments, name in (
        ([], "digits"),
        ([f"--config={cifar}"], "cifar10"),
        (["--config", cifar], "cifar10"),
        (["--sweep=own.yaml", "--format=json"], "cifar_v1"),
    ):
        command = [sys.executable, "linked.py", *arguments, "--dry_run"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "") and name in done.stdout, arguments


def test_a_name_that_the_encoding_lacks(launch, tmp_path):
    (tmp_path / "\u03b1.yaml").write_text(SWEEP)
    done = launch("--sweep=\u03b1.yaml", "--dry_run", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u03b1" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--config.model.alhpa=1", "unknown key config.model.alhpa; did you mean config.model.alpha?"),
        ("--config.model.alhpa 1", "unknown key config.model.alhpa; did you mean config.model.alpha?"),
        ("--noconfig.augment.flop", "unknown key config.augment.flop; did you mean config.augment.flip?"),
        ("--config.model=v1", "unknown key config.model"),
        ("--config.=1", "unknown key config."),
        ("--config.model.alpha=0", "config.model.alpha=0.0: allowed is above 0"),
        ("--config.model.alpha=nan", "config.model.alpha=nan: allowed is above 0"),
        ("--config.model.rho=2", "config.model.rho=2.0: allowed is above 0 and at most 1"),
        ("--config.train.batch_size=1438", "config.train.batch_size=1438: digits has 1437 training images"),
        ("--config.data.name=nothing", "data set 'nothing' is not known"),
        ("--config.data.archive=x.tar.gz", "an archive can be given for 'cifar10' only, not 'digits'"),
        ("--config.data.name=imagenet2012 --config.augment.pad=0", "data set 'imagenet2012': "),
        ("--config.data.name=folder --config.data.dir=absent", "absent (config.data.dir) holds no train/<class>/"),
        (f"--sweep={ROOT}/sweeps/imagenet_v2.yaml --config.data.dir=absent", "(config.data.dir) holds no train/"),
        ("--config.model.weights=absent.safetensors", "absent.safetensors: no weights can be read"),
        ("--config.point=alpha=1,beta=2", "config.point='alpha=1,beta=2': allowed is"),
        ("--config.model.alpha=wide", "--config.model.alpha=wide"),
        ("--config.train.epochs=1.5", "--config.train.epochs=1.5"),
        ("--config.augment.flip=maybe", "--config.augment.flip=maybe"),
        ("--config.seed=-1", "config.seed=-1: allowed is a whole number from 0 to 4294967295"),
        ("--config.model.alpha", "--config.model.alpha"),
        ("--confg=x.py", "Unknown command line flag 'confg'"),
        ("--format=xml", "--format=xml"),
        ("train", "unexpected argument 'train'"),
        ("--dry_run --config.model.alpha=0.5 0.75", "unexpected argument '0.75'"),
        ("--config=absent.py", "No such file or directory: 'absent.py'"),
        ("--config=absent.py --config.model.alpha=1", "No such file or directory: 'absent.py'"),
        ("--config=", "--config: "),
        ("--config=.", "--config: "),
        ("--config.model.alpha=1 --config=absent.py", "--config"),
    ],
)
def test_bad_arguments(arguments, sentence, refused):
    assert sentence in refused(*arguments.split())


EDITED = """
from configs import default
def get_config():
    c = default.get_config()
    c.{} = {}
    return c
"""


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x = 1", "get_config"),
        ("def get_config(:", "bad.py, line 1"),
        ("import absent_module", "No module named 'absent_module'"),
        ("def get_config():\n    return {}['missing']", "missing"),
        ("def get_config():\n    raise ValueError('why\\n\\nof it')", "of it"),
        ("def get_config():\n    return 3", "get_config() must return a ConfigDict"),
        ("def get_config():\n    return None", "get_config() must return a ConfigDict"),
        ("from ml_collections import ConfigDict\nget_config = ConfigDict", "no key config.model.version"),
        (EDITED.format("seeed", 1), "unknown key config.seeed; did you mean config.seed?"),
        (EDITED.format("model", 1), "field 'model'"),
        (EDITED.format("seed", -1), "config.seed=-1: allowed is"),
        (EDITED.format("train.epochs", "'3'"), "epochs"),
    ],
)
def test_a_bad_config_file(source, sentence, refused, tmp_path):
    (tmp_path / "bad.py").write_text(source)
    assert sentence in refused("--config=bad.py")


@pytest.mark.parametrize("source", ["x = 1", "def get_config():\n    return None", EDITED.format("model", 1)])
def test_a_bad_config_file_with_an_override(source, refused, tmp_path):
    (tmp_path / "bad.py").write_text(source)
    assert "config" in refused("--config=bad.py", "--config.model.alpha=0.5")


def test_a_run_directory_that_holds_something_else(refused, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert "thesis is not empty and holds no run" in refused(f"--run_dir={tmp_path}/thesis")


@pytest.mark.slow
def test_a_workdir_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "the run directory cannot be written" in refused(f"--workdir={tmp_path}/file/runs")


def test_a_run_directory_of_another_run(refused, tmp_path):
    stored = config.resolve(digits_v1.get_config()).config.to_dict()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    message = refused("--run_dir=run", "--config.model.alpha=0.5", "--config.seed=7")
    assert "config.model.alpha is 0.25 there and 0.5 here; config.seed is 0 there and 7 here" in message
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored)[:-20])
    assert "config.json is damaged" in refused("--run_dir=run")


def test_a_batch_that_the_devices_cannot_share(refused):
    assert "config.train.batch_size=33" in refused("--config.train.batch_size=33", "--config.train.devices=2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "maybe"),  # the import of JAX refuses it
        ("JAX_PLATFORMS", "nonsense"),
        ("JAX_DISABLE_JIT", "1"),
        pytest.param("JAX_RANDOM_SEED_OFFSET", "x", marks=pytest.mark.slow),
        pytest.param("JAX_NUM_CPU_DEVICES", "0", marks=pytest.mark.slow),
        pytest.param(
            *("JAX_PLATFORMS", "cuda"),
            marks=[pytest.mark.slow, pytest.mark.skipif(bool(devices.visible_gpus()), reason="a GPU")],
        ),
    ],
)
def test_a_setting_with_which_jax_does_not_start(name, value, refused):
    assert f"{name}={value}" in refused(**{name: value})


IN_A_CALLBACK = """
import gc, os, signal, sys
def interrupt(phase, info):  # like JAX's callback, it swallows exceptions
    if hasattr(sys.modules["__main__"], "run"):
        os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(interrupt)
gc.set_threshold(100)  # so that a collection happens before the end
"""


def test_an_interrupt_where_an_exception_would_be_lost(launch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(IN_A_CALLBACK)
    done = launch("--dry_run", timeout=30, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_error_that_cannot_be_printed_ends_the_process(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "launch.py"), "--no_such_flag"]
        assert subprocess.run(command, cwd=tmp_path, stderr=full, timeout=30).returncode == 1


WAITING = """
import builtins, os, sys
real = builtins.__import__
def waiting(name, *args, **kwargs):
    if name == "mobilenet_jax.networks":
        print("importing", flush=True)
        sys.stdin.read()
    return real(name, *args, **kwargs)
builtins.__import__ = waiting
"""


def test_an_interrupt_during_imports_leaves_no_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WAITING)
    command, pipe = [sys.executable, str(ROOT / "launch.py"), "--dry_run"], subprocess.PIPE
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as started:
        assert started.stdout is not None and started.stdout.readline() == b"importing\n"
        started.send_signal(signal.SIGINT)
        errors = started.communicate(timeout=60)[1]
    assert (started.returncode, errors) == (-signal.SIGINT, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch.py"), "--dry_run"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")
