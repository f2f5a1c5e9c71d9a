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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


class Wrong(Exception):
    """A fault that did not end well."""


class Late(Exception):
    """What was to be hurt was over already, or had not begun."""


def check_begun(text: str) -> None:
    """Raises Late where what was printed is Python's own, interrupted before it came to a line of ours."""
    if "<frozen site>" in text or "init_import_site" in text:
        raise Late


class Case:
    """A sweep in a directory of its own."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        self.work, self.models, self.chance = work, models, chance
        self.workers = chance.choice([1, 2])
        self.said: list[str] = []
        self.commands: list[Command] = []
        self.hurt = ""  # the run with a damaged file, which the books need no more once it is done
        (work / "sweep.yaml").write_text(json.dumps(SWEEP))

    @property
    def expected(self) -> dict[int, str]:
        """The results of an undisturbed sweep. The bits depend on how many cores a worker has."""
        return results(self.models / f"sweep-{self.workers}")

    def start(self, runs: str = "runs", storage: str = "", alone: bool = False) -> "Command":
        self.commands.append(Command(self, self.work / runs, storage, alone))
        return self.commands[-1]


class Command:
    """`launch.py --sweep`, and what it has started, as a group of processes."""

    def __init__(self, case: Case, runs: pathlib.Path, storage: str, alone: bool):
        self.case, self.runs = case, runs
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "disabled"}
        env |= {"XDG_CACHE_HOME": str(case.models / "cache"), "PYTHONPATH": str(ROOT)}
        self.out, self.err = (pathlib.Path(tempfile.mkstemp(dir=case.work, suffix=end)[1]) for end in (".out", ".err"))
        options = [f"--sweep={case.work / 'sweep.yaml'}", f"--workdir={runs}", f"--workers={case.workers}"]
        options += [f"--storage={storage}"] if storage else []
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HASTY, "alone" if alone else "", *options],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def hit(self, number: int) -> None:
        """Sends it a signal."""
        if self.process.poll() is not None:
            raise Late
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        try:
            children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in children.split()]

    def group(self, number: int) -> None:
        """Sends a signal to the command and all that it has started."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Ends whoever is left."""
        with contextlib.suppress(ProcessLookupError):
            self.group(signal.SIGKILL)
        self.process.wait()

    def end(self, within: float = 240.0) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.group(signal.SIGKILL)
            self.process.wait()
            raise Wrong(f"hangs for {within:.0f} s: {self.text()}") from None

    def text(self) -> str:
        logs = "".join(path.read_text()[-1500:] for path in sorted(self.runs.glob("logs/*")))
        return self.out.read_text()[-2500:] + self.err.read_text()[-2500:] + logs

    def error(self) -> str:
        """The one sentence on stderr, '' if there is none; anything else there is wrong."""
        if "Traceback" in (text := self.text()):
            raise Wrong(f"traceback: {text}")
        said = self.err.read_text()
        if said and not re.fullmatch(r"error: .*\n", said):
            raise Wrong(f"more than a sentence: {said[-2000:]}")
        return said.strip()


def results(runs: pathlib.Path, but: str = "") -> dict[int, str]:
    """Seed -> the digest of its parameters, for all runs but one."""
    summaries = [json.loads(path.read_text()) for path in runs.glob("*/summary.json") if path.parent.name != but]
    return {summary["seed"]: summary["params_sha256"] for summary in summaries}


def check_books(case: Case, url: str) -> None:
    """Each point has one result, the right one, and none is running."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (name,) = optuna.get_all_study_names(url)
    trials = optuna.load_study(study_name=name, storage=url).get_trials()
    done = [t.user_attrs["summary"] for t in trials if t.state.name == "COMPLETE"]
    states = collections.Counter(t.state.name for t in trials)
    found = {summary["seed"]: summary["params_sha256"] for summary in done}
    if len(done) != POINTS or found != case.expected or states["RUNNING"] or states["WAITING"]:
        raise Wrong(f"the books: {len(done)} results, {found}, {dict(states)}")


def settle(case: Case, runs: str = "runs", storage: str = "") -> str:
    """Gives the command again until all is done, doing what sentences say."""
    for attempt in range(4):
        command = case.start(runs, storage)
        code = command.end()
        sentence = command.error()
        directory = case.work / runs
        if code == 0 and not sentence:
            if f"{POINTS} of {POINTS} points have a result; 0 failed" not in command.out.read_text():
                raise Wrong(f"exit code 0 with {command.text()}")
            found = results(directory, but=case.hurt)
            if found.items() - case.expected.items() or len(found) < POINTS - bool(case.hurt):
                raise Wrong(f"other results: {found}; {command.text()}")
            check_books(case, storage or f"sqlite:///{directory / 'sweeps.db'}")
            return ended(case, attempt)
        said = [sentence] if sentence else re.findall(r"^failed  .*: (.*)$", command.out.read_text(), re.MULTILINE)
        if code != 1 or not said:
            raise Wrong(f"exit code {code} with {command.text()}")
        case.said += said
        for text in said:
            follow(case, directory, text)
    raise Wrong(f"not done after four attempts: {case.said}")


def ended(case, attempts: int) -> str:
    """The end of a case that came out as an undisturbed one."""
    spoke = attempts or any(said.startswith("error: ") for said in case.said)
    return "said, then as undisturbed" if spoke else "as undisturbed"


def follow(case: Case, runs: pathlib.Path, sentence: str) -> None:
    """Does what a sentence says: moves a file away, or the directory of a run."""
    file = re.search(r"(/[^\s:]+\.(?:json|db)):? .*move it away", sentence)
    directory = re.search(rf"({re.escape(str(runs))}/[^\s:/]+).* name another", sentence)
    found = file or directory
    if not found:
        raise Wrong(f"a sentence that says nothing to do: {sentence}")
    if pathlib.Path(found[1]).exists():
        os.rename(found[1], case.work / f"away-{len([*case.work.glob('away-*')])}")


def rest(case: Case, command: Command) -> None:
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
        check_begun(command.text())
        if command.end() not in (-number, 128 + number, 0):
            raise Wrong(f"exit code {command.process.returncode}: {command.text()}")
        command.error()
        if case.chance.random() < 0.5:  # else the next one comes while the workers may still end
            rest(case, command)
        ended = settle(case)
        rest(case, command)
        return ended

    return fault


def workers_hit(name: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, hits = case.start(), 0
        for _ in range(case.chance.choice([1, 1, 2, 3])):
            moment(case)
            for pid in command.workers()[: case.chance.choice([1, 2])]:
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
        command.error()
        return settle(case)

    return fault


def all_killed(case: Case) -> str:
    """As when the power goes."""
    command = case.start()
    moment(case)
    command.hit(signal.SIGSTOP)
    command.group(signal.SIGKILL)
    command.end()
    return settle(case)


def machine_frozen(case: Case) -> str:
    """One of two machines falls silent for longer than its claim lasts, and wakes up after the other took its point."""
    storage = f"sqlite:///{case.work / 'shared.db'}"
    first = case.start("first", storage, alone=True)
    moment(case)
    first.hit(signal.SIGSTOP)
    first.group(signal.SIGSTOP)
    second = case.start("second", storage, alone=True)
    time.sleep(case.chance.uniform(4, 20))
    if first.process.poll() is None:
        first.group(signal.SIGCONT)
    codes = [first.end(), second.end()]
    for command in (first, second):
        command.error()
    if any(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    check_books(case, storage)
    reference, found = case.expected, [results(case.work / name) for name in ("first", "second")]
    if found[0] | found[1] != reference or any(reference[k] != v for each in found for k, v in each.items()):
        raise Wrong(f"other results: {found}")
    return "as undisturbed"


def two_commands(case: Case) -> str:
    """Two commands on the same directory."""
    first = case.start()
    moment(case)
    if first.process.poll() is not None:
        raise Late
    second = case.start()
    codes = [first.end(), second.end()]
    for command in (first, second):
        command.error()
    if any(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    return settle(case)


def file_hit(how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        from training_faults import damage

        command = case.start()
        moment(case)
        command.group(signal.SIGKILL)
        command.end()
        runs = case.work / "runs"
        files = [path for path in sorted(runs.rglob("*")) if path.is_file() and path.stat().st_size]
        books = [path for path in files if path.name.startswith("sweeps.db")]
        if files:
            path = case.chance.choice(books if books and case.chance.random() < 0.5 else files)
            case.said.append(f"({how}: {path.relative_to(runs)})")
            case.hurt = path.relative_to(runs).parts[0] if path.parent != runs else ""
            damage(path, how, case.chance)
        return settle(case)

    return fault


def books_taken_away(case: Case) -> str:
    """The database is moved away while the sweep runs."""
    command, path = case.start(), case.work / "runs" / "sweeps.db"
    while not path.exists() and command.process.poll() is None:
        time.sleep(0.05)
    moment(case)
    if command.process.poll() is not None:
        raise Late
    path.rename(case.work / "away.db")
    code, sentence = command.end(), command.error()
    if code != (1 if sentence else 0):
        raise Wrong(f"exit code {code}: {command.text()}")
    case.said += [sentence] if sentence else []
    return settle(case)


# Kind -> its fault, and how often it comes for each time that the rarest comes.
KINDS: dict[str, tuple[Callable[[Case], str], int]] = {
    **{f"sweep: command, {name}": (command_hit(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGINT")},
    **{f"sweep: worker, {name}": (workers_hit(name), 3) for name in ("SIGKILL", "SIGTERM", "SIGSTOP")},
    "sweep: power cut": (all_killed, 3),
    "sweep: machine frozen, another takes over": (machine_frozen, 2),
    "sweep: two commands at once": (two_commands, 1),
    "sweep: database taken away": (books_taken_away, 1),
    **{f"sweep: a file {how}": (file_hit(how), 1) for how in ("flipped", "cut", "emptied", "removed")},
}


def prepare(models: pathlib.Path) -> None:
    """Undisturbed sweeps, with one worker and with two."""
    (models / "sweep-work").mkdir(parents=True)
    case = Case(models / "sweep-work", models, random.Random(0))
    for case.workers in (1, 2):
        command = case.start()
        if command.end():
            sys.exit(f"the undisturbed sweep failed: {command.text()}")
        shutil.move(case.work / "runs", models / f"sweep-{case.workers}")
