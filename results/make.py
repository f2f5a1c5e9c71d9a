"""Makes every committed table and figure from the records beside this file, the README's tables among them.

    python results/make.py

The tables come out the same to the byte; figures depend on matplotlib's version and on the fonts at hand. Each
directory also gets its pages as HTML, which are not committed.
"""

import pathlib
import re
import subprocess
import sys

from mobilenet_jax.analysis import configurations as grouping
from mobilenet_jax.analysis import tradeoffs
from mobilenet_jax.records import collect as runs

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"
PAGES = {  # directory -> the arguments of `mobilenet_jax.report` that fill it
    "published": ["--published"],
    "latency": ["--latency", "results/bench/cpu_latency.json"],
    "tradeoffs": ["results/cifar10"],
}
DIRECTORIES = (*PAGES, "faults")


def pages(name: str, out: pathlib.Path) -> None:
    """Fills `out` with what belongs into the directory `name`."""
    if name == "faults":
        out.mkdir(exist_ok=True)
        (out / "faults.md").write_text(_show("faults"), encoding="utf-8")
        return
    _python("-m", "mobilenet_jax.report", *PAGES[name], "--out", str(out))


def readme(text: str) -> str:
    """The README with its tables made anew, each between two marks."""
    found, problems = runs.read([HERE / "cifar10"])
    if problems:
        raise SystemExit("\n".join(f"{problem.directory}: {problem.what}" for problem in problems))
    configurations = grouping.configurations(found)
    tables = {
        "results": grouping.table(configurations),
        "changes": tradeoffs.changes(configurations),
        "doublings": tradeoffs.doublings(configurations),
    }
    made = {name: table.markdown() for name, table in tables.items() if table}
    if rivals := tradeoffs.equal_cost(configurations):
        largest = max(rivals, key=lambda table: len(table.rows))
        made["equal_cost"] = f"{largest.markdown()}\n\n{largest.note}"
    made["bench"] = _python("benchmarks/train_step.py", "--show", "results/bench/cpu.json").strip()
    made["faults"] = _show("faults").splitlines()[2]
    made["long_runs"] = _show("long_runs").strip()
    for name, table in made.items():
        marks = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        text = re.sub(f"(?s){marks[0]}.*?{marks[1]}", lambda _, m=marks, t=table: m[0] + t + m[1], text)
    return text


def _show(name: str) -> str:
    """A benchmark's record, or records, as that benchmark shows them."""
    records = sorted(path.relative_to(HERE.parent) for path in (HERE / "bench").glob(f"{name}*.json"))
    return _python(f"benchmarks/{name}.py", "--show", *map(str, records))


def _python(*args: str) -> str:
    return subprocess.run(
        [sys.executable, *args], cwd=HERE.parent, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


def main() -> None:
    for name in DIRECTORIES:
        for path in (HERE / name).glob("*"):
            path.unlink()  # some may be of what is no more
        pages(name, HERE / name)
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
