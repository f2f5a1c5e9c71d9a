"""A run to damage, for `training_faults.py`: its command, and the result that it must have in the end."""

import json
import pathlib
import random
import shutil

from fault_case import ROOT, Command, Wrong, tree
from fault_case import Case as AnyCase

TINY = {
    **{"model.alpha": 0.25, "model.rho": 0.5, "model.variant": "shallow", "optim.warmup_epochs": 0.5},
    **{"train.epochs": 3, "train.checkpoint_epochs": 0.5, "train.batch_size": 64},
}
SPEEDS = ("images_per_second",)


class Case(AnyCase):
    """One run to damage, and a finished run next to it."""

    def __init__(self, work: pathlib.Path, models: pathlib.Path, chance: random.Random):
        super().__init__(work, models, chance)
        self.of = "finished"  # the undisturbed run, whose name is that of the run to damage
        self.env: dict[str, str] = {}
        if (models / "finished").exists():  # not yet while `prepare` makes it
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
        """Wait until a file of this name is in the run directory, as `Command.wait_for`."""
        return command.wait_for(lambda: any(self.run.glob(pattern)))


def result(run: pathlib.Path) -> dict:
    summary = json.loads((run / "summary.json").read_text())
    keys = ("status", "params_sha256", "test_accuracy", "test_loss", "train_loss", "steps")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: summary[key] for key in keys} | {
        "rows": [{k: v for k, v in r.items() if k not in SPEEDS} for r in rows]
    }
