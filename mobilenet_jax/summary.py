"""The seal of a `summary.json`: it says its own digest, so that a changed figure is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SCHEMA = 1  # of the fields; raise it when an old reader would misread them


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with the schema and, as `sha256`, the digest of all the others."""
    summary = {"schema": SCHEMA, **fields}
    return {**summary, "sha256": _digest(summary)}


def intact(summary: Mapping[str, Any]) -> bool:
    """Whether it is as it was sealed; true of one without a seal, as others and earlier versions write."""
    return summary.get("sha256", _digest(summary)) == _digest(summary)


def _digest(summary: Mapping[str, Any]) -> str:
    said = {key: value for key, value in summary.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
