"""Faults of a training command, for `faults.py`: it or what it has written is hurt, and the command is given again.

A good end: the result of an undisturbed run (`params_sha256`, the figures, every row of metrics less its speed), at
once or after one sentence that says what to do was followed; and the other run in the same directory is not touched.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from sweep_faults import Late, Wrong, check_begun, ended

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = {
    **{"model.alpha": 0.25, "model.rho": 0.5, "model.variant": "shallow", "optim.warmup_epochs": 0.5},
    **{"train.epochs": 3, "train.checkpoint_epochs": 0.5, "train.batch_size": 64},
}
SPEEDS = ("images_per_second",)


class Case:
    """One fault: a directory of its own with a run to be hurt and a finished one beside it."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        self.work, self.models, self.chance = work, models, chance
        self.runs = work / "runs"
        self.env: dict[str, str] = {}
        self.options: list[str] = []
        self.mend: Callable[[], None] = lambda: None  # takes the obstacle away
        self.said: list[str] = []  # sentences, as they were printed
        self.commands: list[Command] = []
        self.of("finished")
        shutil.copytree(models / "finished", self.runs / "other")

    def of(self, model: str) -> None:
        """The run to be hurt has the name of the undisturbed one."""
        self.name = (self.models / f"{model}.name").read_text()

    @property
    def run(self) -> pathlib.Path:
        return self.runs / self.name

    def start(self) -> "Command":
        self.commands.append(Command(self))
        return self.commands[-1]

    def model(self, name: str) -> None:
        """Puts a run there: 'finished' or 'killed'."""
        shutil.copytree(self.models / name, self.run)


class Command:
    """`launch.py` on the run of a case; what it prints goes to files."""

    def __init__(self, case: Case):
        self.case, self.started = case, time.monotonic()
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "disabled"}
        env |= {"XDG_CACHE_HOME": str(case.models / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | case.env
        arguments = [f"--config.{key}={value}" for key, value in TINY.items()] + case.options
        self.out, self.err = (pathlib.Path(tempfile.mkstemp(dir=case.work, suffix=end)[1]) for end in (".out", ".err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "launch.py"), f"--workdir={case.runs}", *arguments],
                cwd=case.work,
                env={k: v for k, v in env.items() if v},
                stdout=out,
                stderr=err,
            )

    def said(self, text: str, within: float = 120.0) -> bool:
        """Waits until it has printed `text`, or ended."""
        end = time.monotonic() + within
        while text not in self.out.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def left(self, pattern: str, within: float = 120.0) -> bool:
        """Waits until a file of this name is in the run directory."""
        end = time.monotonic() + within
        while not any(self.case.run.glob(pattern)):
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def end(self, within: float = 180.0) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Wrong(f"hangs for {within:.0f} s: {self.text()}") from None

    def kill(self) -> None:
        """Ends it, if that is still to be done."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        return self.out.read_text()[-2000:] + self.err.read_text()[-4000:]

    def error(self) -> str:
        """The one sentence on stderr, '' if there is none; anything else there is wrong."""
        text = self.err.read_text()
        if "Traceback" in text or "Traceback" in self.out.read_text():
            raise Wrong(f"traceback: {self.text()}")
        if text and not re.fullmatch(r"error: .*\n", text):
            raise Wrong(f"more than a sentence: {text[-2000:]}")
        return text.strip()


def result(run: pathlib.Path) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    keys = ("status", "params_sha256", "test_accuracy", "test_loss", "train_loss", "steps")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: summary[key] for key in keys} | {
        "rows": [{k: v for k, v in r.items() if k not in SPEEDS} for r in rows]
    }


def tree(directory: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def settle(case: Case) -> str:
    """Gives the command again until the run has its result, doing what sentences say; what the end was."""
    expected = result(case.models / "finished")
    for attempt in range(4):
        command = case.start()
        code = command.end()
        sentence = command.error()
        if code == 0 and not sentence:
            if (found := result(case.run)) != expected:
                raise Wrong(f"another result: {found} instead of {expected}; {command.text()}")
            return ended(case, attempt)
        if code != 1 or not sentence:
            raise Wrong(f"exit code {code} with {command.text()!r}")
        case.said.append(sentence)
        follow(case, sentence)
    raise Wrong(f"no result after four attempts: {case.said}")


def follow(case: Case, sentence: str) -> None:
    """Does what a sentence says."""
    if "once it can" in sentence or "cannot be written" in sentence or "cannot be read" in sentence:
        case.mend()
    elif path := re.search(r"error: (\S+) .*move it away", sentence) or re.search(r"move (\S+) away", sentence):
        os.rename(path[1], case.work / f"away-{len(case.said)}")
    elif "name another directory" in sentence or "different" in sentence or "another run" in sentence:
        case.run.rename(case.work / f"away-{len(case.said)}")
    else:
        raise Wrong(f"a sentence that says nothing to do: {sentence}")


def end_with_a_word(case: Case, command: Command) -> None:
    """The command ends, with one sentence or as if nothing were."""
    code, sentence = command.end(), command.error()
    if code != (1 if sentence else 0):
        raise Wrong(f"exit code {code}: {command.text()}")
    case.said += [sentence] if sentence else []


# The kinds. Each hurts the run of its case; `settle` is what follows.


def killed(name: str, moment: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, number = case.start(), getattr(signal, name)
        there, longest = {
            "start": (lambda: True, 2.5),
            "compile": (lambda: command.said("run  "), 2.5),
            "step": (lambda: command.said("first step"), 1.2),
            "checkpoint": (lambda: command.left("checkpoints/*tmp*"), 0.03),
            "evaluation": (lambda: command.said(f"epoch {case.chance.randrange(1, 3)}/3"), 0.4),
            "end": (lambda: command.left("checkpoints/66"), 0.3),
        }[moment]
        if not there():
            raise Late
        time.sleep(longest * case.chance.random())
        if command.process.poll() is not None:
            raise Late
        at_end = "epoch 3/3" in command.out.read_text()
        command.process.send_signal(number)
        sent, code = time.monotonic(), command.end()
        check_begun(command.text())
        at_end |= time.monotonic() - sent < 2
        if code not in (-number, 128 + number) and not (code == 0 and at_end):
            raise Wrong(f"exit code {code}: {command.text()}")
        elif code == 128 + number:
            command.error()
        return settle(case)

    return fault


def damaged(model: str, how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        case.model(model)
        hurt(case, [path for path in sorted(case.run.rglob("*")) if path.is_file()], how)
        return settle(case)

    return fault


def hurt(case: Case, files: list[pathlib.Path], how: str) -> None:
    """Damages one of the files; the few at the top are as likely as all the others."""
    files = [path for path in files if path.stat().st_size or how == "removed"]
    top = [path for path in files if path.parent == case.run]
    path = case.chance.choice(top if top and case.chance.random() < 0.5 else files)
    case.said.append(f"({how}: {path.relative_to(case.work)})")
    damage(path, how, case.chance)


def damage(path: pathlib.Path, how: str, chance: random.Random) -> None:
    """A bit is 'flipped', the file is 'cut', 'emptied' or 'removed'."""
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()


def disk_full(case: Case) -> str:
    """The run directory is on a disk of its own, which is full from a random moment on."""
    disk = case.work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if not have_root() or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        raise NotImplementedError("mounting a small disk is not allowed here")
    try:
        case.runs.joinpath("other").rename(case.work / "other")
        shutil.copytree(case.work / "other", disk / "other")
        case.runs.rmdir()
        case.runs = disk
        filler = disk / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        case.mend = lambda: filler.unlink(missing_ok=True)
        command = case.start()
        if command.said(case.chance.choice(["run  ", "first step", "epoch 1/3", "epoch 2/3"])):
            time.sleep(0.5 * case.chance.random())
        fill()
        end_with_a_word(case, command)
        if case.chance.random() < 0.5:
            case.mend()
        ended = settle(case)
        case.mend()
        check_other(case)
        return ended
    finally:
        case.runs = case.work / "none"
        subprocess.run(["umount", "-l", str(disk)], check=True)


def read_only(case: Case) -> str:
    """From a random moment on nothing may be written in the run directory."""

    def forbid() -> None:
        if have_root():  # whom permissions do not hold back
            shut = case.work / "shut"
            shut.mkdir()
            for command in (
                ["mount", "--bind", str(case.run), str(shut)],
                ["mount", "-o", "remount,ro,bind", str(shut)],
                ["mount", "--move", str(shut), str(case.run)],
            ):
                if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
                    raise NotImplementedError("mounting a directory read-only is not allowed here")
        else:
            permit(0)

    def permit(bits: int) -> None:
        for path in [*case.run.rglob("*"), case.run]:
            path.chmod((0o500 if path.is_dir() else 0o400) | bits)

    def allow() -> None:
        if have_root():
            subprocess.run(["umount", "-l", str(case.run)], stderr=subprocess.DEVNULL)
        else:
            permit(0o200)

    case.mend = allow
    command = case.start()
    try:
        if command.said(case.chance.choice(["run  ", "first step", "epoch 1/3", "epoch 2/3"])):
            time.sleep(0.5 * case.chance.random())
        forbid()
        end_with_a_word(case, command)
        return settle(case)
    finally:
        allow()


def two_at_once(case: Case) -> str:
    first = case.start()
    time.sleep(case.chance.uniform(0, 6))
    second = case.start()
    codes = [first.end(), second.end()]
    sentences = [command.error() for command in (first, second)]
    case.said += [sentence for sentence in sentences if sentence]
    if any(code != (1 if sentence else 0) for code, sentence in zip(codes, sentences, strict=True)) or all(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    return settle(case)


def swept_away(case: Case) -> str:
    """The lock is removed, or the whole run, while a process is on it; then another one is started."""
    first = case.start()
    if first.said(case.chance.choice(["run  ", "first step", "epoch 1/3"])):
        time.sleep(0.5 * case.chance.random())
    if first.process.poll() is not None:
        raise Late
    if case.chance.random() < 0.5:
        (case.run / ".lock").unlink(missing_ok=True)
    else:
        shutil.rmtree(case.run, ignore_errors=True)
    for command in (first, case.start()):
        end_with_a_word(case, command)
    return settle(case)


def frozen(case: Case) -> str:
    """The process stands still for a while, and another one is started meanwhile."""
    first = case.start()
    first.said("first step")
    time.sleep(case.chance.random())
    first.process.send_signal(signal.SIGSTOP)
    second = case.start()
    second.end()
    first.process.send_signal(signal.SIGCONT)
    if code := first.end():
        raise Wrong(f"exit code {code}: {first.text()}")
    if sentence := second.error():
        case.said.append(sentence)
    return settle(case)


def clock_set_back(case: Case) -> str:
    (case.work / "clock").mkdir()
    after, by = case.chance.uniform(1, 8), case.chance.choice([60, 3600, 86_400 * 400])
    (case.work / "clock" / "sitecustomize.py").write_text(
        "import time\n"
        "real, start = time.time, time.monotonic()\n"
        f"time.time = lambda: real() - ({by} if time.monotonic() - start > {after} else 0)\n"
    )
    case.env = {"PYTHONPATH": str(case.work / "clock")}
    command = case.start()
    if code := command.end():
        raise Wrong(f"exit code {code}: {command.text()}")
    command.error()
    return settle(case)


def tracking_fails(kind: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        with answering(kind) as port:
            case.options = [f"--config.wandb.mode={case.chance.choice(['auto', 'online'])}"]
            case.env = {
                **{"WANDB_MODE": "", "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "a" * 40},
                **{"HOME": str(case.work), "WANDB_CONFIG_DIR": str(case.work), "WANDB_ERROR_REPORTING": "false"},
            }
            command = case.start()
            code = command.end()
            text = command.err.read_text()
            if code or not re.fullmatch(r"(W&B (failed and is left out of|does not answer, so) this run.*\n)+", text):
                raise Wrong(f"exit code {code}: {command.text()}")
            case.said += text.splitlines()
            case.options, case.env = [], {}
            return settle(case)

    return fault


@contextlib.contextmanager
def answering(kind: str) -> Iterator[int]:
    """A port of the loopback where nobody answers ('dead'), or somebody late or with rubbish."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, over = server.getsockname()[1], threading.Event()
        held = []

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection = server.accept()[0]
                    if kind == "rubbish":
                        connection.recv(65536)
                        connection.sendall(random.Random(port).randbytes(512))
                        connection.close()
                    else:
                        held.append(connection)

        if kind == "dead":
            server.close()
        else:
            server.settimeout(0.2)
            threading.Thread(target=serve, daemon=True).start()
        yield port
        over.set()


def data_damaged(how: str) -> Callable[[Case], str]:
    """A prepared set is damaged, its files or the arrays decoded from them."""

    def fault(case: Case) -> str:
        whole, data = case.models / "data", case.work / "data"
        shutil.copytree(whole, data)
        for path in data.rglob("*"):  # the cache is of files of these times
            shutil.copystat(whole / path.relative_to(data), path)
        case.options = ["--config.data.name=grey", f"--config.data.dir={data}", "--config.train.batch_size=16"]
        case.of("grey")

        def mend() -> None:
            shutil.rmtree(data)
            shutil.copytree(whole, data)

        case.mend = mend
        hurt(case, [path for path in sorted(data.rglob("*")) if path.is_file()], how)
        command = case.start()
        code, text = command.end(), command.err.read_text()
        if "Traceback" in command.text() or code not in (0, 1):
            raise Wrong(f"exit code {code}: {command.text()}")
        case.said += text.splitlines()
        if code == 1:
            mend()
            shutil.rmtree(case.run, ignore_errors=True)
            command = case.start()
            if command.end():
                raise Wrong(f"after the data were mended: {command.text()}")
        if result(case.run) != result(case.models / "grey"):
            raise Wrong(f"another result: {command.text()}")
        return "said, then as undisturbed" if code else "as undisturbed"

    return fault


def have_root() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux"


MOMENTS = ("start", "compile", "step", "checkpoint", "evaluation", "end")
HURTS = ("flipped", "cut", "emptied", "removed")
# Kind -> its fault, and how often it comes for each time that the rarest comes.
KINDS: dict[str, tuple[Callable[[Case], str], int]] = {
    **{f"{s}, {m}": (killed(s, m), 2) for s in ("SIGKILL", "SIGTERM", "SIGINT") for m in MOMENTS},
    **{f"{model} run, a file {how}": (damaged(model, how), 3) for model in ("killed", "finished") for how in HURTS},
    "disk full": (disk_full, 4),
    "directory read-only": (read_only, 3),
    "two processes on one run": (two_at_once, 2),
    "run or its lock removed, another started": (swept_away, 2),
    "process frozen, another started": (frozen, 1),
    "clock set back": (clock_set_back, 2),
    **{f"W&B's server {kind}": (tracking_fails(kind), 1) for kind in ("dead", "silent", "rubbish")},
    **{f"data set, a file {how}": (data_damaged(how), 2) for how in HURTS},
}


def check_other(case: Case) -> None:
    """Raises Wrong where the run beside the hurt one has changed."""
    if case.runs.exists() and tree(case.runs / "other") != tree(case.models / "finished"):
        raise Wrong("the other run was touched")


def prepare(models: pathlib.Path) -> None:
    """What faults start from: a finished run, a killed one, a data set with a run on it, and compiled programs."""
    (models / "work").mkdir(parents=True)
    case = Case.__new__(Case)
    case.work, case.models, case.runs = models / "work", models, models / "work"
    case.env, case.options, case.commands = {}, [], []
    for name in ("finished", "killed", "grey"):
        if name == "grey":
            sys.path.insert(0, str(ROOT / "tests"))
            import tensorflow_datasets as tfds
            from test_data import prepare as prepare_set
            from test_data import random_splits

            tfds.disable_progress_bar()
            splits = random_splits(0, {"train": 48, "test": 16}, side=28, channels=1, classes=3)
            prepare_set(models / "data", "grey", splits)
            case.options = ["--config.data.name=grey", f"--config.data.dir={models / 'data'}"]
            case.options += ["--config.train.batch_size=16"]
        command = case.start()
        if name == "killed":
            command.said("epoch 2/3")
            command.process.kill()
        code = command.end()
        if code != (-signal.SIGKILL if name == "killed" else 0):
            sys.exit(f"the undisturbed run failed: {command.text()}")
        (run,) = (path.parent for path in case.work.glob("*/config.json"))
        (models / f"{name}.name").write_text(run.name)
        run.rename(models / name)
