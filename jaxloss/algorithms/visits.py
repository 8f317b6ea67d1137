"""Rows of other devices without gathering them: each device's rows visit every other, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax

from jaxloss.core.types import Array, AxisName

__all__ = ["brought_home", "visits"]

T = TypeVar("T")


def visits(axis_name: AxisName, columns: T, look: Callable[[T], tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """What `look(columns)` found of each device's columns: for the rows here, and for the columns there.

    The second comes back to the device whose columns they are. Without `axis_name` the columns here are all.
    """
    if not axis_name:
        found, back = look(columns)
        return [found], [back]
    devices = lax.axis_size(axis_name)
    stayed: list[Any] = []
    returned: list[Any] = []
    for shift in range(devices):

        def visit(columns: T, shift: int = shift) -> tuple[Any, Any]:
            found, back = look(_sent(axis_name, columns, devices, shift))
            return found, _sent(axis_name, back, devices, -shift)

        # Each journey starts at home and is made again for the gradient: the guests of one after the other, carried on,
        # would all have to be kept. So a device holds two devices' columns at a time.
        found, back = jax.checkpoint(visit)(columns)
        stayed.append(found)
        returned.append(back)
    return stayed, returned


def _sent(axis_name: AxisName, tree: Any, devices: int, shift: int) -> Any:
    if shift == 0:
        return tree
    route = [((i + shift) % devices, i) for i in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis_name, route), tree)


def brought_home(axis_name: AxisName, x: Array) -> Array:
    """Of what each device found for all columns, [N], what all found for the columns here, [devices, n]."""
    if not axis_name:
        return x[None]
    devices = lax.axis_size(axis_name)
    return lax.all_to_all(x.reshape(devices, -1), axis_name, split_axis=0, concat_axis=0)
