"""The seal of a summary."""

import json

import pytest

from mobilenet_jax.records import summary

FIELDS = {"status": "finished", "alpha": 0.1 + 0.2, "test_loss": None, "title": "MobileNet v1 \u03b1"}


def test_a_seal_outlives_json():
    assert summary.intact(json.loads(json.dumps(summary.sealed(FIELDS, b""))))
    assert summary.sealed(FIELDS, b"")["schema"] == summary.SCHEMA


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.3}, {"status": "diverged"}, {"new": 1}, {"schema": 2}, {"sha256": ""}, {"metrics_sha256": ""}],
)
def test_any_change_breaks_it(change):
    assert not summary.intact(summary.sealed(FIELDS, b"") | change)


def test_without_a_seal_nothing_is_said():
    assert summary.intact(FIELDS) and summary.of(FIELDS, b"rows")


def test_other_metrics_are_noticed():
    assert summary.of(summary.sealed(FIELDS, b"rows"), b"rows")
    assert not summary.of(summary.sealed(FIELDS, b"rows"), b"row")
