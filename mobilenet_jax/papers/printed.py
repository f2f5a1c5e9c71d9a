"""Read the tables as they were printed, and the list of misprints. Ours are always computed and never stored."""

import csv
import functools
from importlib import resources

Key = tuple[str, str, str]  # name of the table, label of the row, column


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of `data/<name>.csv`: column -> cell as printed, '' where the source has none.

    The comment at the head of each file says what it holds.
    """
    text = resources.files("mobilenet_jax.papers").joinpath("data", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@functools.cache
def misprints() -> dict[Key, dict[str, str]]:
    """Return 'ours', as shown, and 'note', the reason, for each printed cell that the count does not give."""
    return {(row["table"], row["row"], row["column"]): row for row in rows("misprints")}
