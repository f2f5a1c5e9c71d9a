"""Report on run directories, on every published cost, on measured inference times.

python -m mobilenet_jax.report RUNS_DIR... [--out DIR]
python -m mobilenet_jax.report --compare RUN_DIR RUN_DIR
python -m mobilenet_jax.report --published [--out DIR]
python -m mobilenet_jax.report --latency results/bench/cpu_latency.json [--out DIR]
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mobilenet_jax import console
from mobilenet_jax.analysis import latency, published
from mobilenet_jax.errors import InputError
from mobilenet_jax.files import read_json_object
from mobilenet_jax.networks import conventions
from mobilenet_jax.render.page import write
from mobilenet_jax.render.tables import Page, Section, plain

T = TypeVar("T")


def main() -> int:
    """Run the command with the arguments of the process, and return its exit code."""
    # matplotlib refuses a backend that this environment lacks, or the user's file of settings, although none is used.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    return console.run(_report)


def _report() -> None:
    args = _parse()
    if args.out is not None and not (args.out and pathlib.Path(args.out).is_dir() == os.path.lexists(args.out)):
        raise InputError(f"--out={args.out}: must name a directory, or nothing that exists")
    pages = list(_pages(args))
    written = "" if args.out is None else _write(args.out, pages)
    for section in (section for page in pages for section in page.sections):
        for text in (*map(plain, section.text), *(table.section() for table in section.tables)):
            print(text, end="\n\n")
    print(written, end="")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mobilenet_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=pathlib.Path, help="directories that hold runs, at any depth")
    parser.add_argument("--compare", nargs=2, type=pathlib.Path, metavar="RUN", help="what differs between two runs")
    parser.add_argument("--published", action="store_true", help="the papers' tables of costs, each cell next to ours")
    parser.add_argument("--latency", type=pathlib.Path, metavar="RECORD", help="JSON of benchmarks/layer_latency.py")
    parser.add_argument("--out", metavar="DIR", help="also write HTML, Markdown, CSV and figures there")
    return parser.parse_args()


def _pages(args: argparse.Namespace) -> Iterator[Page]:
    """Yield the pages that the arguments ask for.

    Raises:
      InputError: they ask for nothing, or an input cannot be read.
    """
    if not (args.runs or args.published or args.latency or args.compare):
        raise InputError("name directories that hold runs, or give --compare, --published or --latency")
    if args.compare:
        from mobilenet_jax.analysis.compare_runs import compare, one_run  # late: pydantic comes with records

        yield Page("compare", "Two runs", [Section("Two runs", tables=(compare(*map(one_run, args.compare)),))])
    if args.runs:
        from mobilenet_jax.analysis import configurations, tradeoffs
        from mobilenet_jax.records import collect

        found, problems = collect.read(args.runs)
        if not (found or problems):
            raise InputError(f"no runs in {', '.join(map(str, args.runs))}")
        measured = _latency(args.latency, latency.networks) if args.latency else ()
        yield tradeoffs.page(configurations.group_runs(found), problems, measured)
    if args.published:
        yield Page("published", "Published costs, printed and ours", published.sections())
        sections = [Section("Conventions", tables=conventions.tables())]
        yield Page("conventions", "Counting conventions: where a foreign figure comes from", sections)
    if args.latency:
        yield Page("latency", "Inference time, measured and predicted", _latency(args.latency, latency.sections))


def _latency(path: pathlib.Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Return what `read` makes of a record of inference times, which may be something else."""
    try:
        return read(read_json_object(path))
    except OSError as e:
        raise InputError(f"--latency={path}: {e.strerror}") from None
    except (ValueError, KeyError) as e:
        reason = f" ({e})" if type(e) is ValueError else ""
        raise InputError(f"--latency={path}: not a record of benchmarks/layer_latency.py{reason}") from None


def _write(out: str, pages: list[Page]) -> str:
    """Write the files of the pages, and return a line that names the HTML files."""
    directory = pathlib.Path(out)
    try:
        write(directory, pages)
    except OSError as e:
        raise InputError(f"--out={out}: {e.strerror or e}") from None
    return plain(f"written: {' '.join(str(directory / f'{page.name}.html') for page in pages)}\n")


if __name__ == "__main__":
    sys.exit(main())
