"""A step inside `shard_map`: allowed where every device can know what it should do, and refused where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxloss.core.reduction import Mean

__all__ = ["refuse_means_of_parts"]

_CURE = (
    "put params and batch on a mesh by NamedSharding and call the step outside of shard_map (inside of `loss_fn` "
    "shard_map is fine)"
)


def refuse_means_of_parts(terms: Mapping[str, Mean], params: Any) -> None:
    """Refuse a step in which each device would divide by the weight of its own rows.

    jax adds up the gradient of a param that several devices share. Where the loss is each device's own, that is a sum
    of means, which no mask or weight could make right; and norms, clipping and the check for nan would see a part.
    Allowed are terms that are the same everywhere (`psum` of both halves), and devices that have params of their own.

    Args:
      terms: what `loss_fn` returned, over the whole batch.
      params: those it was differentiated by.
    Raises: ValueError that says what differs between which devices.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return
    unchecked = [axis for axis in manual if axis not in _varying(jax.lax.axis_index(axis))]
    if unchecked:
        raise ValueError(
            "inside shard_map with check_vma=False, and inside pmap, jax does not say what differs between the devices "
            f"of {_listed(unchecked)}, and the step cannot know whether to add up their gradients: {_CURE}, or "
            "jax.vmap the step over models that train side by side"
        )
    losses = frozenset[str]().union(*(_varying(half) for term in terms.values() for half in (term.total, term.weight)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if _varying(leaf) != losses:
            raise ValueError(
                f"inside shard_map a step needs one loss for one set of params, but here the loss differs between the "
                f"devices of {_listed(losses)} and `params{jax.tree_util.keystr(path)}` between those of "
                f"{_listed(_varying(leaf))}: {_CURE}; or, where only the rows are in parts, return Mean(psum(total, "
                "axis), psum(weight, axis)) from `loss_fn`"
            )


def _varying(leaf: Any) -> frozenset[str]:
    """The manual mesh axes over which a value is not the same."""
    return jax.typeof(leaf).manual_axis_type.varying


def _listed(axes: Any) -> str:
    return f"mesh axes {sorted(axes)}" if axes else "no mesh axis"
