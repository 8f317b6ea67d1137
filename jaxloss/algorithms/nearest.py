"""The nearest point of another set, for every point: no matrix of distances, and no product form of them.

|x|^2 + |y|^2 - 2 x y has no digit left for points that are close and far from the origin, so coordinates are subtracted
first. A few points y at a time are compared with all x, entry by entry: on a CPU one pass without a reduction.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = ["nearest", "squared_distance"]

_COORDINATES = 48  # differences a step and point: 16 points of 3 coordinates
_UNROLLED = 16  # coordinates that are added one by one


def nearest(x: Array, y: Array, y_valid: Array) -> Array:
    """For each x [..., N, D] the place of the nearest valid one among y [..., M, D]; the first of several, 0 of none.

    A choice: without derivatives.
    """
    x, y = lax.stop_gradient(x), lax.stop_gradient(y)
    count, features = y.shape[-2:]
    block = max(1, min(_COORDINATES // max(features, 1), count))
    missing = -count % block
    points = jnp.pad(y, [(0, 0)] * (y.ndim - 2) + [(0, missing), (0, 0)])
    exists = jnp.pad(y_valid, [(0, 0)] * (y.ndim - 2) + [(0, missing)])
    steps = (count + missing) // block
    # The steps first, and then what one step compares: [steps, block, ..., D].
    points = jnp.moveaxis(points, -2, 0).reshape(steps, block, *y.shape[:-2], features)
    exists = jnp.moveaxis(exists, -1, 0).reshape(steps, block, *y.shape[:-2])
    each = [x[..., i] for i in range(features)] if features <= _UNROLLED else None

    def step(found: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        least, place = found
        number, points, exists = part
        for k in range(block):
            if each is not None:
                distance = jnp.zeros_like(least)
                for i, coordinate in enumerate(each):
                    distance = distance + jnp.square(coordinate - points[k, ..., i, None])
            else:
                distance = squared_distance(x, points[k, ..., None, :])
            closer = (distance < least) & exists[k, ..., None]
            least = jnp.where(closer, distance, least)
            place = jnp.where(closer, number * block + k, place)
        return (least, place), None

    # Made from the inputs, so that the loop also runs where they vary over a mesh axis.
    still = 0 * (jnp.sum(x, axis=-1) > 0).astype(jnp.int32) + 0 * jnp.sum(y_valid, axis=-1, keepdims=True)
    start = (jnp.where(still == 0, jnp.inf, 0).astype(x.dtype), still.astype(jnp.int32))
    (_, place), _ = lax.scan(step, start, (jnp.arange(steps, dtype=jnp.int32), points, exists))
    return place


def squared_distance(x: Array, y: Array) -> Array:
    """|x - y|^2 over the last axis."""
    return jnp.sum(jnp.square(x - y), axis=-1)
