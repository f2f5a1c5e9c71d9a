"""How much accuracy does a multiply-add buy? MobileNet v1 and v2 in JAX, with exact analytic cost."""

__version__ = "0.1.0"
