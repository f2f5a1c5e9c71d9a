"""Damage commands and their files in random ways, start the same commands again, and check how they end.

    python benchmarks/faults.py --out results/bench/faults.json            # 300 of training, 100 of sweeps
    python benchmarks/faults.py --seed 1 --training 1000 --only SIGKILL
    python benchmarks/faults.py --show results/bench/faults*.json          # records as tables

`training_faults.py` and `sweep_faults.py` define the kinds of faults and a good end. Any other end is wrong, such as a
traceback or a hang, and is listed with its output. Kinds that this machine does not allow are left out (a full disk
needs root).
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
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import sweep_faults
import training_faults
from fault_case import AFTER_A_MESSAGE, ROOT, UNDISTURBED, TooLate, Wrong
from train_step import cpu_name, keep

from mobilenet_jax import console
from mobilenet_jax.render.tables import Table

KINDS = training_faults.KINDS | sweep_faults.KINDS
MESSAGES = re.compile(  # lines on stdout about a fault
    r"^(?:stopp|resumed|already|checkpoint of|again|waits|left|killed|died|requeued|waiting|taken over|the database"
    r"|failed).*",
    re.MULTILINE,
)

HEADERS = {AFTER_A_MESSAGE: "message, then as undisturbed"}  # of ends whose name in records differs
_HOW = (
    "Each fault damages a run, a sweep or its files. Then the same command starts again, and its messages are "
    "followed. As undisturbed: it ends with the same parameters (`params_sha256`), figures and rows, and the other run "
    "in the directory is untouched. Damage to files that no result depends on, such as `env.json`, may pass without a "
    "message. Message: it first stopped with one line that says what to do. Any other end is wrong. Faults that came "
    "too early or too late were tried again."
)
_PRINTED = (
    "One line of each sort. `…` replaces a path, and several spaces are shown as one. Numbers and names differ, so "
    "search for words from the middle of a line. Lines that begin with `error:` or `failed` say what to do. After "
    "`stopped`, give the same command again. After all others the command continues by itself with the same results."
)


def one(kind: str, seed: str, models: pathlib.Path) -> dict:
    """Try a fault of this kind; if it comes too late, try others, whose seeds are this one and a number."""
    for attempt in range(10):
        found = attempt_fault(kind, f"{seed}.{attempt}" if attempt else seed, models)
        if found["end"] != "too late":
            break
    return found


def attempt_fault(kind: str, seed: str, models: pathlib.Path) -> dict:
    work = pathlib.Path(tempfile.mkdtemp(prefix="fault-", dir=models.parent))
    work.chmod(0o755)
    make = sweep_faults.Case if kind in sweep_faults.KINDS else training_faults.Case
    case, started = make(work, models, random.Random(seed)), time.monotonic()
    found: dict = {"kind": kind, "seed": seed}
    try:
        found["end"] = KINDS[kind][0](case)
    except TooLate:
        found["end"] = "too late"
    except NotImplementedError as e:
        found |= {"end": "left out", "why": str(e)}
    except Wrong as e:
        found |= {"end": "wrong", "why": str(e)}
    except Exception as e:  # a bug in the campaign, or an unexpected end
        found |= {"end": "wrong", "why": f"{type(e).__name__}: {e}"}
    for command in case.commands:
        command.kill()
    printed = "\n".join(command.out.read_text(errors="replace") for command in case.commands)
    lines = [" ".join(line.split()) for line in MESSAGES.findall(printed)]
    clean = [re.sub(r"(/[^\s:;,()]*)+/", "…/", text) for text in dict.fromkeys(case.messages + lines)]
    found |= {"said": clean, "seconds": round(time.monotonic() - started, 1)}
    shutil.rmtree(work, ignore_errors=True)
    return found


def chosen(kinds: dict, only: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Return `count` kinds in turn, each with a seed; `only` selects kinds by a part of their name."""
    names = [kind for kind, (_, often) in kinds.items() if only in kind for _ in range(often)]
    return [(names[i % len(names)], f"{seed}-{i}") for i in range(count)] if names else []


def tables(records: Sequence[dict]) -> str:
    """Return records as Markdown: how each kind ended, and each sort of line that was printed."""
    ends = collections.defaultdict(collections.Counter)
    printed, after = collections.Counter(), collections.defaultdict(dict)
    first: dict[str, str] = {}
    faults = [each for record in records for each in record["faults"]]
    for each in faults:
        ends[each["kind"]][each["end"]] += 1
        for line in each["said"]:
            if not line.startswith("("):  # in parentheses: the damaged file
                sort = re.sub(r"\d[\d,.]*", "0", re.sub(r"[0-9a-f]{8,}", "0", line))
                first.setdefault(sort, line)
                printed[sort] += 1
                after[sort][each["kind"]] = None
    columns = [UNDISTURBED, AFTER_A_MESSAGE, "wrong", "left out", "too late"]
    columns = [c for c in columns if c == "wrong" or any(each["end"] == c for each in faults)]
    wrong = sum(each["end"] == "wrong" for each in faults)
    total = (
        f"{sum('sweep' not in each['kind'] for each in faults)} faults of training and "
        f"{sum('sweep' in each['kind'] for each in faults)} of sweeps: {wrong} with a wrong end."
    )
    parts = [
        f"- {len(r['faults'])} from seed {r['seed']}, commit {r['commit'][:7]}, in {r['minutes']:.0f} minutes on "
        f"{r['machine']}, {r['jobs']} at a time{'; ' * bool(r.get('note')) + r.get('note', '')}"
        for r in records
    ]
    rows = [
        (kind, str(ends[kind].total()), *(str(ends[kind][c] or "0" * (c == "wrong")) for c in columns))
        for kind in KINDS
        if ends[kind]
    ]
    headers = [HEADERS.get(c, c) for c in columns]
    how = Table("ends", "How they ended", ("fault", "n", *headers), tuple(rows), _HOW)
    lines = [(first[sort], str(printed[sort]), "; ".join(after[sort])) for sort in sorted(first, key=first.__getitem__)]
    what = Table("printed", "", ("printed", "times", "after"), tuple(lines)).markdown(aligned=False)
    head = ["# Faults, and what they print", total, "\n".join(parts)]
    return "\n\n".join([*head, how.section(), "## What they print", _PRINTED, what])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=300, help="faults of the training command")
    parser.add_argument("--sweeps", type=int, default=100, help="faults of sweeps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="faults at a time")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON record")
    parser.add_argument("--show", type=pathlib.Path, nargs="+", help="print these records as tables instead")
    args = parser.parse_args()
    if args.show:
        print(tables([json.loads(path.read_text(encoding="utf-8")) for path in args.show]))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # if it is ignored here, the commands ignore it too
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
        faults, found = training + sweeps, []
        random.Random(args.seed).shuffle(faults)  # so that the first minutes try every kind
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(one, *fault, models) for fault in faults]):
                found.append(each := done.result())
                if each["end"] in ("wrong", "left out", "too late"):
                    why = each.get("why", "")
                    print(f"{each['end']}  {each['kind']}, {each['seed']}: {why} {each['said']}", flush=True)
                if len(found) % 20 == 0:
                    minutes = (time.monotonic() - started) / 60
                    print(f"{len(found)} of {len(faults)} faults, {minutes:.0f} minutes", flush=True)
                    keep(record(args, found, started), args.out)
    ends = collections.Counter((each["kind"], each["end"]) for each in found)
    for (kind, end), count in sorted(ends.items()):
        print(f"{count:>5}  {kind:<42}  {end}")
    wrong = sum(each["end"] == "wrong" for each in found)
    print(f"{len(found)} faults, {wrong} with a wrong end, {(time.monotonic() - started) / 60:.1f} minutes")
    keep(record(args, found, started), args.out)
    sys.exit(wrong > 0)


def record(args: argparse.Namespace, found: list[dict], started: float) -> dict:
    """Return the JSON record of the faults so far."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return {
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "machine": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores",
        **{"seed": args.seed, "jobs": args.jobs, "minutes": (time.monotonic() - started) / 60},
        "faults": sorted(found, key=lambda each: (list(KINDS).index(each["kind"]), float(each["seed"].split("-")[1]))),
    }


if __name__ == "__main__":
    sys.exit(console.run(main))
