"""A sweep in tables: its points before they are trained, and what became of them."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mobilenet_jax.render.tables import cell, columns
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.points import Point

if TYPE_CHECKING:
    from mobilenet_jax.sweeps.queue import Entry  # and Optuna with it, which a dry run has no use for


def describe(sweep: Sweep, points: Sequence[Point], output_format: str = "text") -> str:
    """The points of a grid, or the ranges of a search and the cost of its corners, as text or as JSON."""
    costs = [point.mult_adds for point in points]
    seconds = [point.estimated_seconds for point in points]
    totals = {
        "points": len(points),
        "programs": len({point.program for point in points}),
        "mult_adds_min": min(costs),
        "mult_adds_max": max(costs),
        "estimated_seconds": sum(seconds),
    }
    if sweep.method != "grid":
        totals |= {"points": sweep.run_cap, "estimated_seconds": (sweep.run_cap or 0) * statistics.fmean(seconds)}
        del totals["programs"]
    if output_format == "json":
        head = {"sweep": sweep.name, "method": sweep.method, "metric": sweep.metric, "goal": sweep.goal}
        rows = {"points": [_record(point) for point in points]}
        if sweep.method != "grid":
            rows = {"parameters": [dataclasses.asdict(p) for p in sweep.parameters], "run_cap": sweep.run_cap}
        return json.dumps({**head, **rows, "totals": totals}, indent=1)

    table = _table_of_points(sweep, points) if sweep.method == "grid" else _table_of_ranges(sweep)
    cap = "" if sweep.method == "grid" else "up to "
    total = [
        ("points", f"{cap}{totals['points']}"),
        *([("programs", f"{totals['programs']} to compile")] if "programs" in totals else []),
        ("mult-adds", f"{_millions(min(costs))} to {_millions(max(costs))}"),
        ("time", f"about {_duration(totals['estimated_seconds'])} on two CPU cores, by estimate"),
    ]
    title = f"sweep {sweep.name}: {sweep.method}, {sweep.goal} {sweep.metric}"
    return "\n".join([title, "", *columns(table, 0 if sweep.method == "grid" else 3), "", *columns(total, 2)])


def results(sweep: Sweep, entries: Sequence["Entry"]) -> str:
    """What became of the points, wherever they were trained: a row an entry of the ledger."""
    keys = [p.key for p in sweep.parameters if p.varies]
    header = (*_leaves(keys), "mult-adds", "params", sweep.metric, "seconds", "state")
    rows = []
    for entry in entries:
        s = entry.summary or {}
        score, seconds = s.get(sweep.metric), s.get("wall_seconds")
        rows.append(
            (
                *(cell(entry.values.get(key)) for key in keys),
                _millions(s["mult_adds"]) if s else "",
                _millions(s["params"]) if s else "",
                f"{score:.4f}" if score is not None else "",
                f"{seconds:.1f}" if seconds is not None else "",
                entry.state,
            )
        )
    return "\n".join(columns([header, *rows], 0))


def _record(point: Point) -> dict[str, Any]:
    return {
        "run": point.run_name,
        "digest": point.digest,
        "assignment": point.assignment,
        "resolution": point.resolution,
        "mult_adds": point.mult_adds,
        "params": point.params,
        "estimated_seconds": point.estimated_seconds,
    }


def _table_of_points(sweep: Sweep, points: Sequence[Point]) -> list[tuple[str, ...]]:
    keys = [p.key for p in sweep.parameters if p.varies]
    rows = [
        (
            *(cell(point.assignment[key]) for key in keys),
            str(point.resolution),
            _millions(point.mult_adds),
            _millions(point.params),
            _duration(point.estimated_seconds),
        )
        for point in points
    ]
    return [(*_leaves(keys), "resolution", "mult-adds", "params", "time"), *rows]


def _table_of_ranges(sweep: Sweep) -> list[tuple[str, ...]]:
    rows = []
    for p in sweep.parameters:
        if p.kind == "values":
            rows.append((p.key, ", ".join(map(cell, p.values)), "one of them" if p.varies else "constant"))
        else:
            steps = f", in steps of {cell(p.step)}" if p.step else ""
            how = "whole numbers" if p.kind == "int" else "in the logarithm" if p.log else "uniform"
            rows.append((p.key, f"{cell(p.low)} to {cell(p.high)}{steps}", how))
    return rows


def _leaves(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key.rpartition(".")[2] for key in keys)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
