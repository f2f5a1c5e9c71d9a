"""Compare configurations that differ in one knob (a number) or one switch (true or false, or a name)."""

import functools
import itertools
import re
from collections.abc import Sequence

from mobilenet_jax.analysis.configurations import PAPER_CHOICES, Series, setting_name
from mobilenet_jax.analysis.statistics import Difference, difference, paired_sd, seeds_needed
from mobilenet_jax.records.identity import KNOB_NAMES
from mobilenet_jax.render import charts
from mobilenet_jax.render.tables import Picture, Section, Table

_LINES = 6  # in a figure: more are hard to distinguish
_PAPERS = {**PAPER_CHOICES, "optim.name": "rmsprop", "model.weights": "random"}
_RESOLVE = 0.002  # the difference, a fraction, for which the seeds needed are given


def sections(all_series: Sequence[Series]) -> list[Section]:
    """Return one section per key, with a table for each of its series."""
    found = []
    for key, of_key in itertools.groupby(all_series, key=lambda s: s.key):
        several, name = list(of_key), KNOB_NAMES.get(key, key)
        file = "over_" + re.sub(r"[^\w-]", "-", setting_name(key))[:80]
        tables = tuple(_series_table(s, f"{file}_{i}") for i, s in enumerate(several, 1))
        caption = f"Test top-1 over the {name}; bars: standard deviation over seeds"
        lines = {
            s.title: [(c.identity[s.key], 100 * c.mean, None if c.sd is None else 100 * c.sd) for c in s.configurations]
            for s in several[:_LINES]
        }
        picture = Picture(file, caption, functools.partial(charts.over_knob, lines, name))
        found.append(Section(f"Over {name}", pictures=(picture,) if key in KNOB_NAMES else (), tables=tables))
    return found


def changes_table(all_series: Sequence[Series]) -> Table | None:
    """Return the effect of each value of each switch on top-1, in points; None without a switch.

    A value is compared with the paper's choice, or else with the most frequent one.
    """
    rows = []
    for s in all_series:
        reference = _reference(s)
        for value in s.by_value:
            if reference not in (None, value):
                d = difference(s.accuracies, reference, value)
                change = f"{setting_name(s.key)}: {reference} → {value}"
                rows.append((change, s.title, str(d.n), *difference_cells(d), _seeds_needed(s)))
    if not rows:
        return None
    resolve = f"seeds to resolve {100 * _RESOLVE:g} points"
    header = ("change", "network", "seeds in both", "top-1, points", "verdict", resolve)
    note = (
        "95 % confidence intervals, each by itself, paired by seed unless marked; the noise is estimated from all "
        f"values of the switch. Last column: seeds per value that show a true difference of {100 * _RESOLVE:g} points "
        "with a power of 80 %; in brackets, the same for both ends of the 95 % interval of the noise."
    )
    return Table("changes", "Effect of each switch", header, tuple(rows), note)


def difference_cells(d: Difference) -> tuple[str, str]:
    """Return two cells: a difference with its interval in points, and the verdict."""
    if d.interval is None:
        return f"{100 * d.mean:+.2f}", f"{d.verdict}: one seed each"
    low, high = d.interval
    return f"{100 * d.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]{'' if d.paired else ', not paired'}", d.verdict


def _series_table(s: Series, name: str) -> Table:
    """Compare each value of a knob with the one before, and each value of a switch with the reference."""
    rows = []
    before = reference = _reference(s)
    for value, c in s.by_value.items():
        cells = ("", "") if before in (None, value) else difference_cells(difference(s.accuracies, before, value))
        rows.append((value, c.percent, str(c.n), f"{c.mult_adds / 1e6:.2f}", *cells))
        before = reference or value
    header = (s.key, "top-1, %", "n", "mult-adds, M", f"vs {reference or 'the row above'}, points", "verdict")
    note = (
        "95 % confidence intervals, each by itself, paired by seed unless marked; the noise is estimated from the "
        "whole series."
    )
    if spread := paired_sd(s.accuracies.values()):
        note += (
            f" Noise of a difference between two runs: {100 * spread.sd:.2f} points ({spread.df} degrees of freedom). "
            f"To resolve {100 * _RESOLVE:g} points: {_seeds_needed(s)} seeds each (in brackets: for both ends of the "
            "95 % interval of that noise)."
        )
    return Table(name, f"{setting_name(s.key)}: {s.title}", header, tuple(rows), note)


def _reference(s: Series) -> str | None:
    """Return the value of a switch that the others are compared with; None for a number, whose values have an order."""
    if not all(isinstance(c.identity[s.key], bool | str) for c in s.configurations):
        return None
    choice = _PAPERS.get(s.key)
    return choice if choice in s.by_value else max(s.by_value, key=lambda value: s.by_value[value].n)


def _seeds_needed(s: Series) -> str:
    """Return '91 (26 to 3,482)', or '' without a repeated seed."""
    spread = paired_sd(s.accuracies.values())
    if spread is None:
        return ""
    best, low, high = (seeds_needed(sd, _RESOLVE) for sd in (spread.sd, *spread.interval()))
    return f"{best:,} ({low:,} to {high:,})"
