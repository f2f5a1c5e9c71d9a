"""Compare the counts with the parameter shapes and the traced program, layer by layer."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend import core
from model_helpers import images, shapes

from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.networks.arch import mobilenet_v1, mobilenet_v2
from mobilenet_jax.networks.cost import layer_costs, totals

RESOLUTIONS = itertools.cycle((224, 225, 31, 160, 97, 33, 32, 28, 1, 129))
STRIDES = itertools.cycle(("imagenet", "cifar"))
GRID = [
    (network, next(RESOLUTIONS))
    for network in (
        *(
            mobilenet_v1(alpha, 10, next(STRIDES), variant)
            for alpha, variant in itertools.product((0.1, 0.6, 1.4), ("paper", "standard_conv", "shallow"))
        ),
        mobilenet_v1(0.5, 100, "cifar", "cifar28", activation="relu6"),
        *(
            mobilenet_v2(alpha, expansion, 10, next(STRIDES))
            for alpha, expansion in itertools.product((0.35, 1, 1.4), (1, 2.5, 6))
        ),
        *(
            mobilenet_v2(0.75, 4, 1000, bottleneck=bottleneck, shortcut=shortcut)
            for bottleneck, shortcut in (("linear", "expansion"), ("relu6", "bottleneck"), ("relu6", "none"))
        ),
    )
]
over_the_grid = pytest.mark.parametrize(("network", "resolution"), GRID, ids=range(len(GRID)))


def products(jaxpr: core.Jaxpr) -> Iterator[int]:
    """Yield the multiplications of each convolution and dot of a traced program, in order, SAME padding in full."""
    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, math.prod(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
        if name == "conv_general_dilated":
            numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape  # type: ignore[attr-defined]
            # One output takes as many as the kernel has values per output. The kernel's inputs are those of one group.
            yield out * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            yield out * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)  # type: ignore[attr-defined]
        times = eqn.params["length"] if name == "scan" else 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                found = list(products(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner))
                if found and name in ("while", "cond"):
                    raise ValueError(f"the number of iterations of {name!r} is unknown")
                yield from found * times


def is_jaxpr(x: Any) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)


def traced_products(f: Any, *arguments: Any) -> list[int]:
    return list(products(jax.make_jaxpr(f)(*arguments).jaxpr))


def conv(x, kernel, strides=(1, 1), **kwargs):
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs)


@jax.custom_vjp
def vjp_dot(a, b):
    return a @ b


vjp_dot.defvjp(lambda a, b: (a @ b, None), lambda _, g: (g, g))


@pytest.mark.parametrize(
    ("f", "arguments", "expected"),
    [
        (conv, [(1, 5, 5, 3), (3, 3, 3, 8)], [25 * 9 * 3 * 8]),
        (functools.partial(conv, strides=(2, 2)), [(1, 5, 5, 3), (3, 3, 3, 8)], [9 * 9 * 3 * 8]),
        (functools.partial(conv, feature_group_count=6), [(2, 4, 4, 6), (3, 3, 1, 6)], [2 * 16 * 9 * 6]),
        (functools.partial(conv, feature_group_count=2), [(1, 4, 4, 6), (1, 1, 3, 4)], [16 * 3 * 4]),
        (jnp.dot, [(7, 3), (3, 5)], [7 * 3 * 5]),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(4, 2, 3), (4, 3, 5)], [4 * 2 * 3 * 5]),
        (jax.vmap(jnp.dot), [(4, 2, 3), (4, 3, 5)], [4 * 2 * 3 * 5]),
        (lambda a, b: jnp.tensordot(a, b, 2), [(2, 3, 4), (3, 4, 5)], [2 * 3 * 4 * 5]),
        (lambda a, b: conv(a, b).reshape(16, 4) @ jnp.ones((4, 2)), [(1, 4, 4, 6), (1, 1, 6, 4)], [384, 128]),
        (jax.jit(jax.checkpoint(jnp.dot)), [(7, 3), (3, 5)], [105]),
        (vjp_dot, [(7, 3), (3, 5)], [105]),
        (lambda a, b: lax.scan(lambda c, x: (c, x @ b), 0.0, a), [(4, 7, 3), (3, 5)], [105] * 4),
        (lambda a, b: a[:, :, None] * b[None], [(7, 3), (3, 5)], []),  # elementwise
    ],
)
def test_the_walk_counts_by_hand(f, arguments, expected):
    assert traced_products(f, *map(jnp.ones, arguments)) == expected


def test_the_walk_refuses_an_unknown_number_of_iterations():
    with pytest.raises(ValueError, match="while"):
        traced_products(lambda a: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, a), jnp.ones((3, 3)))


@over_the_grid
def test_traced_multiplications_and_activations_are_the_count(network, resolution):
    model = MobileNet(network, depthwise="conv")
    apply = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    traced, (output, captured) = jax.make_jaxpr(apply, return_shape=True)(shapes(network), images(resolution))
    rows = layer_costs(network, resolution)
    found = list(products(traced.jaxpr))
    assert found == [row.mult_adds for row in rows if row.layer.kind != "pool"]
    assert sum(found) == totals(network, resolution).mult_adds
    convolutions = [row for row in rows if row.layer.norm]
    assert {row.layer.name: captured["intermediates"][row.layer.name]["__call__"][0].shape for row in convolutions} == {
        row.layer.name: (1, row.out_size, row.out_size, row.layer.out_channels) for row in convolutions
    }
    assert output.shape == (1, network.num_classes)


@over_the_grid
def test_parameters_are_the_count(network, resolution):
    variables = shapes(network)
    found = {
        name: (sizes.get("kernel", 0), sizes.get("bias", 0), sizes.get("bn", 0))
        for name, layer in variables["params"].items()
        for sizes in [{key: sum(math.prod(x.shape) for x in jax.tree.leaves(leaf)) for key, leaf in layer.items()}]
    }
    rows = layer_costs(network, resolution)
    assert found == {row.layer.name: (row.weights, row.bias, row.bn) for row in rows if row.layer.kind != "pool"}
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == totals(network, resolution).params
    statistics = {
        name: jax.tree.map(lambda x: x.shape, layer["bn"]) for name, layer in variables["batch_stats"].items()
    }
    assert statistics == {
        x.name: {"mean": (x.out_channels,), "var": (x.out_channels,)} for x in network.layers if x.norm
    }
