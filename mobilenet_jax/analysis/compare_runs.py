"""Compare two runs: accuracies, costs, and every setting and software version that differs."""

import pathlib
from collections.abc import Mapping
from typing import Any

from mobilenet_jax.errors import InputError
from mobilenet_jax.records.collect import Run, read
from mobilenet_jax.records.identity import flatten
from mobilenet_jax.render.tables import Table


def one_run(directory: pathlib.Path) -> Run:
    """Return the one finished run in a directory; raises InputError if there is none, or more than one."""
    found, problems = read([directory])
    if len(found) != 1:
        reason = f"{len(found)} runs" if found else problems[0].what if problems else "no run"
        raise InputError(f"--compare: {directory} is not the directory of one finished run ({reason})")
    return found[0]


def compare(a: Run, b: Run) -> Table:
    """Return a table of the accuracies of two runs, in percent, and of each cost, setting and version that differs."""
    rows, notes = [], []
    for split in ("test", "val", "train"):
        x, y = (getattr(run.summary, f"{split}_accuracy") for run in (a, b))
        if x is not None and y is not None:
            rows.append((f"{split} top-1, %", f"{100 * x:.2f}", f"{100 * y:.2f}", f"{100 * (y - x):+.2f}"))
    rows += _differences("", *(run.summary.model_dump(include={"mult_adds", "params", "device"}) for run in (a, b)))
    for part, of_a, of_b in (("config", a.config, b.config), ("env", a.env, b.env)):
        if of_a and of_b:
            rows += _differences(f"{part}.", of_a, of_b)
        else:
            notes.append(f"Not compared: {part}.json, which one of the runs lacks.")
    alike = a.directory.name == b.directory.name
    names = [str(run.directory) if alike else run.directory.name for run in (a, b)]
    if not any(name.startswith(("config.", "env.")) for name, *_ in rows):
        notes.append("Everything that is compared is the same in both runs.")
    notes.append("The difference between two runs includes what the seed alone changes.")
    return Table("compare", " and ".join(names), ("", *names, "difference"), tuple(rows), " ".join(notes))


def _differences(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return one row for each key whose values differ."""

    # The W&B settings change no result. `earlier` lists the other processes of a resumed run.
    def texts(tree: Mapping[str, Any]) -> dict[str, str]:
        """Return each value as a config file spells it; quotes only around an empty string."""
        found = {k: v for k, v in flatten(tree).items() if k != "earlier" and not k.startswith("wandb.")}
        return {k: v if isinstance(v, str) and v else repr(v) for k, v in found.items()}

    x, y = texts(a), texts(b)
    pairs = ((key, x.get(key, "absent"), y.get(key, "absent")) for key in sorted({*x, *y}))
    return [(f"{prefix}{key}", of_a, of_b, "") for key, of_a, of_b in pairs if of_a != of_b]
