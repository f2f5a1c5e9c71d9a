"""Read the tables as they were printed. Ours are always computed and never stored."""

import csv
from importlib import resources


def rows(name: str) -> list[dict[str, str]]:
    """Read `data/<name>.csv`.

    Args:
      name: file name without suffix, such as 'slim_v1'. The comment at the head of each file says what it holds.

    Returns:
      One dict per row: column -> cell as printed, '' where the source has none.
    """
    text = resources.files("mobilenet_jax.papers").joinpath("data", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
