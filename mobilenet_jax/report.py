"""Tables and figures: of run directories, of every published cost, of measured inference times.

python -m mobilenet_jax.report RUNS_DIR... [--out DIR]
python -m mobilenet_jax.report --compare RUN_DIR RUN_DIR
python -m mobilenet_jax.report --published [--out DIR]
python -m mobilenet_jax.report --latency results/bench/cpu_latency.json [--out DIR]
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.analysis import compare_runs, latency, published, tradeoffs
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import conventions
from mobilenet_jax.records import collect as runs
from mobilenet_jax.render.tables import Section, plain

_TITLES = {
    "runs": "How much accuracy does a multiply-add buy?",
    "published": "Published costs, printed and ours",
    "conventions": "Counting conventions: where a foreign figure comes from",
    "latency": "Inference time, measured and predicted",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mobilenet_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=pathlib.Path, help="directories that hold runs, at any depth")
    parser.add_argument("--compare", nargs=2, type=pathlib.Path, metavar="RUN", help="what differs between two runs")
    parser.add_argument("--published", action="store_true", help="the papers' tables of costs, every cell beside ours")
    parser.add_argument(
        "--latency", type=pathlib.Path, metavar="RECORD", help="a JSON record that benchmarks/layer_latency.py wrote"
    )
    parser.add_argument("--out", metavar="DIR", help="also write HTML, Markdown, CSV and figures there")
    args = parser.parse_args()
    with contextlib.suppress(AttributeError):  # of a stand-in
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        _report(args)
        sys.stdout.flush()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        console.mute()
    except OSError as e:
        console.mute()
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def _report(args: argparse.Namespace) -> None:
    if not (args.runs or args.published or args.latency or args.compare):
        raise InputError("name directories that hold runs, or give --compare, --published or --latency")
    out = None if args.out is None else _place(args.out)
    pages: dict[str, list[Section]] = {}
    if args.compare:
        pages["compare"] = [Section("Two runs", tables=(compare_runs.compare(*map(_one_run, args.compare)),))]
    if args.runs:
        found, problems = runs.read(args.runs)
        if not (found or problems):
            raise InputError(f"no runs in {', '.join(map(str, args.runs))}")
        pages["runs"] = tradeoffs.sections(group_runs(found), problems)
    if args.published:
        pages["published"] = published.sections()
        pages["conventions"] = [Section("Conventions", tables=conventions.tables())]
    if args.latency:
        pages["latency"] = list(latency.sections(_record(args.latency)))
    if out:
        _write(out, pages)
    for sections in pages.values():
        for section in sections:
            for paragraph in section.text:
                print(plain(paragraph), end="\n\n")
            for table in section.tables:
                print(table.section(), end="\n\n")
    if out:
        print(plain(f"written: {' '.join(str(out / f'{name}.html') for name in pages)}"))


def _place(text: str) -> pathlib.Path:
    """Where to write: a directory, or one that can be made."""
    out = pathlib.Path(text)
    if not text or (os.path.lexists(out) and not out.is_dir()):
        raise InputError(f"--out={text}: is not a directory")
    return out


def _one_run(directory: pathlib.Path) -> runs.Run:
    found, problems = runs.read([directory])
    if len(found) != 1:
        reason = f"{len(found)} runs" if found else problems[0].what if problems else "no run"
        raise InputError(f"--compare: {directory} is not the directory of one finished run ({reason})")
    return found[0]


def _record(path: pathlib.Path) -> dict[str, Any]:
    """A record of inference times.

    Raises:
      InputError: it cannot be read, or is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        latency.networks(record)
    except OSError as e:
        raise InputError(f"--latency={path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
        reason = f" ({e})" if type(e) is ValueError else ""
        raise InputError(f"--latency={path}: not a record of benchmarks/layer_latency.py{reason}") from None
    return record


def _write(out: pathlib.Path, pages: dict[str, list[Section]]) -> None:
    """Everything, or nothing: into a directory beside it first.

    Raises:
      InputError: it cannot be written.
    """
    from mobilenet_jax.render import charts as figures  # and matplotlib with them
    from mobilenet_jax.render import page

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
            work = pathlib.Path(made)
            for name, sections in pages.items():
                drawn = {p.name: p.draw() for section in sections for p in section.pictures}
                for picture, figure in drawn.items():
                    figures.save(figure, work / picture)
                for table in (table for section in sections for table in (*section.tables, *section.data)):
                    (work / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
                title = _TITLES.get(name, "Two runs")
                (work / f"{name}.md").write_text(_markdown(title, sections), encoding="utf-8")
                shown = [
                    page.Section(s.title, s.text, [(p.caption, drawn[p.name]) for p in s.pictures], s.tables)
                    for s in sections
                ]
                (work / f"{name}.html").write_text(page.html(title, shown), encoding="utf-8")
            for path in sorted(work.iterdir()):
                if (out / path.name).is_dir():
                    raise InputError(f"--out={out}: {path.name} there is a directory")
            for path in sorted(work.iterdir()):
                shutil.move(path, out / path.name)
    except OSError as e:
        raise InputError(f"--out={out}: {e.strerror}") from None


def _markdown(title: str, sections: list[Section]) -> str:
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        parts += [f"![{picture.caption}]({picture.name}.png)" for picture in section.pictures]
        parts += [table.section(level=3) for table in section.tables]
    return plain("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    sys.exit(main())
