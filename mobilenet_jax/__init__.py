"""How much accuracy does a multiply-add buy? MobileNet v1 and v2 in JAX, with exact analytic cost.

`arch`, `cost`, `conventions` and `roofline` describe and count networks without importing JAX.
"""

from mobilenet_jax.networks import arch, conventions, cost, roofline

__all__ = ["arch", "conventions", "cost", "roofline"]
__version__ = "0.1.0"
