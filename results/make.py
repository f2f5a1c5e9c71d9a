"""Generate every committed table and figure from the run records in `results/`, and the marked parts of the pages.

    python results/make.py

The tables come out byte for byte. The figures depend on the versions of matplotlib and of the fonts. A page marks a
generated part with `<!-- NAME -->` and `<!-- /NAME -->`. The HTML pages are written, too, and not committed.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mobilenet_jax.analysis import configurations, data, official, published, tradeoffs
from mobilenet_jax.files import read_json_object
from mobilenet_jax.records import collect
from mobilenet_jax.render.tables import Section, Table

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
REPORTS = {  # directory -> the arguments of `mobilenet_jax.report` that fill it
    "published": ["--published"],
    "latency": ["--latency", "results/bench/cpu_latency.json"],
    "tradeoffs": ["results/cifar10"],
    "official": ["--official", "results/bench/official"],
}
DIRECTORIES = (*REPORTS, "faults")
EXAMPLE = """\
import csv
import math
import pathlib
import statistics

lines = pathlib.Path("results/tradeoffs/runs.csv").read_text("utf-8-sig").splitlines()
same = {"version": "v1", "rho": "1.0", "epochs": "10", "optimizer": "rmsprop", "holdout": "0.0"}
runs = [run for run in csv.DictReader(lines) if same.items() <= run.items()]
x, y = [math.log2(int(run["mult_adds"])) for run in runs], [100 * float(run["test_accuracy"]) for run in runs]
print(f"{statistics.linear_regression(x, y).slope:.2f} points of top-1 per doubling, over {len(runs)} runs")
"""
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def fill_directory(name: str, out: pathlib.Path) -> None:
    """Write the generated files of the directory `results/<name>` to `out`."""
    if name == "faults":
        out.mkdir(exist_ok=True)
        (out / "faults.md").write_text(_show("faults"), encoding="utf-8")
    else:
        _python("-m", "mobilenet_jax.report", *REPORTS[name], "--out", str(out))


def parts(page: str) -> dict[str, str]:
    """Return the generated parts of a page by name, as they are in its text."""
    return {name: text.strip() for name, text in re.findall(r"(?s)<!-- (\w+) -->\n(.*?)<!-- /\1 -->", page)}


def fill_page(page: str) -> str:
    """Return the text of a page with each marked part generated."""
    for name in parts(page):
        marks = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        text = marks[0] + PARTS[name]() + "\n" + marks[1]
        page = re.sub(f"(?s){marks[0]}.*?{marks[1]}", lambda _, text=text: text, page)
    return page


@functools.cache
def _sections() -> Sequence[Section]:
    """Return the report on `results/cifar10`."""
    runs, problems = collect.read([HERE / "cifar10"])
    if problems:
        raise SystemExit("\n".join(f"{problem.directory}: {problem.what}" for problem in problems))
    return tradeoffs.page(configurations.group_runs(runs), problems).sections


def _tables() -> dict[str, Table]:
    """Return its tables by name."""
    return {table.name: table for section in _sections() for table in section.tables}


def _answer() -> str:
    return "\n".join(f"- {text}" for text in _sections()[0].text)


def _effects() -> str:
    """Return our side of the v2 paper's findings at equal cost, in a line each: of the network with the most seeds."""
    most: dict[str, tuple[str, ...]] = {}
    for row in _tables()["v2_findings"].rows:
        if row[3] and not row[0].startswith("expansion"):
            most[row[0]] = max(most.get(row[0], row), row, key=lambda row: int(row[4]))
    return "\n".join(f"- {change} changes top-1 by {row[5]} ({row[3]})." for change, row in most.items())


def _shown(name: str) -> str:
    """Return title, grid and note of each table whose name begins so."""
    found = [table for key, table in _tables().items() if key.startswith(name)]
    texts = (f"{table.title}.\n\n{table.markdown()}\n\n{table.note}" for table in found)
    return "\n\n".join(texts) or "No such run is recorded yet."


def _example() -> str:
    """Return the example of reading the data, and what it prints."""
    return f"```python\n{EXAMPLE}```\n\n```\n{_python('-c', EXAMPLE)}```"


def _columns() -> str:
    """Return the columns of the data with their meaning; that of a setting is its comment in `configs/default.py`."""
    lines = (ROOT / "configs" / "default.py").read_text("utf-8")
    comments = {
        key: end or " ".join(line.strip().removeprefix("# ") for line in above.splitlines())
        for above, key, end in re.findall(r"(?m)((?:^    # .*\n)*)^    c\.(\w+\.\w+) = .*?(?:  # (.*))?$", lines)
    }
    files = {"runs": data.RUN_COLUMNS, "configurations": data.CONFIGURATION_COLUMNS}
    rows = []
    for column, meaning in {**data.RUN_COLUMNS, **data.CONFIGURATION_COLUMNS}.items():
        comment = comments.get(data.SETTINGS.get(column, ""))
        where = " and ".join(name for name, columns in files.items() if column in columns)
        rows.append((f"`{column}`", where, f"{meaning}: {comment}" if comment else meaning))
    return Table("columns", "", ("column", "in", "meaning"), tuple(rows)).markdown()


def _changes() -> str:
    """Return the changes with three seeds or more in both."""
    table = _tables()["changes"]
    return dataclasses.replace(table, rows=tuple(row for row in table.rows if int(row[2]) > 2)).markdown()


def _equal_cost() -> str:
    """Return the tables of each recipe and their figures."""
    pictures = [picture for section in _sections() for picture in section.pictures]
    drawn = [picture for picture in pictures if picture.name.startswith("equal_cost")]
    figures = (f"![{picture.caption}](../results/tradeoffs/{picture.name}.png)" for picture in drawn)
    return "\n\n".join([_shown("equal_cost"), *figures])


@functools.cache
def _published() -> dict[str, Table]:
    """Return the tables of published figures by name."""
    return {table.name: table for section in published.sections() for table in section.tables}


@functools.cache
def _official() -> list[Section]:
    """Return the sections of the report on official networks."""
    records = [read_json_object(HERE / "bench" / "official" / f"{name}.json") for name in ("ours", "litert")]
    return official.sections(*records)


def _official_tables() -> dict[str, Table]:
    return {table.name: table for section in _official() for table in section.tables}


def _h200(name: str) -> list[dict[str, Any]]:
    return json.loads((HERE / "bench" / "h200" / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def _h200_operations() -> str:
    rows = [
        (row["op"], f"{row['seconds'] * 1000:.2f}", f"{row['of_bandwidth']:.2f}")
        for row in _h200("layers")
        if "of_bandwidth" in row
    ]
    return Table("operations", "", ("operation", "ms", "of bandwidth"), tuple(rows)).markdown()


def _h200_steps() -> str:
    rows = [
        (
            row["network"],
            "PyTorch eager" if row["variant"] == "torch eager" else "ours",
            str(row["batch"]),
            str(row.get("steps", 1)),
            f"{row['images_per_second']:,.0f}",
            f"{row['compile_seconds']:.0f}",
        )
        for row in (*_h200("rates"), *_h200("peers"))
        if "images_per_second" in row
    ]
    header = ("network", "library", "batch", "steps per call", "images/s", "compile seconds")
    return Table("steps", "", header, tuple(sorted(rows))).markdown()


def _input() -> str:
    record = json.loads((HERE / "bench" / "cpu_input.json").read_text(encoding="utf-8"))
    found = {(row["set"], row["contender"], row["threads"]): row for row in record["rows"]}
    rows = []
    for name, contender, threads in found:
        if threads == 1:
            rates, ratios = [], []
            for count, rate in ((1, "images_per_cpu_second"), (1, "images_per_second"), (2, "images_per_second")):
                rates.append(found[name, contender, count][rate])
                ratios.append(found[name, "ours", count][rate] / rates[-1])
            texts = (f"{rate:,.0f} ({ratio:.2f})" for rate, ratio in zip(rates, ratios, strict=True))
            rows.append((name, contender.replace("_", ", "), *texts))
    header = ("files", "loader", "images per CPU second, 1 thread", "images/s, 1 thread", "images/s, 2 threads")
    return Table("input", "", header, tuple(rows)).markdown()


def _streamed() -> str:
    record = json.loads((HERE / "bench" / "cpu_streamed.json").read_text(encoding="utf-8"))
    rounds = ", ".join(f"{each['share']:.2f}" for each in record["rounds"])
    return (
        f"Reading alone makes {record['reading']:,.0f} images/s, training alone takes {record['training']:,.0f}, and a "
        f"run trains on {record['run']:,.0f} ({record['cores']} cores, medians). The share of 1 / (1 / training + 1 / "
        f"reading) that a run reaches was {rounds} in {len(record['rounds'])} rounds."
    )


PARTS: dict[str, Callable[[], str]] = {
    "results": lambda: _tables()["configurations"].markdown(),
    "doublings": lambda: _tables()["doublings"].markdown(),
    "changes": _changes,
    "equal_cost": _equal_cost,
    "alpha_rho": lambda: _shown("alpha_rho_1"),
    "halvings": lambda: _shown("halvings_1"),
    "published": lambda: _shown("published_cifar10"),
    "trials": lambda: _shown("trials"),
    "findings": lambda: _shown("v2_findings"),
    "example": _example,
    "columns": _columns,
    "cells": lambda: _published()["differences"].note,
    "released": lambda: _published()["released"].note,
    "answer": _answer,
    "effects": _effects,
    "official_halvings": lambda: _official_tables()["halvings"].markdown(),
    "official_networks": lambda: _official_tables()["official"].markdown(),
    "official_runtime": lambda: _official_tables()["runtime"].note,
    "official_ranks": lambda: _official()[0].text[1],
    "bench": lambda: _python("benchmarks/train_step.py", "--show", "results/bench/cpu.json").strip(),
    "h200_operations": _h200_operations,
    "h200_steps": _h200_steps,
    "input": _input,
    "streamed": _streamed,
    "faults": lambda: _show("faults").splitlines()[2],
    "long_runs": lambda: _show("long_runs").strip(),
}


def _show(benchmark: str) -> str:
    """Return the records of a benchmark as the benchmark prints them."""
    records = sorted(path.relative_to(ROOT) for path in (HERE / "bench").glob(f"{benchmark}*.json"))
    return _python(f"benchmarks/{benchmark}.py", "--show", *map(str, records))


def _python(*args: str) -> str:
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def main() -> None:
    for name in DIRECTORIES:
        for path in (HERE / name).glob("*"):
            path.unlink()  # a table that is no longer generated would stay
        fill_directory(name, HERE / name)
    for page in PAGES:
        page.write_text(fill_page(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
