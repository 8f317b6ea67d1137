"""What a training step carries (`State`), what it reports (`Metrics`), and how a first state gets its buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array
from jaxloss.train.precision import LossScale

__all__ = ["Metrics", "State", "check_readable", "first_state", "is_traced"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that training changes, as arrays only: it can be saved, sharded, scanned over and vmapped.

    `step` counts the calls, skipped ones included. `key` never changes: the keys of a step are folded from it, so a
    resumed run draws what the unbroken run would have drawn. `skipped` counts the updates that were not made because
    something was not finite. `loss_scale` is None unless it is dynamic.
    """

    params: Any
    opt_state: Any
    model_state: Any
    step: Array
    key: Array | None
    skipped: Array
    loss_scale: LossScale | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """What one step saw, at the params it started from; on the device until somebody looks.

    `loss` is the sum of the terms' values, each times its coefficient. `terms` holds every term as a `Mean` without
    its coefficient, so that terms of several steps can be merged. `grad_norm` is the length of the gradient,
    `update_norm` that of the change that was made (0 for a skipped one). `ok` says that the gradient is finite and
    no term is nan; `infinite` counts the terms that are +inf. `aux` holds what `Aux(metrics=...)` gave.
    """

    loss: Array
    terms: dict[str, Mean]
    grad_norm: Array
    update_norm: Array
    ok: Array
    infinite: Array
    aux: dict[str, Any]


def first_state(
    params: Any,
    *,
    opt_init: Callable[[Any], Any],
    model_state: Any,
    key: Array | None,
    loss_scale: LossScale | None,
    copy: bool,
) -> State:
    """The state before the first step, made of buffers that nobody else holds and of types that a step keeps.

    Args:
      params, model_state, key: the caller's arrays.
      loss_scale: a new one, or None.
      opt_init: gives the optimizer's state for params.
      copy: False hands the caller's own buffers over.
    Returns: a `State`; on one device every leaf is committed to it, on a mesh every leaf lies on that mesh.
    Raises: TypeError for a leaf that is no array, and for a param that has no gradient.
    """
    mesh = _mesh_of(params)
    seen: set[int] = set()
    params = _own("params", params, mesh, copy, seen)
    _check_differentiable(params)
    return State(
        params=params,
        # Always copied: some optimizers put params, or one buffer twice, into their state, and donating a buffer
        # twice is an error.
        opt_state=_own("opt_state", opt_init(params), mesh, True, seen),
        model_state=_own("model_state", model_state, mesh, copy, seen),
        step=_place(jnp.zeros((), jnp.int32), mesh),
        key=_own("key", key, mesh, copy, seen),
        skipped=_place(jnp.zeros((), jnp.int32), mesh),
        loss_scale=jax.tree.map(lambda leaf: _place(leaf, mesh), loss_scale),
    )


def _own(name: str, tree: Any, mesh: Mesh | None, copy: bool, seen: set[int]) -> Any:
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    keys, leaves = [path for path, _ in paths], [leaf for _, leaf in paths]
    del paths, tree
    # Leaf by leaf and in place: a leaf that only this list holds is freed as soon as it is copied, so that a large
    # optimizer state never exists twice.
    for i, path in enumerate(keys):
        leaf = leaves[i]
        if not _is_array(leaf):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(
                f"`{where}` is {type(leaf).__name__}, not an array; a state holds arrays only: "
                "keep what is no array outside of it, for `loss_fn` to close over"
            )
        # A leaf that stands twice in the state (tied weights) would be donated twice; NumPy's memory is not ours.
        fresh = jnp.array(leaf, copy=copy or id(leaf) in seen or not isinstance(leaf, jax.Array))
        seen.add(id(fresh))
        # A weak type would become strong in the first step, and the second call would compile again.
        leaves[i] = _place(_strong(fresh), mesh)
        seen.add(id(leaves[i]))
    return jax.tree.unflatten(treedef, leaves)


def _check_differentiable(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"`params{jax.tree_util.keystr(path)}` is {leaf.dtype}, which has no gradient: give it to "
                "init(model_state=...), or let `loss_fn` close over it"
            )


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def _strong(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or not leaf.weak_type:
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _mesh_of(params: Any) -> Mesh | None:
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not is_traced(leaf) and isinstance(leaf.sharding, NamedSharding):
            mesh = leaf.sharding.mesh
            return mesh if isinstance(mesh, Mesh) else None
    return None


def _place(leaf: Array, mesh: Mesh | None) -> Array:
    """`leaf`, committed: to its mesh, or to its device. An uncommitted leaf would compile once more after a restore."""
    if is_traced(leaf):
        return leaf
    sharding = leaf.sharding
    if mesh is not None and not (isinstance(sharding, NamedSharding) and sharding.mesh == mesh):
        sharding = NamedSharding(mesh, PartitionSpec())
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # Of a typed key device_put only knows this process's devices.
        data = _place(jax.random.key_data(leaf), mesh)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if leaf.is_fully_addressable and not sharding.is_fully_addressable:
        # Through the host: what is committed to a device is not put onto other processes' devices. jax compares what
        # the processes give, so one that was started with another seed is an error.
        return jax.device_put(np.asarray(leaf), sharding)
    return jax.device_put(leaf, sharding)


def check_readable(state: Any, reading: str) -> None:
    """Refuse what no figures can be read off; `reading` says who reads what.

    Raises: TypeError for what is no `State`, or is traced; RuntimeError for a state that was donated.
    """
    if not isinstance(state, State):
        raise TypeError(f"`state` must be the `State` of train_step.init(params); got {type(state).__name__}")
    if any(is_traced(leaf) for leaf in jax.tree.leaves(state)):
        raise TypeError(f"{reading} from the device, so it cannot stand inside of jit")
    if state.step.is_deleted():
        raise RuntimeError("this `state` was donated to a step, and its arrays are deleted: give the one it returned")


def is_traced(leaf: object) -> bool:
    """Whether `leaf` stands for a value inside a transformation, and so has no device to ask for."""
    return isinstance(leaf, Tracer)
