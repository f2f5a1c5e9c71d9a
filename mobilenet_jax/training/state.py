"""The state that training carries from step to step, as a few vectors, and what lies where in them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from mobilenet_jax.errors import InputError
from mobilenet_jax.model.mobilenet import MobileNet
from mobilenet_jax.training import optimizer as optimizers

_IMAGE = (1, 32, 32, 3)  # the variables are the same for every resolution


@struct.dataclass
class TrainState:
    """The state of a run: a handful of arrays, because a call costs the host some microseconds for each.

    `Layout.variables` shows the vectors as the model's variables.
    """

    step: jax.Array  # int32
    params: jax.Array  # float32 [P]
    batch_stats: jax.Array  # float32 [S]
    opt_state: optax.OptState  # of `params` as one vector
    ema: dict[str, jax.Array] | None  # the average of {'params', 'batch_stats'}, if there is one

    @property
    def vectors(self) -> dict[str, jax.Array]:
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, jax.Array]:
        """The vectors that evaluation uses: those of the moving average if there is one."""
        return self.ema or self.vectors


class Layout:
    """Where the variables of a model lie in the vectors of a `TrainState`.

    Parameters lie in the order of their weight decay: kernels, depthwise kernels, and those that do not decay.

    Attributes:
      shapes: of the arrays in each vector, `{'params': {'stem/kernel': (3, 3, 3, 32), ...}, 'batch_stats': ...}`.
      decaying: how many values at the start of `params` are kernels, and how many after them depthwise kernels.
    """

    def __init__(self, model: MobileNet):
        depthwise = {layer.name for layer in model.arch.layers if layer.kind == "depthwise"}
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(_IMAGE))
        shapes = {key: {n: leaf.shape for n, leaf in _flat(tree).items()} for key, tree in variables.items()}
        groups = {name: optimizers.decay_group(name, depthwise) for name in shapes["params"]}
        shapes["params"] = {name: shapes["params"][name] for name in sorted(groups, key=groups.__getitem__)}
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = shapes
        kernels, own = (sum(np.prod(shapes["params"][n]) for n in groups if groups[n] == group) for group in (0, 1))
        self.decaying = int(kernels), int(own)

    def variables(self, vectors: Mapping[str, Any]) -> dict[str, Any]:
        """Return vectors, of JAX or NumPy, as the model's variables, `{'params': {...}, 'batch_stats': {...}}`."""
        found = {}
        for key, shapes in self.shapes.items():
            ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
            parts = zip(shapes.items(), [0, *ends[:-1]], ends, strict=True)
            arrays = {name: vectors[key][start:end].reshape(shape) for (name, shape), start, end in parts}
            found[key] = traverse_util.unflatten_dict(arrays, sep="/")
        return found

    def vector(self, key: str, variables: Any) -> jax.Array:
        """Return the model's 'params' or 'batch_stats' as one vector."""
        arrays = _flat(variables)
        return jnp.concatenate([arrays[name].reshape(-1) for name in self.shapes[key]])


def init_state(model: MobileNet, layout: Layout, optimizer: str, with_ema: bool, key: jax.Array) -> TrainState:
    """Return the state before the first step. The optimiser's state does not depend on its scalars."""
    variables = model.init(key, jnp.zeros(_IMAGE))
    params, batch_stats = (layout.vector(name, variables[name]) for name in ("params", "batch_stats"))
    opt_state = optimizers.optimizer(optimizer, 0.0, 0.0).init(params)
    # A copy, because the state is donated, and a buffer can be donated only once.
    average = {"params": jnp.copy(params), "batch_stats": jnp.copy(batch_stats)} if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, average)


def start_from(state: TrainState, layout: Layout, variables: Mapping[str, Any], body_only: bool) -> TrainState:
    """Return a first state with a trained network's variables; with `body_only`, the classifier stays as it is.

    Raises:
      InputError: `variables` have other names or shapes.
    """
    vectors = {}
    for key, own in layout.variables(state.vectors).items():
        own, given = _flat(own), _flat(variables.get(key, {}))
        taken = {name for name in own if not (body_only and name.startswith("classifier/"))}
        for name in sorted(taken):
            if name not in given or given[name].shape != own[name].shape:
                raise InputError(f"the weights to start from lack {key}/{name} of shape {own[name].shape}")
        vectors[key] = layout.vector(key, traverse_util.unflatten_dict(own | {n: given[n] for n in taken}, sep="/"))
    average = None if state.ema is None else {key: jnp.copy(vector) for key, vector in vectors.items()}
    return state.replace(**vectors, ema=average)  # type: ignore[attr-defined]


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]
