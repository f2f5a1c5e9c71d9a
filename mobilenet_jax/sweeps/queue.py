"""The queue of a sweep's points in a database, on Optuna: each point is claimed once, by any process on any machine.

A point is an Optuna trial, which waits until a process claims it. The process sends heartbeats. When they stop, another
process requeues the point. Optuna lets several processes claim at once, but not enqueue: steps that must happen once
run under a lock of the database.
"""

import contextlib
import dataclasses
import datetime
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mobilenet_jax.errors import InputError
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.sweeps import database, owners
from mobilenet_jax.sweeps.file import Sweep
from mobilenet_jax.sweeps.parameters import Parameter
from mobilenet_jax.sweeps.points import Plan

HEARTBEAT = 10  # seconds between two heartbeats
GRACE = 60  # seconds without a heartbeat after which a claim is void
RETRIES = 5  # requeues in a row of a point whose processes die before the end of an epoch

# From low to high: of several trials of one point, the highest gives its state.
_RANK = [TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]
STATES = dict(zip(_RANK, ["failed", "waiting", "running", "diverged", "finished"], strict=True))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that only this process works on."""

    trial: int  # Optuna's id, unique in the database
    number: int  # in the study
    values: dict[str, Any]  # drawn or enqueued
    digest: str  # '' until a drawn point is resolved
    age: float  # seconds since the claim


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the database records about one point."""

    digest: str  # '#' and the trial's number for a drawn point that could not be resolved
    state: str  # one of STATES
    values: dict[str, Any]
    summary: Summary | None = None
    error: str = ""
    host: str = ""
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a running point, see `Queue.report`

    @property
    def resolved(self) -> bool:
        """Whether the point is a run."""
        return not self.digest.startswith("#")


class Queue:
    """The points of one sweep. Any number of processes on any number of machines can use the same queue.

    All methods raise `database.Unavailable` or `database.Damaged`.

    Args:
      url: as SQLAlchemy writes it: 'sqlite:///runs/sweeps.db', 'postgresql+psycopg://user@host/base'.
      name: the study's name in the database.
      sweep: parameters, metric, goal and method. 'bayes' is Optuna's tree-structured Parzen estimator.
    """

    def __init__(self, url: str, name: str, sweep: Sweep):
        self.url, self.name, self.metric = url, name, sweep.metric
        self.shown_url = database.shown(url)
        rebuilt = "rebuilds it from the run directories" if sweep.method == "grid" else "restarts the search"
        self.remedy = f"move it away, and the same command {rebuilt}"  # for a damaged database
        self._sweep = sweep
        self._parameters = {p.key: _distribution(p) for p in sweep.parameters if p.varies}
        self._inode: int | None = None

    @classmethod
    def of(cls, plan: Plan) -> "Queue":
        """Return the queue of a sweep, not connected yet."""
        return cls(plan.storage or database.sqlite_url(plan.workdir / "sweeps.db"), plan.study, plan.sweep)

    def open(self) -> None:
        """Connect, and raise every error as InputError."""
        try:
            database.check(self.url)
            self.connect()
        except ImportError as e:
            hint = f"pip install '.[postgres]'; {database.FORMS}"
            raise InputError(f"--storage={self.shown_url}: its driver is missing ({e}); {hint}") from None
        except InputError:
            raise
        except (
            *(database.Unavailable, database.Damaged, OSError, ValueError),
            *(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError),
        ) as e:
            hint = self.remedy if isinstance(e, database.Damaged) else database.FORMS
            hint = "once it can be written, the same command resumes" if isinstance(e, database.Unwritable) else hint
            reason = database.reason(e)
            raise InputError(f"--storage={self.shown_url}: cannot be opened ({reason}); {hint}") from None

    def connect(self) -> None:
        """Connect to the database; create it and the study if they are missing."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        bayes = self._sweep.method == "bayes"
        with self._locked(), _quiet():
            self._storage = optuna.storages.RDBStorage(
                self.url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the address
                {"connect_args": database.connect_args(self.url)},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=lambda study, trial: self._requeue(trial),
            )
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=optuna.samplers.TPESampler() if bayes else optuna.samplers.RandomSampler(),
                study_name=self.name,
                direction=StudyDirection[self._sweep.goal.upper()],
                load_if_exists=True,
            )
        self._inode = database.inode(self.url)

    def explain(self, error: database.Unavailable | database.Damaged, silence: str = "does not answer") -> InputError:
        """Return the error as a sentence for the user; `silence` describes a database that does not answer."""
        if isinstance(error, database.Damaged):
            return InputError(f"--storage={self.shown_url}: is damaged ({error}); {self.remedy}")
        unwritable = isinstance(error, database.Unwritable)
        how, can = ("cannot be written", "can") if unwritable else (silence, "does")
        return InputError(f"--storage={self.shown_url}: {how} ({error}); once it {can}, the same command resumes")

    def enqueue(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the points `{digest: values}` that are missing or have failed."""
        with self._locked():
            known = {digest for digest, trial in self._points().items() if trial.state != TrialState.FAIL}
            for digest, values in points.items():
                if digest not in known:
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest})

    def reopen(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Requeue finished points, `{digest: values}`, whose run directory lost its summary."""
        with self._locked():
            finished = {digest for digest, trial in self._points().items() if "summary" in trial.user_attrs}
            for digest, values in points.items():
                if digest in finished:  # another process may have reopened the point already
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest, "reopened": True})

    def claim(self, fits: Callable[[str], bool] = lambda digest: True, draws: int = 0) -> Claim | None:
        """Claim the first waiting point, or draw a new one.

        Args:
          fits: whether to claim the point with this digest.
          draws: the largest number of points to draw in all, if none is waiting.

        Returns:
          None if nothing is waiting and no draw is left, or if the first waiting point does not fit.
        """
        with self._locked():
            trials = self._study.get_trials(deepcopy=False)
            settled = {t.user_attrs.get("digest") for t in trials if t.state in _RANK[3:]}
            for waiting in (t for t in trials if t.state == TrialState.WAITING):
                digest = waiting.user_attrs.get("digest", "")
                due = digest not in settled or "reopened" in waiting.user_attrs
                if digest and due and not fits(digest):
                    return None
                claim = self._ask(waiting)
                if due:
                    return claim
                self._end(claim.number)  # another trial has the result
            drawn = [t for t in trials if t.state != TrialState.FAIL or "error" in t.user_attrs]
            if len({t.user_attrs.get("digest") or t.number for t in drawn}) >= draws:
                return None
            # Enqueued first: `_ask` records owner and heartbeat before it claims, so a crash strands no trial.
            self._study.enqueue_trial({})
            return self._ask(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))[0])

    def _ask(self, waiting: FrozenTrial) -> Claim:
        """Claim the first waiting trial, which must be `waiting`."""
        owner = {"owner": owners.process_identity(os.getpid()), "host": platform.node()}
        for key, value in owner.items():
            self._storage.set_trial_user_attr(waiting._trial_id, key, value)
        self._storage.record_heartbeat(waiting._trial_id)
        with _quiet():
            trial = self._study.ask(self._parameters)
        if trial.number != waiting.number:  # the lock is lost with its connection
            self._end(trial.number)
            self._enqueue_again(self._storage.get_trial(trial._trial_id))
            raise database.Unavailable("another machine claimed at the same time")
        return _claim(self._storage.get_trial(trial._trial_id))

    def mine(self) -> list[Claim]:
        """Return the points that this very process claimed, before it replaced its program by `os.execve`."""
        me = owners.process_identity(os.getpid())
        with self._translated():
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return [_claim(trial) for trial in running if me and trial.user_attrs.get("owner") == me]

    def set_digest(self, claim: Claim, digest: str) -> Claim | None:
        """Record the digest of a drawn point. Return None if the point was requeued in between."""
        with self._translated(), _unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "digest", digest)
            return dataclasses.replace(claim, digest=digest)
        return None

    def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Send a heartbeat for each claim; return the claims that this process has lost."""
        with self._translated():
            lost = []
            for claim in claims:
                self._storage.record_heartbeat(claim.trial)
                if self._storage.get_trial(claim.trial).state != TrialState.RUNNING:
                    lost.append(claim)
            return lost

    def report(self, claim: Claim, progress: Mapping[str, Any], values: Mapping[int, float]) -> None:
        """Record the progress of a running point.

        Args:
          claim: the point.
          progress: `step`, `steps`, `accuracy` and `images_per_second`.
          values: epoch -> the sweep's metric, for Optuna's dashboard.
        """
        with self._translated(), _unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "progress", dict(progress))
            for epoch, value in values.items():
                self._storage.set_trial_intermediate_value(claim.trial, epoch, value)

    def requeue_dead(self, stale: bool) -> list[str]:
        """Requeue points whose process died: local ones by process identity, remote ones, if `stale`, by heartbeat.

        Returns:
          The digests of the local ones.
        """
        with self._locked(), _quiet():
            if stale:
                optuna.storages.fail_stale_trials(self._study)
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            dead = [trial for trial in running if owners.is_dead(trial.user_attrs.get("owner", ""))]
            for trial in dead:
                self._end(trial.number)
                self._requeue(trial)
            for digest, trial in self._points().items():
                if trial.state == TrialState.FAIL and "error" not in trial.user_attrs:
                    # A process died between the two steps of a requeue.
                    self._study.enqueue_trial(_values(trial), user_attrs={"digest": digest})
        return [trial.user_attrs.get("digest", "") for trial in dead]

    def finish(self, claim: Claim, summary: Summary) -> None:
        """Record the result (finished or diverged), even if the point was requeued in between."""
        value = getattr(summary, self.metric) if summary.status == "finished" else None
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        fields = summary.model_dump()
        with self._locked():
            if self._storage.get_trial(claim.trial).state == TrialState.RUNNING:
                self._storage.set_trial_user_attr(claim.trial, "summary", fields)
                self._end(claim.number, value, state)
            elif not (known := self._points().get(claim.digest)) or "summary" not in known.user_attrs:
                attributes = {"digest": claim.digest, "summary": fields}
                fixed = {"fixed_params": claim.values}
                self._study.add_trial(
                    optuna.create_trial(state=state, value=value, user_attrs=attributes, system_attrs=fixed)
                )

    def fail(self, claim: Claim, error: str) -> None:
        """Record that the point cannot be trained. The next start of the sweep retries it."""
        with self._translated(), _unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "error", error)
            self._end(claim.number)

    def reject(self, claim: Claim) -> None:
        """Drop a drawn point that this sweep does not train; it does not count as a draw."""
        with self._translated():
            self._end(claim.number)

    def release(self, claim: Claim) -> None:
        """Requeue a claimed point."""
        with self._locked():
            trial = self._storage.get_trial(claim.trial)
            if trial.state == TrialState.RUNNING:
                self._end(trial.number)
                self._enqueue_again(trial)

    def entries(self) -> list[Entry]:
        """Return one entry per point, in the order in which the points came."""
        with self._translated():
            points = self._points()
        return [
            Entry(
                digest,
                STATES[t.state],
                _values(t),
                summaries.parse(t.user_attrs["summary"]) if "summary" in t.user_attrs else None,
                t.user_attrs.get("error", ""),
                t.user_attrs.get("host", "") if t.state != TrialState.WAITING else "",
                t.user_attrs.get("progress", {}) if t.state == TrialState.RUNNING else {},
            )
            for digest, t in points.items()
        ]

    def count_open(self) -> tuple[int, int]:
        """Return the number of waiting and of running trials on all machines."""
        with self._locked():  # a requeue ends one trial and adds another
            states = [t.state for t in self._study.get_trials(deepcopy=False)]
        return states.count(TrialState.WAITING), states.count(TrialState.RUNNING)

    def _points(self) -> dict[str, FrozenTrial]:
        """Return digest -> the trial that gives the point's state."""
        best: dict[str, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            failed = f"#{trial.number}" if "error" in trial.user_attrs else ""
            digest = trial.user_attrs.get("digest") or failed
            if digest and (digest not in best or _rank(trial) >= _rank(best[digest])):
                best[digest] = trial
        return best

    def _end(self, number: int, value: float | None = None, state: TrialState = TrialState.FAIL) -> None:
        with contextlib.suppress(ValueError):  # the trial has ended already
            self._study.tell(number, value, state)

    def _requeue(self, trial: FrozenTrial) -> None:
        """Requeue the point of an ended trial, unless its processes keep dying in their first epoch."""
        deaths = 1 if trial.intermediate_values else trial.user_attrs.get("deaths", 0) + 1
        if deaths <= RETRIES:
            self._enqueue_again(trial, deaths=deaths)
        else:
            error = f"{deaths} processes died while training it, all before the end of an epoch"
            attributes = {**trial.user_attrs, "error": error}
            fixed = {"fixed_params": _values(trial)}
            self._study.add_trial(  # the ended trial accepts no more attributes
                optuna.create_trial(state=TrialState.FAIL, user_attrs=attributes, system_attrs=fixed)
            )

    def _enqueue_again(self, trial: FrozenTrial, **attributes: Any) -> None:
        kept = {key: trial.user_attrs[key] for key in ("digest", "deaths", "reopened") if key in trial.user_attrs}
        self._study.enqueue_trial(_values(trial), user_attrs=kept | attributes)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._translated(), database.lock(self.url):
            yield

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return database.translated(self.url, self._inode)


def _claim(trial: FrozenTrial) -> Claim:
    age = (datetime.datetime.now() - (trial.datetime_start or datetime.datetime.now())).total_seconds()
    return Claim(trial._trial_id, trial.number, _values(trial), trial.user_attrs.get("digest", ""), max(0.0, age))


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.kind == "values":
        return CategoricalDistribution(parameter.values)
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), step=int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, step=parameter.step, log=parameter.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings that heartbeats are experimental, and meant for `Study.optimize`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _unless_finished() -> contextlib.AbstractContextManager[None]:
    """Skip the rest of a block about a trial that another process has ended."""
    return contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError)


def _rank(trial: FrozenTrial) -> int:
    reopened = "reopened" in trial.user_attrs and trial.state in (TrialState.WAITING, TrialState.RUNNING)
    return len(_RANK) if reopened else _RANK.index(trial.state)


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))
