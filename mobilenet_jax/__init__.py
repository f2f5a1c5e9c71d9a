"""Measure how much accuracy a multiply-add buys: MobileNet v1 and v2 in JAX, with exact analytic cost.

Importing the package does not import JAX. `arch`, `cost`, `conventions` and `roofline` describe and count networks.
"""

from mobilenet_jax.networks import arch, conventions, cost, roofline

__all__ = ["arch", "conventions", "cost", "roofline"]
__version__ = "0.1.0"
