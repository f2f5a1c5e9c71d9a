"""Measure how much accuracy a multiply-add buys: MobileNet v1 and v2 in JAX, with exact analytic cost.

Importing the package does not import JAX. `arch`, `cost`, `conventions` and `roofline` describe and count networks.
`load` returns a trained one.
"""

from typing import TYPE_CHECKING, Any

from mobilenet_jax.networks import arch, conventions, cost, roofline

if TYPE_CHECKING:
    from mobilenet_jax.model.mobilenet import load

__all__ = ["arch", "conventions", "cost", "load", "roofline"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from mobilenet_jax.model.mobilenet import load  # late: imports JAX

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
