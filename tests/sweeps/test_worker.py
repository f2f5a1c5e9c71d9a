"""A worker's name in the database, and its start."""

import threading
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
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # `run` sets it; this restores it
    monkeypatch.setattr(worker.Worker, "run", lambda self: owners.append(self.queue.owner) or worker.DONE)
    monkeypatch.setattr(worker.os, "_exit", mock.Mock(side_effect=SystemExit))
    for place in ("1/20/one", "2/20/one", "10/20/one", "1/20/other"):
        with pytest.raises(SystemExit):
            worker.run(plan, f"{place}/{plan.study}")
    assert all(sum(name.startswith(other) for name in owners) == 1 for other in owners)
    assert [name.startswith("one/") for name in owners] == [True, True, True, False]


def test_devices_are_found_before_a_point_is_claimed(monkeypatch):
    """Some settings, such as an unknown one in XLA_FLAGS, end the process there: that must count for no point."""

    def none():
        raise InputError("no device")

    monkeypatch.setattr("mobilenet_jax.training.loop.find_devices", none)
    plan: Any = mock.MagicMock()
    monkeypatch.setattr(worker, "Queue", mock.MagicMock())
    one = worker.Worker(plan, "command/0/")
    one._watch = one._beat = lambda: None
    with pytest.raises(InputError, match="no device"):
        one.run()
    assert not vars(one)["queue"].method_calls
