"""List the printed cells that the count does not give, and why."""

import dataclasses
import functools

from mobilenet_jax.papers import printed

Key = tuple[str, str, str]  # name of the table, label of the row, column


@dataclasses.dataclass(frozen=True)
class Misprint:
    """Ours for a misprinted cell, as shown, and the reason for the difference."""

    ours: str
    note: str


@functools.cache
def known() -> dict[Key, Misprint]:
    """Read `data/misprints.csv`. Tests recompute the figures that its notes give."""
    found = printed.rows("misprints")
    return {(row["table"], row["row"], row["column"]): Misprint(row["ours"], row["note"]) for row in found}
