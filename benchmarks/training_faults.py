"""Faults of a training command, for `faults.py`: it or what it has written is hurt, and the command is given again.

A good end: the result of an undisturbed run (`params_sha256`, the figures, every row of metrics less its speed), at
once or after one sentence that says what to do was followed; and the other run in the same directory is not touched.
"""

import contextlib
import hashlib
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fault_case import HURTS, ROOT, Command, Late, Wrong, have_root, hurt, small_disk
from fault_case import Case as AnyCase

TINY = {
    **{"model.alpha": 0.25, "model.rho": 0.5, "model.variant": "shallow", "optim.warmup_epochs": 0.5},
    **{"train.epochs": 3, "train.checkpoint_epochs": 0.5, "train.batch_size": 64},
}
SPEEDS = ("images_per_second",)


class Case(AnyCase):
    """A directory of its own with a run to be hurt and a finished one beside it."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        super().__init__(work, models, chance)
        self.of = "finished"  # the undisturbed run, which has the name of the one to be hurt
        self.env: dict[str, str] = {}
        self.options: list[str] = []
        if (models / "finished").exists():  # it does not while it is being made
            shutil.copytree(models / "finished", self.runs / "other")

    @property
    def run(self) -> pathlib.Path:
        return self.runs / (self.models / f"{self.of}.name").read_text()

    def start(self) -> Command:
        tiny = [f"--config.{key}={value}" for key, value in TINY.items()]
        arguments = [str(ROOT / "launch.py"), f"--workdir={self.runs}", *tiny, *self.options]
        self.commands.append(Command(self, arguments, self.work, self.env))
        return self.commands[-1]

    def check(self, command: Command) -> None:
        if (found := result(self.run)) != (expected := result(self.models / self.of)):
            raise Wrong(f"another result: {found} instead of {expected}; {command.text()}")
        if tree(self.runs / "other") != tree(self.models / "finished"):
            raise Wrong(f"the other run was touched: {command.text()}")

    def left(self, command: Command, pattern: str) -> bool:
        """Waits until a file of this name is in the run directory, as `Command.until`."""
        return command.until(lambda: any(self.run.glob(pattern)))


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


# The kinds. Each hurts the run of its case; then it is settled.


def killed(name: str, moment: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, number = case.start(), getattr(signal, name)
        there, longest = {
            "start": (lambda: True, 2.5),
            "compile": (lambda: command.said("run  "), 2.5),
            "step": (lambda: command.said("first step"), 1.2),
            "checkpoint": (lambda: case.left(command, "checkpoints/*tmp*"), 0.03),
            "evaluation": (lambda: command.said(f"epoch {case.chance.randrange(1, 3)}/3"), 0.4),
            "end": (lambda: case.left(command, "checkpoints/66"), 0.3),
        }[moment]
        if not there():
            raise Late
        time.sleep(longest * case.chance.random())
        at_end = "epoch 3/3" in command.out.read_text()
        command.hit(number)
        sent, code = time.monotonic(), command.end()
        command.check_begun()
        at_end |= time.monotonic() - sent < 2
        if code not in (-number, 128 + number) and not (code == 0 and at_end):
            raise Wrong(f"exit code {code}: {command.text()}")
        elif code == 128 + number:
            command.error()
        return case.settle()

    return fault


def damaged(model: str, how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        shutil.copytree(case.models / model, case.run)
        files = [path for path in sorted(case.run.rglob("*")) if path.is_file()]
        hurt(case, files, how, likely=[path for path in files if path.parent == case.run])
        return case.settle()

    return fault


def disk_full(case: Case) -> str:
    """The run directory is on a disk of its own, which is full from a random moment on."""
    with small_disk(case, megabytes=24) as fill:
        command = case.start()
        if command.said(case.chance.choice(["run  ", "first step", "epoch 1/3", "epoch 2/3"])):
            time.sleep(0.5 * case.chance.random())
        fill()
        case.say(command.end_with_a_word())
        if case.chance.random() < 0.5:
            case.mend()
        return case.settle()


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
                    subprocess.run(["umount", "-l", str(shut)], stderr=subprocess.DEVNULL)
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
        case.say(command.end_with_a_word())
        return case.settle()
    finally:
        allow()


def two_at_once(case: Case) -> str:
    first = case.start()
    time.sleep(case.chance.uniform(0, 2.5))
    second = case.start()
    codes = [first.end(), second.end()]
    sentences = [command.error() for command in (first, second)]
    case.say(*sentences)
    if any(code != (1 if sentence else 0) for code, sentence in zip(codes, sentences, strict=True)) or all(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    if not any(sentences):
        raise Late  # one after the other
    return case.settle()


def swept_away(case: Case) -> str:
    """The lock is removed, or the whole run, while a process is on it; then another one is started."""
    first = case.start()
    if first.said(case.chance.choice(["run  ", "first step", "epoch 1/3"])):
        time.sleep(0.5 * case.chance.random())
    if first.over:
        raise Late
    if case.chance.random() < 0.5:
        (case.run / ".lock").unlink(missing_ok=True)
    else:
        shutil.rmtree(case.run, ignore_errors=True)
    for command in (first, case.start()):
        case.say(command.end_with_a_word())
    return case.settle()


def frozen(case: Case) -> str:
    """The process stands still for a while, and another one is started meanwhile."""
    first = case.start()
    first.said("first step")
    time.sleep(case.chance.random())
    first.hit(signal.SIGSTOP)
    second = case.start()
    second.end()
    first.hit(signal.SIGCONT)
    if code := first.end():
        raise Wrong(f"exit code {code}: {first.text()}")
    case.say(second.error())
    return case.settle()


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
    return case.settle()


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
            case.say(*text.splitlines())
            case.options, case.env = [], {}
            return case.settle()

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
        case.of = "grey"

        def mend() -> None:
            shutil.rmtree(data)
            shutil.copytree(whole, data)

        case.mend = mend
        hurt(case, [path for path in sorted(data.rglob("*")) if path.is_file()], how, likely=[])
        command = case.start()
        code, text = command.end(), command.err.read_text()
        if "Traceback" in command.text() or code not in (0, 1):
            raise Wrong(f"exit code {code}: {command.text()}")
        case.say(*text.splitlines())
        if code == 1:
            mend()
            shutil.rmtree(case.run, ignore_errors=True)
            command = case.start()
            if command.end():
                raise Wrong(f"after the data were mended: {command.text()}")
        case.check(command)
        return "said, then as undisturbed" if code else "as undisturbed"

    return fault


MOMENTS = ("start", "compile", "step", "checkpoint", "evaluation", "end")
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


def prepare(models: pathlib.Path) -> None:
    """What faults start from: a finished run, a killed one, a data set with a run on it, and compiled programs."""
    (models / "work").mkdir(parents=True)
    case = Case(models / "work", models, random.Random(0))
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
        (run,) = (path.parent for path in case.runs.glob("*/config.json"))
        (models / f"{name}.name").write_text(run.name)
        run.rename(models / name)
