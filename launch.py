"""Trains one network, or prints what it costs: `python launch.py --help`."""

import gc
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mobilenet_jax import config, cost, runtime
from mobilenet_jax.errors import InputError

DEFAULT = str(pathlib.Path(__file__).parent / "configs" / "digits_v1.py")
WORKDIR = flags.DEFINE_string("workdir", "runs", "Holds the run directories.")
RUN_DIR = flags.DEFINE_string("run_dir", "", "This run's own directory, instead of one named after it in --workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the network's cost, layer by layer, and train nothing.")
FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How --dry_run prints.")


def main(argv: list[str]) -> int:
    name, loaded = parse(argv)
    spec = config.resolve(loaded, name)
    if DRY_RUN.value:
        print(cost.describe(spec.arch, spec.resolution, spec.title, FORMAT.value))
        return 0
    runtime.keep_memory()
    from mobilenet_jax import train  # takes a second that a dry run has no use for

    gc.freeze()  # tracing makes many objects: the collector need not look through all modules each time
    return train.run(spec, pathlib.Path(RUN_DIR.value or pathlib.Path(WORKDIR.value) / spec.run_name))


def parse(argv: list[str]) -> tuple[str, ConfigDict]:
    """The config's name, and the config with its overrides.

    Raises:
      InputError: a flag or a key that does not exist, a value of another type, a config that cannot be loaded.
    """
    app.define_help_flags()
    logging.set_verbosity(logging.ERROR)  # the flag library warns before it raises
    config.check_keys(match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg)))
    try:  # defining the flag runs the config file already
        config_flags.DEFINE_config_file("config", DEFAULT, "The config; --config.KEY=VALUE overrides one of its keys.")
        rest = flags.FLAGS(argv)
        loaded = flags.FLAGS.config
        if not isinstance(loaded, ConfigDict):
            getattr(loaded, "to_dict", None)  # raises what opening the file raised
            raise TypeError("get_config() must return a ConfigDict")
    except flags.Error as e:
        reason = str(e).strip().splitlines()[-1]
        key = re.match(r"flag --(?:no)?config\.([\w.]+)=", reason)
        allowed = f" (allowed is {config.RULES[key[1]].allowed})" if key else ""
        raise InputError(reason + allowed) from None
    except Exception as e:  # a config file is a program: it may raise anything
        reason = ([line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__])[-1]
        raise InputError(f"--config: {reason}") from None
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}: flags start with --")
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem, loaded


def run() -> int:
    try:
        return main(sys.argv)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
