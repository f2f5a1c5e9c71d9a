"""The schema of a result, and the digests that reveal changes."""

import json

import pytest
from helpers import SUMMARY

from mobilenet_jax.records import summary

RESULT = summary.parse(SUMMARY | {"alpha": 0.1 + 0.2, "title": "MobileNet v1 \u03b1"})


def stored(metrics: bytes = b"") -> dict:
    """Return what a reader finds in `summary.json`."""
    return json.loads(json.dumps(summary.seal(RESULT, metrics)))


def test_what_is_written_is_read():
    found = summary.unseal(stored(b"rows"))
    assert found.model_dump(exclude={"metrics_sha256"}) == RESULT.model_dump(exclude={"metrics_sha256"})
    assert stored()["schema"] == summary.SCHEMA


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.3}, {"status": "diverged"}, {"new": 1}, {"schema": 2}, {"sha256": ""}, {"metrics_sha256": ""}],
)
def test_any_change_is_noticed(change):
    with pytest.raises(ValueError, match="not what was written|schema"):
        summary.unseal(stored() | change)


def test_records_of_other_programs_need_no_digest():
    found = summary.unseal({"schema": 1, **SUMMARY, "something": "else"})
    assert found.test_accuracy == SUMMARY["test_accuracy"]
    assert summary.metrics_match(found, b"any rows")


def test_other_metrics_are_noticed():
    found = summary.unseal(stored(b"rows"))
    assert summary.metrics_match(found, b"rows") and not summary.metrics_match(found, b"row")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_missing(value):
    assert summary.parse(SUMMARY | {"test_loss": value}).test_loss is None


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("status", "lost", "'finished' or 'diverged'"),
        ("version", "v3", "'v1' or 'v2'"),
        ("alpha", "0.25", "above 0"),
        ("alpha", True, "above 0"),
        ("rho", 0, "above 0"),
        ("epochs", 10**400, "from 1"),
        ("mult_adds", 1.5, "from 1"),
        ("seed", -1, "from 0"),
        ("test_accuracy", 1.5, "from 0 to 1"),
        ("test_accuracy", None, "from 0 to 1"),
        ("device", ["cpu"], "text"),
    ],
)
def test_a_field_that_is_not_allowed_is_named(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is .*allowed is .*{allowed}"):
        summary.parse(SUMMARY | {field: value})


@pytest.mark.parametrize("field", ["title", "fused", "compile_seconds", "num_classes"])
def test_an_optional_field_may_be_null(field):
    assert summary.parse(SUMMARY | {field: None}) == summary.parse({k: v for k, v in SUMMARY.items() if k != field})


def test_a_wrong_type_of_an_optional_field_is_named():
    with pytest.raises(ValueError, match="fused is 'two', allowed is .*integer"):
        summary.parse(SUMMARY | {"fused": "two"})


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="params is absent"):
        summary.parse({key: value for key, value in SUMMARY.items() if key != "params"})


def test_v2_needs_an_expansion_ratio():
    with pytest.raises(ValueError, match="expansion is None"):
        summary.parse(SUMMARY | {"version": "v2", "expansion": None})
