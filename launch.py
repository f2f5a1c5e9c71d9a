"""Trains one network or a whole sweep, or prints what it costs: `python launch.py --help`."""

import contextlib
import gc
import os
import pathlib
import re
import signal
import sys
from collections.abc import Collection

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Before training, which listens itself, there is nothing to undo; and of an exception in the middle of an import or
    # of a collector's callback, other libraries make errors of their own, or nothing.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mobilenet_jax import config, console
from mobilenet_jax.errors import InputError
from mobilenet_jax.networks import cost
from mobilenet_jax.records import directory as writer
from mobilenet_jax.sweeps import file as sweepfile
from mobilenet_jax.sweeps import points as grid
from mobilenet_jax.sweeps import tables as listing
from mobilenet_jax.training import host, wandb_logger

ROOT = pathlib.Path(__file__).parent
WORKDIR = flags.DEFINE_string("workdir", "runs", "Holds the run directories.")
RUN_DIR = flags.DEFINE_string("run_dir", "", "This run's own directory, instead of one named after it in --workdir.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what it costs, layer by layer or point by point, and train nothing."
)
FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How --dry_run prints.")
SWEEP = flags.DEFINE_string(
    "sweep", "", "A W&B sweep file: train all its points, each once; `wandb sweep` takes it too."
)
STORAGE = flags.DEFINE_string("storage", "", "--sweep: database URL that machines share; SQLite in --workdir if empty.")
WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "--sweep: processes that train; 0: one for each GPU, or one. On two CPU cores, one on each was fastest.",
    0,
)
FUSE = flags.DEFINE_integer("fuse", 1, "--sweep: train up to so many points as one program, where they can be.", 1)
MIN_MULT_ADDS = flags.DEFINE_integer("min_mult_adds", None, "--sweep: only points with at least so many.", 0)
MAX_MULT_ADDS = flags.DEFINE_integer("max_mult_adds", None, "--sweep: only points with at most so many.", 0)
OF_A_SWEEP = (STORAGE, WORKERS, FUSE, MIN_MULT_ADDS, MAX_MULT_ADDS)


class ImpossiblePoint(InputError):
    """One point cannot be run; others of its sweep may be."""


def main(argv: list[str]) -> int:
    sweep = first_look(argv)
    if sweep is not None:
        return run_sweep(sweep, *parse([argv[0], *map(beside, sweep.arguments), *argv[1:]]))
    name, loaded, _ = parse(argv)
    try:
        spec = config.resolve(loaded, name)
    except InputError as e:
        raise ImpossiblePoint(str(e)) from None
    if DRY_RUN.value:
        print(cost.describe(spec.arch, spec.resolution, spec.title, FORMAT.value))
        return 0
    host.keep_memory()
    from mobilenet_jax.training import loop as train  # takes a second that a dry run has no use for

    gc.freeze()  # tracing makes many objects: the collector need not look through all modules each time
    return train.run(spec, pathlib.Path(RUN_DIR.value or pathlib.Path(WORKDIR.value) / spec.run_name))


def run_sweep(sweep: sweepfile.Sweep, name: str, base: ConfigDict, overridden: Collection[str]) -> int:
    budget = MIN_MULT_ADDS.value, MAX_MULT_ADDS.value
    if sweep.method == "grid":
        points = grid.points(sweep, base, name, overridden, *budget)
    else:
        points = grid.check_search(sweep, base, name, overridden)
    if DRY_RUN.value:
        print(listing.describe(sweep, points, FORMAT.value))
        return 0
    from mobilenet_jax.sweeps import supervisor as sweeps  # and Optuna with it

    return sweeps.run(
        sweep,
        points,
        lambda values: grid.draw(sweep, base, name, values),
        sweeps.Budget(*budget),
        pathlib.Path(WORKDIR.value),
        STORAGE.value,
        WORKERS.value,
        FUSE.value,
    )


def first_look(argv: list[str]) -> sweepfile.Sweep | None:
    """The sweep that is asked for, which decides on the config that the other flags are of.

    Raises:
      InputError: flags that do not go together, or the file is no sweep.
    """
    logging.set_verbosity(logging.ERROR)  # the flag library warns before it raises
    try:
        flags.FLAGS(argv, known_only=True)
    except flags.Error as e:
        raise InputError(str(e).strip().splitlines()[-1]) from None
    if not SWEEP.value:
        for flag in OF_A_SWEEP:
            if flag.present:
                raise InputError(f"--{flag.name} goes with --sweep only")
        return None
    if RUN_DIR.value:
        raise InputError("--run_dir is of one run: the runs of a sweep go to --workdir")
    if any(re.match(r"--?config(=|$)", arg) for arg in argv):
        raise InputError(f"--config does not go with --sweep: the command in {SWEEP.value} names it")
    return sweepfile.read(pathlib.Path(SWEEP.value))


def beside(argument: str) -> str:
    """A config that a sweep file names is looked for where the command is started, then beside this file."""
    name = argument.removeprefix("--config=")
    here = name == argument or os.path.exists(name) or not (ROOT / name).exists()
    return argument if here else f"--config={ROOT / name}"


def parse(argv: list[str]) -> tuple[str, ConfigDict, Collection[str]]:
    """The config's name, the config with its overrides, and the keys that were overridden.

    Raises:
      InputError: a flag or a key that does not exist, a value of another type, a config that cannot be loaded.
    """
    app.define_help_flags()
    config.check_keys(match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg)))
    default = str(ROOT / "configs" / "digits_v1.py")
    try:  # defining the flag runs the config file already
        config_flags.DEFINE_config_file(
            "config", default, "The config; --config.KEY=VALUE overrides one of its keys.", sys_argv=argv
        )
        rest = flags.FLAGS(argv)
        loaded = flags.FLAGS.config
        if not isinstance(loaded, ConfigDict):
            getattr(loaded, "to_dict", None)  # raises what opening the file raised
            raise TypeError("get_config() must return a ConfigDict")
    except flags.Error as e:
        reason = str(e).strip().splitlines()[-1]
        key = re.match(r"flag --(?:no)?config\.([\w.]+)=", reason)
        allowed = f" (allowed is {config.RULES[key[1]].allowed})" if key else ""
        raise (ImpossiblePoint if key else InputError)(reason + allowed) from None
    except Exception as e:  # a config file is a program: it may raise anything
        reason = ([line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__])[-1]
        raise InputError(f"--config: {reason}") from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}: flags start with --")
    flag = flags.FLAGS["config"]
    return pathlib.Path(config_flags.get_config_filename(flag)).stem, loaded, config_flags.get_override_values(flag)


def run() -> int:
    """Does what the command line asks for; returns the exit code."""
    try:
        code = main(sys.argv)
        sys.stdout.flush()
        return code
    except InputError as e:
        console.warn(f"error: {e}")
        if not wandb_logger.under_agent() or not isinstance(e, (ImpossiblePoint, writer.Busy)):
            return 1
        wandb_logger.tell_agent("busy" if isinstance(e, writer.Busy) else "invalid", str(e))
        return 0  # three failures in a minute would end the agent, and with it the points that can be run
    except BrokenPipeError:  # whoever reads a table has seen enough; training goes on without readers
        console.mute()
        return 0
    except OSError as e:
        console.mute()
        console.warn(f"error: {e}")
        return 1


if __name__ == "__main__":
    code = run()
    if code:  # a checkpoint that cannot be written is waited for by threads of Orbax, and they by Python, for ever
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
