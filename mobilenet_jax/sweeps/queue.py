"""The queue of a sweep's points in a database, on Optuna: each point is claimed once, by any process on any machine.

A point is an Optuna trial: waiting, then running for the process that claimed it, then finished. The process sends
heartbeats. When they stop, another process sets the trial back to waiting. Each change is one write, so a crash between
two of them loses nothing. What must not happen twice, such as adding a point, runs under a lock of the database.
"""

import contextlib
import dataclasses
import datetime
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

HEARTBEAT = 10  # seconds between two heartbeats
GRACE = 60  # seconds without a heartbeat after which a claim is void
RETRIES = 5  # requeues in a row of a point whose processes die before the end of an epoch

# From low to high: of several trials of one point, the highest gives its state.
_RANK = [TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]
STATES = dict(zip(_RANK, ["failed", "waiting", "running", "diverged", "finished"], strict=True))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that only this process works on."""

    trial: int  # Optuna's id
    values: dict[str, Any]  # drawn or enqueued
    digest: str  # '' until a drawn point is resolved
    age: float = 0.0  # seconds since the claim


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


class Queue:
    """The points of one sweep. Any number of processes on any number of machines can use the same queue.

    Call `open` or `connect` first. All methods raise `database.Unavailable` or `database.Damaged`.

    Args:
      url: as SQLAlchemy writes it: 'sqlite:///runs/sweeps.db', 'postgresql+psycopg://user@host/base'.
      name: the study's name in the database.
      sweep: parameters, metric, goal and method. 'bayes' is Optuna's tree-structured Parzen estimator.
    """

    def __init__(self, url: str, name: str, sweep: Sweep):
        self.url, self.name, self.sweep = url, name, sweep
        self.shown_url = database.shown(url)
        self._parameters = {p.key: _distribution(p) for p in sweep.parameters if p.varies}
        self._inode: int | None = None

    def open(self) -> None:
        """Connect, and raise every error as InputError."""
        try:
            database.check(self.url)
            self.connect()
        except InputError:
            raise
        except (database.Damaged, database.Unwritable) as e:
            raise self.explain(e) from None
        except (
            *(ImportError, database.Unavailable, OSError, ValueError),
            *(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError),
        ) as e:
            missing = "its driver is missing; pip install '.[postgres]'; " if isinstance(e, ImportError) else ""
            why = f"cannot be opened ({database.reason(e)}); {missing}{database.FORMS}"
            raise InputError(f"--storage={self.shown_url}: {why}") from None

    def connect(self) -> None:
        """Connect to the database; create it and the study if they are missing."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        bayes = self.sweep.method == "bayes"
        with self._locked(), _quiet():
            self._storage = optuna.storages.RDBStorage(
                self.url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the address
                {"connect_args": database.connect_args(self.url)},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
            )
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=optuna.samplers.TPESampler() if bayes else optuna.samplers.RandomSampler(),
                study_name=self.name,
                direction=StudyDirection[self.sweep.goal.upper()],
                load_if_exists=True,
            )
        self._inode = database.inode(self.url)

    def explain(self, error: Exception, silence: str = "does not answer") -> InputError:
        """Return an error of the database as a sentence; `silence` describes one that does not answer."""
        rebuilt = "rebuilds it from the run directories" if self.sweep.method == "grid" else "restarts the search"
        how, then = silence, "once it does, the same command resumes"
        if isinstance(error, database.Damaged):
            how, then = "is damaged", f"move it away, and the same command {rebuilt}"
        elif isinstance(error, database.Unwritable):
            how, then = "cannot be written", "once it can, the same command resumes"
        return InputError(f"--storage={self.shown_url}: {how} ({error}); {then}")

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
            finished = {digest for digest, trial in self._points().items() if trial.state in _RANK[3:]}
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
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            if not waiting:
                drawn = [t for t in trials if t.state != TrialState.FAIL or "error" in t.user_attrs]
                if len({t.user_attrs.get("digest") or t.number for t in drawn}) >= draws:
                    return None
                self._study.enqueue_trial({})
                waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            elif (digest := waiting[0].user_attrs.get("digest")) and not fits(digest):
                return None
            # Owner and heartbeat come first: a running trial without them would never be requeued.
            for key, value in {"owner": owners.me(), "host": platform.node(), "progress": {}}.items():
                self._storage.set_trial_user_attr(waiting[0]._trial_id, key, value)
            self._storage.record_heartbeat(waiting[0]._trial_id)
            with _quiet():
                trial = self._study.ask(self._parameters)
            if trial.number != waiting[0].number:  # the lock is lost with its connection
                self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                raise database.Unavailable("another machine claimed at the same time")
            return _claim(self._storage.get_trial(trial._trial_id))

    def mine(self) -> list[Claim]:
        """Return the points that this process claimed before it replaced its program by `os.execve`."""
        with self._translated():
            trials = self._study.get_trials(deepcopy=False)
            return [_claim(trial) for trial in trials if _is_mine(trial)]

    def set_digest(self, claim: Claim, digest: str) -> Claim:
        """Record the digest of a drawn point."""
        with self._unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "digest", digest)
        return dataclasses.replace(claim, digest=digest)

    def heartbeat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Send a heartbeat for each claim; return the claims that this process has lost."""
        with self._translated():
            lost = []
            for claim in claims:
                if _is_mine(self._storage.get_trial(claim.trial)):
                    self._storage.record_heartbeat(claim.trial)
                else:
                    lost.append(claim)
            return lost

    def report(self, claim: Claim, progress: Mapping[str, Any], epoch: int = 0, value: float | None = None) -> None:
        """Record the progress of a running point: `step`, `steps`, `accuracy` and `images_per_second`.

        The metric of its last epoch, if that is known, is for Optuna's dashboard.
        """
        with self._unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "progress", dict(progress))
            if value is not None:
                self._storage.set_trial_intermediate_value(claim.trial, epoch, value)

    def requeue_dead(self, stale: bool) -> list[str]:
        """Requeue points whose process died: local ones by process identity, remote ones, if `stale`, by heartbeat.

        A point whose processes keep dying before the end of an epoch fails.

        Returns:
          The digests of the points that were requeued or failed.
        """
        found = []
        with self._locked():
            silent = self._storage._get_stale_trial_ids(self._study._study_id) if stale else []
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial._trial_id in silent or owners.is_dead(trial.user_attrs.get("owner", "")):
                    found.append(trial.user_attrs.get("digest", ""))
                    before, epochs = trial.user_attrs, len(trial.intermediate_values)
                    deaths = 1 if epochs > before.get("epochs", 0) else before.get("deaths", 0) + 1
                    attributes: dict[str, Any] = {"deaths": deaths, "epochs": epochs}
                    if deaths > RETRIES:
                        error = f"{deaths} processes died while training it, all before the end of an epoch"
                        attributes = {"error": error}
                    for key, value in attributes.items():
                        self._storage.set_trial_user_attr(trial._trial_id, key, value)
                    state = TrialState.FAIL if "error" in attributes else TrialState.WAITING
                    self._storage.set_trial_state_values(trial._trial_id, state)
        return found

    def finish(self, claim: Claim, summary: Summary) -> None:
        """Record the result (finished or diverged), even if the point was requeued in between."""
        value = getattr(summary, self.sweep.metric) if summary.status == "finished" else None
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        with self._locked(), self._unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "summary", summary.model_dump())
            self._storage.set_trial_state_values(claim.trial, state, None if value is None else [value])

    def fail(self, claim: Claim, error: str = "") -> None:
        """Record that the point cannot be trained. The next start of the sweep retries it.

        Without an error, a drawn point is dropped: it does not count as a draw.
        """
        with self._locked():
            if _is_mine(self._storage.get_trial(claim.trial)):
                if error:
                    self._storage.set_trial_user_attr(claim.trial, "error", error)
                self._storage.set_trial_state_values(claim.trial, TrialState.FAIL)

    def release(self, claim: Claim) -> None:
        """Requeue a claimed point."""
        with self._locked():
            if _is_mine(self._storage.get_trial(claim.trial)):
                self._storage.set_trial_state_values(claim.trial, TrialState.WAITING)

    def entries(self) -> list[Entry]:
        """Return one entry per point, in the order in which the points came."""
        with self._translated():
            return [_entry(digest, trial) for digest, trial in self._points().items()]

    def count_open(self) -> tuple[int, int]:
        """Return the number of waiting and of running trials on all machines."""
        with self._translated():
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

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._translated(), database.lock(self.url):
            yield

    @contextlib.contextmanager
    def _unless_finished(self) -> Iterator[None]:
        """Skip the rest of a block about a trial that another process has ended."""
        with self._translated(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            yield

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return database.translated(self.url, self._inode)


def _is_mine(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and trial.user_attrs.get("owner") == owners.me()


def _claim(trial: FrozenTrial) -> Claim:
    now = datetime.datetime.now()
    age = (now - (trial.datetime_start or now)).total_seconds()
    return Claim(trial._trial_id, _values(trial), trial.user_attrs.get("digest", ""), max(0.0, age))


def _entry(digest: str, trial: FrozenTrial) -> Entry:
    state, found = STATES[trial.state], trial.user_attrs
    return Entry(
        digest,
        state,
        _values(trial),
        summaries.parse(found["summary"]) if state in ("finished", "diverged") else None,
        found.get("error", ""),
        found.get("host", "") if state != "waiting" else "",
        found.get("progress", {}) if state == "running" else {},
    )


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
