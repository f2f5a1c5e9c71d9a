"""Faults of sweeps, for `faults.py`: the command, its workers or its books are hurt, and the command is given again.

A good end: every point has the result that it has in an undisturbed sweep, each counted once in the database, none is
left running, and nobody trains on.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable

from fault_case import HURTS, ROOT, Command, Late, Wrong, hurt, small_disk
from fault_case import Case as AnyCase

POINTS = 3
SWEEP = {
    "program": "launch.py",
    "method": "grid",
    "parameters": {"config.seed": {"values": [*range(POINTS)]}},
    "command": [
        *("${env}", "${interpreter}", "${program}", "--config=configs/digits_v1.py", "--config.model.rho=0.25"),
        *("--config.model.variant=shallow", "--config.train.epochs=2", "--config.optim.warmup_epochs=0.5"),
        *("--config.train.checkpoint_epochs=0.5", "${args}"),
    ],
}
# The command of a machine whose death is soon known, and known by its silence alone where `alone` is said.
HASTY = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # as launch.py does
import launch
from mobilenet_jax import crew, ledger
ledger.HEARTBEAT, ledger.GRACE, crew.SILENT = 1, 5, 12
if sys.argv.pop(1) == "alone":
    ledger._owner = lambda pid: ""
sys.exit(launch.run())
"""


class Case(AnyCase):
    """A sweep in a directory of its own."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        super().__init__(work, models, chance)
        self.workers = chance.choice([1, 2])
        self.reopened = 0  # so many points may have been done twice, as their results were lost
        (work / "sweep.yaml").write_text(json.dumps(SWEEP))

    @property
    def expected(self) -> dict[int, str]:
        """The results of an undisturbed sweep. The bits depend on how many cores a worker has."""
        return results(self.models / f"sweep-{self.workers}")

    def start(self, storage: str = "", alone: bool = False) -> Command:
        options = [f"--sweep={self.work / 'sweep.yaml'}", f"--workdir={self.runs}", f"--workers={self.workers}"]
        options += [f"--storage={storage}"] if storage else []
        arguments = ["-c", HASTY, "alone" if alone else "", *options]
        self.commands.append(Command(self, arguments, ROOT, {"PYTHONPATH": str(ROOT)}))
        return self.commands[-1]

    def check(self, command: Command) -> None:
        if f"{POINTS} of {POINTS} points have a result; 0 failed" not in command.out.read_text():
            raise Wrong(f"exit code 0 with {command.text()}")
        if (found := results(self.runs)) != self.expected:
            raise Wrong(f"other results: {found}; {command.text()}")
        self.check_books(f"sqlite:///{self.runs / 'sweeps.db'}")

    def check_books(self, url: str) -> None:
        """Raises Wrong where a point has not one result, the right one, or somebody is said to be on it."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        (name,) = optuna.get_all_study_names(url)
        trials = optuna.load_study(study_name=name, storage=url).get_trials()
        done = [t.user_attrs["summary"] for t in trials if t.state.name == "COMPLETE"]
        states = collections.Counter(t.state.name for t in trials)
        found = {(summary["seed"], summary["params_sha256"]) for summary in done}
        twice = len(done) - POINTS
        if found != {*self.expected.items()} or twice > self.reopened or states["RUNNING"] or states["WAITING"]:
            raise Wrong(f"the books: {len(done)} results, {found}, {dict(states)}")

    def failed(self, command: Command) -> list[str]:
        return re.findall(r"^failed  .*: (.*)$", command.out.read_text(), re.MULTILINE)


def results(runs: pathlib.Path) -> dict[int, str]:
    """Seed -> the digest of its parameters."""
    summaries = [json.loads(path.read_text()) for path in runs.glob("*/summary.json")]
    return {summary["seed"]: summary["params_sha256"] for summary in summaries}


def rest(command: Command) -> None:
    """Waits until nobody that it has started is left."""
    end = time.monotonic() + 60
    while True:
        try:
            os.killpg(command.process.pid, 0)
        except ProcessLookupError:
            return
        if time.monotonic() > end:
            command.group(signal.SIGKILL)
            raise Wrong(f"somebody trains on: {command.text()}")
        time.sleep(0.05)


def moment(case: Case) -> None:
    time.sleep(case.chance.uniform(0, case.chance.choice([2, 8, 20])))


def command_hit(name: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, number = case.start(), getattr(signal, name)
        moment(case)
        command.hit(number)
        command.end()
        command.check_begun()
        if command.end() not in (-number, 128 + number, 0):
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")
        command.error()
        if case.chance.random() < 0.5:  # else the next one comes while the workers may still end
            rest(command)
        ended = case.settle()
        rest(command)
        return ended

    return fault


def workers_hit(name: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, hits = case.start(), 0
        for _ in range(case.chance.choice([1, 1, 2, 3])):
            moment(case)
            for pid in command.children()[: case.chance.choice([1, 2])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, name))
                    hits += 1
                    if name == "SIGSTOP" and case.chance.random() < 0.5:  # else it is never woken
                        time.sleep(case.chance.uniform(0, 8))
                        os.kill(pid, signal.SIGCONT)
        if not hits:
            raise Late
        if command.end() not in (0, 1):
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")
        case.say(command.error())
        return case.settle()

    return fault


def all_killed(case: Case) -> str:
    """As when the power goes."""
    command = case.start()
    moment(case)
    command.hit(signal.SIGSTOP)
    command.group(signal.SIGKILL)
    command.end()
    return case.settle()


def machine_frozen(case: Case) -> str:
    """One of two machines falls silent for longer than its claim lasts, and wakes up after the other took its point."""
    storage = f"sqlite:///{case.work / 'shared.db'}"
    case.runs = case.work / "first"
    first = case.start(storage, alone=True)
    moment(case)
    first.hit(signal.SIGSTOP)
    first.group(signal.SIGSTOP)
    case.runs = case.work / "second"
    second = case.start(storage, alone=True)
    time.sleep(case.chance.uniform(4, 20))
    if not first.over:
        first.group(signal.SIGCONT)
    codes = [first.end(), second.end()]
    for command in (first, second):
        command.error()
    if any(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    case.check_books(storage)
    reference, found = case.expected, [results(case.work / name) for name in ("first", "second")]
    if found[0] | found[1] != reference or any(reference[k] != v for each in found for k, v in each.items()):
        raise Wrong(f"other results: {found}")
    return "as undisturbed"


def two_commands(case: Case) -> str:
    """Two commands on the same directory."""
    first = case.start()
    moment(case)
    if first.over:
        raise Late
    second = case.start()
    codes = [first.end(), second.end()]
    for command in (first, second):
        command.error()
    if any(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    return case.settle()


def file_hit(how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command = case.start()
        moment(case)
        command.group(signal.SIGKILL)
        command.end()
        files = [path for path in sorted(case.runs.rglob("*")) if path.is_file() and path.stat().st_size]
        top = [path for path in files if len(path.relative_to(case.runs).parts) < 3]  # the books, and what runs say
        hurt(case, files, how, likely=top)
        case.reopened = 1
        return case.settle()

    return fault


def books_taken_away(case: Case) -> str:
    """The database is moved away while the sweep runs."""
    command, path = case.start(), case.runs / "sweeps.db"
    command.until(path.exists)
    moment(case)
    if command.over:
        raise Late
    path.rename(case.work / "away.db")
    case.say(command.end_with_a_word())
    return case.settle()


def disk_full(case: Case) -> str:
    """The runs and the database are on a disk of their own, which is full from a random moment on."""
    with small_disk(case, megabytes=48) as fill:
        command = case.start()
        moment(case)
        if command.over:
            raise Late
        fill()
        case.say(command.end_with_a_word())
        if case.chance.random() < 0.5:
            case.mend()
        return case.settle()


# Kind -> its fault, and how often it comes for each time that the rarest comes.
KINDS: dict[str, tuple[Callable[[Case], str], int]] = {
    **{f"sweep: command, {name}": (command_hit(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGINT")},
    **{f"sweep: worker, {name}": (workers_hit(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGSTOP")},
    "sweep: power cut": (all_killed, 3),
    "sweep: machine frozen, another takes over": (machine_frozen, 2),
    "sweep: two commands at once": (two_commands, 1),
    "sweep: database taken away": (books_taken_away, 1),
    "sweep: disk full": (disk_full, 2),
    **{f"sweep: a file {how}": (file_hit(how), 1) for how in HURTS},
}


def prepare(models: pathlib.Path) -> None:
    """Undisturbed sweeps, with one worker and with two."""
    (models / "sweep-work").mkdir(parents=True)
    case = Case(models / "sweep-work", models, random.Random(0))
    for case.workers in (1, 2):
        command = case.start()
        if command.end():
            sys.exit(f"the undisturbed sweep failed: {command.text()}")
        shutil.move(case.runs, models / f"sweep-{case.workers}")
