"""What the faults of training and of sweeps share: commands and their exit, a full disk, damaged files."""

import contextlib
import hashlib
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
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
DAMAGE = ("flipped", "cut", "emptied", "removed")
# Sets of one name, with the same sizes: the first one, others images, other classes. In a process of its own, as the
# tests' modules set environment variables.
SETS = ("grey", "images", "classes")
MAKE_SETS = """
import pathlib, sys
sys.path[:0] = ["tests", "."]
import helpers
import tensorflow_datasets as tfds
tfds.disable_progress_bar()
for place, seed, classes, version in zip(sys.argv[2:], (0, 1, 0), (3, 3, 4), ("1.0.0", "1.0.0", "2.0.0")):
    splits = helpers.random_splits(seed, {"train": 48, "test": 16}, side=28, channels=1, classes=classes)
    helpers.prepare(pathlib.Path(sys.argv[1]) / place, "grey", splits, classes, version)
"""
UNDISTURBED, AFTER_A_MESSAGE = "as undisturbed", "said, then as undisturbed"  # good ends, as records name them


class Wrong(Exception):
    """A fault that ended badly."""


class TooLate(Exception):
    """The command had ended, or had not begun, when the fault came."""


class Command:
    """A command and all processes that it starts. Its output goes to files."""

    def __init__(self, case: "Case", arguments: list[str], cwd: pathlib.Path, env: dict[str, str]):
        """Start Python with `arguments` in `cwd`; an empty value in `env` unsets the variable."""
        self.logs = case.runs / "logs"
        merged = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "disabled"}
        merged |= {"XDG_CACHE_HOME": str(case.models / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | env
        self.out, self.err = (pathlib.Path(tempfile.mkstemp(dir=case.work, suffix=end)[1]) for end in (".out", ".err"))
        self.killed = False
        merged["FAULT_COMMAND"] = str(self.out)  # which all its processes inherit
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={k: v for k, v in merged.items() if v},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, condition: Callable[[], bool], within: float = 120.0) -> bool:
        """Wait until the condition holds; return False if the command ends first or it takes too long."""
        end = time.monotonic() + within
        while not condition():
            if self.over or time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def wait_for_output(self, text: str) -> bool:
        return self.wait_for(lambda: text in self.out.read_text())

    def send(self, number: int) -> None:
        """Send a signal to the command alone; raise TooLate if it has ended."""
        if self.over:
            raise TooLate
        self.process.send_signal(number)

    def processes(self) -> list[int]:
        """Return the command, if it runs, and all processes that it started, also those that outlived it."""
        found, mark = [], f"FAULT_COMMAND={self.out}".encode()
        for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def children(self) -> list[int]:
        found = []
        for children in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children"):  # of each thread
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in children.read_text().split()]
        return found

    def kill(self) -> None:
        """Kill all processes at once, as a power cut does."""
        self.process.kill()  # first, as it would start others again
        self.killed = True
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self, within: float = 240.0) -> int:
        """Wait for the command and return its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Wrong(f"hangs for {within:.0f} s: {self.text()}") from None

    def text(self) -> str:
        logs = "".join(path.read_text()[-1500:] for path in sorted(self.logs.glob("*")))
        return self.out.read_text()[-2500:] + self.err.read_text()[-4000:] + logs

    def error(self) -> str:
        """Return the one line on stderr, or ''; raise Wrong if there is more."""
        if any("Traceback" in path.read_text() for path in (self.out, self.err, *self.logs.glob("*"))):
            raise Wrong(f"traceback: {self.text()}")
        found = self.err.read_text()
        if found and not re.fullmatch(r"error: .*\n", found):
            raise Wrong(f"more than one line on stderr: {found[-2000:]}")
        return found.strip()

    def check_begun(self) -> None:
        """Raise TooLate if the signal interrupted Python's own start, before any line of ours."""
        if "<frozen site>" in (text := self.text()) or "init_import_site" in text:
            raise TooLate

    def end_with_message(self) -> str:
        """Wait for the command: exit code 1 with one line, which is returned, or 0 with none."""
        code, message = self.end(), self.error()
        if code != (1 if message else 0):
            raise Wrong(f"exit code {code}: {self.text()}")
        return message


class Case:
    """One fault, with a directory of its own and the commands started there."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        self.work, self.models, self.chance = work, models, chance
        self.runs = work / "runs"
        self.messages: list[str] = []  # as they were printed
        self.commands: list[Command] = []
        self.options: list[str] = []  # of the command line

    def start(self) -> Command:
        """Start the command."""
        raise NotImplementedError

    def repair(self) -> None:
        """Remove the obstacle. Faults with an obstacle replace this."""
        raise Wrong("a message about an obstacle where there is none")

    def check(self, command: Command) -> None:
        """Raise Wrong unless the finished command left what an undisturbed one leaves."""
        raise NotImplementedError

    def use_data(self, data: pathlib.Path) -> None:
        """Train on the set that `data` holds under the name of all `SETS`."""
        self.options = ["--config.data.name=grey", f"--config.data.dir={data}", "--config.train.batch_size=16"]

    def rerun_on_another_set(self, data: pathlib.Path, other: str) -> str:
        """Put another set in the place of that in `data`, and run again, which must leave all runs as they are."""

        def of_first() -> list[dict[str, str]]:
            away = [*self.work.glob("away-*"), *self.runs.glob("*/config.json")]
            return sorted((tree(path.parent if path.is_file() else path) for path in away), key=str)

        data.rename(self.work / "data-before")
        shutil.copytree(self.models / "data" / other, data)
        for command in self.commands:
            self.note(command.end_with_message() if not command.killed else "")
        before = of_first()
        ended = self.rerun()
        if before and (ended == UNDISTURBED or any(each not in of_first() for each in before)):
            raise Wrong(f"a run on another set was continued or changed: {self.messages}")
        return ended

    def note(self, *messages: str) -> None:
        self.messages += filter(None, messages)

    def failed(self, command: Command) -> list[str]:
        """Return the messages about parts that failed, if there is no single message."""
        return []

    def rerun(self) -> str:
        """Start the command again, following its messages, until all is done; return the kind of end."""
        for attempt in range(4):
            command = self.start()
            code, message = command.end(), command.error()
            if code == 0 and not message:
                self.check(command)
                stopped = attempt or any(each.startswith("error: ") for each in self.messages)
                return AFTER_A_MESSAGE if stopped else UNDISTURBED
            messages = [message] if message else self.failed(command)
            if code != 1 or not messages:
                raise Wrong(f"exit code {code} with {command.text()}")
            self.note(*messages)
            for each in messages:
                self.follow(each)
        raise Wrong(f"not done after four attempts: {self.messages}")

    def follow(self, message: str) -> None:
        """Do what a message asks for: remove the obstacle, or move a file or a run directory away."""
        away = self.work / f"away-{len([*self.work.glob('away-*')])}"
        file = re.search(r"(/[^\s:]+)[: ].*move it away", message) or re.search(r"move (/\S+) away", message)
        directory = re.search(rf"({re.escape(str(self.runs))}/[^\s:/]+).* another (?:run|directory)", message)
        if "once it can" in message or "cannot be written" in message or "cannot be read" in message:
            self.repair()
        elif not (found := file or directory):
            raise Wrong(f"a message that does not say what to do: {message}")
        elif pathlib.Path(found[1]).exists():
            os.rename(found[1], away)


def make_sets(models: pathlib.Path) -> None:
    """Make the data sets, once."""
    if not (models / "data").exists():
        command = [sys.executable, "-c", MAKE_SETS, str(models / "data"), *SETS]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def tree(directory: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(case: Case, files: list[pathlib.Path], how: str, likely: list[pathlib.Path]) -> None:
    """Damage one of the files; half of the time one of the few `likely` ones."""
    whole = [path for path in files if path.stat().st_size or how == "removed"]
    likely = [path for path in likely if path in whole]
    if not whole:
        return
    path = case.chance.choice(likely if likely and case.chance.random() < 0.5 else whole)
    case.note(f"({how}: {path.relative_to(case.work)})")
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    elif how == "flipped":
        content[case.chance.randrange(len(content))] ^= 1 << case.chance.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: case.chance.randrange(len(content)) if how == "cut" else 0])


@contextlib.contextmanager
def small_disk(case: Case, megabytes: int) -> Iterator[Callable[[], None]]:
    """Put the runs on a disk of their own; yield a function that fills it. The case's `repair` makes room again."""
    disk, filler = case.work / "disk", case.work / "disk" / "filler"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if not is_root() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        raise NotImplementedError("mounting a small disk is not allowed here")

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    try:
        if case.runs.exists():
            shutil.copytree(case.runs, disk / "runs")
        case.runs, case.repair = disk / "runs", lambda: filler.unlink(missing_ok=True)
        yield fill
    finally:
        for command in case.commands:
            command.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def is_root() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux"
