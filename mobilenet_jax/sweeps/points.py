"""The points of a sweep: each one resolved to a run and costed, none of them trained."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mobilenet_jax import config
from mobilenet_jax.config import RunSpec
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import cost
from mobilenet_jax.records import identity as identities
from mobilenet_jax.render.tables import cell
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.parameters import LARGEST_GRID

# The time that a run takes for other things than mult-adds, in mult-adds: a fit to six networks on two CPU cores, to
# 4 % of each (results/bench/cpu.json, 32x32 images, batches of 128). Elsewhere, the ratio of two points is rougher.
WORK_OF_ACTIVATION = 144.5
WORK_OF_STEP = 2.75e8
WORK_TO_START = 4.6e11  # compiling included
EVALUATION = 0.2  # of a training step, measured 0.18 to 0.22


# NOTE: the name of a search in its database is a hash over the `repr` of its budget.
@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds on the mult-adds of one image, both included."""

    low: int | None = None
    high: int | None = None

    def holds(self, mult_adds: int) -> bool:
        """Return whether a cost is within the bounds."""
        return (self.low is None or mult_adds >= self.low) and (self.high is None or mult_adds <= self.high)


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep. `spec` is resolved from `assignment`, which is `{key: value}`."""

    assignment: dict[str, Any]
    spec: RunSpec

    @property
    def mult_adds(self) -> int:
        """Mult-adds of one image."""
        return self.spec.totals.mult_adds

    @functools.cached_property
    def work(self) -> float:
        """Training and evaluation of the whole run, in mult-adds that would take as long."""
        spec, train, data = self.spec, self.spec.config.train, self.spec.dataset
        layers = cost.layer_costs(spec.arch, spec.resolution)
        image = self.mult_adds + WORK_OF_ACTIVATION * sum(layer.out_activations for layer in layers)
        evaluations = -(-train.epochs // train.eval_epochs)
        held_out = data.train_size - spec.train_size
        evaluated = evaluations * held_out + data.test_size if held_out else evaluations * data.test_size
        trained = spec.total_steps * train.batch_size
        return WORK_TO_START + WORK_OF_STEP * spec.total_steps + image * (trained + EVALUATION * evaluated)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep to train: what a command and its workers know alike, as they parse the same arguments."""

    sweep: Sweep
    points: Sequence[Point]  # all points of a grid, or the corners of a search
    draw: Callable[[Mapping[str, Any]], Point]  # resolves one point of a search
    budget: Budget
    workdir: pathlib.Path  # holds the run directories
    storage: str  # URL of the database
    fuse: int  # largest number of points to train as one program

    @functools.cached_property
    def grid(self) -> dict[str, Point]:
        """Digest -> point of a grid, empty for a search."""
        return {point.spec.digest: point for point in self.points} if self.sweep.method == "grid" else {}

    @functools.cached_property
    def order(self) -> list[str]:
        """The digests of a grid: first one of each program, as no two workers should compile the same."""
        by_program: dict[Any, list[str]] = {}
        for digest, point in sorted(self.grid.items(), key=lambda item: -item[1].work):  # long runs first
            by_program.setdefault(point.spec.program_key, []).append(digest)
        return [digest for row in itertools.zip_longest(*by_program.values()) for digest in row if digest]

    @functools.cached_property
    def study(self) -> str:
        """The sweep's name in a database: equal on all machines for the same file, base config, data and budget."""
        sweep, digests = self.sweep, sorted(point.spec.digest + point.spec.dataset.fingerprint for point in self.points)
        identity = [sweep.method, sweep.metric, sweep.goal, repr(sweep.parameters), digests]
        identity += [] if sweep.method == "grid" else [repr(self.budget)]
        return f"{sweep.name}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def points(
    sweep: Sweep, base: ConfigDict, name: str, overridden: Collection[str] = (), budget: Budget = Budget()
) -> list[Point]:
    """Return the points of a grid, in W&B's order. Of points that are the same run, the first is kept.

    Args:
      sweep: a sweep with method 'grid'.
      base: the config with the overrides of the sweep's command and of the user.
      name: the config's name, which the runs' names start with.
      overridden: the keys, such as 'train.epochs', that were overridden in `base`.
      budget: bounds on the mult-adds; points outside are left out.

    Raises:
      InputError: an overridden key is one of the sweep's own, some point cannot be run, or none is within the budget.
    """
    _check_overrides(sweep, overridden)
    keys = [p.key for p in sweep.parameters]
    product = itertools.product(*(p.values for p in sweep.parameters))
    cap = sweep.run_cap and min(sweep.run_cap, LARGEST_GRID)
    assignments = [dict(zip(keys, values, strict=True)) for values in itertools.islice(product, cap)]
    found = _resolve_all(sweep, base, name, assignments)
    within = [point for point in found if budget.holds(point.mult_adds)]
    if not within:
        bounds = [f"at least {budget.low:,}"] if budget.low else []
        bounds += [f"at most {budget.high:,}"] if budget.high is not None else []
        costs = [point.mult_adds for point in found]
        have = f"they have {min(costs):,} to {max(costs):,}"
        raise InputError(f"sweep {sweep.name}: no point has {' and '.join(bounds)} mult-adds; {have}")
    return within


def draw(sweep: Sweep, base: ConfigDict, name: str, assignment: Mapping[str, Any]) -> Point:
    """Return the point of a search with these values, constants may be missing; raise InputError if they conflict."""
    values = {p.key: assignment[p.key] if p.varies else p.values[0] for p in sweep.parameters}
    return _point(base.to_dict(), name, values)


def check_search(sweep: Sweep, base: ConfigDict, name: str, overridden: Collection[str] = ()) -> list[Point]:
    """Return the corners of a search, each parameter at each of its ends, the others at their first; see `points`."""
    _check_overrides(sweep, overridden)
    first = {p.key: p.ends[0] for p in sweep.parameters}
    return _resolve_all(sweep, base, name, [first | {p.key: end} for p in sweep.parameters for end in p.ends])


def _check_overrides(sweep: Sweep, overridden: Collection[str]) -> None:
    for p in sweep.parameters:
        if p.key in overridden:
            raise InputError(f"config.{p.key} cannot be overridden: the sweep {sweep.name} sets it for every point")


def _resolve_all(sweep: Sweep, base: ConfigDict, name: str, assignments: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the distinct points; raise InputError with the first reason if any cannot be run."""
    tree, found, reasons = base.to_dict(), {}, []
    for assignment in assignments:
        try:
            point = _point(tree, name, assignment)
            if sweep.metric.startswith("val_") and not point.spec.config.data.holdout:
                raise InputError(f"{sweep.metric} needs config.data.holdout above 0")
            found.setdefault(point.spec.digest, point)
        except InputError as e:
            values = ", ".join(f"{p.key}={cell(assignment[p.key])}" for p in sweep.parameters if p.varies)
            reasons.append(f"{e} (at {values})" if values else str(e))
    if reasons:
        count = f"{len(reasons)} of {len(assignments)}"
        raise InputError(f"sweep {sweep.name}: {count} points cannot be run, the first because of {reasons[0]}")
    return list(found.values())


def _point(tree: Mapping[str, Any], name: str, assignment: Mapping[str, Any]) -> Point:
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for key, value in assignment.items():
        group, _, leaf = key.rpartition(".")
        branch = tree.setdefault(group, {}) if group else tree
        if isinstance(branch, dict):  # `resolve` reports any other kind of branch
            branch[leaf] = value
    spec = config.resolve(ConfigDict(tree), name)
    for key, value in identities.renamed(assignment).items():
        if spec.identity.get(key, value) != value and key != "model.weights":  # whose identity is a digest
            raise InputError(f"config.point={tree['point']!r}: sets config.{key} too")
    return Point(dict(assignment), spec)
