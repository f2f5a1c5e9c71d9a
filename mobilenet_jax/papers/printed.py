"""The papers' figures as they were printed; ours are always computed, never stored."""

import csv
from importlib import resources


def rows(name: str) -> list[dict[str, str]]:
    """Reads one table.

    Args:
      name: 'slim_v1', 'slim_v2', 'paper_v1' or 'paper_v2'; the comment at the head of each file says what it holds.

    Returns:
      One dict a row, cells as printed ('' where the table has none). `note` says what is wrong with a printed cell.
    """
    text = resources.files("mobilenet_jax.papers").joinpath("data", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
