"""Check that the committed tables are those of the run records, and that the documentation matches the tree."""

import importlib.util
import pathlib
import re
import sys

import pytest
from conftest import ROOT

from mobilenet_jax import report
from mobilenet_jax.render import axes

spec = importlib.util.spec_from_file_location("make", ROOT / "results" / "make.py")
assert spec and spec.loader
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in make.PAGES}
PARTS = {(page, name): text for page, found in PAGES.items() for name, text in make.parts(found).items()}


def files(directory: pathlib.Path) -> dict[str, bytes]:
    """Return the committed kinds of files: tables with their content, figures by name."""
    paths = [path for path in directory.iterdir() if path.suffix in (".md", ".csv", ".png", ".svg")]
    return {path.name: path.read_bytes() if path.suffix in (".md", ".csv") else b"" for path in paths}


@pytest.mark.parametrize("name", make.REPORTS)
def test_report_in_results_is_up_to_date(tmp_path, monkeypatch, name):
    """Tables byte for byte. Figures depend on matplotlib and fonts, so they are not saved, and their names compared."""

    def save(figure: object, path: pathlib.Path) -> str:
        for suffix in (".png", ".svg"):
            path.with_name(path.name + suffix).touch()
        return "<svg/>"

    monkeypatch.setattr(axes, "save", save)
    monkeypatch.setattr(sys, "argv", ["report", *make.REPORTS[name], f"--out={tmp_path}"])
    monkeypatch.chdir(ROOT)
    assert report.main() == 0
    assert files(tmp_path) == files(ROOT / "results" / name)


def test_record_of_faults_is_up_to_date(tmp_path):
    make.fill_directory("faults", tmp_path)
    assert files(tmp_path) == files(ROOT / "results" / "faults")


@pytest.mark.parametrize(("page", "name"), PARTS)
def test_part_of_a_page_is_up_to_date(page, name):
    assert PARTS[page, name] == make.PARTS[name]()


def test_the_columns_of_the_data_are_documented():
    """Each column of both files has a row, in the order of `runs.csv`, then of `configurations.csv`."""
    documented = re.findall(r"(?m)^\| `(\w+)` *\| (\S+(?: and \S+)?) *\| (?=\S)", PARTS["docs/results.md", "columns"])
    for name in ("runs", "configurations"):
        header = (ROOT / "results" / "tradeoffs" / f"{name}.csv").read_text("utf-8-sig").splitlines()[0].split(",")
        assert {column for column, files in documented if name in files.split()} == set(header)


def test_every_part_is_on_a_page():
    assert {name for _, name in PARTS} == set(make.PARTS)


def test_fill_page_replaces_only_marked_text():
    assert make.fill_page("a <b>\n") == "a <b>\n"
    filled = make.fill_page("before\n<!-- cells -->\nold\n<!-- /cells -->\nafter")
    assert filled == f"before\n<!-- cells -->\n{make.PARTS['cells']()}\n<!-- /cells -->\nafter"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_of_commands_exist(page):
    links = re.findall(r"\]\(([^):#]+)\)", PAGES[page])
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    paths = re.findall(r"\b(?:configs|sweeps|benchmarks|results|tests|docs)/[\w/.*-]*\w", PAGES[page])
    missing += [path for path in paths if not any(ROOT.glob(path))]
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in PAGES[page]])
def test_python_examples_give_what_they_show(monkeypatch, page):
    monkeypatch.chdir(ROOT)
    for example in re.findall(r"(?s)```python\n(.*?)```", PAGES[page]):
        names = {}
        for line in example.splitlines():
            code, _, shown = line.partition("  # ")
            if shown:
                assert repr(eval(code, names)) == shown
            else:
                exec(code, names)


def test_the_tree_in_design_has_every_file():
    """`docs/design.md` has one line per file of the package."""
    tree = re.search(r"(?s)```\n(mobilenet_jax/.*?)```", PAGES["docs/design.md"])
    assert tree
    folders, listed = [], set()
    for line in tree[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            listed.add("/".join(folders))
    package = ROOT / "mobilenet_jax"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".pyc", "")]
    found = {str(path.relative_to(ROOT)) for path in files if path.stat().st_size and path.name != "py.typed"}
    assert listed == found
