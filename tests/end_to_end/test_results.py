"""What is committed is what `results/make.py` makes of the run records."""

import importlib.util
import re

import pytest
from conftest import ROOT

from mobilenet_jax import report
from mobilenet_jax.papers import tables as papers

spec = importlib.util.spec_from_file_location("make", ROOT / "results" / "make.py")
assert spec and spec.loader
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", make.DIRECTORIES)
def test_the_committed_tables_are_made_from_this_code(tmp_path, name):
    """Byte for byte; figures depend on the fonts and the version of matplotlib, and are only there."""

    def tables(directory) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".md", ".csv")}

    def figures(directory) -> set[str]:
        return {path.name for path in directory.iterdir() if path.suffix in (".png", ".svg")}

    make.pages(name, tmp_path)
    assert tables(tmp_path) == tables(ROOT / "results" / name)
    assert figures(tmp_path) == figures(ROOT / "results" / name)


def test_the_readme_has_the_tables_that_the_records_make():
    emptied = re.sub(r"(?s)(<!-- \w+ -->\n).*?(\n<!-- /\w+ -->)", r"\1\2", README)
    assert emptied != README
    assert make.readme(emptied) == README


def test_what_the_readme_shows_is_there():
    shown = re.findall(r"\]\((results/[^)]+)\)", README)
    assert len(shown) > 4 and all((ROOT / path).exists() for path in shown)


def test_the_readme_counts_the_cells():
    cells = [c for t in [*papers.tables(), *report.documents.tables()] for _, c in t.cells() if c.ours]
    differ = sum(not cell.agrees for cell in cells)
    assert f"{len(cells)} cells, of which {differ} differ" in " ".join(README.split())
