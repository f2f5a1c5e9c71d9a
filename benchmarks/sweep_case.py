"""A sweep to damage, for `sweep_faults.py`: its command, and what its runs and its database must hold in the end."""

import collections
import json
import pathlib
import random
import re
import time

from fault_case import ROOT, Command, Wrong
from fault_case import Case as AnyCase

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
