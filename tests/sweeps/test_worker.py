"""A worker's name in the database, its start and its threads."""

import os
import signal
import types
from typing import Any
from unittest import mock

import pytest
from conftest import GRID
from sweep_helpers import plan_of

from mobilenet_jax.errors import InputError
from mobilenet_jax.sweeps import worker


def test_no_worker_has_the_name_of_another_one(read_sweep, monkeypatch):
    """Not even as the start of its own name, by which the database finds the points of dead processes."""
    plan, owners = plan_of(read_sweep(GRID)), []
    monkeypatch.setattr(worker.Worker, "run", lambda self: owners.append(self.queue.owner) or worker.DONE)
    for place in ("1/20/one", "2/20/one", "10/20/one", "1/20/other"):
        assert worker.run(plan, f"{place}/{plan.study}") == worker.DONE
    assert all(sum(name.startswith(other) for name in owners) == 1 for other in owners)
    assert [name.startswith("one/") for name in owners] == [True, True, True, False]


@pytest.fixture
def one(monkeypatch) -> Any:
    """A worker without a database."""
    monkeypatch.setattr(worker, "Queue", mock.MagicMock())
    plan: Any = mock.MagicMock()
    return worker.Worker(plan, "command/0/")


def test_devices_are_found_before_a_point_is_claimed(one, monkeypatch):
    """Some settings, such as an unknown one in XLA_FLAGS, end the process there: that must count for no point."""

    def none():
        raise InputError("no device")

    monkeypatch.setattr("mobilenet_jax.training.devices.find_devices", none)
    one._watch = one._beat = lambda: None
    with pytest.raises(InputError, match="no device"):
        one.run()
    assert not one.queue.method_calls


@pytest.mark.parametrize("figures", [{}, {"step": 1}])
def test_a_point_that_was_taken_over_ends_a_training_only(one, figures, capsys):
    """A worker that compiles finds out when it trains."""
    one.queue.heartbeat.return_value = False
    one.jobs = [types.SimpleNamespace(claim=None, figures=figures, name="a-point")]
    for _ in range(2):
        one._report(one.jobs[0])
    ended = (worker.START_AGAIN, [signal.SIGTERM], "taken over by another machine  a-point\n")
    assert (one.code, one.asked, capsys.readouterr().out) == (ended if figures else (worker.DONE, [], ""))


def test_a_bug_in_a_thread_acts_as_a_signal_does(monkeypatch, capsys):
    kill = mock.Mock()
    monkeypatch.setattr(worker.os, "kill", kill)
    worker._guard(lambda: None)
    assert not kill.called
    worker._guard(mock.Mock(side_effect=RuntimeError("a bug")))
    kill.assert_called_once_with(os.getpid(), signal.SIGTERM)
    assert "RuntimeError: a bug" in capsys.readouterr().err
