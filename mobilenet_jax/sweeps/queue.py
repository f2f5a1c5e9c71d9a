"""The queue of a sweep's points in a database, on Optuna: each point is claimed once, by any machine.

A point is an Optuna trial, which waits until a process claims it. The process sends heartbeats. When they stop, another
machine requeues the point. Optuna lets several processes claim at once, but not enqueue: steps that must happen once
run under a lock of the database.
"""

import contextlib
import dataclasses
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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

HEARTBEAT = 10  # seconds between two heartbeats
GRACE = 60  # seconds without a heartbeat after which a claim is void
RETRIES = 5  # requeues in a row of a point whose processes die before the end of an epoch

# From low to high: of several trials of one point, the highest gives its state.
_RANK = [TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]
STATES = dict(zip(_RANK, ["failed", "waiting", "running", "diverged", "finished"], strict=True))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that only this process works on."""

    trial: optuna.Trial
    values: dict[str, Any]  # drawn or enqueued
    digest: str  # '' until a drawn point is resolved


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the database records about one point."""

    digest: str  # '#' and the trial's number for a drawn point that could not be resolved
    state: str  # one of STATES
    values: dict[str, Any]
    summary: Summary | None
    error: str
    host: str

    @property
    def resolved(self) -> bool:
        """Whether the point is a run."""
        return not self.digest.startswith("#")


class Queue:
    """The points of one sweep. Any number of processes on any number of machines can open the same queue.

    All methods raise `database.Unavailable` or `database.Damaged`.
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
    def open(cls, url: str, name: str, sweep: Sweep) -> "Queue":
        """Open the queue, creating database and study if missing.

        Args:
          url: as SQLAlchemy writes it: 'sqlite:///runs/sweeps.db', 'postgresql+psycopg://user@host/base'.
          name: the study's name in the database.
          sweep: parameters, metric, goal and method. 'bayes' is Optuna's tree-structured Parzen estimator.

        Raises:
          InputError: the database cannot be opened.
        """
        queue = cls(url, name, sweep)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            database.check(url)
            queue._connect()
        except ImportError as e:
            shown = queue.shown_url
            raise InputError(f"--storage={shown}: its driver is missing ({e}); pip install '.[postgres]'") from None
        except InputError:
            raise
        except (
            *(database.Unavailable, database.Damaged, OSError, ValueError),
            *(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError),
        ) as e:
            hint = f"; {queue.remedy}" if isinstance(e, database.Damaged) else ""
            hint = "; once it can be written, the same command resumes" if isinstance(e, database.Unwritable) else hint
            reason = database.reason(e)
            raise InputError(f"--storage={queue.shown_url}: cannot be opened ({reason}){hint}") from None
        return queue

    def _connect(self) -> None:
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

    def enqueue(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the points `{digest: values}` that are missing or have failed."""
        with self._locked():
            known = {entry.digest for entry in self.entries() if entry.state != "failed"}
            for digest, values in points.items():
                if digest not in known:
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest})

    def reopen(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Requeue finished points, `{digest: values}`, whose run directory lost its summary."""
        with self._locked():
            finished = {entry.digest for entry in self.entries() if entry.summary}
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
            ended = (TrialState.COMPLETE, TrialState.PRUNED)
            settled = {t.user_attrs.get("digest") for t in trials if t.state in ended}
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            while waiting:
                digest: str = waiting[0].user_attrs.get("digest", "")
                due = digest not in settled or "reopened" in waiting[0].user_attrs
                if digest and due and not fits(digest):
                    return None
                trial = self._ask(waiting.pop(0))
                if due:
                    return Claim(trial, dict(trial.params), digest)
                self._end(trial.number, state=TrialState.FAIL)  # another trial has the result
            drawn = [t for t in trials if t.state != TrialState.FAIL or "error" in t.user_attrs]
            if len({t.user_attrs.get("digest") or t.number for t in drawn}) >= draws:
                return None
            # Enqueued first: `_ask` records a heartbeat before it claims, so a crash in between strands no trial.
            self._study.enqueue_trial({})
            trial = self._ask(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))[0])
        return Claim(trial, dict(trial.params), "")

    def _ask(self, waiting: FrozenTrial) -> optuna.Trial:
        """Claim the first waiting trial, which must be `waiting`."""
        self._storage.record_heartbeat(waiting._trial_id)
        with _quiet():
            trial = self._study.ask(self._parameters)
        if trial.number != waiting.number:  # the lock is lost with its connection
            raise database.Unavailable("another machine claimed at the same time")
        trial.set_user_attr("owner", owners.process_identity(os.getpid()))
        trial.set_user_attr("host", platform.node())
        return trial

    def set_digest(self, claim: Claim, digest: str) -> Claim | None:
        """Record the digest of a drawn point. Return None if the point was requeued in between."""
        with self._translated(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            claim.trial.set_user_attr("digest", digest)
            return dataclasses.replace(claim, digest=digest)
        return None

    def heartbeat(self, claims: Sequence[Claim]) -> list[Claim]:
        """Send a heartbeat for each claim; return the claims that this process has lost."""
        with self._translated():
            for claim in claims:
                self._storage.record_heartbeat(claim.trial._trial_id)
            return [c for c in claims if self._storage.get_trial(c.trial._trial_id).state != TrialState.RUNNING]

    def requeue_dead(self, stale: bool) -> None:
        """Requeue points whose process died: local ones by process identity, remote ones, if `stale`, by heartbeat."""
        with self._locked(), _quiet():
            if stale:
                optuna.storages.fail_stale_trials(self._study)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if owners.is_dead(trial.user_attrs.get("owner", "")):
                    self._end(trial.number, state=TrialState.FAIL)
                    self._requeue(trial)
            for entry in self.entries():
                if entry.state == "failed" and not entry.error:  # a process died between these two steps
                    self._study.enqueue_trial(entry.values, user_attrs={"digest": entry.digest})

    def report(self, claim: Claim, value: float, epoch: int) -> None:
        """Report the metric of a running point, for Optuna's dashboard."""
        # `_quiet`: a resumed run reports an epoch again, which Optuna warns about.
        with self._translated(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), _quiet():
            claim.trial.report(value, epoch)

    def finish(self, claim: Claim, summary: Summary) -> None:
        """Record the result (finished or diverged), even if the point was requeued in between."""
        value = getattr(summary, self.metric) if summary.status == "finished" else None
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        fields = summary.model_dump()
        with self._locked():
            if self._storage.get_trial(claim.trial._trial_id).state == TrialState.RUNNING:
                claim.trial.set_user_attr("summary", fields)
                self._end(claim.trial.number, value, state)
            elif claim.digest not in {e.digest for e in self.entries() if e.summary}:
                attributes = {"digest": claim.digest, "summary": fields}
                fixed = {"fixed_params": claim.values}
                self._study.add_trial(
                    optuna.create_trial(state=state, value=value, user_attrs=attributes, system_attrs=fixed)
                )

    def fail(self, claim: Claim, error: str = "") -> None:
        """Record that the point cannot be trained; the next start retries it. Without an error, the draw is undone."""
        with self._translated(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if error:
                claim.trial.set_user_attr("error", error)
            self._end(claim.trial.number, state=TrialState.FAIL)

    def release(self, claim: Claim) -> None:
        """Requeue a claimed point."""
        with self._locked():
            trial = self._storage.get_trial(claim.trial._trial_id)
            if trial.state == TrialState.RUNNING:
                self._end(trial.number, state=TrialState.FAIL)
                self._enqueue_again(trial)

    def entries(self) -> list[Entry]:
        """Return one entry per point, in the order in which the points came."""
        with self._translated():
            trials = self._study.get_trials(deepcopy=False)
            best: dict[str, FrozenTrial] = {}
            for trial in trials:
                failed = f"#{trial.number}" if "error" in trial.user_attrs else ""
                digest = trial.user_attrs.get("digest") or failed
                if digest and (digest not in best or _rank(trial) >= _rank(best[digest])):
                    best[digest] = trial
            return [_entry(digest, trial) for digest, trial in best.items()]

    def count_open(self) -> int:
        """Return the number of waiting or running trials on all machines."""
        with self._locked():  # a requeue ends one trial and adds another
            states = (TrialState.WAITING, TrialState.RUNNING)
            return len(self._study.get_trials(deepcopy=False, states=states))

    def _end(self, number: int, value: float | None = None, state: TrialState | None = None) -> None:
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


def _entry(digest: str, trial: FrozenTrial) -> Entry:
    attributes = trial.user_attrs
    summary = summaries.parse(attributes["summary"]) if "summary" in attributes else None
    error, host = attributes.get("error", ""), attributes.get("host", "")
    return Entry(digest, STATES[trial.state], _values(trial), summary, error, host)


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


def _rank(trial: FrozenTrial) -> int:
    reopened = "reopened" in trial.user_attrs and trial.state in (TrialState.WAITING, TrialState.RUNNING)
    return len(_RANK) if reopened else _RANK.index(trial.state)


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))
