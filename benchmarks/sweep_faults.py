"""Faults of sweeps, for `faults.py`: damage the command, its workers or its database, then start the command again.

A good end: each point has the result of an undisturbed sweep and counts once in the database, no point is left running,
and no process is left.
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

from fault_case import DAMAGE, ROOT, SETS, UNDISTURBED, Command, TooLate, Wrong, damage, make_sets, small_disk
from fault_case import Case as AnyCase

sys.path.append(str(ROOT / "tests"))
import postgres_server

POINTS = 3
DONE = f"{POINTS} of {POINTS} points have a result; 0 failed"
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
# launch.py with short timeouts.
IMPATIENT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as launch.py does
import launch
from mobilenet_jax.sweeps import queue, supervisor, worker
worker.HEARTBEAT, queue.GRACE, supervisor.MAX_SILENCE = 0.5, 5, 12
method, _, when = sys.argv.pop(1).partition("+")
if method:  # the first worker that calls this method is killed before or after the call
    action, marker = getattr(queue.Queue, method), os.environ["FAULT_MARKER"]
    def killing(*args):
        result = action(*args) if when == "after" else None
        if sys.argv[-1].startswith("--worker") and os.path.exists(marker):
            os.unlink(marker)
            os.kill(os.getpid(), signal.SIGKILL)
        return result if when == "after" else action(*args)
    setattr(queue.Queue, method, killing)
if os.environ.get("FAULT_NO_DATA"):
    from mobilenet_jax.data import arrays
    from mobilenet_jax.errors import InputError
    def load(*args):
        raise InputError("the data set is not here")
    arrays.load = load
sys.exit(launch.run())
"""


class Case(AnyCase):
    """A sweep in a directory of its own."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        super().__init__(work, models, chance)
        self.workers = chance.choice([1, 2])
        self.of = "sweep"  # the undisturbed sweep, less its number of workers
        self.reopened = 0  # so many points may be done twice, as their results were lost
        (work / "sweep.yaml").write_text(json.dumps(SWEEP))

    @property
    def expected(self) -> dict[int, str]:
        """Return the results of an undisturbed sweep. Their bits depend on the number of cores per worker."""
        return results(self.models / f"{self.of}-{self.workers}")

    def start(self, storage: str = "", kill: str = "", **variables: str) -> Command:
        """Start the command; a worker that calls `kill`, 'METHOD+before' or 'METHOD+after' of the queue, dies once."""
        options = [f"--sweep={self.work / 'sweep.yaml'}", f"--workdir={self.runs}", f"--workers={self.workers}"]
        options += [f"--storage={storage}"] if storage else []
        marker = self.work / "kill"
        if kill:
            marker.touch()
        arguments = ["-c", IMPATIENT, kill, *options, *self.options]
        variables |= {"PYTHONPATH": str(ROOT), "FAULT_MARKER": str(marker)}
        self.commands.append(Command(self, arguments, ROOT, variables))
        return self.commands[-1]

    def check(self, command: Command) -> None:
        if DONE not in command.out.read_text():
            raise Wrong(f"exit code 0 with {command.text()}")
        if (found := results(self.runs)) != self.expected:
            raise Wrong(f"other results: {found}; {command.text()}")
        self.check_database(f"sqlite:///{self.runs / 'sweeps.db'}")
        self.check_trained(self.reopened + 1)

    def check_database(self, url: str) -> None:
        """Raise Wrong unless each point has its one right result and none is running or waiting."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        name = optuna.get_all_study_names(url)[-1]  # others are of a data set that was replaced
        trials = optuna.load_study(study_name=name, storage=url).get_trials()
        done = [t.user_attrs["summary"] for t in trials if t.state.name == "COMPLETE"]
        states = collections.Counter(t.state.name for t in trials)
        found = {(summary["seed"], summary["params_sha256"]) for summary in done}
        twice = len(done) - POINTS
        if found != {*self.expected.items()} or twice > self.reopened or states["RUNNING"] or states["WAITING"]:
            raise Wrong(f"the database: {len(done)} results, {found}, {dict(states)}")

    def check_trained(self, times: int) -> None:
        """Raise Wrong if a point was trained to its end more often."""
        printed = "\n".join(command.out.read_text() for command in self.commands)
        trained = collections.Counter(re.findall(r"^finished  (\S+) .*\d s$", printed, re.MULTILINE))
        if any(count > times for count in trained.values()):
            raise Wrong(f"trained more than once: {dict(trained)}")

    def check_shared(self, storage: str, *commands: Command) -> None:
        """Raise Wrong unless all commands ended well, with the result of each point in one of their directories."""
        end_well(*commands)
        self.check_database(storage)
        found = [each for command in commands for each in results(command.logs.parent).items()]
        if sorted(found) != sorted(self.expected.items()):
            raise Wrong(f"other results: {found}")
        self.check_trained(1)

    def failed(self, command: Command) -> list[str]:
        return re.findall(r"^failed  .*?: (.*)$", command.out.read_text(), re.MULTILINE)


def results(runs: pathlib.Path) -> dict[int, str]:
    """Return the digest of the parameters by seed."""
    summaries = [json.loads(path.read_text()) for path in runs.glob("*/summary.json")]
    return {summary["seed"]: summary["params_sha256"] for summary in summaries}


def end_well(*commands: Command) -> None:
    """Wait for the commands; raise Wrong unless each ended with all results."""
    for command in commands:
        if command.end() or command.error() or DONE not in command.out.read_text():
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")


def wait_for_all(command: Command) -> None:
    """Wait until no process of the command is left."""
    end = time.monotonic() + 60
    while command.processes():
        if time.monotonic() > end:
            raise Wrong(f"a process is left: {command.text()}")
        time.sleep(0.05)


def wait_a_while(case: Case) -> None:
    time.sleep(case.chance.uniform(0, case.chance.choice([2, 8, 20])))


def command_signalled(name: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, number = case.start(), getattr(signal, name)
        wait_a_while(case)
        command.send(number)
        command.end()
        command.check_begun()
        if command.end() not in (-number, 128 + number, 0):
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")
        command.error()
        if case.chance.random() < 0.5:  # else the next command starts while workers may still be ending
            wait_for_all(command)
        ended = case.rerun()
        wait_for_all(command)
        return ended

    return fault


def workers_signalled(name: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, hits = case.start(), 0
        for _ in range(case.chance.choice([1, 1, 2, 3])):
            wait_a_while(case)
            for pid in command.children()[: case.chance.choice([1, 2])]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, name))
                    hits += 1
                    if name == "SIGSTOP" and case.chance.random() < 0.5:  # else it never continues
                        time.sleep(case.chance.uniform(0, 8))
                        os.kill(pid, signal.SIGCONT)
        if not hits:
            raise TooLate
        if command.end() not in (0, 1):
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")
        case.note(command.error())
        return case.rerun()

    return fault


def all_killed(case: Case) -> str:
    """Kill all processes at once, as a power cut does."""
    command = case.start()
    wait_a_while(case)
    if command.over:
        raise TooLate
    command.kill()
    return case.rerun()


def killed_between(kill: str) -> Callable[[Case], str]:
    """Kill a worker between two steps."""

    def fault(case: Case) -> str:
        command = case.start(kill=kill)
        end_well(command)
        if (case.work / "kill").exists():
            raise Wrong(f"no worker was killed: {command.text()}")
        case.check(command)
        return UNDISTURBED

    return fault


def one_cannot_train(**variables: str) -> Callable[[Case], str]:
    """Start two machines, one of which cannot train: it ends with one sentence, and the other trains all points."""

    def fault(case: Case) -> str:
        storage = f"sqlite:///{case.work / 'shared.db'}"
        case.runs = case.work / "unable"
        unable = case.start(storage, **variables)
        case.runs = case.work / "able"
        able = case.start(storage)
        case.check_shared(storage, able)
        case.note(unable.end_with_message())  # none if the other one was done before it began
        if found := results(case.work / "unable"):
            raise Wrong(f"results of a machine that cannot train: {found}")
        return UNDISTURBED

    return fault


def machine_frozen(case: Case) -> str:
    """Stop one of two machines for longer than its heartbeat may be missing, then let it continue."""
    storage = f"sqlite:///{case.work / 'shared.db'}"
    case.runs = case.work / "first"
    first = case.start(storage)
    wait_a_while(case)
    held = first.children()
    first.send(signal.SIGSTOP)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    case.runs = case.work / "second"
    second = case.start(storage)
    time.sleep(case.chance.uniform(4, 20))
    for pid in [first.process.pid, *held]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    end_well(first, second)
    case.check_database(storage)
    reference, found = case.expected, [results(case.work / name) for name in ("first", "second")]
    if found[0] | found[1] != reference or any(reference[k] != v for each in found for k, v in each.items()):
        raise Wrong(f"other results: {found}")
    return UNDISTURBED


def two_commands(case: Case) -> str:
    """Start two commands on the same directory."""
    first = case.start()
    wait_a_while(case)
    if first.over:
        raise TooLate
    second = case.start()
    end_well(first, second)
    return case.rerun()


def server_killed(case: Case) -> str:
    """Kill the database server of two machines, and start it again."""
    with postgres_server.running() as server:
        storage, commands = server.url("postgres"), []
        for name in ("first", "second"):
            case.runs = case.work / name
            commands.append(case.start(storage))
        if not all(command.wait_for_output("sweep sweep: ") for command in commands):
            raise Wrong(f"did not begin: {' '.join(command.text() for command in commands)}")
        for i in range(case.chance.choice([1, 1, 2, 3])):
            wait_a_while(case)
            if all(command.over for command in commands):
                if not i:
                    raise TooLate
                break
            case.chance.choice([server.kill, server.stop])()
            time.sleep(case.chance.uniform(1, 20))
            server.start()
        case.check_shared(storage, *commands)
    return UNDISTURBED


def file_damaged(how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command = case.start()
        wait_a_while(case)
        command.kill()
        files = [path for path in sorted(case.runs.rglob("*")) if path.is_file() and path.stat().st_size]
        top = [path for path in files if len(path.relative_to(case.runs).parts) < 3]  # the database, the records
        damage(case, files, how, likely=top)
        case.reopened = 1
        return case.rerun()

    return fault


def data_replaced(case: Case) -> str:
    """Put another set behind the name of a data set while a sweep is trained on it, or after that."""
    data, case.of, case.workers = case.work / "data", case.chance.choice(SETS[1:]), 1
    shutil.copytree(case.models / "data" / "grey", data)
    case.use_data(data)
    command = case.start()
    command.wait_for_output("sweep sweep: ")  # it has read about the first set
    wait_a_while(case)
    if case.chance.random() < 0.5:
        command.kill()
    case.reopened = 1  # a point is trained on both sets
    return case.rerun_on_another_set(data, case.of)


def database_moved(case: Case) -> str:
    """Move the database away while the sweep runs."""
    command, path = case.start(), case.runs / "sweeps.db"
    command.wait_for(path.exists)
    wait_a_while(case)
    if command.over:
        raise TooLate
    path.rename(case.work / "away.db")
    case.note(command.end_with_message())
    return case.rerun()


def disk_full(case: Case) -> str:
    """Fill the disk of the runs and the database at a random time."""
    with small_disk(case, megabytes=48) as fill:
        command = case.start()
        wait_a_while(case)
        if command.over:
            raise TooLate
        fill()
        case.note(command.end_with_message())
        if case.chance.random() < 0.5:
            case.repair()
        return case.rerun()


# Kind -> its fault, and how often it is chosen relative to the rarest.
KINDS: dict[str, tuple[Callable[[Case], str], int]] = {
    **{f"sweep: command, {name}": (command_signalled(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGINT")},
    **{f"sweep: worker, {name}": (workers_signalled(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGSTOP")},
    "sweep: power cut": (all_killed, 3),
    "sweep: worker killed between claim and start": (killed_between("claim+after"), 2),
    "sweep: worker killed between finish and record": (killed_between("finish+before"), 2),
    "sweep: worker killed after the record": (killed_between("finish+after"), 1),
    "sweep: machine frozen, another takes over": (machine_frozen, 2),
    "sweep: two machines, one without a device": (one_cannot_train(JAX_PLATFORMS="cuda"), 2),
    "sweep: two machines, one without data": (one_cannot_train(FAULT_NO_DATA="1"), 2),
    "sweep: data set replaced behind its name": (data_replaced, 3),
    "sweep: database killed and restarted": (server_killed, 3),
    "sweep: two commands at once": (two_commands, 1),
    "sweep: database taken away": (database_moved, 1),
    "sweep: disk full": (disk_full, 2),
    **{f"sweep: a file {how}": (file_damaged(how), 1) for how in DAMAGE},
}


def prepare(models: pathlib.Path) -> None:
    """Run undisturbed sweeps, with one worker and with two."""
    (models / "sweep-work").mkdir(parents=True)
    case = Case(models / "sweep-work", models, random.Random(0))
    make_sets(models)
    for name, case.workers in (("sweep", 1), ("sweep", 2), *((name, 1) for name in SETS[1:])):
        if name in SETS:
            case.use_data(models / "data" / name)
        command = case.start()
        if command.end():
            sys.exit(f"the undisturbed sweep failed: {command.text()}")
        shutil.move(case.runs, models / f"{name}-{case.workers}")
