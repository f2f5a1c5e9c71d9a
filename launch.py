"""Train one network or a whole sweep, or print the cost: `python launch.py --help`."""

import contextlib
import gc
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Collection, Iterable

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Before training there is nothing to undo. KeyboardInterrupt in the middle of an import would become some other
    # error of another library, or be lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mobilenet_jax import config, config_keys, console
from mobilenet_jax.data import datasets
from mobilenet_jax.errors import Busy, InputError
from mobilenet_jax.networks import cost
from mobilenet_jax.sweeps import file as sweep_files
from mobilenet_jax.sweeps import points as sweep_points
from mobilenet_jax.sweeps import tables as sweep_tables
from mobilenet_jax.training import devices, host, wandb_logger

ROOT = pathlib.Path(__file__).resolve().parent
WORKDIR = flags.DEFINE_string("workdir", "runs", "Directory of the run directories.")
RUN_DIR = flags.DEFINE_string("run_dir", "", "Directory of this run, instead of one in --workdir with the run's name.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the cost of each layer, or of each point, and train nothing.")
FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Output format of --dry_run.")
SWEEP = flags.DEFINE_string("sweep", "", "A sweep file in W&B's grammar: train each of its points once.")
STORAGE = flags.DEFINE_string("storage", "", "--sweep: database URL for many machines. Default: SQLite in --workdir.")
_WORKERS_HELP = "--sweep: number of training processes. 0: one per GPU, or one. On two CPU cores, two are fastest."
WORKERS = flags.DEFINE_integer("workers", 0, _WORKERS_HELP, 0)
FUSE = flags.DEFINE_integer("fuse", 1, "--sweep: train up to this many points as one program.", 1)
MIN_MULT_ADDS = flags.DEFINE_integer("min_mult_adds", None, "--sweep: skip points with fewer mult-adds.", 0)
MAX_MULT_ADDS = flags.DEFINE_integer("max_mult_adds", None, "--sweep: skip points with more mult-adds.", 0)
WORKER = flags.DEFINE_string("worker", "", "--sweep: set for the training processes that it starts, by no one else.")
SWEEP_FLAGS = (STORAGE, WORKERS, FUSE, MIN_MULT_ADDS, MAX_MULT_ADDS, WORKER)


class ImpossiblePoint(InputError):
    """A run that cannot start because of its own values: other points of the same sweep may."""


def main(argv: list[str]) -> int:
    """Do what the command line asks for; return the exit code."""
    if asked := [arg for arg in argv if re.fullmatch(r"--?(\?|h|help(short|full|xml)?)(=.*)?", arg)]:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):  # which has code 1
            parse([argv[0], *asked, "--help"])
        print(text.getvalue(), end="")
        return 0
    sweep = read_sweep(argv)
    if not DRY_RUN.value:
        wandb_logger.check_environment(sweep is not None)
    if sweep is not None:
        return run_sweep(sweep, *parse([argv[0], *sweep.arguments, *argv[1:]]))
    name, loaded, _ = parse(argv)
    try:
        spec = config.resolve(loaded, name)
    except InputError as e:
        raise ImpossiblePoint(str(e)) from None
    if DRY_RUN.value:
        print(cost.describe(spec.arch, spec.resolution, spec.title, FORMAT.value))
        return 0
    host.keep_memory()
    check_data([spec])
    with devices.starting_jax():
        from mobilenet_jax.training import loop  # late: a dry run starts without JAX
    gc.freeze()  # tracing makes many objects, and the collector need not visit all modules each time
    return loop.run(spec, pathlib.Path(RUN_DIR.value or pathlib.Path(WORKDIR.value) / spec.run_name))


def run_sweep(sweep: sweep_files.Sweep, name: str, base: ConfigDict, overridden: Collection[str]) -> int:
    """List or train the points of a sweep; return the exit code."""
    budget = sweep_points.Budget(MIN_MULT_ADDS.value, MAX_MULT_ADDS.value)
    if sweep.method == "grid":
        points = sweep_points.points(sweep, base, name, overridden, budget)
    else:
        points = sweep_points.check_search(sweep, base, name, overridden)
    if DRY_RUN.value:
        print(sweep_tables.describe(sweep, points, FORMAT.value))
        return 0
    if not WORKER.value:
        check_data(point.spec for point in points)
    from mobilenet_jax.sweeps import database, supervisor, worker  # late: a listing starts without Optuna

    workdir = pathlib.Path(WORKDIR.value)
    plan = sweep_points.Plan(
        sweep,
        points,
        lambda values: sweep_points.draw(sweep, base, name, values),
        budget,
        workdir,
        STORAGE.value or database.sqlite_url(workdir / "sweeps.db"),
        FUSE.value,
    )
    return worker.run(plan, WORKER.value) if WORKER.value else supervisor.run(plan, WORKERS.value)


def check_data(specs: Iterable[config.RunSpec]) -> None:
    """Raise InputError at once, before JAX starts, if the pictures of a run are not there."""
    for name, directory in {(s.dataset.name, s.config.data.dir) for s in specs if s.dataset.streamed}:
        datasets.find_streamed(name, directory)


def read_sweep(argv: list[str]) -> sweep_files.Sweep | None:
    """Return the sweep that --sweep names, None without one. Its command names the config of the other flags."""
    logging.set_verbosity(logging.ERROR)  # the flag library warns before it raises
    try:
        flags.FLAGS(argv, known_only=True)
    except flags.Error as e:
        raise InputError(str(e).strip().splitlines()[-1]) from None
    if not SWEEP.value:
        for flag in SWEEP_FLAGS:
            if flag.present:
                raise InputError(f"--{flag.name} goes with --sweep only")
        return None
    if RUN_DIR.value:
        raise InputError("--run_dir is of one run: the runs of a sweep go to --workdir")
    if any(re.match(r"--?config(=|$)", arg) for arg in argv):
        raise InputError(f"--config does not go with --sweep: the command in {SWEEP.value} names it")
    return sweep_files.read(pathlib.Path(SWEEP.value))


def find_config(argument: str) -> str:
    """Return an argument, the path of a config as one that exists: from the working directory, or from this file's."""
    argument = console.expand_home(argument)
    there = str(ROOT / (name := argument.removeprefix("--config=")))
    missing = name.endswith(".py") and os.path.exists(there) and not os.path.exists(name)
    return argument.removesuffix(name) + there if missing else argument


def parse(argv: list[str]) -> tuple[str, ConfigDict, Collection[str]]:
    """Return the config's name, the config with its overrides, and the keys that were overridden."""
    app.define_help_flags()
    argv = [*map(find_config, argv)]
    config_keys.check_keys(match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg)))
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
        allowed = f" (allowed is {config_keys.RULES[key[1]].allowed})" if key else ""
        raise (ImpossiblePoint if key else InputError)(reason + allowed) from None
    except Exception as e:  # a config file is a program: it may raise anything
        reason = ([line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__])[-1]
        raise InputError(f"--config: {reason}") from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}: flags start with --")
    flag = flags.FLAGS["config"]
    return pathlib.Path(config_flags.get_config_filename(flag)).stem, loaded, config_flags.get_override_values(flag)


def run() -> int:
    """Run the command line; return the exit code. W&B's agent learns of a point that cannot be run."""

    def command() -> int:
        try:
            return main(sys.argv)
        except (ImpossiblePoint, Busy) as e:
            if not wandb_logger.under_agent():
                raise
            console.warn(f"error: {e}")
            wandb_logger.report_to_agent("busy" if isinstance(e, Busy) else "invalid", str(e))
            return 0  # three failures in a minute would end the agent, and other points can be run

    return console.run(command)


if __name__ == "__main__":
    sys.exit(run())
