"""The house rules, read off the source: who imports whom, and what starts without jax."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenet_jax

PACKAGE = Path(mobilenet_jax.__file__).parent

# Module -> the modules of ours that it may import. `errors` is for all.
HOUSE = {
    "__init__": set(),
    "errors": set(),
    "arch": set(),
    "tables": set(),
    "cost": {"arch", "tables"},
    "conventions": {"arch", "cost", "tables"},
    "device": {"arch", "cost"},
    "datasets": set(),
    "config": {"arch", "datasets"},
    "depthwise": set(),
    "norm": set(),
    "pointwise": {"depthwise"},
    "model": {"arch", "depthwise", "norm", "pointwise"},
    "cifar10": {"datasets"},
    "data": {"cifar10", "datasets", "process"},
    "augment": set(),
    "optim": set(),
    "steps": {"augment", "optim"},
    "checkpoint": set(),
    "process": set(),
    "runtime": set(),
    "summary": set(),
    "writer": {"process", "summary"},
    "tracker": {"process"},
    "program": {"augment", "config", "data", "depthwise", "model", "optim", "steps"},
    "member": {"checkpoint", "config", "cost", "data", "steps", "tracker", "writer"},
    "train": {"config", "cost", "data", "member", "process", "program", "runtime", "tracker", "writer"},
    "worker": {"config", "process", "runtime", "train", "writer"},
    "sweepfile": {"config"},
    "grid": {"config", "cost", "sweepfile", "tables"},
    "database": set(),
    "ledger": {"database"},
    "listing": {"grid", "ledger", "sweepfile", "tables"},
    "crew": {"grid", "ledger"},
    "board": {"process"},
    "sweep": {"board", "crew", "grid", "ledger", "listing", "process", "sweepfile", "tables", "writer"},
    "published": set(),
    "claims": {"published", "tables"},
    "papers": {"arch", "claims", "conventions", "cost", "noise", "published", "tables"},
    "documents": {"arch", "claims", "cost", "device", "papers", "published"},
    "latency": {"arch", "cost", "device", "pictures", "published", "tables"},
    "figures": {"noise"},
    "pictures": {"arch", "cost", "figures", "latency", "published"},
    "runs": {"summary", "tables"},
    "grouping": {"runs", "tables"},
    "noise": set(),
    "tradeoffs": {"arch", "cost", "figures", "grouping", "noise", "published", "runs", "tables"},
    "page": {"figures", "tables"},
    "report": {
        *("claims", "conventions", "documents", "figures", "grouping", "latency", "page", "papers", "pictures", "runs"),
        *("process", "tables", "tradeoffs"),
    },
}
WITHOUT_JAX = (
    *("arch", "cost", "device", "datasets", "config", "errors", "summary", "tracker", "writer", "published"),
    *("process", "sweepfile", "grid", "listing", "database", "ledger", "crew", "board", "sweep", "report"),
    *("tables", "conventions", "claims", "papers", "documents", "latency", "figures", "pictures"),
    *("runs", "grouping", "noise", "tradeoffs", "page"),
)
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
ONLY_IN = {
    "wandb": "tracker",
    "orbax": "checkpoint",
    "matplotlib": "figures",
}  # package -> the one module that knows it


def modules() -> dict[str, list[Path]]:
    """The source files there are, by module; a subpackage is one module."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(source: str, package: str = "mobilenet_jax") -> set[str]:
    """Every module that `source` imports, at any level, with its full name; `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def imports_of(module: str) -> set[str]:
    found = set()
    for path in modules()[module]:
        package = ".".join(("mobilenet_jax", *path.relative_to(PACKAGE).parts[:-1]))
        found |= imports(path.read_text(encoding="utf-8"), package)
    return found


def ours(found: set[str]) -> set[str]:
    """The modules of ours among `found`; '' is the bare package, through which all of them could be reached."""
    tails = {name.removeprefix("mobilenet_jax").strip(".") for name in found if name.split(".")[0] == "mobilenet_jax"}
    return {tail.split(".")[0] for tail in tails} - {"__version__"}


def theirs(found: set[str]) -> set[str]:
    return {name.split(".")[0] for name in found} - {"mobilenet_jax"}


@pytest.mark.parametrize(
    ("source", "our_modules", "packages"),
    [
        ("import jax.numpy as jnp, numpy", set(), {"jax", "numpy"}),
        ("from jax import lax", set(), {"jax"}),
        ("def f():\n    if f:\n        import jax", set(), {"jax"}),
        ("try:\n    import flax\nexcept ImportError:\n    import optax", set(), {"flax", "optax"}),
        ("import importlib\njax = importlib.import_module('jax.numpy')", set(), {"importlib", "jax"}),
        ("__import__('wandb')", set(), {"wandb"}),
        ("import mobilenet_jax.arch", {"arch"}, set()),
        ("import mobilenet_jax.arch as a, mobilenet_jax.cost", {"arch", "cost"}, set()),
        ("from mobilenet_jax import arch, cost as c", {"arch", "cost"}, set()),
        ("from mobilenet_jax.arch import Layer", {"arch"}, set()),
        ("from . import arch, cost", {"arch", "cost"}, set()),
        ("from .arch import Layer", {"arch"}, set()),
        ("import mobilenet_jax", {""}, set()),
        ("from mobilenet_jax import *", {"*"}, set()),
        ("from mobilenet_jax import __version__", set(), set()),
        ("import mobilenet_jax_extras", set(), {"mobilenet_jax_extras"}),
    ],
)
def test_imports_are_found(source, our_modules, packages):
    found = imports(source)
    assert (ours(found), theirs(found)) == (our_modules, packages)


def test_imports_out_of_a_subpackage():
    assert ours(imports("from .. import arch\nfrom ..cost import totals", "mobilenet_jax.published")) == {
        "arch",
        "cost",
    }
    assert ours(imports("from . import rows", "mobilenet_jax.published")) == {"published"}


def test_every_module_has_its_row():
    """A new module gets a row, and a job that one line can say: no `utils.py`. The package is flat but for its data."""
    assert modules().keys() <= HOUSE.keys()
    assert {path.parent.name for paths in modules().values() for path in paths} <= {PACKAGE.name, "published"}


@pytest.mark.parametrize("module", modules())
def test_imports_only_what_its_row_lists(module):
    assert ours(imports_of(module)) <= HOUSE.get(module, set()) | {"errors", module}


@pytest.mark.parametrize("module", [module for module in WITHOUT_JAX if module in modules()])
def test_imports_no_jax(module):
    assert not theirs(imports_of(module)) & JAX


def test_what_has_no_jax_builds_on_nothing_that_has():
    assert all(HOUSE[module] <= set(WITHOUT_JAX) for module in WITHOUT_JAX)


@pytest.mark.parametrize(("package", "owner"), ONLY_IN.items())
def test_one_module_knows(package, owner):
    assert {module for module in modules() if package in theirs(imports_of(module))} <= {owner}


def test_who_sees_the_run_spec():
    assert {module for module, allowed in HOUSE.items() if "config" in allowed} == {
        "program",
        "member",
        "train",
        "worker",
        "sweepfile",
        "grid",
    }
    for module, paths in modules().items():
        for path in paths:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            names = {getattr(node, key, None) for node in nodes for key in ("id", "attr", "name")}
            assert module in ("config", "program", "member", "train") or "RunSpec" not in names, path


def test_starts_without_jax():
    """Also not through somebody else's package."""
    wanted = [f"mobilenet_jax.{module}" for module in WITHOUT_JAX if module in modules()]
    code = f"import sys, {', '.join(wanted)}; print(sorted({{'jax', 'tensorflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
