"""A campaign of faults: a command is hurt, or what it has written is; then the same command is given again.

    python benchmarks/faults.py --out results/bench/faults.json            # 300 of training, 100 of sweeps
    python benchmarks/faults.py --seed 1 --training 1000 --only SIGKILL

`training_faults.py` and `sweep_faults.py` have the kinds, and what a good end is. Everything else is a wrong end, a
traceback or a hang among them, and is listed with what was printed. Kinds that this machine does not allow (a full disk
wants root) are said and left out.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time

import sweep_faults
import training_faults
from sweep_faults import Wrong

KINDS = training_faults.KINDS | sweep_faults.KINDS


def one(kind: str, seed: str, models: pathlib.Path) -> dict:
    """A fault of that kind, from its seed."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="fault-", dir=models.parent))
    work.chmod(0o755)
    make = sweep_faults.Case if kind in sweep_faults.KINDS else training_faults.Case
    case, started = make(work, models, random.Random(seed)), time.monotonic()
    found: dict = {"kind": kind, "seed": seed}
    try:
        found["end"] = KINDS[kind][0](case)
        if isinstance(case, training_faults.Case):
            training_faults.check_other(case)
    except NotImplementedError as e:
        found |= {"end": "left out", "why": str(e)}
    except Wrong as e:
        found |= {"end": "wrong", "why": str(e)}
    except Exception as e:  # a bug of the campaign, or something that nobody thought of
        found |= {"end": "wrong", "why": f"{type(e).__name__}: {e}"}
    clean = [re.sub(r"(/[^\s:;,()]*)+/", "…/", text) for text in case.said]
    found |= {"said": clean, "seconds": round(time.monotonic() - started, 1)}
    for command in case.commands:
        command.kill()
    shutil.rmtree(work, ignore_errors=True)
    return found


def chosen(kinds: dict, only: str, count: int, seed: int) -> list[tuple[str, str]]:
    """So many kinds, in turn, each with a seed."""
    names = [kind for kind, (_, often) in kinds.items() if only in kind for _ in range(often)]
    return [(names[i % len(names)], f"{seed}-{i}") for i in range(count)] if names else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=300, help="faults of the training command")
    parser.add_argument("--sweeps", type=int, default=100, help="faults of sweeps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="faults at a time")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    args = parser.parse_args()
    started = time.monotonic()
    training = chosen(training_faults.KINDS, args.only, args.training, args.seed)
    sweeps = chosen(sweep_faults.KINDS, args.only, args.sweeps, args.seed)
    if not training + sweeps:
        sys.exit(f"--only={args.only}: kinds are {'; '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="faults-") as top:
        pathlib.Path(top).chmod(0o755)
        models = pathlib.Path(top) / "models"
        if training:
            training_faults.prepare(models)
        if sweeps:
            sweep_faults.prepare(models)
        print(f"prepared in {time.monotonic() - started:.0f} s", flush=True)
        found = []
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for each in pool.map(lambda fault: one(*fault, models), training + sweeps):
                found.append(each)
                if each["end"] in ("wrong", "left out"):
                    print(f"{each['end']}  {each['kind']}, {each['seed']}: {each['why']} {each['said']}", flush=True)
    ends = collections.Counter((each["kind"], each["end"]) for each in found)
    for (kind, end), count in ends.items():
        print(f"{count:>5}  {kind:<42}  {end}")
    wrong = sum(each["end"] == "wrong" for each in found)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(found)} faults, {wrong} with a wrong end, {minutes:.1f} minutes")
    if args.out:
        args.out.write_text(json.dumps({"seed": args.seed, "minutes": minutes, "faults": found}, indent=1) + "\n")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
