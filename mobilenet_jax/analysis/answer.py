"""Answer the question in three sentences: what a doubling buys, the best at equal cost, the best per budget."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from mobilenet_jax.analysis.configurations import Configuration, Series
from mobilenet_jax.analysis.statistics import Difference, fit, mean_slope, pareto
from mobilenet_jax.records.collect import hashable
from mobilenet_jax.records.identity import KNOB_NAMES, KNOBS

Rivals = tuple[list[Configuration], list[Difference]]  # of equal cost, the best first; what the others lack

_SHORT = {"model.alpha": "width", "model.rho": "resolution", "model.expansion": "expansion ratio"}
_BUDGETS = _GROUPS = 4  # that a sentence has


def sentences(
    configurations: Sequence[Configuration],
    title: str,
    main: Sequence[Configuration],
    series: Sequence[Series],
    rivals: Sequence[tuple[str, Sequence[Rivals]]],
) -> tuple[str, ...]:
    """Return the three sentences, which say what is missing where the runs cannot answer.

    Args:
      configurations: all of them, in any order.
      title: what the next ones share.
      main: comparable configurations, for the best per budget.
      series: configurations that differ in one key.
      rivals: groups of equal cost among comparable configurations, with the title of these.
    """
    if not configurations:
        return ("No run has finished.",)
    return _doubling(series, main), _equal_cost(rivals), _budgets(title, main)


def _doubling(series: Sequence[Series], main: Sequence[Configuration]) -> str:
    """Return the mean slope along each knob, over the lines of one recipe, chosen by `_weight`."""
    quoted: list[list[Series]] = []
    for key in KNOB_NAMES:
        recipes: dict[Any, list[Series]] = {}
        for s in series:
            if s.key == key and fit([(c.mult_adds, c.accuracies) for c in s.on_line]):
                recipes.setdefault(hashable(s.on_line[0].identity, KNOBS), []).append(s)
        if recipes:
            quoted.append(max(recipes.values(), key=lambda lines: _weight(lines, main)))
    if not quoted:
        needed = "three networks that differ in one knob, over 1.5 times the mult-adds or more"
        return f"What a doubling of the mult-adds buys is open: it takes {needed}."
    parts = []
    for i, lines in enumerate(quoted):
        gain = mean_slope([(c.mult_adds, c.mean, c.n) for c in s.on_line] for s in lines)
        assert gain and gain.interval  # each line has three costs
        level, unit = ("", "") if i else ("95 %: ", " points of top-1")
        low, high = gain.interval
        interval = f"[{level}{100 * low:.1f}, {100 * high:.1f}]"
        parts.append(f"{100 * gain.value:.1f}{unit} {interval} by {_SHORT[lines[0].key]} ({_where(lines, main)})")
    alike = len({frozenset(_networks(lines)) for lines in quoted}) == 1
    caution = "" if alike else " Slopes over different mult-adds do not compare."
    return f"A doubling of the mult-adds buys {', '.join(parts)}.{caution}"


def _networks(lines: Sequence[Series]) -> list[Configuration]:
    return [c for s in lines for c in s.on_line]


def _weight(lines: Sequence[Series], main: Sequence[Configuration]) -> tuple[int, bool, int]:
    """Return what makes lines the ones to quote: their networks, then `main`, then costs."""
    networks = _networks(lines)
    return len(networks), networks[0] in main, max(c.mult_adds for c in networks)


def _where(lines: Sequence[Series], main: Sequence[Configuration]) -> str:
    """Return the label that lines share, and their costs: 'v1 at 4 ρ, RMSprop, 1.7 to 46 M, up to 14.5-fold on a line'.

    Data set and epochs are named where they are not those of `main`.
    """
    first = min(lines, key=lambda s: s.on_line[0].identity["model.rho"])  # a label leaves out ρ = 1
    label, here, there = first.label, first.on_line[0].summary, main[0].summary
    for key, symbol in KNOBS.items():
        values = {s.on_line[0].identity.get(key) for s in lines}
        if key != first.key and len(values) > 1:
            label = label.replace(f" {symbol} {first.on_line[0].identity[key]:g}", f" at {len(values)} {symbol}", 1)
    found = [label + first.epochs * (here.epochs != there.epochs)]
    found += [here.dataset] * (here.dataset != there.dataset) + [_span(_networks(lines))]
    if len(lines) > 1:
        costs = [[c.mult_adds for c in s.on_line] for s in lines]
        found.append(f"up to {max(max(line) / min(line) for line in costs):.1f}-fold on a line")
    if any(b.mean < a.mean for s in lines for a, b in itertools.pairwise(s.on_line)):
        found.append("not monotone")
    return ", ".join(found)


def _equal_cost(rivals: Sequence[tuple[str, Sequence[Rivals]]]) -> str:
    """Return the best network of each cost, for the recipe that has trained the most groups of equal cost."""
    title, groups = max(rivals, key=lambda pair: len(pair[1]), default=("", ()))
    if not groups:
        return "Which network is the best at equal cost is open: no two comparable ones cost the same within 3 %."
    largest = sorted(groups, key=lambda group: -len(group[0]))[:_GROUPS]
    parts = []
    for networks, differences in sorted(largest, key=lambda group: group[0][0].mult_adds):
        best, lower = networks[0], sum(d.verdict == "lower" for d in differences)
        compared = f"clearly above {lower} of {len(differences)} others" if differences[0].interval else "one seed each"
        parts.append(f"{_name(best)} at {_span(networks)} ({100 * best.mean:.1f} %, {compared})")
    return f"The best networks at equal cost ({title}): {', '.join(parts)}."


def _span(networks: Sequence[Configuration]) -> str:
    """Return the range of mult-adds: '3.3 to 46 M'."""
    ends = (f(c.mult_adds for c in networks) / 1e6 for f in (min, max))
    texts = [f"{end:.1f}" if end < 10 else f"{end:,.0f}" for end in ends]
    return f"{' to '.join(dict.fromkeys(texts))} M"


def _budgets(title: str, main: Sequence[Configuration]) -> str:
    """Return the best network of each budget: the Pareto front, thinned to budgets of 1, 2 or 5 times a power of 10."""
    found: dict[float, Configuration] = {}
    for c in pareto(main, lambda c: c.mult_adds, lambda c: c.mean):
        found[_round_up(c.mult_adds / 1e6)] = c  # a later one is better
    kept = list(found.items())
    step = -(-len(kept) // _BUDGETS)
    kept = kept[::-1][::step][::-1]  # the largest budget stays
    parts = [
        f"{100 * c.mean:.1f} % up to {budget:g} M{'' if i else ' mult-adds'} ({_name(c)})"
        for i, (budget, c) in enumerate(kept)
    ]
    return f"Best per budget ({title}): {', '.join(parts)}."


def _name(c: Configuration) -> str:
    """Return the label without what a title says: optimiser and epochs."""
    return c.label.replace(f", {c.optimizer}", "", 1).replace(f", epochs {c.summary.epochs}", "", 1)


def _round_up(millions: float) -> float:
    power = 10.0 ** math.floor(math.log10(millions))
    return next(float(f"{step * power:g}") for step in (1, 2, 5, 10) if millions <= step * power * (1 + 1e-9))
