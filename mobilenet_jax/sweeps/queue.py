"""The queue of a sweep's points in a database, on Optuna: each point is claimed once, by any process on any machine.

A point is an Optuna trial: waiting, then running for the owner that claimed it, then finished. The owner sends
heartbeats. When they stop, another process sets the trial back to waiting. Each change is one write, so a crash between
two of them loses nothing. What must not happen twice, such as adding a point, runs under a lock of the database.
"""

import contextlib
import dataclasses
import platform
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from mobilenet_jax.errors import InputError, first_line
from mobilenet_jax.records import summary as summaries
from mobilenet_jax.records.summary import Summary
from mobilenet_jax.sweeps import database
from mobilenet_jax.sweeps.database import Damaged, Unavailable, Unwritable
from mobilenet_jax.sweeps.file import Sweep

GRACE = 60  # seconds without a heartbeat after which a claim is void
RETRIES = 5  # requeues in a row of a point whose processes die before the end of an epoch
FAIL, WAITING, RUNNING = TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING
DIVERGED, FINISHED = TrialState.PRUNED, TrialState.COMPLETE
STATES = {FAIL: "failed", WAITING: "waiting", RUNNING: "running", DIVERGED: "diverged", FINISHED: "finished"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the database records about one point."""

    trial: int  # Optuna's id
    digest: str  # '#' and the trial's number until a drawn point is resolved
    state: str  # one of the values of STATES
    values: dict[str, Any]
    summary: Summary | None = None
    error: str = ""
    host: str = ""
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the last figures of a running point

    @property
    def is_open(self) -> bool:
        """Whether the point has no result yet and has not failed."""
        return self.state in ("waiting", "running")


class Queue:
    """The points of one sweep. Any number of processes on any number of machines can use the same queue.

    Call `open` or `connect` first. All methods raise `Unavailable` or `Damaged`.

    Args:
      url: as SQLAlchemy writes it: 'sqlite:///runs/sweeps.db', 'postgresql+psycopg://user@host/base'.
      name: the study's name in the database.
      sweep: parameters, metric, goal and method. 'bayes' is Optuna's tree-structured Parzen estimator.
      owner: 'COMMAND/NUMBER/' of a worker, to which its claims belong.
    """

    def __init__(self, url: str, name: str, sweep: Sweep, owner: str = ""):
        self.url, self.name, self.sweep, self.owner = url, name, sweep, owner
        self.shown_url = database.shown(url)
        database.check(url)

    def open(self) -> None:
        """Connect, and raise every error as InputError."""
        try:
            self.connect()
        except (Damaged, Unavailable, ImportError, ValueError, OSError, sqlalchemy.exc.SQLAlchemyError) as e:
            raise self.explain(e, "cannot be opened") from None

    def connect(self) -> None:
        """Connect to the database; create it and the study if they are missing."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers = optuna.samplers
        with self._locked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # about heartbeats
            storage = optuna.storages.RDBStorage(
                self.url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the address
                {"connect_args": database.connect_args(self.url)},
                heartbeat_interval=1,  # switches them on; `heartbeat` sends them
                grace_period=GRACE,
            )
            self._study = optuna.create_study(
                storage=storage,
                sampler=samplers.TPESampler() if self.sweep.method == "bayes" else samplers.RandomSampler(),
                study_name=self.name,
                direction=StudyDirection[self.sweep.goal.upper()],
                load_if_exists=True,
            )
        self._storage: Any = self._study._storage  # which also caches finished trials

    def explain(self, error: Exception, how: str = "does not answer") -> InputError:
        """Return an error of the database as a sentence; `how` describes one that does not answer."""
        then = "once it answers, the same command goes on"
        if isinstance(error, ImportError):
            then = "its driver is missing: pip install -c constraints.txt -e '.[postgres]'"
        elif isinstance(error, Damaged):
            rebuilt = "rebuilds it from the run directories" if self.sweep.method == "grid" else "restarts the search"
            how, then = "is damaged", f"move it away, and the same command {rebuilt}"
        elif isinstance(error, Unwritable):
            how, then = "cannot be written", "once it can, the same command resumes"
        return InputError(f"--storage={self.shown_url}: {how} ({first_line(error)}); {then} ({database.FORMS})")

    def enqueue(self, points: Mapping[str, Mapping[str, Any]], lost: Collection[str] = ()) -> None:
        """Add the points `{digest: values}` that are missing, have failed, or whose result is `lost`."""
        with self._locked():
            states = {_name(trial): trial.state for trial in self._trials()}
            for digest, values in points.items():
                state = states.get(digest, FAIL)
                if state == FAIL or (digest in lost and state in (DIVERGED, FINISHED)):
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest})

    def claim(self, fits: Callable[[str], bool] = lambda digest: True, draws: int = 0) -> Entry | None:
        """Claim the first waiting point that fits, or draw a new one; return None if there is neither.

        Args:
          fits: whether to claim the point with this digest.
          draws: the largest number of points to draw in all, if none is waiting.
        """
        with self._locked():
            trials = self._trials()
            last = {_name(trial): trial for trial in trials}
            waiting = {digest: trial for digest, trial in last.items() if trial.state == WAITING}
            drawn = sum(not trial.system_attrs.get("fixed_params") for trial in trials)
            if not waiting and drawn < draws:
                self._study.enqueue_trial({})
                waiting = {"": self._study.get_trials(deepcopy=False, states=(WAITING,))[-1]}
            chosen = next((trial._trial_id for digest, trial in waiting.items() if fits(digest)), None)
            if chosen is None:
                return None
            # Owner and heartbeat come first: a running trial without them would never be requeued.
            for key, value in {"owner": self.owner, "host": platform.node(), "progress": {}}.items():
                self._storage.set_trial_user_attr(chosen, key, value)
            self._storage.record_heartbeat(chosen)
            if not self._storage.set_trial_state_values(chosen, RUNNING):
                raise Unavailable("another machine claimed at the same time")  # the lock was lost
            if self.sweep.method != "grid":
                self._draw(chosen)
            return _entry(self._storage.get_trial(chosen))

    def _draw(self, chosen: int) -> None:
        """Draw the values of a claimed point; those that were enqueued or drawn before stay."""
        study = optuna.load_study(study_name=self.name, storage=self._storage, sampler=self._study.sampler)
        trial = Trial(study, chosen)  # a new study, as one remembers the results that its sampler has seen
        for p in self.sweep.parameters:
            if p.varies and p.kind == "values":
                trial.suggest_categorical(p.key, p.values)
            elif p.kind == "int":
                trial.suggest_int(p.key, int(p.low), int(p.high), step=int(p.step or 1))
            elif p.varies:
                trial.suggest_float(p.key, p.low, p.high, step=p.step, log=p.log)

    def requeue_dead(self, *names: str, stopped: bool = False) -> list[str]:
        """Requeue the points of the owners whose names start with one of `names`; by default, those without heartbeats.

        A point whose processes keep dying before the end of another epoch fails; it is no death that the command has
        `stopped` them. Returns the digests of the others.
        """
        requeued = []
        with self._locked():
            silent = () if names else self._storage._get_stale_trial_ids(self._study._study_id)
            for trial in self._study.get_trials(deepcopy=False, states=(RUNNING,)):
                before = trial.user_attrs
                if trial._trial_id in silent or before.get("owner", "").startswith(names):
                    epochs = max(before.get("epochs", 0), round(before.get("progress", {}).get("epoch", 0)))
                    deaths = (0 if epochs > before.get("epochs", 0) else before.get("deaths", 0)) + (not stopped)
                    for key, value in {"deaths": deaths, "epochs": epochs}.items():
                        self._storage.set_trial_user_attr(trial._trial_id, key, value)
                    error = f"{deaths} processes died while training it, all before the end of an epoch"
                    self._end(trial._trial_id, error if deaths > RETRIES else None)
                    requeued += [_name(trial)] if deaths <= RETRIES else []
        return requeued

    def set_digest(self, claim: Entry, digest: str) -> Entry:
        """Return the claim with the digest of a drawn point, which is recorded."""
        with self._unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "digest", digest)
        return dataclasses.replace(claim, digest=digest)

    def heartbeat(self, claim: Entry, figures: Mapping[str, Any]) -> bool:
        """Send a heartbeat with the figures of the run, {} before training; return whether the claim still holds."""
        with self._unless_finished():
            if not self._has(claim):
                return False
            self._storage.record_heartbeat(claim.trial)
            if figures:
                self._storage.set_trial_user_attr(claim.trial, "progress", dict(figures))
            if (value := figures.get(self.sweep.metric)) is not None and "epoch" in figures:
                self._storage.set_trial_intermediate_value(claim.trial, round(figures["epoch"]), value)
        return True

    def finish(self, claim: Entry, summary: Summary) -> None:
        """Record the result (finished or diverged), even if the point was requeued in between."""
        value = getattr(summary, self.sweep.metric) if summary.status == "finished" else None
        with self._locked(), self._unless_finished():
            self._storage.set_trial_user_attr(claim.trial, "summary", summary.model_dump())
            values = None if value is None else [value]
            self._storage.set_trial_state_values(claim.trial, FINISHED if values else DIVERGED, values)

    def release(self, claim: Entry, error: str | None = None) -> None:
        """Requeue a claimed point or, with an error, record that it cannot be trained.

        The next start of the sweep retries it. With the error '', a drawn point is dropped: it counts as no draw.
        """
        with self._locked():
            if self._has(claim):
                self._end(claim.trial, error)

    def _end(self, trial: int, error: str | None) -> None:
        if error:
            self._storage.set_trial_user_attr(trial, "error", error)
        self._storage.set_trial_state_values(trial, WAITING if error is None else FAIL)

    def _has(self, claim: Entry) -> bool:
        trial = self._storage.get_trial(claim.trial)
        return trial.state == RUNNING and trial.user_attrs.get("owner") == self.owner

    def entries(self) -> list[Entry]:
        """Return one entry per point, in the order in which the points came."""
        with database.translated():
            return [*{_name(trial): _entry(trial) for trial in self._trials()}.values()]

    def _trials(self) -> list[FrozenTrial]:
        """Return the trials without draws that were dropped. The last one of a digest gives the point's state."""
        trials = self._study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != FAIL or "digest" in t.user_attrs or "error" in t.user_attrs]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with database.translated(), database.lock(self.url):
            yield

    @contextlib.contextmanager
    def _unless_finished(self) -> Iterator[None]:
        """Skip the rest of a block about a trial that another process has ended."""
        ended = optuna.exceptions.UpdateFinishedTrialError
        with database.translated(), contextlib.suppress(ended):
            yield


def _name(trial: FrozenTrial) -> str:
    return trial.user_attrs.get("digest") or f"#{trial.number}"


def _entry(trial: FrozenTrial) -> Entry:
    state, found = STATES[trial.state], trial.user_attrs
    return Entry(
        trial._trial_id,
        _name(trial),
        state,
        dict(trial.params or trial.system_attrs.get("fixed_params", {})),
        summaries.parse(found["summary"]) if state in ("finished", "diverged") else None,
        found.get("error", ""),
        found.get("host", "") if state != "waiting" else "",
        found.get("progress", {}) if state == "running" else {},
    )
