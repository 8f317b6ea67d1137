"""What a loss has to know of meshes: how to read a label's entry, and how to see rows that live elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxloss.core.types import Array, AxisName

__all__ = ["all_rows", "is_label", "is_sharded", "own_rows", "refuse_hidden_rows", "take_label"]


def is_label(scores: Array, labels: Array, axis: int) -> Array:
    """True at each row's label, of the shape of `scores`: a comparison, which needs no gather under any sharding."""
    return lax.broadcasted_iota(labels.dtype, scores.shape, axis) == jnp.expand_dims(labels, axis)


def take_label(scores: Array, labels: Array, axis: int) -> Array:
    """Each row's entry at its label, `axis` kept with size 1. Labels are clipped into range, never wrapped."""
    if is_sharded(scores, axis):
        # A gather along an explicitly sharded axis is refused by jax; the compare sums shard by shard.
        clipped = jnp.clip(labels, 0, scores.shape[axis] - 1)
        here = is_label(scores, clipped, axis)
        return jnp.sum(jnp.where(here, scores, 0), axis=axis, keepdims=True, dtype=scores.dtype)
    return jnp.take_along_axis(scores, jnp.expand_dims(labels, axis), axis=axis, mode="clip")


def is_sharded(x: Array, axis: int) -> bool:
    """Whether `axis` is spread over an explicit mesh, where gathers and reshapes of it are refused."""
    sharding = jax.typeof(x).sharding
    mesh = sharding.mesh
    if mesh.empty or not any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return False
    return sharding.spec[axis] is not None


def refuse_hidden_rows(axis_name: AxisName) -> None:
    """A loss whose rows see each other is wrong inside `shard_map` unless it is told where the other rows are."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if axis_name is None and manual:
        raise ValueError(
            f"rows of this loss see each other, and here each device holds only its own (manual mesh axes "
            f"{list(manual)}): pass axis_name={manual[0]!r} to see all rows, or axis_name=() to compare local rows only"
        )


def all_rows(rows: Array, axis_name: AxisName) -> Array:
    """Every row, in order along the first axis: gathered from the devices of `axis_name`, or from an explicit mesh."""
    if axis_name:
        return lax.all_gather(rows, axis_name, tiled=True)
    if is_sharded(rows, 0):
        # Rows against rows would be sharded along two axes of one result, which jax refuses to choose for us.
        kept = tuple(jax.typeof(rows).sharding.spec)[1:]
        return jax.sharding.reshard(rows, PartitionSpec(None, *kept))
    return rows


def own_rows(count: int, axis_name: AxisName) -> Array:
    """Where `count` local rows stand among `all_rows`."""
    local = jnp.arange(count)
    return local + count * lax.axis_index(axis_name) if axis_name else local
