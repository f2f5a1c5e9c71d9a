"""Faults of sweeps, for `faults.py`: damage the command, its workers or its database, then start the command again.

A good end: each point has the result of an undisturbed sweep and counts once in the database, no point is left running,
and no process is left.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable

from fault_case import DAMAGE, ROOT, SETS, UNDISTURBED, TooLate, Wrong, damage, make_sets, small_disk
from sweep_case import Case, end_well, results, wait_for_all

sys.path.append(str(ROOT / "tests"))
import postgres_server


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
