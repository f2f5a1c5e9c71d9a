"""The points of a sweep: each resolved and costed, none of them run."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mobilenet_jax import config
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import cost
from mobilenet_jax.render.tables import cell
from mobilenet_jax.sweeps.file import LARGEST_GRID, Sweep

# Training on two CPU cores, in seconds: a least-squares fit to the six networks of results/bench/cpu.json (32x32,
# batches of 128), within 4 % of each. What a step costs whatever its size is taken such that batches of 32 (v1, alpha
# 0.25) train at 1,711 images/s, as a whole run once did. An evaluated image takes 0.18 to 0.22 of a trained one there.
SECONDS_PER_MULT_ADD = 2.18e-11
SECONDS_PER_ACTIVATION = 3.15e-9
SECONDS_PER_STEP = 6e-3
EVALUATION = 0.2
SECONDS_TO_START = 10.0  # compiling included


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep. `spec` is what `config.resolve` returned for `assignment`, which is `{key: value}`."""

    assignment: dict[str, Any]
    spec: Any

    @property
    def digest(self) -> str:
        """Eight hex digits; equal for points that are the same run."""
        return self.spec.digest

    @property
    def run_name(self) -> str:
        """Of the run directory."""
        return self.spec.run_name

    @property
    def resolution(self) -> int:
        """Side of the network's input, in pixels."""
        return self.spec.resolution

    @functools.cached_property
    def _layers(self) -> tuple[cost.LayerCost, ...]:
        return cost.layer_costs(self.spec.arch, self.spec.resolution)

    @property
    def mult_adds(self) -> int:
        """Of one image."""
        return sum(row.mult_adds for row in self._layers)

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(row.params for row in self._layers)

    @functools.cached_property
    def estimated_seconds(self) -> float:
        """Training and evaluation of the whole run on two CPU cores."""
        spec, train, data = self.spec, self.spec.config.train, self.spec.dataset
        image = SECONDS_PER_MULT_ADD * self.mult_adds
        image += SECONDS_PER_ACTIVATION * sum(row.out_activations for row in self._layers)
        evaluations = -(-train.epochs // train.eval_epochs)
        held_out = data.train_size - spec.train_size
        evaluated = evaluations * held_out + data.test_size if held_out else evaluations * data.test_size
        trained = spec.total_steps * train.batch_size
        return SECONDS_TO_START + SECONDS_PER_STEP * spec.total_steps + image * (trained + EVALUATION * evaluated)

    @property
    def program(self) -> tuple[tuple[str, Any], ...]:
        """Hashable; equal for points that share a compiled program."""
        return self.spec.program_key


def points(
    sweep: Sweep,
    base: ConfigDict,
    name: str,
    overridden: Collection[str] = (),
    min_mult_adds: int | None = None,
    max_mult_adds: int | None = None,
) -> list[Point]:
    """The points of a grid, in W&B's order; of those that are the same run, the first.

    Args:
      sweep: of method 'grid'.
      base: the config with the overrides of the sweep's command and of the user.
      name: of that config, for the runs' names.
      overridden: the keys, such as 'train.epochs', that were overridden in it.
      min_mult_adds: of one image; points with less are left out.
      max_mult_adds: of one image; points with more are left out.

    Raises:
      InputError: an overridden key is one of the sweep's own; some point cannot be run; none is within the bounds.
    """
    _check_overrides(sweep, overridden)
    keys = [p.key for p in sweep.parameters]
    product = itertools.product(*(p.values for p in sweep.parameters))
    cap = sweep.run_cap and min(sweep.run_cap, LARGEST_GRID)
    assignments = [dict(zip(keys, values, strict=True)) for values in itertools.islice(product, cap)]
    found = _resolve_all(sweep, base, name, assignments)
    low, high = min_mult_adds or 0, math.inf if max_mult_adds is None else max_mult_adds
    within = [point for point in found if low <= point.mult_adds <= high]
    if not within:
        bounds = [f"at least {low:,}"] * (low > 0) + [f"at most {high:,}"] * (high < math.inf)
        costs = [point.mult_adds for point in found]
        raise InputError(
            f"sweep {sweep.name}: no point has {' and '.join(bounds)} mult-adds; they have {min(costs):,} to "
            f"{max(costs):,}"
        )
    return within


def draw(sweep: Sweep, base: ConfigDict, name: str, assignment: Mapping[str, Any]) -> Point:
    """One point of a search. Constants need not be in `assignment`.

    Raises:
      InputError: these values do not go together.
    """
    values = {p.key: assignment[p.key] if p.varies else p.values[0] for p in sweep.parameters}
    return _point(base.to_dict(), name, values)


def check_search(sweep: Sweep, base: ConfigDict, name: str, overridden: Collection[str] = ()) -> list[Point]:
    """The corners of a search: every parameter at each of its ends, the others at their first.

    Args and errors are those of `points`; also, a search that is judged on held-out images needs some.
    """
    _check_overrides(sweep, overridden)
    first = {p.key: p.ends[0] for p in sweep.parameters}
    return _resolve_all(sweep, base, name, [first | {p.key: end} for p in sweep.parameters for end in p.ends])


def _check_overrides(sweep: Sweep, overridden: Collection[str]) -> None:
    for p in sweep.parameters:
        if p.key in overridden:
            raise InputError(f"config.{p.key} cannot be overridden: the sweep {sweep.name} sets it for every point")


def _resolve_all(sweep: Sweep, base: ConfigDict, name: str, assignments: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The runs that these are, each once; raises InputError with the first reason if one of them cannot be run."""
    tree, found, reasons = base.to_dict(), {}, []
    for assignment in assignments:
        try:
            point = _point(tree, name, assignment)
            if sweep.metric.startswith("val_") and not point.spec.config.data.holdout:
                raise InputError(f"{sweep.metric} needs config.data.holdout above 0")
            found.setdefault(point.digest, point)
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
        if isinstance(branch, dict):  # else `resolve` says what is wrong with it
            branch[leaf] = value
    spec = config.resolve(ConfigDict(tree), name)
    for key, value in assignment.items():
        if spec.identity.get(key, value) != value:
            raise InputError(f"config.point={tree['point']!r}: sets config.{key} too")
    return Point(dict(assignment), spec)
