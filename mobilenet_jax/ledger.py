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
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import filelock
import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mobilenet_jax.errors import InputError

HEARTBEAT = 10  # seconds between two of a claimer
GRACE = 60  # seconds after which it counts as dead
RETRIES = 5  # times that a point is put back after its claimer died

# Statements that take a lock which goes with the connection.
_LOCKS = {
    "postgresql": "SELECT pg_advisory_lock(7210531)",
    "mysql": "SELECT GET_LOCK('mobilenet_jax', -1)",
}
_RANK = [TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE]
STATES = dict(zip(_RANK, ["failed", "waiting", "running", "diverged", "done"], strict=True))


class Lost(Exception):
    """The database does not answer, for now."""


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
        self.shown_url = shown = re.sub(r":[^:@/]+@", ":***@", url)  # without a password
        self._parameters = {p.key: p.distribution for p in parameters}
        self._lock_depth = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler() if method == "bayes" else optuna.samplers.RandomSampler()
        try:
            dialect = sqlalchemy.make_url(url).get_dialect().name
            if dialect != "sqlite" and dialect not in _LOCKS:
                raise InputError(f"--storage={shown}: allowed are databases of SQLite, PostgreSQL and MySQL")
            with self._alone(), _experimental():
                self._storage = optuna.storages.RDBStorage(
                    url,
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
        except ImportError as e:
            raise InputError(f"--storage={shown}: its driver is missing ({e}); pip install '.[postgres]'") from None
        except (Lost, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError) as e:
            raise InputError(f"--storage={shown}: cannot be opened ({_first_line(e)})") from None

    def enqueue(self, points: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the points, `{digest: values}`, that are not there; one that failed is there no more."""
        with self._alone():
            known = {entry.digest for entry in self.entries() if entry.state != "failed"}
            for digest, values in points.items():
                if digest not in known:
                    self._study.enqueue_trial(dict(values), user_attrs={"digest": digest})

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
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            if not waiting:
                if sum(t.state != TrialState.FAIL or "error" in t.user_attrs for t in trials) >= draws:
                    return None
                self._study.enqueue_trial({})  # not asked for at once: a heartbeat comes first, lest it be left behind
                waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            elif not fits(waiting[0].user_attrs.get("digest", "")):
                return None
            self._storage.record_heartbeat(waiting[0]._trial_id)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that heartbeats are for `Study.optimize`: see `beat`
                trial = self._study.ask(self._parameters)
            assert trial.number == waiting[0].number
            trial.set_user_attr("owner", _owner(os.getpid()))
            trial.set_user_attr("host", platform.node())
        return Claim(trial, dict(trial.params), trial.user_attrs.get("digest", ""))

    def resolved(self, claim: Claim, digest: str) -> Claim:
        """Notes what a drawn point came to."""
        with _answering():
            claim.trial.set_user_attr("digest", digest)
        return dataclasses.replace(claim, digest=digest)

    def beat(self, claims: Iterable[Claim]) -> list[Claim]:
        """Says that the claims are being worked on; returns those that were taken away meanwhile."""
        with _answering():
            lost = []
            for claim in claims:
                self._storage.record_heartbeat(claim.trial._trial_id)
                if self._storage.get_trial(claim.trial._trial_id).state != TrialState.RUNNING:
                    lost.append(claim)
            return lost

    def reap(self) -> None:
        """Puts back the points of dead claimers: of other machines by their heartbeat, of this one at once."""
        with self._alone(), _experimental():
            optuna.storages.fail_stale_trials(self._study)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _dead(trial.user_attrs.get("owner", "")):
                    self._end(trial.number, state=TrialState.FAIL)
                    self._put_back(trial)

    def report(self, claim: Claim, value: float, epoch: int) -> None:
        """A figure of a point on its way, for Optuna's dashboard."""
        with _answering(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a resumed run reports an epoch again
            claim.trial.report(value, epoch)

    def finish(self, claim: Claim, summary: dict[str, Any]) -> None:
        """Keeps the result; a diverged run is one."""
        with _answering(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            claim.trial.set_user_attr("summary", summary)
            value = summary.get(self.metric) if summary["status"] == "finished" else None
            self._end(claim.trial.number, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)

    def fail(self, claim: Claim, error: str) -> None:
        """The point cannot be trained; a later start of the sweep tries it again."""
        with _answering(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            claim.trial.set_user_attr("error", error)
            self._end(claim.trial.number, state=TrialState.FAIL)

    def reject(self, claim: Claim) -> None:
        """A drawn point is not for this sweep: it does not count."""
        with _answering():
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
        with _answering():
            trials = self._study.get_trials(deepcopy=False)
        best: dict[str, FrozenTrial] = {}
        for trial in trials:
            digest = trial.user_attrs.get("digest", "")
            if digest and (digest not in best or _RANK.index(trial.state) >= _RANK.index(best[digest].state)):
                best[digest] = trial
        return [
            Entry(
                digest,
                STATES[t.state],
                t.params or t.system_attrs.get("fixed_params", {}),
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
        """Optuna has ended the trial of a dead claimer: the point waits again, unless it keeps killing them."""
        if trial.user_attrs.get("deaths", 0) < RETRIES:
            self._enqueue_again(trial, deaths=trial.user_attrs.get("deaths", 0) + 1)
        else:
            error = f"{RETRIES + 1} processes died over it"
            attributes = {**trial.user_attrs, "error": error}
            self._study.add_trial(
                optuna.create_trial(state=TrialState.FAIL, user_attrs=attributes)  # the dead one's is closed
            )

    def _enqueue_again(self, trial: FrozenTrial, **attributes: Any) -> None:
        kept = {key: trial.user_attrs[key] for key in ("digest", "deaths") if key in trial.user_attrs}
        fixed = trial.params or trial.system_attrs.get("fixed_params", {})
        self._study.enqueue_trial(dict(fixed), user_attrs=kept | attributes)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps out all other processes that use this method, on any machine, until the end of this one's at most."""
        with contextlib.ExitStack() as held, _answering():
            self._lock_depth += 1
            held.callback(self._unnest)
            if self._lock_depth == 1:
                held.enter_context(_database_lock(self.url))
            yield

    def _unnest(self):
        self._lock_depth -= 1


@contextlib.contextmanager
def _database_lock(url):
    parsed = sqlalchemy.make_url(url)
    dialect = parsed.get_dialect().name
    if dialect == "sqlite":
        path = pathlib.Path(parsed.database or "sweeps.db")
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            yield
    else:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:  # whose end gives the lock back
            connection.execute(sqlalchemy.text(_LOCKS[dialect]))
            yield


@contextlib.contextmanager
def _answering():
    """Turns what a database that is away makes Optuna and SQLAlchemy raise into `Lost`."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as e:
        raise Lost(_first_line(e)) from e


@contextlib.contextmanager
def _experimental():
    """Heartbeats are marked so since Optuna 2.8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    return len(parts) == 4 and parts[:2] == here[:2] and _owner(int(parts[2])) != owner
