"""Rules of the package that import-linter cannot state."""

import ast
import pathlib
import subprocess
import sys

import mobilenet_jax

PACKAGE = pathlib.Path(mobilenet_jax.__file__).parent
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
LISTING = ("config", "report", "sweeps.file", "sweeps.points", "sweeps.tables", "records.collect", "analysis.tradeoffs")


def test_nothing_imports_the_launcher():
    names = {
        name
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert not names & {"launch", "configs"}


def test_no_two_public_classes_share_a_name():
    classes = [n.name for tree in SOURCES.values() for n in tree.body if isinstance(n, ast.ClassDef)]
    public = [name for name in classes if not name.startswith("_")]
    assert sorted(public) == sorted(set(public))


def test_files_are_short():
    assert [path.name for path in SOURCES if path.read_text(encoding="utf-8").count("\n") > 350] == []


def test_a_listing_and_a_report_start_without_jax():
    """Also not through another library."""
    modules = ", ".join(f"mobilenet_jax.{name}" for name in LISTING)
    code = f"import sys, {modules}; print(sorted({{'jax', 'tensorflow', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
