"""Sweep files of searches: what they draw, what they must have, and one message per error."""

import math

import pytest
from conftest import SEARCH


def test_what_a_search_draws(read_sweep):
    def one(**given):
        (found,) = read_sweep(SEARCH | {"parameters": {"config.optim.lr": given}}).parameters
        assert found.key == "optim.lr"
        return found.kind, found.low, found.high, found.step, found.log

    assert one(min=1, max=3) == ("int", 1, 3, None, False)
    assert one(min=1, max=3.0) == ("float", 1.0, 3.0, None, False)
    assert one(min=1, max=3, distribution="uniform") == ("float", 1.0, 3.0, None, False)
    assert one(min=2, max=8, q=2, distribution="q_uniform") == ("int", 2, 8, 2, False)
    assert one(min=0.1, max=0.7, q=0.1, distribution="q_uniform") == ("float", 0.1, 0.7, 0.1, False)
    assert one(min=0.01, max=1, distribution="log_uniform_values") == ("float", 0.01, 1.0, None, True)
    assert one(min=-2, max=0, distribution="log_uniform") == ("float", math.exp(-2), 1.0, None, True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": {"name": "test_accuracy", "goal": "maximize"}}, "metric.name=test_accuracy: a search may not"),
        ({"method": "bayes", "metric": {"name": "test_loss"}}, "metric.name=test_"),
        ({"run_cap": 0}, "run_cap=0: must be"),
        ({"parameters": {"config.seed": {"value": 1}}}, "no parameter varies"),
    ],
)
def test_bad_searches(changes, sentence, refused):
    assert sentence in refused(SEARCH | changes)


@pytest.mark.parametrize("method", ["random", "bayes"])
@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("run_cap", "must be a whole number from 1 (method {} never ends by itself)"), ("metric", "{} needs a metric")],
)
def test_required_keys_of_a_search(method, missing, sentence, refused):
    tree = {key: value for key, value in SEARCH.items() if key != missing} | {"method": method}
    assert sentence.format(method) in refused(tree)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min=0 of log_uniform_values must be above 0"),
        ({"distribution": "log_uniform", "min": 0, "max": 1000}, "e to the 0 or 1000 is too large"),
        ({"distribution": "log_uniform", "min": -1e9, "max": 1}, "is too large"),
        (
            {"distribution": "log_uniform_values", "min": "1e-4", "max": 1},
            "optim.lr: min: '1e-4' is text to YAML; write 0.0001",
        ),
        ({"distribution": "q_uniform", "min": 0.15, "max": 0.4, "q": 0.1}, "min and max must be multiples of q=0.1"),
        ({"distribution": "q_uniform", "min": 0, "max": 1e25, "q": 1e-5}, "too large or too small for each other"),
        ({"min": 0, "max": 10**400}, "(int) to YAML; allowed is above 0"),
        ({"distribution": "log_uniform", "min": "-1e1", "max": 0}, "min: '-1e1' is text to YAML; write -10.0"),
        ({"distribution": "log_uniform_values", "min": "-1e1", "max": 1}, "is text to YAML; allowed is above 0"),
        ({"distribution": "q_uniform", "min": 1, "max": 3, "q": "1e-1"}, "q: '1e-1' is text to YAML; write 0.1"),
        (
            {"distribution": "inv_log_uniform_values", "min": 1, "max": 2},
            "a random sweep has no distribution 'inv_log_un",
        ),
    ],
)
def test_bad_ranges(given, sentence, refused):
    assert sentence in refused(SEARCH | {"parameters": {"config.optim.lr": given}})
