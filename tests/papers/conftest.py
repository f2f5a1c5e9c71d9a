"""Networks with changed layers, for tests that a wrong layer list is noticed."""

from collections.abc import Callable

import pytest

from mobilenet_jax.networks import arch
from mobilenet_jax.networks.arch import Architecture


@pytest.fixture
def change_networks(monkeypatch) -> Callable[[str, Callable[[Architecture], Architecture]], None]:
    """Return a function that applies a change to every network of a version ('v1', 'v2')."""

    def change_networks(version: str, change: Callable[[Architecture], Architecture]) -> None:
        build = arch.VERSIONS[version]

        def changed(*args, **kwargs) -> Architecture:
            return change(build(*args, **kwargs))

        monkeypatch.setattr(arch, build.__name__, changed)
        monkeypatch.setitem(arch.VERSIONS, version, changed)

    return change_networks
