"""The points of a sweep in a database, on Optuna: each is claimed once, by whichever machine, and its result kept.

A point is a trial, waiting until it is claimed. Its claimer sends a heartbeat; where that stops, another machine puts
the point back. Optuna claims from several processes at once, but does not enqueue so; what must not be done twice is
done under a lock of the database.
"""

import contextlib
import dataclasses
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import filelock
import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mobilenet_jax.errors import InputError, first_line, is_unwritable
from mobilenet_jax.sweeps import database

HEARTBEAT = 10  # seconds between two of a claimer
GRACE = 60  # seconds after which it counts as dead
RETRIES = 5  # times in a row that a point is put back after its claimer died in its first epoch there

_RANK = [TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]
STATES = dict(zip(_RANK, ["failed", "waiting", "running", "diverged", "done"], strict=True))


class Lost(Exception):
    """The database does not answer, for now."""


class Unwritable(Lost):
    """It cannot be written until somebody makes room, or gives leave."""


class Damaged(Exception):
    """The database is no database any more."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What a search draws from, as Optuna's distribution."""

    key: str
    distribution: BaseDistribution


@dataclasses.dataclass(frozen=True)
class Claim:
    """A point that this process alone works on."""

    trial: optuna.Trial
    values: dict[str, Any]  # what was drawn or enqueued
    digest: str  # '' where it is only known once it is resolved


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the database knows of one point."""

    digest: str
    state: str  # one of STATES
    values: dict[str, Any]
    summary: dict[str, Any] | None
    error: str
    host: str


def categorical(key: str, values: Iterable[Any]) -> Parameter:
    """One of `values`."""
    return Parameter(key, CategoricalDistribution(tuple(values)))


def integer(key: str, low: int, high: int, step: int = 1) -> Parameter:
    """A whole number from `low` to `high`."""
    return Parameter(key, IntDistribution(low, high, step=step))


def real(key: str, low: float, high: float, step: float | None = None, log: bool = False) -> Parameter:
    """A number from `low` to `high`, uniform or, with `log`, uniform in its logarithm."""
    return Parameter(key, FloatDistribution(low, high, step=step, log=log))


class Ledger:
    """The points of one sweep. Any number of processes on any number of machines may open the same."""

    def __init__(self, url: str, name: str, parameters: Iterable[Parameter], metric: str, goal: str, method: str):
        """Opens the sweep `name` in the database, making both where they are missing.

        Args:
          url: as SQLAlchemy writes it: 'sqlite:///runs/sweeps.db', 'postgresql+psycopg://user@host/base'.
          name: of the sweep in the database.
          parameters: what varies.
          metric: the key of a summary that a search is judged by.
          goal: 'maximize' or 'minimize'.
          method: 'grid', 'random' or 'bayes' (Optuna's tree-structured Parzen estimator).

        Raises:
          InputError: the database cannot be opened.
        """
        self.url, self.name, self.metric = url, name, metric
        self.shown_url = shown = database.shown(url)
        self._parameters = {p.key: p.distribution for p in parameters}
        self._lock_depth = 0
        self._file: int | None = None
        found = "finds in the run directories what is done" if method == "grid" else "starts the search anew"
        self.remedy = f"move it away, and the same command {found}"  # of a damaged database
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler() if method == "bayes" else optuna.samplers.RandomSampler()
        try:
            database.check(url)
            with self._alone(), _experimental():
                self._storage = optuna.storages.RDBStorage(
                    url.replace("{", "{{").replace("}", "}}"),  # Optuna formats it
                    {"connect_args": database.connect_args(url)},
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=lambda study, trial: self._put_back(trial),
                )
                self._study = optuna.create_study(
                    storage=self._storage,
                    sampler=sampler,
                    study_name=name,
                    direction=StudyDirection[goal.upper()],
                    load_if_exists=True,
                )
            self._file = database.inode(url)
        except ImportError as e:
            raise InputError(f"--storage={shown}: its driver is missing ({e}); pip install '.[postgres]'") from None
        except InputError:
            raise
        except (Lost, Damaged, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError) as e:
            reason = _reason(e)
            hint = f"; {self.remedy}" if isinstance(e, Damaged) else ""
            hint = "; once it can be written, the same command goes on" if isinstance(e, Unwritable) else hint
            raise InputError(f"--storage={shown}: cannot be opened ({reason}){hint}") from None

    def enqueue(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the points, `{digest: values}`, that are not there; one that failed is there no more."""
        with self._alone():
            known = {entry.digest for entry in self.entries() if entry.state != "failed"}
            for digest, values in points.items():
                if digest not in known:
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest})

    def retry(self) -> None:
        """Puts back the points of a search that failed."""
        with self._alone():
            for entry in self.entries():
                if entry.state == "failed" and not entry.digest.startswith("#"):
                    self._study.enqueue_trial(entry.values, user_attrs={"digest": entry.digest})

    def reopen(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Has points that are done, `{digest: values}`, done once more, as their results were lost where they lay."""
        with self._alone():
            done = {entry.digest for entry in self.entries() if entry.summary}
            for digest, values in points.items():
                if digest in done:  # and not open again, by another process
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest, "reopened": True})

    def claim(self, fits: Callable[[str], bool] = lambda digest: True, draws: int = 0) -> Claim | None:
        """Takes the first waiting point, or draws one.

        Args:
          fits: whether to take the point with this digest.
          draws: up to so many points are drawn in all, where none is waiting.

        Returns:
          None where nothing is waiting, or the first that is does not fit, or enough was drawn.
        """
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            settled = {
                t.user_attrs.get("digest") for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
            }
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            while waiting:
                digest: str = waiting[0].user_attrs.get("digest", "")
                due = digest not in settled or "reopened" in waiting[0].user_attrs
                if digest and due and not fits(digest):
                    return None
                trial = self._ask(waiting.pop(0))
                if due:
                    return Claim(trial, dict(trial.params), digest)
                self._end(trial.number, state=TrialState.FAIL)  # its result came in another way
            drawn = [t for t in trials if t.state != TrialState.FAIL or "error" in t.user_attrs]
            if len({t.user_attrs.get("digest") or t.number for t in drawn}) >= draws:
                return None
            self._study.enqueue_trial({})  # not asked for at once: a heartbeat comes first, lest it be left behind
            trial = self._ask(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))[0])
        return Claim(trial, dict(trial.params), "")

    def _ask(self, waiting: FrozenTrial) -> optuna.Trial:
        """Takes the first waiting trial, which this is."""
        self._storage.record_heartbeat(waiting._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that heartbeats are for `Study.optimize`: see `beat`
            trial = self._study.ask(self._parameters)
        if trial.number != waiting.number:  # the lock went with its connection, and another was faster
            raise Lost("another machine claimed at the same time")
        trial.set_user_attr("owner", _owner(os.getpid()))
        trial.set_user_attr("host", platform.node())
        return trial

    def resolved(self, claim: Claim, digest: str) -> Claim | None:
        """Notes what a drawn point came to; None where the claim was taken away meanwhile."""
        with self._answering(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            claim.trial.set_user_attr("digest", digest)
            return dataclasses.replace(claim, digest=digest)
        return None

    def beat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Says that the claims are being worked on; returns those that were taken away meanwhile."""
        with self._answering():
            lost = []
            for claim in claims:
                self._storage.record_heartbeat(claim.trial._trial_id)
                if self._storage.get_trial(claim.trial._trial_id).state != TrialState.RUNNING:
                    lost.append(claim)
            return lost

    def reap(self, stale: bool) -> None:
        """Puts back the points of dead claimers: of this machine at once, of others, if `stale`, by their heartbeat."""
        with self._alone(), _experimental():
            if stale:
                optuna.storages.fail_stale_trials(self._study)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _dead(trial.user_attrs.get("owner", "")):
                    self._end(trial.number, state=TrialState.FAIL)
                    self._put_back(trial)
            for entry in self.entries():
                if entry.state == "failed" and not entry.error:  # who put it back died in between
                    self._study.enqueue_trial(entry.values, user_attrs={"digest": entry.digest})

    def report(self, claim: Claim, value: float, epoch: int) -> None:
        """A figure of a point on its way, for Optuna's dashboard."""
        with (
            self._answering(),
            contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", UserWarning)  # a resumed run reports an epoch again
            claim.trial.report(value, epoch)

    def finish(self, claim: Claim, summary: dict[str, Any]) -> None:
        """Keeps the result; a diverged run is one. So it is where the claim was taken away meanwhile."""
        value = summary.get(self.metric) if summary["status"] == "finished" else None
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        with self._alone():
            if self._storage.get_trial(claim.trial._trial_id).state == TrialState.RUNNING:
                claim.trial.set_user_attr("summary", summary)
                self._end(claim.trial.number, value, state)
            elif claim.digest not in {e.digest for e in self.entries() if e.summary}:
                attributes = {"digest": claim.digest, "summary": summary}
                fixed = {"fixed_params": claim.values}
                self._study.add_trial(
                    optuna.create_trial(state=state, value=value, user_attrs=attributes, system_attrs=fixed)
                )

    def fail(self, claim: Claim, error: str) -> None:
        """The point cannot be trained; a later start of the sweep tries it again."""
        with self._answering(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            claim.trial.set_user_attr("error", error)
            self._end(claim.trial.number, state=TrialState.FAIL)

    def reject(self, claim: Claim) -> None:
        """A drawn point is not for this sweep: it does not count."""
        with self._answering():
            self._end(claim.trial.number, state=TrialState.FAIL)

    def give_back(self, claim: Claim) -> None:
        """The point is for somebody else, or for later."""
        with self._alone():
            trial = self._storage.get_trial(claim.trial._trial_id)
            if trial.state == TrialState.RUNNING:
                self._end(trial.number, state=TrialState.FAIL)
                self._enqueue_again(trial)

    def entries(self) -> list[Entry]:
        """Every point once, by its best trial, in the order in which they came."""
        with self._answering():
            trials = self._study.get_trials(deepcopy=False)
        best: dict[str, FrozenTrial] = {}
        for trial in trials:
            failed = f"#{trial.number}" if "error" in trial.user_attrs else ""
            digest = trial.user_attrs.get("digest") or failed
            if digest and (digest not in best or _rank(trial) >= _rank(best[digest])):
                best[digest] = trial
        return [
            Entry(
                digest,
                STATES[t.state],
                _values(t),
                t.user_attrs.get("summary"),
                t.user_attrs.get("error", ""),
                t.user_attrs.get("host", ""),
            )
            for digest, t in best.items()
        ]

    def open(self) -> int:
        """How many trials are waiting or running, on whatever machine."""
        with self._alone():  # who puts a point back ends one trial and adds another
            states = (TrialState.WAITING, TrialState.RUNNING)
            return len(self._study.get_trials(deepcopy=False, states=states))

    def _end(self, number: int, value: float | None = None, state: TrialState | None = None) -> None:
        with contextlib.suppress(ValueError):  # it ended meanwhile
            self._study.tell(number, value, state)

    def _put_back(self, trial: FrozenTrial) -> None:
        """Optuna has ended the trial of a dead claimer: the point waits again, unless it keeps killing them at once."""
        deaths = 1 if trial.intermediate_values else trial.user_attrs.get("deaths", 0) + 1
        if deaths <= RETRIES:
            self._enqueue_again(trial, deaths=deaths)
        else:
            error = f"{deaths} processes died over it, none of which came to the end of an epoch"
            attributes = {**trial.user_attrs, "error": error}
            self._study.add_trial(
                optuna.create_trial(  # the dead one's is closed
                    state=TrialState.FAIL, user_attrs=attributes, system_attrs={"fixed_params": _values(trial)}
                )
            )

    def _enqueue_again(self, trial: FrozenTrial, **attributes: Any) -> None:
        kept = {key: trial.user_attrs[key] for key in ("digest", "deaths", "reopened") if key in trial.user_attrs}
        self._study.enqueue_trial(_values(trial), user_attrs=kept | attributes)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps out all other processes that use this method, on any machine, until the end of this one's at most."""
        with contextlib.ExitStack() as held, self._answering():
            self._lock_depth += 1
            held.callback(self._unnest)
            if self._lock_depth == 1:
                held.enter_context(database.lock(self.url))
            yield

    def _unnest(self):
        self._lock_depth -= 1

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """What Optuna and SQLAlchemy raise over a database that is away or damaged, as `Lost` or `Damaged`."""
        try:
            yield
        except (Lost, Damaged, InputError, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DatabaseError, filelock.Timeout, OSError) as e:
            if self._replaced():
                raise Damaged("its file was removed, or another one put in its place") from e
            reason = _reason(e)
            if database.is_damage(reason):
                raise Damaged(reason) from e
            if isinstance(e, sqlalchemy.exc.DatabaseError) and not isinstance(e, sqlalchemy.exc.OperationalError):
                raise
            raise (Unwritable if is_unwritable(e) else Lost)(reason) from e
        except (LookupError, ValueError, RuntimeError) as e:  # of what Optuna reads and can make nothing of
            raise Damaged(f"{type(e).__name__}: {_reason(e)}") from e

    def _replaced(self) -> bool:
        """Whether the file of an SQLite database is not the one any more that was opened."""
        return self._file is not None and self._file != database.inode(self.url)


@contextlib.contextmanager
def _experimental():
    """Heartbeats are marked so since Optuna 2.8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _rank(trial: FrozenTrial) -> int:
    """Of several trials of one point, the highest tells of it."""
    reopened = "reopened" in trial.user_attrs and trial.state in (TrialState.WAITING, TrialState.RUNNING)
    return len(_RANK) if reopened else _RANK.index(trial.state)


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))


def _reason(error):
    return first_line(error.__cause__ or error)  # Optuna's own words are about something else


def _owner(pid: int) -> str:
    """Names a process for as long as the machine is up: where its number means something, the number, its start."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {started}"
    except OSError:
        return ""


def _dead(owner: str) -> bool:
    """Whether `owner` was a process of this machine, and is not any more."""
    here, parts = _owner(os.getpid()).split(), owner.split()
    if len(parts) != 4 or parts[:2] != here[:2]:
        return False
    now = _owner(int(parts[2]))
    return now != owner if now else not pathlib.Path("/proc", parts[2]).exists()
