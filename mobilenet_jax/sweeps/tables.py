"""Tables of a sweep: its points before training, and their results."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mobilenet_jax.papers import printed
from mobilenet_jax.render.tables import cell, columns
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.points import Point

if TYPE_CHECKING:
    from mobilenet_jax.sweeps.queue import Entry  # loads Optuna, which a dry run does not need


def describe(sweep: Sweep, points: Sequence[Point], output_format: str = "text") -> str:
    """Return the points of a grid, or the ranges of a search, with their cost.

    Args:
      sweep: the checked sweep file.
      points: all points of a grid, or the corners of a search.
      output_format: 'text' or 'json'.
    """
    costs, grid = [point.mult_adds for point in points], sweep.method == "grid"
    totals: dict[str, Any] = {"points": len(points) if grid else sweep.run_cap}
    if grid:
        totals["programs"] = len({point.spec.program_key for point in points})
    totals |= {"mult_adds_min": min(costs), "mult_adds_max": max(costs)}
    if output_format == "json":
        head = {"sweep": sweep.name, "method": sweep.method, "metric": sweep.metric, "goal": sweep.goal}
        ranges = {"parameters": [dataclasses.asdict(p) for p in sweep.parameters], "run_cap": sweep.run_cap}
        rows = {"points": [_record(point) for point in points]} if grid else ranges
        return json.dumps({**head, **rows, "totals": totals}, indent=1)

    table = _table_of_points(sweep, points) if grid else _table_of_ranges(sweep)
    cap = "" if grid else "up to "
    total = [
        ("points", f"{cap}{totals['points']}"),
        *([("programs", f"{totals['programs']} to compile")] if "programs" in totals else []),
        ("mult-adds", f"{millions(min(costs))} to {millions(max(costs))}"),
        ("time", "unknown until the first point is done"),
    ]
    title = f"sweep {sweep.name}: {sweep.method}, {sweep.goal} {sweep.metric}"
    return "\n".join([title, "", *columns(table, 0 if grid else 3), "", *columns(total, 2)])


def results(sweep: Sweep, entries: Sequence["Entry"]) -> str:
    """Return the results table: one row per point."""
    keys = [p.key for p in sweep.parameters if p.varies]
    rows: list[tuple[str, ...]] = [
        (*(key.rpartition(".")[2] for key in keys), "mult-adds", "params", sweep.metric, "seconds", "state")
    ]
    for entry in entries:
        figures = ("", "", "", "")
        if (s := entry.summary) is not None:
            score = getattr(s, sweep.metric)
            score = "" if score is None else f"{score:.4f}"
            figures = (millions(s.mult_adds), millions(s.params), score, f"{s.wall_seconds:.1f}")
        rows.append((*(cell(entry.values.get(key)) for key in keys), *figures, entry.state))
    return "\n".join(columns(rows, 0))


def assignment(values: Mapping[str, Any]) -> str:
    """Return the values of a point as 'key=value, ...'."""
    return ", ".join(f"{key}={cell(value)}" for key, value in values.items())


def _record(point: Point) -> dict[str, Any]:
    named = {"run": point.spec.run_name, "digest": point.spec.digest, "assignment": point.assignment}
    costs = {"resolution": point.spec.resolution, "mult_adds": point.mult_adds, "params": point.spec.totals.params}
    return named | costs | (_published(point) or {})


def _table_of_points(sweep: Sweep, points: Sequence[Point]) -> list[tuple[str, ...]]:
    keys = [p.key for p in sweep.parameters if p.varies]
    published = [_published(p) for p in points]
    heads = ("published mult-adds", "top-1") if any(published) else ()
    rows = [(*(key.rpartition(".")[2] for key in keys), "resolution", "mult-adds", "params", *heads)]
    for p, figures in zip(points, published, strict=True):
        values = (cell(p.assignment[key]) for key in keys)
        shown = (f"{figures['published_mult_adds_m']} M", f"{figures['published_top1']} %") if figures else ("", "")
        costs = millions(p.mult_adds), millions(p.spec.totals.params)
        rows.append((*values, str(p.spec.resolution), *costs, *shown[: len(heads)]))
    return rows


def _published(point: Point) -> dict[str, str] | None:
    """Return mult-adds and top-1 of the network that TF-slim has released, as printed; None if it has released none."""
    model, spec = point.spec.config.model, point.spec
    usual = (spec.dataset.name, model.strides, model.variant) == ("imagenet2012", "imagenet", "paper")
    for row in printed.rows(f"slim_{model.version}") if usual else ():
        if (float(row["alpha"]), int(row["resolution"])) == (model.alpha, spec.resolution):
            return {"published_mult_adds_m": row["mult_adds_m"], "published_top1": row["top1"]}
    return None


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


def millions(count: int) -> str:
    """Return a count in millions, '1.23 M'."""
    return f"{count / 1e6:.2f} M"
