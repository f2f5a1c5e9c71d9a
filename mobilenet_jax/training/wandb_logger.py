"""Log a run to W&B, which is a view of the run directory. No other file knows W&B."""

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import first_line

_SECONDS = 20  # that W&B may take to start or to finish


class WandbLogger:
    """A W&B run. A failure of W&B is reported once and never stops the training.

    Args:
      mode: 'auto' (online if logged in or under an agent, else offline), 'online', 'offline' or 'disabled'; the
        variable WANDB_MODE overrides it.
      digest: id of the run, so that a resumed run continues its page.
      directory: where W&B keeps its files.
      config: flat keys, so that any two of them make a plot.
    """

    def __init__(
        self, mode: str, project: str, name: str, digest: str, directory: pathlib.Path, config: Mapping[str, Any]
    ):
        self._mode = os.environ.get("WANDB_MODE") or mode
        self._arguments = {
            "project": project,
            "name": name or None,
            "id": os.environ.get("WANDB_RUN_ID") or digest or None,
            "dir": directory,
            "config": dict(config),
        }
        self._run: Any = None
        self._failed = False

    def start(self) -> None:
        """Start the W&B run. Before this, and in mode 'disabled', the other methods do nothing."""
        if self._mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")  # the setting `silent` does not silence the login
        try:
            if self._mode != "auto":
                self._init(self._mode)
                return
            try:
                import wandb

                online = under_agent() or wandb.login(prompt=False)
                self._init("online" if online else "offline")
            except Exception as e:  # mostly a machine without a network
                console.warn(f"W&B does not answer, so this run is logged offline, for `wandb sync`: {first_line(e)}")
                self._init("offline")
        except Exception as e:
            self._give_up(e)

    def _init(self, mode: str) -> None:
        import wandb

        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            reinit="create_new",  # runs that train at the same time each have their own
            settings=wandb.Settings(silent=True, console="off", init_timeout=_SECONDS, finish_timeout=_SECONDS),
            **self._arguments,
        )
        self._run.define_metric("*", step_metric="epoch")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row of metrics against its epoch."""
        self._try(lambda run: run.log(dict(row)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the summary and wait, for a limited time, until everything is sent."""
        self._try(lambda run: (run.summary.update(dict(summary)), run.finish()))
        if self._failed:  # else W&B complains again when the process ends
            ending = threading.Thread(target=self._tear_down, daemon=True)
            ending.start()
            ending.join(_SECONDS)  # W&B's service sometimes never ends

    @staticmethod
    def _tear_down() -> None:
        with contextlib.suppress(Exception):
            sys.modules["wandb"].teardown()

    def _try(self, action: Callable[[Any], Any]) -> None:
        if self._run is not None:
            try:
                action(self._run)
            except Exception as e:
                self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        self._run, self._failed = None, True
        console.warn(f"W&B failed and is left out of this run: {first_line(error)}")


def under_agent() -> bool:
    """Return whether `wandb agent` started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def report_to_agent(status: str, error: str) -> None:
    """Log to the agent's W&B run why there is no result."""
    logger = WandbLogger("auto", "", "", "", pathlib.Path(os.environ.get("WANDB_DIR") or "."), {})
    logger.start()
    logger.finish({"status": status, "error": error})
