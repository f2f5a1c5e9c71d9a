"""What must not happen: code run from data, secrets written down. (Pages: test_page; archives: test_fuzz.)"""

import ast
import os
import re
import subprocess
import sys

import pytest
from analysis_runs import trained
from conftest import ROOT
from helpers import DEVICE, record

from mobilenet_jax.analysis import latency, tradeoffs
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.records import collect
from mobilenet_jax.render.tables import Page

SOURCES = [ROOT / "launch.py", *sorted((ROOT / "mobilenet_jax").rglob("*.py"))]
RUNS_DATA = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"eval", "exec", "system", "popen", "unsafe_load", "full_load"}
SECRET = "planted" * 5  # as long as a key of W&B's, 35 of 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_data_are_never_run(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.partition(".")[0] for name in names} & RUNS_DATA
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert called not in RUNS_TEXT, ast.unparse(node)
            assert not {keyword.arg for keyword in node.keywords} & {"shell", "allow_pickle"}, ast.unparse(node)
            if ast.unparse(node.func) == "yaml.load":
                assert ast.unparse(node.args[1]) in ("_Loader", "_TextLoader")


def test_yaml_makes_plain_values_only(read_sweep):
    from mobilenet_jax.errors import InputError

    for tag in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/object:object {}"):
        with pytest.raises(InputError, match="is not YAML"):
            read_sweep(f"program: launch.py\nmethod: grid\nparameters: {{config.seed: {{value: {tag}}}}}\n")


def test_a_record_cannot_add_to_a_page(tmp_path):
    """A name and a setting of several lines stay inside the note, the title or the cell that shows them."""
    lines = "z\n\n# Planted\n\n| b |\n| --- |\n| c |"
    for name in ("sgd", lines):
        for alpha in (0.25, 0.5):
            settings = {"optim.name": name, f"optim.{name}": 1, "model.alpha": alpha}
            trained(tmp_path, settings, [0.7], mult_adds=10**6 + int(9 * alpha))
    runs, problems = collect.read([tmp_path])
    of_runs = tradeoffs.page(group_runs(runs), problems).sections
    of_latency = latency.sections(record() | {"device": DEVICE | {"name": lines}})
    for sections in (of_runs, of_latency):
        page = Page("page", "A page", sections).markdown()
        assert "# Planted" in page and not re.search("(?m)^(# Planted|[|] b [|])", page)


@pytest.mark.slow
def test_secrets_of_the_environment_are_written_nowhere(tmp_path):
    """Not into the run directory, W&B's part of it included, nor into what is printed, nor into a report."""
    secrets = {
        "WANDB_API_KEY": SECRET + "abcde",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "PGPASSWORD": SECRET,
        "TOKEN": SECRET,
    }
    env = os.environ | secrets | {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    tiny = ["--config.train.epochs=1", "--config.optim.warmup_epochs=0", "--config.model.variant=shallow"]
    commands = [
        [str(ROOT / "launch.py"), f"--workdir={tmp_path / 'runs'}", "--config.model.rho=0.25", *tiny],
        ["-m", "mobilenet_jax.report", str(tmp_path / "runs"), f"--out={tmp_path / 'page'}"],
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 and SECRET not in done.stdout + done.stderr, done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("offline-run" in str(path) for path in written) and any(path.suffix == ".html" for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
