"""Trains one network, or prints what it costs: `python launch.py --help`."""

import pathlib
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from mobilenet_jax import config, cost
from mobilenet_jax.errors import InputError

DEFAULT = str(pathlib.Path(__file__).parent / "configs" / "digits_v1.py")
CONFIG = config_flags.DEFINE_config_file("config", DEFAULT, "The config; --config.KEY=VALUE overrides one of its keys.")
WORKDIR = flags.DEFINE_string("workdir", "runs", "Holds the run directories.")
RUN_DIR = flags.DEFINE_string("run_dir", "", "This run's own directory, instead of one named after it in --workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the network's cost, layer by layer, and train nothing.")
FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How --dry_run prints.")


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise InputError(f"unexpected argument {argv[1]!r}: flags start with --")
    spec = config.resolve(_config(), pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem)
    if DRY_RUN.value:
        print(cost.describe(spec.arch, spec.resolution, spec.title, FORMAT.value))
        return 0
    from mobilenet_jax import train  # takes a second that a dry run has no use for

    return train.run(spec, pathlib.Path(RUN_DIR.value or pathlib.Path(WORKDIR.value) / spec.run_name))


def _config():
    try:
        return CONFIG.value
    except OSError as e:
        raise InputError(f"--config: {' '.join(str(e).split()[-6:])}") from None


def _parse(argv: list[str]) -> list[str]:
    keys = [match[1] for arg in argv[1:] if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg))]
    config.check_keys(keys)
    try:
        return flags.FLAGS(argv)
    except flags.Error as e:
        raise InputError(str(e)) from None


def run() -> int:
    try:
        return main(_parse(sys.argv))
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
