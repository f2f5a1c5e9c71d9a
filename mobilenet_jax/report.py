"""Report on run directories, on every published cost, on measured inference times.

python -m mobilenet_jax.report RUNS_DIR... [--out DIR] [--watch]
python -m mobilenet_jax.report --compare RUN_DIR RUN_DIR [--out DIR]
python -m mobilenet_jax.report --published [--out DIR]
python -m mobilenet_jax.report --latency results/bench/cpu_latency.json [--out DIR]
python -m mobilenet_jax.report --official results/bench/official [--out DIR]
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mobilenet_jax import console
from mobilenet_jax.analysis import latency, published
from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.files import read_json_object
from mobilenet_jax.networks import conventions
from mobilenet_jax.render import interactive
from mobilenet_jax.render.page import write
from mobilenet_jax.render.tables import Page, Section, plain

T = TypeVar("T")
_POLL, _REFRESH = 2, 10  # seconds: between two looks at the runs, and between two looks of a browser at the page


def main() -> int:
    """Run the command with the arguments of the process, and return its exit code."""
    # matplotlib refuses a backend that this environment lacks, or the user's file of settings, although none is used.
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
    return console.run(_report)


def _report() -> None:
    args = _parse()
    if args.out is not None and not (args.out and pathlib.Path(args.out).is_dir() == os.path.lexists(args.out)):
        raise InputError(f"--out={args.out}: must name a directory, or nothing that exists")
    if args.watch and not (args.runs and args.out):
        raise InputError("--watch: needs directories that hold runs, and --out")
    if args.watch:
        return _watch(args)
    pages = list(_pages(args))
    written = "" if args.out is None else _write(args.out, pages)
    for section in (section for page in pages for section in page.sections):
        for text in (*map(plain, section.text), *(table.section() for table in section.tables)):
            print(text, end="\n\n")
    print(written, end="")


def _watch(args: argparse.Namespace) -> None:
    """Write the pages again each time that a run has ended, until a signal comes."""
    from mobilenet_jax.records import collect

    written = None
    with console.signals() as asked:
        while not asked:
            if (found := collect.finished(args.runs)) != written and found:
                line = _write(args.out, list(_pages(args)), _REFRESH).strip()
                console.say(f"{time.strftime('%X')}  {len(found)} runs  {line}")
                written = found
            due = time.monotonic() + _POLL
            while not asked and time.monotonic() < due:
                time.sleep(0.1)
    if written:
        _write(args.out, list(_pages(args)))  # which no browser loads again


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mobilenet_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=pathlib.Path, help="directories that hold runs, at any depth")
    parser.add_argument("--compare", nargs=2, type=pathlib.Path, metavar="RUN", help="what differs between two runs")
    parser.add_argument("--published", action="store_true", help="the papers' tables of costs, each cell next to ours")
    parser.add_argument("--latency", type=pathlib.Path, metavar="RECORD", help="JSON of benchmarks/layer_latency.py")
    parser.add_argument("--official", type=pathlib.Path, metavar="DIR", help="records of benchmarks/official.py")
    parser.add_argument("--out", metavar="DIR", help="also write HTML, Markdown, CSV and figures there")
    parser.add_argument("--watch", action="store_true", help="write the pages again as runs finish, until Ctrl-C")
    return parser.parse_args()


def _pages(args: argparse.Namespace) -> Iterator[Page]:
    """Yield the pages that the arguments ask for.

    Raises:
      InputError: they ask for nothing, or an input cannot be read.
    """
    if not (args.runs or args.published or args.latency or args.compare or args.official):
        raise InputError("name directories that hold runs, or give --compare, --published, --latency or --official")
    if args.compare:
        from mobilenet_jax.analysis import compare_runs  # late: pydantic comes with records

        yield compare_runs.page(*map(compare_runs.one_run, args.compare))
    if args.runs:
        from mobilenet_jax.analysis import configurations, points, tradeoffs
        from mobilenet_jax.records import collect

        found, problems = collect.read(args.runs)
        if not (found or problems):
            raise InputError(f"no runs in {', '.join(map(str, args.runs))}")
        measured = _latency(args.latency, latency.networks) if args.latency else ()
        official = points.official_networks(args.runs)
        yield tradeoffs.page(configurations.group_runs(found), problems, measured, official)
    if args.published:
        yield Page("published", "Published costs, printed and ours", published.sections())
        sections = [Section("Conventions", tables=conventions.tables())]
        yield Page("conventions", "Counting conventions: where a foreign figure comes from", sections)
    if args.latency:
        yield Page("latency", "Inference time, measured and predicted", _latency(args.latency, latency.sections))
    if args.official:
        yield Page("official", "Official networks on real images", _official(args.official))


def _latency(path: pathlib.Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Return what `read` makes of a record of inference times, which may be something else."""
    try:
        return read(read_json_object(path))
    except OSError as e:
        raise InputError(f"--latency={path}: {e.strerror}") from None
    except (ValueError, KeyError) as e:
        reason = f" ({e})" if type(e) is ValueError else ""
        raise InputError(f"--latency={path}: not a record of benchmarks/layer_latency.py{reason}") from None


def _official(directory: pathlib.Path) -> list[Section]:
    """Return the sections on the records of official networks, which may be something else."""
    from mobilenet_jax.analysis import official  # late: NumPy

    try:
        return official.sections(*(read_json_object(directory / name) for name in ("ours.json", "litert.json")))
    except OSError as e:
        raise InputError(f"--official={directory}: {e.strerror}: must hold ours.json and litert.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise InputError(f"--official={directory}: no records of benchmarks/official.py ({first_line(e)})") from None


def _write(out: str, pages: list[Page], refresh: int = 0) -> str:
    """Write the files of the pages, and return a line that names the HTML files, and says what they lack."""
    directory = pathlib.Path(out)
    try:
        write(directory, pages, refresh)
    except OSError as e:
        raise InputError(f"--out={out}: {e.strerror or e}") from None
    lacks = "" if interactive.available() or not any(page.interactive for page in pages) else f". {interactive.WITHOUT}"
    return plain(f"written: {' '.join(str(directory / f'{page.name}.html') for page in pages)}{lacks}\n")


if __name__ == "__main__":
    sys.exit(main())
