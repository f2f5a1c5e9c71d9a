"""Prepare ImageNet for training from its official archives, in the format of TFDS.

python -m mobilenet_jax.prepare imagenet2012 ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar --dir DIR [--resize 256]

The same command goes on where it was interrupted.
"""

import argparse
import os
import pathlib
import sys

from mobilenet_jax import console
from mobilenet_jax.errors import InputError


def main() -> int:
    """Run the command with the arguments of the process, and return its exit code."""
    return console.run(_prepare)


def _prepare() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mobilenet_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", choices=["imagenet2012"])
    parser.add_argument("train", type=pathlib.Path, help="ILSVRC2012_img_train.tar")
    parser.add_argument("val", type=pathlib.Path, help="ILSVRC2012_img_val.tar")
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="directory of the prepared sets")
    parser.add_argument("--resize", type=int, default=0, help="largest shorter side in pixels; default: as published")
    args = parser.parse_args()
    if args.resize and args.resize < 32:
        raise InputError(f"--resize={args.resize}: allowed is 0, or a shorter side from 32 pixels")
    for path in (args.train, args.val):
        if not path.is_file():
            raise InputError(f"{path}: no such file; the archives are those of image-net.org")
    from mobilenet_jax.data import imagenet_tars  # late: help and refusals need no TFDS

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"prepared       {imagenet_tars.prepare(args.train, args.val, args.dir.absolute(), args.resize, threads)}")


if __name__ == "__main__":
    sys.exit(main())
