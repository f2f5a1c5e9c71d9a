"""Faults of a training command, for `faults.py`: damage the command or its files, then start the command again.

A good end: the result of an undisturbed run (`params_sha256`, the figures, each row of metrics except its speed), at
once or after following one message, and an untouched other run in the same directory.
"""

import contextlib
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

from fault_case import (
    AFTER_A_MESSAGE,
    DAMAGE,
    SETS,
    UNDISTURBED,
    TooLate,
    Wrong,
    damage,
    is_root,
    make_sets,
    small_disk,
)
from training_case import Case

# The kinds: each damages the run of its case, then starts the command again.


def signalled(name: str, when: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        command, number = case.start(), getattr(signal, name)
        reached, longest = {
            "start": (lambda: True, 2.5),
            "compile": (lambda: command.wait_for_output("run  "), 2.5),
            "step": (lambda: command.wait_for_output("first step"), 1.2),
            "checkpoint": (lambda: case.left(command, "checkpoints/*tmp*"), 0.03),
            "evaluation": (lambda: command.wait_for_output(f"epoch {case.chance.randrange(1, 3)}/3"), 0.4),
            "end": (lambda: case.left(command, "checkpoints/66.safetensors"), 0.3),
        }[when]
        if not reached():
            raise TooLate
        time.sleep(longest * case.chance.random())
        at_end = "epoch 3/3" in command.out.read_text()
        command.send(number)
        sent, code = time.monotonic(), command.end()
        command.check_begun()
        at_end |= time.monotonic() - sent < 2
        if code not in (-number, 128 + number) and not (code == 0 and at_end):
            raise Wrong(f"exit code {code}: {command.text()}")
        elif code == 128 + number:
            command.error()
        return case.rerun()

    return fault


def damaged(model: str, how: str) -> Callable[[Case], str]:
    def fault(case: Case) -> str:
        shutil.copytree(case.models / model, case.run)
        files = [path for path in sorted(case.run.rglob("*")) if path.is_file()]
        damage(case, files, how, likely=[path for path in files if path.parent == case.run])
        return case.rerun()

    return fault


def disk_full(case: Case) -> str:
    """Fill the disk of the run directory at a random time."""
    with small_disk(case, megabytes=24) as fill:
        command = case.start()
        if command.wait_for_output(case.chance.choice(["run  ", "first step", "epoch 1/3", "epoch 2/3"])):
            time.sleep(0.5 * case.chance.random())
        fill()
        case.note(command.end_with_message())
        if case.chance.random() < 0.5:
            case.repair()
        return case.rerun()


def read_only(case: Case) -> str:
    """Make the run directory read-only at a random time."""

    def forbid() -> None:
        if is_root():  # permissions do not apply to root
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
        if is_root():
            subprocess.run(["umount", "-l", str(case.run)], stderr=subprocess.DEVNULL)
        else:
            permit(0o200)

    case.repair = allow
    command = case.start()
    try:
        if command.wait_for_output(case.chance.choice(["run  ", "first step", "epoch 1/3", "epoch 2/3"])):
            time.sleep(0.5 * case.chance.random())
        forbid()
        case.note(command.end_with_message())
        return case.rerun()
    finally:
        allow()


def two_at_once(case: Case) -> str:
    first = case.start()
    time.sleep(case.chance.uniform(0, 2.5))
    second = case.start()
    codes = [first.end(), second.end()]
    messages = [command.error() for command in (first, second)]
    case.note(*messages)
    if any(code != (1 if message else 0) for code, message in zip(codes, messages, strict=True)) or all(codes):
        raise Wrong(f"exit codes {codes}: {first.text()} {second.text()}")
    if not any(messages):
        raise TooLate  # one ended before the other began
    return case.rerun()


def run_removed(case: Case) -> str:
    """Remove the lock or the whole run while a process trains it, then start another process."""
    first = case.start()
    if first.wait_for_output(case.chance.choice(["run  ", "first step", "epoch 1/3"])):
        time.sleep(0.5 * case.chance.random())
    if first.over:
        raise TooLate
    if case.chance.random() < 0.5:
        (case.run / ".lock").unlink(missing_ok=True)
    else:
        shutil.rmtree(case.run, ignore_errors=True)
    for command in (first, case.start()):
        case.note(command.end_with_message())
    return case.rerun()


def frozen(case: Case) -> str:
    """Stop the process for a while and start another one."""
    first = case.start()
    first.wait_for_output("first step")
    time.sleep(case.chance.random())
    first.send(signal.SIGSTOP)
    second = case.start()
    second.end()
    first.send(signal.SIGCONT)
    if code := first.end():
        raise Wrong(f"exit code {code}: {first.text()}")
    case.note(second.error())
    return case.rerun()


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
    return case.rerun()


def wandb_fails(kind: str) -> Callable[[Case], str]:
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
            case.note(*text.splitlines())
            case.options, case.env = [], {}
            return case.rerun()

    return fault


@contextlib.contextmanager
def answering(kind: str) -> Iterator[int]:
    """Yield a local port that is closed ('dead'), never answers ('silent'), or answers with 'rubbish'."""
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
    """Damage a prepared data set: its files or the arrays decoded from them."""

    def fault(case: Case) -> str:
        whole, data = case.models / "data" / "grey", case.work / "data"
        shutil.copytree(whole, data)
        for path in data.rglob("*"):  # the cache depends on the times of the files
            shutil.copystat(whole / path.relative_to(data), path)
        case.use_data(data)
        case.of = "grey"

        def repair() -> None:
            shutil.rmtree(data)
            shutil.copytree(whole, data)

        case.repair = repair
        damage(case, [path for path in sorted(data.rglob("*")) if path.is_file()], how, likely=[])
        command = case.start()
        code, text = command.end(), command.err.read_text()
        if "Traceback" in command.text() or code not in (0, 1):
            raise Wrong(f"exit code {code}: {command.text()}")
        case.note(*text.splitlines())
        if code == 1:
            repair()
            shutil.rmtree(case.run, ignore_errors=True)
            command = case.start()
            if command.end():
                raise Wrong(f"with repaired data: {command.text()}")
        case.check(command)
        return AFTER_A_MESSAGE if code else UNDISTURBED

    return fault


def data_replaced(case: Case) -> str:
    """Put another set behind the name of a data set while a run is trained on it, or after that."""
    data, other = case.work / "data", case.chance.choice(SETS[1:])
    shutil.copytree(case.models / "data" / "grey", data)
    case.use_data(data)
    case.of = other  # all have the same name, and so have their runs
    command = case.start()
    if command.wait_for_output("first step") and case.chance.random() < 0.5:
        command.kill()
    return case.rerun_on_another_set(data, other)


MOMENTS = ("start", "compile", "step", "checkpoint", "evaluation", "end")
# Kind -> its fault, and how often it is chosen relative to the rarest.
KINDS: dict[str, tuple[Callable[[Case], str], int]] = {
    **{f"{s}, {m}": (signalled(s, m), 2) for s in ("SIGKILL", "SIGTERM", "SIGINT") for m in MOMENTS},
    **{f"{model} run, a file {how}": (damaged(model, how), 3) for model in ("killed", "finished") for how in DAMAGE},
    "disk full": (disk_full, 4),
    "directory read-only": (read_only, 3),
    "two processes on one run": (two_at_once, 2),
    "run or its lock removed, another started": (run_removed, 2),
    "process frozen, another started": (frozen, 1),
    "clock set back": (clock_set_back, 2),
    **{f"W&B's server {kind}": (wandb_fails(kind), 1) for kind in ("dead", "silent", "rubbish")},
    "data set replaced behind its name": (data_replaced, 4),
    **{f"data set, a file {how}": (data_damaged(how), 2) for how in DAMAGE},
}


def prepare(models: pathlib.Path) -> None:
    """Make what faults start from: a finished run, a killed run, a data set with its run, and compiled programs."""
    (models / "work").mkdir(parents=True)
    case = Case(models / "work", models, random.Random(0))
    make_sets(models)
    for name in ("finished", "killed", *SETS):
        if name in SETS:
            case.use_data(models / "data" / name)
        command = case.start()
        if name == "killed":
            command.wait_for_output("epoch 2/3")
            command.process.kill()
        code = command.end()
        if code != (-signal.SIGKILL if name == "killed" else 0):
            sys.exit(f"the undisturbed run failed: {command.text()}")
        (run,) = (path.parent for path in case.runs.glob("*/config.json"))
        (models / f"{name}.name").write_text(run.name)
        run.rename(models / name)
