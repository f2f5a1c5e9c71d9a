"""The seal of a summary."""

import json

import pytest

from mobilenet_jax import summary

FIELDS = {"status": "finished", "alpha": 0.1 + 0.2, "test_loss": None, "title": "MobileNet v1 \u03b1"}


def test_a_seal_outlives_json():
    assert summary.intact(json.loads(json.dumps(summary.sealed(FIELDS))))
    assert summary.sealed(FIELDS)["schema"] == summary.SCHEMA


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.3}, {"status": "diverged"}, {"new": 1}, {"schema": 2}, {"sha256": "0" * 64}],
)
def test_any_change_breaks_it(change):
    assert not summary.intact(summary.sealed(FIELDS) | change)


def test_without_a_seal_nothing_is_said():
    assert summary.intact(FIELDS)
