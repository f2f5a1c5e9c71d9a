"""A process that trains a sweep, kept alive by its command, and its share of the machine."""

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from mobilenet_jax.training import host

DONE, CANNOT_TRAIN, START_AGAIN = 0, 3, 4  # exit codes of a worker; after any other one, it has died
DEATHS = 8  # in a row without a line; then a worker is not started again


class WorkerProcess:
    """A process that runs the same command as this one, as a worker; a thread starts it again when it dies.

    Args:
      place: for --worker, 'NUMBER/COUNT/...'; it gives the process its share of the GPUs or of the CPU cores.
      gpus: names of the GPUs that the workers share.
      log: takes the process's errors.
      say: prints a line of the process. An empty line is only a sign of life.
    """

    def __init__(self, place: str, gpus: Sequence[str], log: pathlib.Path, say: Callable[[str], None]):
        self._number, count = map(int, place.split("/")[:2])
        self.log, self._say = log, say
        self.error = ""  # why it ended for good
        self.silence = 0.0  # seconds without a line, which the command counts
        # A program given with -c is part of `sys.orig_argv` too.
        self._command = [sys.executable, *sys.orig_argv[1:], f"--worker={place}"]
        self._env = os.environ | (host.gpu_settings(self._number, count, gpus) if gpus else host.kept_memory())
        self._cores: set[int] = set()
        if not gpus and hasattr(os, "sched_getaffinity"):  # XLA takes as many threads as there are cores
            cores = sorted(os.sched_getaffinity(0))
            n = len(cores)
            self._cores = {*cores[self._number * n // count : (self._number + 1) * n // count]}
            self._cores = self._cores or {cores[self._number % n]}
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._keep_alive, daemon=True)

    def send(self, number: int, stop: bool) -> None:
        """Send a signal to the process, if it runs; with `stop`, do not start it again."""
        if stop:
            self._over.set()
        if self._process is not None:
            self._process.send_signal(number)

    def _keep_alive(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread, from which the process inherits them
        deaths = 0
        while not self._over.wait(2 ** (deaths - 1) - 1 if deaths else 0):
            try:
                code, spoke = self._run()
            except OSError as e:
                can = "once it can, the same command resumes"
                self.error = f"{self.log}: a worker cannot be started with this log ({e.strerror}); {can}"
                return
            if code in (DONE, CANNOT_TRAIN) or self._over.is_set():
                return
            if code == START_AGAIN:
                continue
            deaths = 1 if spoke else deaths + 1
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            self._say(f"died      worker {self._number} ({how}; see {self.log})")
            if deaths == DEATHS:
                self.error = f"a worker died {deaths} times, the last time {how} (see {self.log})"
                return

    def _run(self) -> tuple[int, bool]:
        """Run the process once and print its lines; return its exit code, and whether it printed any."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # its end, which is also that of a command that was killed, ends the worker
                stdout=subprocess.PIPE,  # lines for the user
                stderr=log,
                env=self._env,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C goes to the command alone, which stops its workers
            )
        if self._over.is_set():  # a signal came while it started
            self._process.terminate()
        self.silence, spoke = 0.0, False
        for text in map(str.rstrip, self._process.stdout or ()):
            self.silence = 0.0
            if text.startswith("error: "):
                self.error = text.removeprefix("error: ")
            elif text:
                spoke = True
                self._say(text)
        return self._process.wait(), spoke
