"""What the tests of the model share: quick compilation, exact inputs, values with gradients, shapes of variables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import Architecture

# Optimisation by LLVM takes most of the compile time. XLA's own passes still run.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def whole_numbers(*shapes, dtype: type = np.float32):
    """Return small whole numbers: every sum is exact, so two implementations must agree to the last bit."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-4, 5, shape), dtype) for shape in shapes]


def value_and_gradients(convolve, stride, implementation, padding="same"):
    """Return a function of x, kernel and cotangent that returns the output and the gradients of both inputs."""

    def run(x, kernel, cotangent):
        y, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, implementation, padding), x, kernel)
        return y, *pull_back(cotangent)

    return run


def assert_all_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def images(resolution: int, batch: int = 1) -> Any:
    return jax.ShapeDtypeStruct((batch, resolution, resolution, 3), jnp.float32)


@functools.cache
def shapes(network: Architecture, **fields: Any) -> dict[str, Any]:
    """Return the shapes and types of the variables."""
    return jax.eval_shape(MobileNet(network, **fields).init, jax.random.key(0), images(8))
