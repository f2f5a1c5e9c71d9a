"""Log a run to W&B, which is a view of the run directory. No other file knows W&B."""

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobilenet_jax import console
from mobilenet_jax.errors import InputError, first_line

_SECONDS = 20  # that W&B may take to start or to finish
_DEFAULTS = {"SILENT": "true", "CONSOLE": "off", "INIT_TIMEOUT": str(_SECONDS), "FINISH_TIMEOUT": str(_SECONDS)}
_MODES = ("online", "offline", "disabled", "shared", "run", "dryrun")  # that W&B knows; the last two are old names


def check_environment(sweep: bool) -> None:
    """Remove empty variables of W&B, and in a local `sweep` those of one run; InputError for an unknown mode."""
    unwanted = {"WANDB_RESUME", *(["WANDB_RUN_ID", "WANDB_NAME"] if sweep else [])}  # checkpoints say what resumes
    unwanted |= {name for name, value in os.environ.items() if name.startswith("WANDB_") and not value}
    for name in unwanted:  # W&B refuses empty values
        os.environ.pop(name, None)
    if (mode := os.environ.get("WANDB_MODE", "online")) not in _MODES:
        raise InputError(f"WANDB_MODE={mode}: must be one of {', '.join(map(repr, _MODES))}")


class WandbLogger:
    """A W&B run. A failure of W&B is reported once and never stops the training.

    Args:
      mode: 'auto' (online if logged in or under an agent, else offline), 'online', 'offline' or 'disabled'. The
        variable WANDB_MODE overrides it, and WANDB_PROJECT, _NAME, _RUN_ID and _DIR the next four.
      digest: id of the run, so that a resumed run continues its page.
      directory: where W&B keeps its files.
      config: flat keys, so that any two of them make a plot.
    """

    def __init__(
        self, mode: str, project: str, name: str, digest: str, directory: pathlib.Path, config: Mapping[str, Any]
    ):
        self._mode = os.environ.get("WANDB_MODE") or mode
        self._arguments = {
            "project": os.environ.get("WANDB_PROJECT") or project,
            "name": os.environ.get("WANDB_NAME") or name or None,
            "id": os.environ.get("WANDB_RUN_ID") or digest or None,
            "dir": directory if under_agent() else os.environ.get("WANDB_DIR") or directory,  # an agent always sets it
            "config": dict(config),
        }
        self._run: Any = None
        self._rows = 0  # logged so far
        self._failed = False

    def start(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Start the W&B run with the `rows` of a resumed one; before, and in mode 'disabled', nothing is logged."""
        if self._mode == "disabled":
            return
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(f"WANDB_{name}", value)
        try:
            if self._mode != "auto":
                self._init(self._mode, rows)
                return
            try:
                import wandb

                online = under_agent() or wandb.login(prompt=False)
                self._init("online" if online else "offline", rows)
            except Exception as e:  # mostly a machine without a network
                console.warn(f"W&B does not answer, so this run is logged offline, for `wandb sync`: {first_line(e)}")
                self._init("offline", rows)
        except Exception as e:
            self._give_up(e)

    def _init(self, mode: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if rows and mode in ("online", "run") else None,  # None replaces a page, now or when synced
            reinit="create_new",  # runs that train at the same time each have their own
            **self._arguments,
        )
        self._run.define_metric("*", step_metric="epoch")
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the next row of metrics against its epoch; W&B ignores it if the resumed page has it."""
        self._try(lambda run: run.log(dict(row), step=self._rows, commit=True))
        self._rows += 1

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
