"""W&B as a view of a run; nothing else knows it."""

import contextlib
import os
import pathlib
import sys
import threading
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import first_line

_SECONDS = 20  # that W&B may take to start or to finish


class Tracker:
    """A run's page. Whatever goes wrong there is said once and never stops the run."""

    def __init__(
        self, mode: str, project: str, name: str, digest: str, directory: pathlib.Path, config: dict[str, Any]
    ):
        """Starts a W&B run; `config` holds flat keys, so that any two of them make a plot."""
        self._run: Any = None
        self._failed = False
        mode = os.environ.get("WANDB_MODE") or mode
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")  # its settings do not silence the login

        def start(mode: str) -> None:
            import wandb

            self._run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=project,
                name=name or None,
                id=os.environ.get("WANDB_RUN_ID") or digest or None,
                resume="allow" if mode == "online" else None,
                dir=directory,
                config=config,
                reinit="create_new",  # runs that are trained side by side each have their own
                settings=wandb.Settings(silent=True, console="off", init_timeout=_SECONDS, finish_timeout=_SECONDS),
            )
            self._run.define_metric("*", step_metric="epoch")

        try:
            if mode != "auto":
                start(mode)
                return
            try:
                import wandb

                online = under_agent() or wandb.login(prompt=False)
                start("online" if online else "offline")
            except Exception as e:  # a machine that has no network, mostly
                console.warn(f"W&B does not answer, so this run is logged offline, for `wandb sync`: {first_line(e)}")
                start("offline")
        except Exception as e:
            self._give_up(e)

    def log(self, row: dict[str, Any]) -> None:
        """Logs one row of metrics against its epoch."""
        self._try(lambda run: run.log(row))

    def finish(self, summary: dict[str, Any]) -> None:
        """Puts the summary on the run's page and waits, for a while, until all is sent."""
        self._try(lambda run: (run.summary.update(summary), run.finish()))
        if self._failed:  # else W&B complains once more when the process ends
            ending = threading.Thread(target=self._tear_down, daemon=True)
            ending.start()
            ending.join(_SECONDS)  # its service now and then never ends

    @staticmethod
    def _tear_down() -> None:
        with contextlib.suppress(Exception):
            sys.modules["wandb"].teardown()

    def _try(self, action):
        if self._run is not None:
            try:
                action(self._run)
            except Exception as e:
                self._give_up(e)

    def _give_up(self, error):
        self._run, self._failed = None, True
        console.warn(f"W&B failed and is left out of this run: {first_line(error)}")


def under_agent() -> bool:
    """Whether `wandb agent` has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def tell_agent(status: str, error: str) -> None:
    """Notes on the page of the agent's run why there is no result."""
    tracker = Tracker("auto", "", "", "", pathlib.Path(os.environ.get("WANDB_DIR") or "."), {})
    tracker.finish({"status": status, "error": error})
