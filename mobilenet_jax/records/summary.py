"""The seal of a `summary.json`: it says its own digest and that of `metrics.jsonl`, so that what changed is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SCHEMA = 1  # of the fields; raise it when an old reader would misread them


def sealed(fields: Mapping[str, Any], metrics: bytes) -> dict[str, Any]:
    """`fields` with the schema, the digest of the `metrics`, and, as `sha256`, that of all the others."""
    summary = {"schema": SCHEMA, **fields, "metrics_sha256": hashlib.sha256(metrics).hexdigest()}
    return {**summary, "sha256": _digest(summary)}


def intact(summary: Mapping[str, Any]) -> bool:
    """Whether it is as it was sealed; true of one without a seal, as others and earlier versions write."""
    return summary.get("sha256", _digest(summary)) == _digest(summary)


def of(summary: Mapping[str, Any], metrics: bytes) -> bool:
    """Whether the `metrics` are as they were when the summary was sealed; true where it does not say."""
    found = hashlib.sha256(metrics).hexdigest()
    return summary.get("metrics_sha256", found) == found


def _digest(summary: Mapping[str, Any]) -> str:
    said = {key: value for key, value in summary.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
