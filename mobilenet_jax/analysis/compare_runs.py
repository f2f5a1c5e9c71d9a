"""Compare two runs: accuracies, costs, and every setting and software version that differs."""

import functools
import glob
import pathlib
from collections.abc import Mapping
from typing import Any

from mobilenet_jax.analysis.statistics import difference
from mobilenet_jax.errors import InputError
from mobilenet_jax.records.collect import Run, hashable, read
from mobilenet_jax.records.directory import CONFIG, ENV
from mobilenet_jax.records.identity import flatten
from mobilenet_jax.render import charts
from mobilenet_jax.render.tables import Page, Picture, Section, Table

_NAMED = 5  # settings in the sentence: the table has all
_FIRST = ("data.name", "model.version", "model.weights")  # named before all others
_LONG = 60  # characters of a value


def one_run(directory: pathlib.Path) -> Run:
    """Return the one finished run in a directory; raises InputError if there is none, or more than one."""
    found, problems = read([directory])
    if len(found) != 1:
        reason = f"{len(found)} runs" if found else problems[0].what if problems else "no run"
        raise InputError(f"--compare: {directory} is not the directory of one finished run ({reason})")
    return found[0]


def page(a: Run, b: Run) -> Page:
    """Return the difference of two runs with its interval, their curves on one axis, and all that differs."""
    table = compare(a, b)
    curves = {name: run.epochs for name, run in zip(table.header[1:], (a, b), strict=True) if len(run.epochs) > 1}
    caption = f"Accuracy and loss over the epochs: {' and '.join(curves)}"
    pictures = (Picture("curves", caption, functools.partial(charts.curves, curves)),) if curves else ()
    settings = sorted(
        (key for key, *_ in table.rows if key in {**a.config, **b.config} and not key.startswith("dataset.")),
        key=lambda key: (key not in _FIRST, not key.startswith(("data.", "model."))),
    )
    named = ", ".join(settings[:_NAMED]) + (f" and {len(settings) - _NAMED} more" if settings[_NAMED:] else "")
    costs = [run.summary.mult_adds / 1e6 for run in (a, b)]
    text = (
        _difference(a, b),
        f"Mult-adds: {costs[0]:,.2f} M and {costs[1]:,.2f} M.",
        f"Settings that differ: {named or 'none that is recorded'}.",
    )
    return Page("compare", "Two runs", [Section("", text, pictures), Section("What differs", tables=(table,))])


def _difference(a: Run, b: Run) -> str:
    """Return a sentence on the difference of b to a, over the seeds that lie in the same directories."""
    if not _same_images(a, b):
        names = f"{a.summary.dataset} and {b.summary.dataset}"
        return f"The data sets differ, {names}: accuracies on different test images do not compare."
    first, second = _seeds(a), _seeds(b)
    if hashable(a.identity) == hashable(b.identity):
        both = {**first, **second}
        series = {"a": {a.summary.seed: a.accuracy}, "b": {b.summary.seed: b.accuracy}, "both": both}
        found, what = difference(series, "a", "b"), "The second run"
        over = f"These are two seeds of one configuration, whose noise comes from {len(both)} seeds."
    else:
        found, what = difference({"a": first, "b": second}, "a", "b"), "The second configuration"
        over = f"Mean over the seeds in the same directory: {len(first)} of the first, {len(second)} of the second."
    low_high = "no interval, because no seed repeats"
    if found.interval is not None:
        low, high = (f"{100 * end:+.2f}" for end in found.interval)
        low_high = f"95 %: {low}, {high}; {found.verdict}"
    return f"{what} has {100 * found.mean:+.2f} points of top-1 [{low_high}]. {over}"


def _same_images(a: Run, b: Run) -> bool:
    """Return whether both data sets have the same name, version and fingerprint."""
    return a.summary.dataset == b.summary.dataset


def _seeds(run: Run) -> dict[int, float]:
    """Return seed -> accuracy of the runs of the same configuration in the same parent directory."""
    prefix = run.directory.name.partition(f"-s{run.summary.seed}-")[0]
    alike = [d for d in run.directory.resolve().parent.glob(f"{glob.escape(prefix)}-s*") if d.is_dir()]
    runs = [found for found in read(alike)[0] if hashable(found.identity) == hashable(run.identity)]
    return {found.summary.seed: found.accuracy for found in runs} | {run.summary.seed: run.accuracy}


def compare(a: Run, b: Run) -> Table:
    """Return a table of the accuracies of two runs, in percent, and of each cost, setting and version that differs."""
    rows, notes = [], []
    for split in ("test", "val", "train"):
        x, y = (getattr(run.summary, f"{split}_accuracy") for run in (a, b))
        if x is not None and y is not None:
            change = f" ({100 * (y - x):+.2f})" if _same_images(a, b) else ""
            rows.append((f"{split} top-1, %", f"{100 * x:.2f}", f"{100 * y:.2f}{change}"))
    rows += _differences("", *(run.summary.model_dump(include={"mult_adds", "params", "device"}) for run in (a, b)))
    before = len(rows)
    for prefix, file, of_a, of_b in (("", CONFIG, a.config, b.config), ("env.", ENV, a.env, b.env)):
        if of_a and of_b:
            rows += _differences(prefix, of_a, of_b)
        else:
            notes.append(f"Not compared: {file}, which one of the runs lacks.")
    alike = a.directory.name == b.directory.name
    names = [str(run.directory) if alike else run.directory.name for run in (a, b)]
    if len(rows) == before:
        notes.append("Everything that is compared is the same in both runs.")
    notes.append("The difference between two runs includes what the seed alone changes.")
    return Table("compare", " and ".join(names), ("", *names), tuple(rows), " ".join(notes))


def _differences(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return one row for each key whose values differ."""

    # The W&B settings change no result. `earlier` lists the other processes of a resumed run.
    def texts(tree: Mapping[str, Any]) -> dict[str, str]:
        """Return each value as a config file spells it; quotes only around an empty string."""
        found = {k: v for k, v in flatten(tree).items() if k != "earlier" and not k.startswith("wandb.")}
        return {k: v if isinstance(v, str) and v else repr(v) for k, v in found.items()}

    x, y = texts(a), texts(b)
    pairs = ((key, x.get(key, "absent"), y.get(key, "absent")) for key in sorted({*x, *y}))
    return [(f"{prefix}{key}", _short(of_a, of_b), _short(of_b, of_a)) for key, of_a, of_b in pairs if of_a != of_b]


def _short(text: str, other: str) -> str:
    """Return a long text, such as a command, as the words that the other lacks, cut at `_LONG` characters."""
    if len(text) > _LONG:
        text = " ".join(word for word in text.split() if word not in other.split()) or text
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
