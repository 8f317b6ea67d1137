"""Points in space."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.algorithms.nearest import nearest, squared_distance
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import sequencewise
from jaxloss.core.inputs import admitted, as_array, neutralised, wide_dtype
from jaxloss.core.reduction import admit_mask
from jaxloss.core.types import Array, ArrayLike, Mask, Real, Reduction, ValidMask, Weights

__all__ = ["chamfer"]


@compiled
def chamfer(
    x: Real,
    y: Real,
    *,
    x_valid: ValidMask = None,
    y_valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared distance of every point to the nearest one of the other set, both ways (Chamfer distance).

        mean over i of min_j |x_i - y_j|^2  +  mean over j of min_i |x_i - y_j|^2

    Use for point clouds and other sets without order: shapes that are reconstructed or generated.

    Args:
      x: [..., N, D] real, N points.
      y: [..., M, D] real, M points; M need not be N.
      x_valid, y_valid: [..., N] and [..., M] bool, which points exist; the others may hold anything.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the pairs of sets. A pair with an empty set
        is absent.
    Returns: squared units, in [0, inf): the sum of both means (some divide it by 2, or take distances without square);
      0 where each set is within the other. O(N M) time and O(N + M) memory: no matrix of distances. Coordinates are
      subtracted, not multiplied out: sets far from the origin keep their digits.
    Gradient: 2 (x_i - y_j) / N for the nearest j of each i, and 2 (x_i - y_j) / M for each j whose nearest is i; of
      several nearest points the first.
    Peers: pytorch3d.loss.chamfer_distance, kaolin.metrics.pointcloud.chamfer_distance.
    Reference: Fan, Su and Guibas (2017), A point set generation network for 3D object reconstruction from a single
      image, CVPR, eq. 1 (which adds the distances up).
    """
    named = admitted({"x": x, "y": y})
    both = [points.shape for points in named.values()]
    alike = all(len(shape) >= 2 and shape[:-2] == both[0][:-2] and shape[-1] == both[0][-1] for shape in both)
    if not alike:
        shapes = f"`x` {list(both[0])} and `y` {list(both[1])}"
        raise ValueError(f"{shapes} must be [..., N, D] and [..., M, D]: one batch and one last axis, of coordinates")
    in_x, in_y = (_exists(f"{name}_valid", mask, named[name]) for name, mask in (("x", x_valid), ("y", y_valid)))

    def value(x: Array, y: Array, *, alive: tuple[()]) -> tuple[Array, Array]:
        dtype = wide_dtype([x, y])
        x, y = x.astype(dtype), y.astype(dtype)
        present = jnp.any(in_x, axis=-1) & jnp.any(in_y, axis=-1)
        if x.shape[-2] == 0 or y.shape[-2] == 0:
            return jnp.zeros_like(present, dtype), present
        return _one_way(x, in_x, y, in_y) + _one_way(y, in_y, x, in_x), present

    return sequencewise(
        value,
        x=neutralised(named["x"], in_x, (named["x"].ndim - 1,)),
        y=neutralised(named["y"], in_y, (named["y"].ndim - 1,)),
        steps={"x": 2, "y": 2},
        lengths={},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _exists(name: str, mask: ArrayLike | None, points: Array) -> Array:
    given = jnp.ones((), bool) if mask is None else as_array(name, mask)
    found = admit_mask(name, given, points.shape[:-1])
    assert found is not None
    return found


def _one_way(x: Array, x_valid: Array, y: Array, y_valid: Array) -> Array:
    """The mean over the valid points x of the squared distance to the nearest valid y."""
    place = nearest(x, y, y_valid)
    distance = squared_distance(x, jnp.take_along_axis(y, place[..., None], axis=-2, mode="clip"))
    count = jnp.maximum(jnp.sum(x_valid, axis=-1), 1).astype(x.dtype)
    return jnp.sum(jnp.where(x_valid, distance, 0), axis=-1) / count
