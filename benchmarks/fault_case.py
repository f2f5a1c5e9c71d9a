"""What faults of training and of sweeps have in common: a command and how it is judged, a full disk, damaged files."""

import contextlib
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
HURTS = ("flipped", "cut", "emptied", "removed")


class Wrong(Exception):
    """A fault that did not end well."""


class Late(Exception):
    """What was to be hurt was over already, or had not begun."""


class Command:
    """A command as a group of processes; what it prints goes to files."""

    def __init__(self, case: "Case", arguments: list[str], cwd: pathlib.Path, env: dict[str, str]):
        """Started in `cwd`; variables of `env` that are '' are not set."""
        self.logs = case.runs / "logs"
        own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "disabled"}
        own |= {"XDG_CACHE_HOME": str(case.models / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | env
        self.out, self.err = (pathlib.Path(tempfile.mkstemp(dir=case.work, suffix=end)[1]) for end in (".out", ".err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={k: v for k, v in own.items() if v},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def until(self, there: Callable[[], bool], within: float = 120.0) -> bool:
        """Waits until it is there; False where the command ended before, or took too long."""
        end = time.monotonic() + within
        while not there():
            if self.over or time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def said(self, text: str) -> bool:
        """Waits until it has printed `text`, as `until`."""
        return self.until(lambda: text in self.out.read_text())

    def hit(self, number: int) -> None:
        """Sends it a signal, if it is not too late."""
        if self.over:
            raise Late
        self.process.send_signal(number)

    def children(self) -> list[int]:
        try:
            found = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in found.split()]

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
            self.kill()
            raise Wrong(f"hangs for {within:.0f} s: {self.text()}") from None

    def text(self) -> str:
        logs = "".join(path.read_text()[-1500:] for path in sorted(self.logs.glob("*")))
        return self.out.read_text()[-2500:] + self.err.read_text()[-4000:] + logs

    def error(self) -> str:
        """The one sentence on stderr, '' if there is none; anything else there is wrong."""
        if any("Traceback" in path.read_text() for path in (self.out, self.err, *self.logs.glob("*"))):
            raise Wrong(f"traceback: {self.text()}")
        said = self.err.read_text()
        if said and not re.fullmatch(r"error: .*\n", said):
            raise Wrong(f"more than a sentence: {said[-2000:]}")
        return said.strip()

    def check_begun(self) -> None:
        """Raises Late where what was printed is Python's own, interrupted before it came to a line of ours."""
        if "<frozen site>" in (text := self.text()) or "init_import_site" in text:
            raise Late

    def end_with_a_word(self) -> str:
        """It ends, with one sentence, which comes back, or as if nothing were."""
        code, sentence = self.end(), self.error()
        if code != (1 if sentence else 0):
            raise Wrong(f"exit code {code}: {self.text()}")
        return sentence


class Case:
    """One fault: a directory of its own, and the commands given there."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        self.work, self.models, self.chance = work, models, chance
        self.runs = work / "runs"
        self.said: list[str] = []  # sentences, as they were printed
        self.commands: list[Command] = []

    def start(self) -> Command:
        """Gives the command."""
        raise NotImplementedError

    def mend(self) -> None:
        """Takes the obstacle away; faults that put one in the way set this."""
        raise Wrong("a sentence of an obstacle where there is none")

    def check(self, command: Command) -> None:
        """Raises Wrong where the command's good end has left something else than an undisturbed one."""
        raise NotImplementedError

    def say(self, *sentences: str) -> None:
        self.said += filter(None, sentences)

    def failed(self, command: Command) -> list[str]:
        """What the command says of what failed, where it has no sentence for all of it."""
        return []

    def settle(self) -> str:
        """Gives the command again until all is done, doing what sentences say; what the end was."""
        for attempt in range(4):
            command = self.start()
            code, sentence = command.end(), command.error()
            if code == 0 and not sentence:
                self.check(command)
                spoke = attempt or any(said.startswith("error: ") for said in self.said)
                return "said, then as undisturbed" if spoke else "as undisturbed"
            said = [sentence] if sentence else self.failed(command)
            if code != 1 or not said:
                raise Wrong(f"exit code {code} with {command.text()}")
            self.say(*said)
            for text in said:
                self.follow(text)
        raise Wrong(f"not done after four attempts: {self.said}")

    def follow(self, sentence: str) -> None:
        """Does what a sentence says: mends something, or moves a file or the directory of a run away."""
        away = self.work / f"away-{len([*self.work.glob('away-*')])}"
        file = re.search(r"(/[^\s:]+)[: ].*move it away", sentence) or re.search(r"move (/\S+) away", sentence)
        directory = re.search(rf"({re.escape(str(self.runs))}/[^\s:/]+).* another (?:run|directory)", sentence)
        if "once it can" in sentence or "cannot be written" in sentence or "cannot be read" in sentence:
            self.mend()
        elif not (found := file or directory):
            raise Wrong(f"a sentence that says nothing to do: {sentence}")
        elif pathlib.Path(found[1]).exists():
            os.rename(found[1], away)


def hurt(case: Case, files: list[pathlib.Path], how: str, likely: list[pathlib.Path]) -> None:
    """Damages one of the files; the few `likely` ones are as likely as all the others."""
    whole = [path for path in files if path.stat().st_size or how == "removed"]
    likely = [path for path in likely if path in whole]
    if not whole:
        return
    path = case.chance.choice(likely if likely and case.chance.random() < 0.5 else whole)
    case.say(f"({how}: {path.relative_to(case.work)})")
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[case.chance.randrange(len(content))] ^= 1 << case.chance.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: case.chance.randrange(len(content))])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()


@contextlib.contextmanager
def small_disk(case: Case, megabytes: int) -> Iterator[Callable[[], None]]:
    """Puts the runs on a disk of their own; gives what fills it. The case's `mend` makes room again."""
    disk, filler = case.work / "disk", case.work / "disk" / "filler"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if not have_root() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        raise NotImplementedError("mounting a small disk is not allowed here")

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    try:
        if case.runs.exists():
            shutil.copytree(case.runs, disk / "runs")
        case.runs, case.mend = disk / "runs", lambda: filler.unlink(missing_ok=True)
        yield fill
    finally:
        for command in case.commands:
            command.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def have_root() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux"
